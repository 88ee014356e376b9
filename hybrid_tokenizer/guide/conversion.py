"""Convert MoVQ's published weights to a guide tokenizer's folder."""

from collections.abc import Sequence
from pathlib import Path

from hybrid_tokenizer.checkpoints.files import fill
from hybrid_tokenizer.errors import HybridTokenizerError
from hybrid_tokenizer.guide.tokenizer import GuideTokenizer
from hybrid_tokenizer.guide.warm_start import read_base


def convert_movq(paths: Sequence[Path], folder: Path) -> list[str]:
    """Write MoVQGAN's checkpoint file or Kandinsky's `movq` folder to `folder` as a guide tokenizer without a stem.

    `guide.init=FOLDER` starts training from it. Returns lines that describe what was written.
    """
    if len(paths) != 1:
        raise HybridTokenizerError(
            f"movq is one file or one folder, and {len(paths)} were given; convert one at a time"
        )
    state, config = read_base(paths[0])
    if config.norm_type != "spatial" or config.stem != "none":
        raise HybridTokenizerError(
            f"{paths[0]} is no MoVQ: its decoder has no spatial norms, or its encoder has a stem; give MoVQGAN's .ckpt or "
            "Kandinsky's folder movq/"
        )
    model = fill(lambda: GuideTokenizer(config), state, str(paths[0]))
    model.save_pretrained(folder)
    return [
        f"{sum(weight.numel() for weight in model.parameters()) / 1e6:.1f} M weights, {config.quantizer.codebook_size} codes, "
        f"one token per {config.downsample_factor} px; written to {folder}"
    ]
