"""A worker that holds one tokenizer and encodes parts."""

from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from hybrid_tokenizer.checkpoints import hub
from hybrid_tokenizer.checkpoints.files import file_hash
from hybrid_tokenizer.corpus.config import EncoderConfig
from hybrid_tokenizer.errors import HybridTokenizerError
from hybrid_tokenizer.hybrid import HybridTokenizer, say_token_count
from hybrid_tokenizer.presets import PRESETS, list_presets
from hybrid_tokenizer.tokens import HybridTokens


def describe_tokenizer(
    model_name: str, image_size: int, guide_scales: int | None
) -> tuple[dict[str, Any], list[tuple[int, int]]]:
    """What a dataset says of a tokenizer, and the guide grids of its rows."""
    tokenizer = HybridTokenizer.from_pretrained(model_name)
    tokenizer.check_size(image_size, image_size)
    grids = tokenizer.guide.guide_scale_sizes((image_size, image_size))
    if guide_scales is not None and not 1 <= guide_scales <= len(grids):
        raise HybridTokenizerError(
            f"guide_scales={guide_scales} must lie in 1..{len(grids)}, the guide grids of {tokenizer.name!r}, or be null"
        )
    say_token_count("data.image_size", image_size, tokenizer, guide_scales)
    home = (
        PRESETS / model_name
        if model_name in list_presets()
        else hub.folder(model_name, expected="a tokenizer's folder")
    )
    files = sorted(path for path in home.rglob("*") if path.suffix in (".json", ".safetensors"))
    described = {
        "name": tokenizer.name,
        "hash": tokenizer.hash,
        "semantic_codebook_size": tokenizer.semantic.codebook_size,
        "guide_codebook_size": tokenizer.guide.codebook_size,
        "files_sha256": {path.relative_to(home).as_posix(): file_hash(path) for path in files},
    }
    return described, grids[:guide_scales]


class Encoder:
    """A tokenizer on its device, encoding whole batches."""

    def __init__(self, config: EncoderConfig):
        self.config = config
        self.device = torch.device(config.device)
        if self.device.type == "cpu":
            torch.set_num_threads(config.threads)
        tokenizer = HybridTokenizer.from_pretrained(config.model_name)
        if tokenizer.hash != config.tokenizer_hash:
            raise HybridTokenizerError(
                f"model_name={config.model_name!r} is tokenizer {tokenizer.hash[:12]} on this node and "
                f"{config.tokenizer_hash[:12]} where the command was given; install the same weights everywhere"
            )
        self.tokenizer = tokenizer.to(self.device, getattr(torch, config.dtype))
        if not config.search_steps:
            tokenizer.diffusion.to("meta")  # one pass does not read it

    def encode(self, pixels: UInt8[np.ndarray, "rows side side 3"]) -> list[HybridTokens]:
        """The tokens of every batch, on the CPU."""
        batches = [
            pixels[first : first + self.config.batch_size] for first in range(0, len(pixels), self.config.batch_size)
        ]
        found = [
            self.tokenizer.encode(
                self._load(batch), guide_scales=self.config.guide_scales, search_steps=self.config.search_steps
            )
            for batch in batches
        ]
        return [tokens.to("cpu") for tokens in found]

    def _load(self, pixels: UInt8[np.ndarray, "b side side 3"]) -> Tensor:
        """Onto the device with one copy, through pinned memory on a GPU; channels last, as the networks are."""
        held = torch.empty(pixels.shape, dtype=torch.uint8, pin_memory=self.device.type == "cuda")
        held.numpy()[...] = pixels
        return held.to(self.device, non_blocking=True).permute(0, 3, 1, 2)
