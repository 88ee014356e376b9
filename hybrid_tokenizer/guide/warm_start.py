"""Warm starts of a deeper Branch I from an f8 MoVQ, whose function at step 0 is known.

`base` is a state dict under Branch I's names with stem `none`, as the converters of `hybrid_tokenizer.checkpoints`
return it.
"""

from pathlib import Path

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from hybrid_tokenizer.checkpoints.files import (
    CONFIG_NAME,
    in_fp32,
    load_component_state,
    load_strict,
    one_line,
    read_config,
    read_foreign,
)
from hybrid_tokenizer.checkpoints.keys.movqgan import diffusers_vq_to_guide, movqgan_to_guide
from hybrid_tokenizer.checkpoints.keys.taming import is_spatial, taming_to_guide
from hybrid_tokenizer.checkpoints.libraries import read_weights
from hybrid_tokenizer.errors import HybridTokenizerError
from hybrid_tokenizer.guide.config import GuideConfig
from hybrid_tokenizer.guide.tokenizer import GuideTokenizer
from hybrid_tokenizer.quantizers import EmaQuantizer


def start_from(tokenizer: GuideTokenizer, path: str | Path) -> None:
    """Load a stored guide tokenizer with the same stem unchanged, and anything else that `read_base` reads as a warm start.

    A running-mean codebook is restarted where its codes would mean something else: when a single-scale guide starts
    from a nested one or from one of another size, and when a nested guide combines its scales in another way.
    """
    path = Path(path)
    state, config = read_base(path)
    mine = tokenizer.config
    same_stem = (config.stem, config.stem_factor) == (mine.stem, mine.stem_factor)
    codes = [(c.guide_scales, c.scale_interpolation, c.quantizer.kind) for c in (config, mine)]
    if same_stem and codes[0] == codes[1]:
        load_strict(tokenizer, state, str(path))
        return
    if config.stem not in ("none", mine.stem if mine.stem == "unshuffle" else "none"):
        raise HybridTokenizerError(
            f"{path} has stem={config.stem!r} x{config.stem_factor} and quantizer {config.quantizer.kind!r}, "
            f"this tokenizer {mine.stem!r} x{mine.stem_factor} and {mine.quantizer.kind!r}; start from the same kind, from a model without a stem, or with stem='unshuffle' from a smaller factor"
        )
    if isinstance(tokenizer.quantizer, EmaQuantizer) and config.stem == "unshuffle":
        state = {key: value for key, value in state.items() if not key.startswith("quantizer.")}
        state |= {f"quantizer.{key}": value for key, value in tokenizer.quantizer.state_dict().items()}
    warm_start(tokenizer, state, str(path), config.stem_factor)


def read_base(path: Path) -> tuple[dict[str, Tensor], GuideConfig]:
    """Read weights under Branch I's names, and their configuration, from any of

    a GuideTokenizer folder, a diffusers `VQModel` folder (Kandinsky's `movq`), a MoVQGAN or a VQGAN checkpoint file.
    """
    with one_line(str(path)):
        if not path.is_dir():
            state = read_foreign(path)
            converted, sizes = (movqgan_to_guide if is_spatial(state) else taming_to_guide)(state, str(path))
            return converted, GuideConfig.from_dict(sizes, str(path))
        values = read_config(path / CONFIG_NAME)
        if "block_out_channels" not in values:
            return load_component_state(path), GuideConfig.from_dict(values, str(path / CONFIG_NAME))
        converted, sizes = diffusers_vq_to_guide(in_fp32(read_weights(path)), values, str(path))
        return converted, GuideConfig.from_dict(sizes, str(path / CONFIG_NAME))


def warm_start(
    tokenizer: GuideTokenizer, base: dict[str, Tensor], source: str = "base checkpoint", base_factor: int = 1
) -> None:
    """Load `base` into `tokenizer` according to its stem. Parts that the base lacks are initialised so that the
    function is known.

    `base_factor` is the factor of the base's own unshuffle stem.

    - `residual_front`: features equal the base's on the area-resized image, bit for bit; the front's last convolution is zero.
    - `unshuffle`: the same up to rounding; `conv_in` averages over the unshuffled pixels.
    - `appended`: the trunk's features, mean-pooled, go through the base's middle block. That is another function than the
      base's, so the features start off the codebook's distribution.
    - `none`: the base itself.
    """
    state = dict(base)
    config = tokenizer.config
    fresh = tokenizer.state_dict()
    if config.stem == "residual_front":
        state |= {key: value for key, value in fresh.items() if key.startswith("stem.")}
        for name in ("weight", "bias"):
            state[f"stem.body.conv_out.{name}"] = torch.zeros_like(fresh[f"stem.body.conv_out.{name}"])
    elif config.stem == "unshuffle":
        if config.stem_factor % base_factor:
            raise HybridTokenizerError(
                f"{source} has stem_factor={base_factor}, this tokenizer {config.stem_factor}; give a multiple of the base's"
            )
        weight = base["encoder.conv_in.weight"]
        state["encoder.conv_in.weight"] = spread_over_unshuffled(weight, base_factor, config.stem_factor)
    elif config.stem == "appended":
        state |= appended_levels(fresh, len(config.encoder_channels))
    if isinstance(tokenizer.quantizer, EmaQuantizer) and "quantizer.embedding.weight" in state:
        codebook = state.pop("quantizer.embedding.weight")
        state |= {f"quantizer.{key}": value for key, value in tokenizer.quantizer.state_from(codebook).items()}
    load_strict(tokenizer, state, source)


def spread_over_unshuffled(weight: Float[Tensor, "c _ k l"], base_factor: int, factor: int) -> Float[Tensor, "c _ k l"]:
    """Adapt a convolution's weight from pixel unshuffle by `base_factor` to `factor`, a multiple of it: each of the
    base's pixels becomes the mean of a square block of finer pixels."""
    more = factor // base_factor
    pixels = rearrange(weight, "c (rgb i j) k l -> c rgb i j k l", i=base_factor, j=base_factor)
    finer = pixels.repeat_interleave(more, dim=2).repeat_interleave(more, dim=3) / more**2
    return rearrange(finer, "c rgb i j k l -> c (rgb i j) k l")


def appended_levels(fresh: dict[str, Tensor], trunk_levels: int) -> dict[str, Tensor]:
    """Tensors of the encoder levels beyond the trunk: residual branches that add zero, and 2x2 means as downsamplers."""
    trunk = {f"encoder.down_blocks.{level}." for level in range(trunk_levels - 1)}
    new = {}
    for key, value in fresh.items():
        if not key.startswith("encoder.down_blocks.") or any(key.startswith(prefix) for prefix in trunk):
            continue
        if key.endswith("downsamplers.0.conv.weight"):
            new[key] = box_filter(value)
        elif key.endswith("downsamplers.0.conv.bias"):
            new[key] = torch.zeros_like(value)
        elif not key.startswith(f"encoder.down_blocks.{trunk_levels - 1}."):
            new[key] = torch.zeros_like(value) if ".conv2." in key else value
    return new


def box_filter(like: Tensor) -> Tensor:
    """Weight of a stride-2 convolution that takes the mean of each 2x2 block, for diffusers' bottom- and right-padded input."""
    weight = torch.zeros_like(like)
    channels = torch.arange(like.shape[0])
    weight[channels, channels, :2, :2] = 0.25
    return weight
