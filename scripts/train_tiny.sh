#!/usr/bin/env bash
# The embedded preset from folders of photographs, stage by stage; each stage resumes by itself after a kill.
# DATA holds imagenet_sample/{train,val}, imagenet_extra/train and captions/{train,val}; RUNS keeps the stages.
set -euo pipefail
cd "$(dirname "$0")/.."

pixels="[$DATA/imagenet_sample/train,$DATA/imagenet_extra/train]"
pairs="[$DATA/captions/train,$DATA/imagenet_sample/train,$DATA/imagenet_extra/train]"

$PYTHON scripts/pretrain_diffusion.py stage=vae recipe=tiny_vae "data.root=$pixels" \
  data.val_root="$DATA/imagenet_sample/val" output_dir="$RUNS/vae"
$PYTHON scripts/train_guide.py recipe=tiny_guide "data.root=$pixels" \
  data.val_root="$DATA/imagenet_sample/val" output_dir="$RUNS/guide"
$PYTHON scripts/train_semantic.py stage=contrastive recipe=tiny_contrastive "data.root=$pairs" \
  data.val_root="$DATA/captions/val" output_dir="$RUNS/contrastive"
$PYTHON scripts/train_semantic.py stage=quantize recipe=tiny_quantize "data.root=$pairs" \
  data.val_root="$DATA/captions/val" semantic.init="$RUNS/contrastive/final" output_dir="$RUNS/quantize"
$PYTHON scripts/pretrain_diffusion.py stage=unet recipe=tiny_unet data.root="$DATA/imagenet_sample/train" \
  data.val_root="$DATA/imagenet_sample/val" diffusion.init="$RUNS/vae/final" \
  semantic_folder="$RUNS/quantize/final" output_dir="$RUNS/unet"
$PYTHON scripts/pack_preset.py --name tiny --guide "$RUNS/guide" --semantic "$RUNS/quantize" \
  --diffusion "$RUNS/unet" --stages "$RUNS/vae" "$RUNS/contrastive" --data "$DATA" --runs "$RUNS" \
  --results benchmarks/results/tiny
$PYTHON scripts/plot_curves.py benchmarks/results/tiny/{vae,guide,contrastive,quantize,unet}.json \
  --output benchmarks/results/tiny/curves.png
