#!/usr/bin/env bash
# Train the embedded preset from folders of photographs, stage by stage. A killed stage resumes when this is run again.
# DATA holds imagenet_sample/{train,val}, imagenet_extra/train and captions/{train,val}; RUNS keeps the stages.
# SINGLE=1 also trains the four guides of one size, which are no part of the preset; `scripts/eval_study.py study=guide_rates` compares them.
set -euo pipefail
cd "$(dirname "$0")/.."

pixels="[$DATA/imagenet_sample/train,$DATA/imagenet_extra/train]"
pairs="[$DATA/captions/train,$DATA/imagenet_sample/train,$DATA/imagenet_extra/train]"

train_guide() { # name and options
  $PYTHON scripts/train_guide.py recipe=tiny_guide "data.root=$pixels" data.val_root="$DATA/imagenet_sample/val" \
    output_dir="$RUNS/$1" "${@:2}"
}

$PYTHON scripts/pretrain_diffusion.py stage=vae recipe=tiny_vae "data.root=$pixels" \
  data.val_root="$DATA/imagenet_sample/val" output_dir="$RUNS/vae"
train_guide guide 'guide.guide_scales=[2,4,8,16]' guide.scale_interpolation=cosine guide.prefix_dropout=0.25
$PYTHON scripts/train_semantic.py stage=contrastive recipe=tiny_contrastive "data.root=$pairs" \
  data.val_root="$DATA/captions/val" output_dir="$RUNS/contrastive"
$PYTHON scripts/train_semantic.py stage=quantize recipe=tiny_quantize "data.root=$pairs" \
  data.val_root="$DATA/captions/val" semantic.init="$RUNS/contrastive/final" output_dir="$RUNS/quantize"
train_unet() { # name, the decoder it starts from, and options
  $PYTHON scripts/pretrain_diffusion.py stage=unet recipe=tiny_unet "data.root=$pixels" \
    data.val_root="$DATA/imagenet_sample/val" diffusion.init="$2" semantic_folder="$RUNS/quantize/final" \
    guide_folder="$RUNS/guide/final" output_dir="$RUNS/$1" "${@:3}"
}
train_unet unet_first "$RUNS/vae/final"
# The second run also trains the VAE's decoder. The blend keeps 75 % of its change to the U-Net and 30 % of the detail that its
# decoder adds, because the whole of it overfits to the teacher network (docs/experiments.md).
train_unet unet "$RUNS/unet_first/final" unet.vae_decoder=true training.max_steps=5000
$PYTHON tools/blend_decoder.py "$RUNS/unet_first/final" "$RUNS/unet/final" "$RUNS/blend" --unet 0.75 --drawn 0.3
# the decode options that `eval_study.py study=decode_sweep` recommends (docs/experiments.md)
$PYTHON tools/pack_preset.py --name tiny --guide "$RUNS/guide" --semantic "$RUNS/quantize" \
  --start linear_estimate --strength 0.2 --steps 10 \
  --diffusion "$RUNS/unet" --decoder "$RUNS/blend" --stages "$RUNS/vae" "$RUNS/contrastive" --data "$DATA" --runs "$RUNS" \
  --results benchmarks/results/tiny
$PYTHON tools/plot_curves.py benchmarks/results/tiny/{vae,guide,contrastive,quantize,unet}.json \
  --output benchmarks/results/tiny/curves.png

if [ -n "${SINGLE:-}" ]; then
  # These start from the nested guide: the same networks, on the area-resized image. Small guides get fewer codes, because
  # their training images have fewer tokens.
  from_nested=("guide.init=$RUNS/guide/final" training.warmup_steps=30 training.learning_rate=6e-4 training.ema_decay=0.99)
  train_guide guide_256 "${from_nested[@]}" training.max_steps=250
  train_guide guide_64 "${from_nested[@]}" guide.stem_factor=4 training.max_steps=350 training.batch_size=16
  train_guide guide_16 "${from_nested[@]}" guide.stem_factor=8 training.max_steps=250 training.batch_size=32 \
    guide.quantizer.codebook_size=8192
  train_guide guide_4 "${from_nested[@]}" guide.stem_factor=16 training.max_steps=250 training.batch_size=32 \
    guide.quantizer.codebook_size=2048
  guides=()
  for name in 256 64 16 4; do guides+=("+guides.single_$name=$RUNS/guide_$name/final"); done
  $PYTHON scripts/eval_study.py study=guide_rates "+guides.nested=$RUNS/guide/final" "${guides[@]}" \
    data.root="$DATA/imagenet_sample/val" "train_root=$pixels" output_dir=benchmarks/results/tiny/guide_rates
fi
