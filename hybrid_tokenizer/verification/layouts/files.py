"""Writes random weights in each baseline's published layout: names, nesting, prefixes, averages, surplus keys."""

import math
import sys
import types
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from hybrid_tokenizer.baselines.dalle import FILES as DALLE_FILES
from hybrid_tokenizer.baselines.registry import BASELINES, GUMBEL, IBQ, LLAMAGEN, MAGVIT2, TAMING
from hybrid_tokenizer.baselines.seed import DIFFUSION_FOLDER
from hybrid_tokenizer.checkpoints.files import save_tensors, write_json
from hybrid_tokenizer.diffusion import DiffusionConfig
from hybrid_tokenizer.errors import HybridTokenizerError
from hybrid_tokenizer.verification.layouts.layouts import DALLE, KANDINSKY, PUBLISHED, Layout

NESTED = {TAMING: "state_dict", GUMBEL: "state_dict", IBQ: "state_dict", MAGVIT2: "state_dict", LLAMAGEN: "model"}
"""Under which name the files of a family keep their state dict. The files of the other families are flat."""
EVA_SURPLUS: Layout = {
    **{f"blocks.39.norm{i}.{part}": (1408,) for i in (1, 2) for part in ("weight", "bias")},
    "norm.weight": (1408,), "norm.bias": (1408,), "head.weight": (1024, 1408), "head.bias": (1024,),
}  # fmt: skip


def names() -> list[str]:
    """The baselines whose files can be made."""
    return [*PUBLISHED, *KANDINSKY, "dalle", "lavit_lowres", "seed"]


def make_files(name: str, folder: Path, stored: Mapping[str, Layout]) -> None:
    """Write all files of `name` below `folder` as they were published.

    stored: names and shapes by the name of their list: `seed1`, `lavit_tokenizer_encoder`, `lavit_tokenizer_decoder_lowres`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    if name == "seed":
        make_seed(folder, stored["seed1"])
    elif name == "lavit_lowres":
        make_lavit(folder, stored["lavit_tokenizer_encoder"], stored["lavit_tokenizer_decoder_lowres"])
    elif name == "dalle":
        for half, file in DALLE_FILES.items():
            pickle_modules(random_state(DALLE[half]), f"dall_e.{half}", half.capitalize(), folder / file)
    elif name in KANDINSKY:
        make_kandinsky(folder / "movq")
    elif name in PUBLISHED:
        baseline = BASELINES[name]
        path = folder / baseline.sources[0].file
        state = random_state(PUBLISHED[name])
        if name == "omnitokenizer":
            path = path.with_suffix(".safetensors")  # what a user makes once of a file that holds its arguments too
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


def pickle_modules(state: dict[str, Tensor], module: str, root: str, path: Path) -> None:
    """A whole module in a pickle, with DALL-E's class names. The classes exist while the file is written, and no longer."""
    names = {"dall_e": (), module: (root, f"{root}Block"), "dall_e.utils": ("Conv2d",)}
    packages = {name: types.ModuleType(name) for name in names}
    for name, classes in names.items():
        for known in classes:
            setattr(packages[name], known, type(known, (nn.Module,), {"__module__": name, "__qualname__": known}))
    before = {name: sys.modules.get(name) for name in names}
    sys.modules |= packages
    try:
        model = build_modules(state, packages[module], packages["dall_e.utils"], root)
        torch.save(model, path)
    finally:
        for name, known in before.items():
            sys.modules.pop(name)
            if known is not None:
                sys.modules[name] = known


def build_modules(
    state: dict[str, Tensor], package: types.ModuleType, utilities: types.ModuleType, root: str
) -> nn.Module:
    """Modules nested as the names say: `w` and `b` sit in a Conv2d, blocks are blocks, all else is a Sequential."""
    top: nn.Module = getattr(package, root)()
    for key, value in state.items():
        *parts, last = key.split(".")
        here = top
        for depth, part in enumerate(parts):
            if part not in here._modules:
                is_leaf, is_block = depth + 1 == len(parts), part.startswith("block_")
                made = utilities.Conv2d if is_leaf else getattr(package, f"{root}Block") if is_block else nn.Sequential
                here.add_module(part, made())
            here = here._modules[part]
        here.register_parameter(last, nn.Parameter(value, requires_grad=False))
    return top


