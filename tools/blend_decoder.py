"""Blend the weights of two states of a decoder, to undo part of a run's overfitting (WiSE-FT, Wortsman et al. 2022)."""

import argparse
from pathlib import Path

import torch

from hybrid_tokenizer.diffusion import DiffusionDecoder
from hybrid_tokenizer.errors import HybridTokenizerError


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("start", type=Path, help="decoder folder before the run")
    parser.add_argument("end", type=Path, help="decoder folder after it; everything else is taken from here")
    parser.add_argument("output", type=Path, help="where the blend is written")
    parser.add_argument("--unet", type=float, default=1.0, help="share of the end in the U-Net's weights, 0 to 1")
    parser.add_argument(
        "--drawn",
        type=float,
        default=1.0,
        help="factor on what the embedded VAE's network adds to its transform code, 0 to 1",
    )
    return parser.parse_args()


@torch.no_grad()
def blend(start: DiffusionDecoder, end: DiffusionDecoder, unet: float, drawn: float) -> DiffusionDecoder:
    """`end`, changed in place. Raises HybridTokenizerError on other shares than 0 to 1 and on U-Nets of different layout."""
    for name, share in (("unet", unet), ("drawn", drawn)):
        if not 0 <= share <= 1:
            raise HybridTokenizerError(f"--{name} is {share}, expected 0 to 1; 1 keeps the end as it is")
    before, after = start.unet.state_dict(), end.unet.state_dict()
    if {name: value.shape for name, value in before.items()} != {name: value.shape for name, value in after.items()}:
        raise HybridTokenizerError("the two U-Nets have different layouts, expected two states of one run")
    end.unet.load_state_dict({name: torch.lerp(before[name], after[name], unet) for name in after})
    if drawn != 1:
        if end.config.vae_class != "AutoencoderTinyLinear":
            raise HybridTokenizerError(
                f"--drawn is for AutoencoderTinyLinear, this VAE is {end.config.vae_class}; leave it out"
            )
        for weight in end.vae.decoder.conv_out.parameters():
            weight.mul_(drawn)
    return end


def main() -> None:
    arguments = read_arguments()
    start, end = (DiffusionDecoder.from_pretrained(folder) for folder in (arguments.start, arguments.end))
    blend(start, end, arguments.unet, arguments.drawn).save_pretrained(arguments.output)


if __name__ == "__main__":
    try:
        main()
    except HybridTokenizerError as error:
        raise SystemExit(f"error: {error}") from None
