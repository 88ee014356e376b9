"""Writes random weights in each baseline's published layout: names, nesting, prefixes, averages, surplus keys."""

import math
from pathlib import Path

import torch
from torch import Tensor

from hybrid_tokenizer.baselines.registry import BASELINES, GUMBEL, IBQ, LLAMAGEN, MAGVIT2, TAMING
from hybrid_tokenizer.baselines.seed import DIFFUSION_FOLDER
from hybrid_tokenizer.checkpoints.files import save_tensors, write_json
from hybrid_tokenizer.diffusion import DiffusionConfig
from hybrid_tokenizer.errors import HybridTokenizerError
from hybrid_tokenizer.verification.layouts.layouts import KANDINSKY, PUBLISHED, Layout

NESTED = {TAMING: "state_dict", GUMBEL: "state_dict", IBQ: "state_dict", MAGVIT2: "state_dict", LLAMAGEN: "model"}
"""Under which name the files of a family keep their state dict. The files of the other families are flat."""
EVA_SURPLUS: Layout = {
    **{f"blocks.39.norm{i}.{part}": (1408,) for i in (1, 2) for part in ("weight", "bias")},
    "norm.weight": (1408,), "norm.bias": (1408,), "head.weight": (1024, 1408), "head.bias": (1024,),
}  # fmt: skip


def names() -> list[str]:
    """The baselines whose files can be made."""
    return [*PUBLISHED, *KANDINSKY, "seed"]


def make_files(name: str, folder: Path, seed_layout: Layout) -> None:
    """Write all files of `name` below `folder` as they were published. `seed_layout`: names and shapes of SEED v1."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    if name == "seed":
        make_seed(folder, seed_layout)
    elif name in KANDINSKY:
        make_kandinsky(folder / "movq")
    elif name in PUBLISHED:
        baseline = BASELINES[name]
        path = folder / baseline.sources[0].file
        state = random_state(PUBLISHED[name])
        if path.suffix == ".safetensors":
            save_tensors(path, state)
        else:
            wrapper = NESTED.get(baseline.family)
            torch.save({wrapper: state} if wrapper else state, path)
    else:
        raise HybridTokenizerError(
            f"the full-size files of {name!r} cannot be made here; use one of {', '.join(names())}"
        )


def random_state(layout: Layout, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Weights that preserve the variance of their input, norms that change nothing, counters at 1."""
    state = {}
    for key, shape in layout.items():
        if len(shape) < 2:
            state[key] = torch.ones(shape) if key.endswith("weight") or not shape else torch.zeros(shape)
        else:
            state[key] = torch.randn(shape).div_(math.sqrt(math.prod(shape[1:]))).to(dtype)
    return state


def make_kandinsky(folder: Path) -> None:
    """diffusers' `VQModel` with spatial norms, as the `movq` folders hold it."""
    import diffusers

    diffusers.VQModel(
        block_out_channels=(128, 256, 256, 512), layers_per_block=2, latent_channels=4, num_vq_embeddings=16384,
        down_block_types=("DownEncoderBlock2D",) * 3 + ("AttnDownEncoderBlock2D",),
        up_block_types=("AttnUpDecoderBlock2D",) + ("UpDecoderBlock2D",) * 3,
        vq_embed_dim=4, norm_type="spatial",
    ).save_pretrained(folder)  # fmt: skip


def make_seed(folder: Path, layout: Layout) -> None:
    """EVA-CLIP in fp16 with the block and the head that SEED leaves out, SEED's two files, Stable Diffusion 1.4."""
    tower = {
        key.removeprefix("visual_encoder."): shape for key, shape in layout.items() if key.startswith("visual_encoder.")
    }
    torch.save(random_state(tower | EVA_SURPLUS, torch.float16), folder / "eva_vit_g.pth")
    first = {key: shape for key, shape in layout.items() if key.startswith(("Qformer.", "query_tokens", "ln_vision."))}
    heads: Layout = {"temp": (), "vision_proj.weight": (256, 768), "vision_proj.bias": (256,), "text_proj.weight": (256, 768), "text_proj.bias": (256,)}  # fmt: skip
    torch.save({"model": random_state(first | heads)}, folder / "causal_qformer.pth")
    rest = {key: shape for key, shape in layout.items() if not key.startswith("visual_encoder.") and key not in first}
    torch.save({"model": random_state(rest)}, folder / "seed_tokenizer.pth")
    make_stable_diffusion(folder / DIFFUSION_FOLDER)


def make_stable_diffusion(folder: Path) -> None:
    """U-Net, VAE, scheduler, text encoder and tokenizer. Only the tokenizer's vocabulary is shorter than the published one."""
    import diffusers
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    config = DiffusionConfig.sd15()
    diffusers.UNet2DConditionModel(**config.unet).save_pretrained(folder / "unet")
    diffusers.AutoencoderKL(**config.vae).save_pretrained(folder / "vae")
    diffusers.PNDMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", skip_prk_steps=True, set_alpha_to_one=False,
        steps_offset=1,
    ).save_pretrained(folder / "scheduler")  # fmt: skip
    text = CLIPTextConfig(
        hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12, bos_token_id=0, eos_token_id=1
    )  # fmt: skip
    CLIPTextModel(text).save_pretrained(folder / "text_encoder")
    words = {"<|startoftext|>": 0, "<|endoftext|>": 1, "a": 2, "a</w>": 3}
    CLIPTokenizer(vocab=words, merges=[], model_max_length=77).save_pretrained(folder / "tokenizer")
    write_json(folder / "model_index.json", {"_class_name": "StableDiffusionPipeline"})