def make_lavit(folder: Path, encoder: Layout, decoder: Layout) -> None:
    """LaVIT's low-resolution folder: the tokenizer's files, and a U-Net and VAE of Stable Diffusion 1.5's sizes."""
    import diffusers

    files, pixels, config = folder / "visual_tokenizer", folder / "pixel_decoding", DiffusionConfig.sd15()
    files.mkdir()
    pixels.mkdir()
    state = random_state(encoder)
    vision = {key.removeprefix("encoder."): value for key, value in state.items() if key.startswith("encoder.")}
    torch.save(vision, files / "eva_vitg_psz14.bin")
    torch.save(
        {key: value for key, value in state.items() if not key.startswith("encoder.")}, files / "tokenizer_encoder.bin"
    )
    torch.save(random_state(decoder), files / "tokenizer_decoder.bin")
    torch.save(torch.randn(1, 77, 768), pixels / "uncond_embeddings.bin")
    diffusers.UNet2DConditionModel(**config.unet).save_pretrained(pixels / "unet")
    diffusers.AutoencoderKL(**config.vae).save_pretrained(pixels / "vae")
    diffusers.DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear").save_pretrained(pixels / "scheduler")  # fmt: skip


def make_kandinsky(folder: Path) -> None:
    """diffusers' `VQModel` with spatial norms, as the `movq` folders hold it."""
    import diffusers

    diffusers.VQModel(
        block_out_channels=(128, 256, 256, 512), layers_per_block=2, latent_channels=4, num_vq_embeddings=16384,
        down_block_types=("DownEncoderBlock2D",) * 3 + ("AttnDownEncoderBlock2D",),
        up_block_types=("AttnUpDecoderBlock2D",) + ("UpDecoderBlock2D",) * 3,
        vq_embed_dim=4, norm_type="spatial",
    ).save_pretrained(folder)  # fmt: skip


def make_seed(
    folder: Path, layout: Layout, surplus: Layout = EVA_SURPLUS, diffusion: DiffusionConfig | None = None
) -> None:
    """EVA-CLIP in fp16 with the block and the head that SEED leaves out, SEED's two files, Stable Diffusion 1.4.

    surplus: what EVA-CLIP's file holds besides. diffusion: the sizes of Stable Diffusion; None: the published ones.
    """
    tower = {
        key.removeprefix("visual_encoder."): shape for key, shape in layout.items() if key.startswith("visual_encoder.")
    }
    torch.save(random_state(tower | surplus, torch.float16), folder / "eva_vit_g.pth")
    first = {key: shape for key, shape in layout.items() if key.startswith(("Qformer.", "query_tokens", "ln_vision."))}
    heads: Layout = {"temp": (), "vision_proj.weight": (256, 768), "vision_proj.bias": (256,), "text_proj.weight": (256, 768), "text_proj.bias": (256,)}  # fmt: skip
    torch.save({"model": random_state(first | heads)}, folder / "causal_qformer.pth")
    rest = {key: shape for key, shape in layout.items() if not key.startswith("visual_encoder.") and key not in first}
    torch.save({"model": random_state(rest)}, folder / "seed_tokenizer.pth")
    make_stable_diffusion(folder / DIFFUSION_FOLDER, diffusion)


def make_stable_diffusion(folder: Path, config: DiffusionConfig | None = None) -> None:
    """U-Net, VAE, scheduler, text encoder and tokenizer. Only the tokenizer's vocabulary is shorter than the published one."""
    import diffusers
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    config = config or DiffusionConfig.sd15()
    width = config.cross_attention_dim
    diffusers.UNet2DConditionModel(**config.unet).save_pretrained(folder / "unet")
    diffusers.AutoencoderKL(**config.vae).save_pretrained(folder / "vae")
    diffusers.PNDMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", skip_prk_steps=True, set_alpha_to_one=False,
        steps_offset=1,
    ).save_pretrained(folder / "scheduler")  # fmt: skip
    text = CLIPTextConfig(
        hidden_size=width, intermediate_size=4 * width, num_hidden_layers=12, num_attention_heads=12, bos_token_id=0, eos_token_id=1
    )  # fmt: skip
    CLIPTextModel(text).save_pretrained(folder / "text_encoder")
    words = {"<|startoftext|>": 0, "<|endoftext|>": 1, "a": 2, "a</w>": 3}
    CLIPTokenizer(vocab=words, merges=[], model_max_length=77).save_pretrained(folder / "tokenizer")
    write_json(folder / "model_index.json", {"_class_name": "StableDiffusionPipeline"})
