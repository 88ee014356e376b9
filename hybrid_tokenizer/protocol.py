"""What every row of a table implements, so that evaluation knows no tokenizer by name."""

from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor


@runtime_checkable
class ImageTokenizer(Protocol):
    """Images are float in [-1, 1], layout b 3 h w, on every method. Decoding sees the tokens alone."""

    name: str
    native_size: int | None
    """The side in pixels that the tokenizer wants, or None where any size works."""

    def encode(self, images: Float[Tensor, "b 3 h w"], generator: torch.Generator | None = None) -> Any:
        """Images to tokens."""

    def decode(
        self, tokens: Any, size: tuple[int, int], generator: torch.Generator | None = None
    ) -> Float[Tensor, "b 3 H W"]:
        """Tokens to images of `size` = (height, width)."""

    def num_tokens(self, tokens: Any) -> Int[Tensor, "b"]:
        """Tokens an image, counting only those that `decode` reads."""

    def bits(self, tokens: Any) -> Float[Tensor, "b"]:
        """Bits an image: tokens times log2 of their codebook's size."""
