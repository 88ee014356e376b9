"""The protocol that every row of a table implements, so that evaluation does not depend on any tokenizer's class.

Evaluation encodes a row that is a `PairTokenizer` with `encode_pair(images, next_images)` and any other row with
`encode(images)`, then decodes both alike. `next_images` holds, for every image, the next one of the set in sorted order
(the last image's is the first). A generator belongs to one call. An image's result is a function of the generator's
state and of the image's own tokens. Results are independent of the batch size if every batch gets a new
`torch.Generator().manual_seed(seed)`. Optional attributes of a row: - `deterministic` (bool): every generator gives the
same images, so one seed is enough; - `compare_to` (str): the name of the row that its paired differences are taken to;
- `reference_size` (int): the side that it decodes to, where it is compared to the area-resized image;
- `render_size` (int): the side at which its diffusion model draws, before the images are resized.
"""

from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor


@runtime_checkable
class ImageTokenizer(Protocol):
    """Images are float in [-1, 1], layout b 3 h w, on every method. Decoding sees the tokens alone."""

    name: str
    native_size: int | None
    """The side in pixels that the tokenizer was trained for, or None if any size works."""

    def encode(self, images: Float[Tensor, "b 3 h w"], generator: torch.Generator | None = None) -> Any:
        """Images to tokens."""

    def decode(
        self, tokens: Any, size: tuple[int, int], generator: torch.Generator | None = None
    ) -> Float[Tensor, "b 3 H W"]:
        """Tokens to images of `size` = (height, width)."""

    def num_tokens(self, tokens: Any) -> Int[Tensor, "b"]:
        """Tokens per image, counting only those that `decode` reads."""

    def bits(self, tokens: Any) -> Float[Tensor, "b"]:
        """Bits per image: tokens times log2 of their codebook's size."""


@runtime_checkable
class PairTokenizer(ImageTokenizer, Protocol):
    """A control row that takes part of its tokens from another image of the set."""

    needs_next: bool
    """True. Tells these rows apart without isinstance."""

    def encode_pair(
        self,
        images: Float[Tensor, "b 3 h w"],
        next_images: Float[Tensor, "b 3 h w"],
        generator: torch.Generator | None = None,
    ) -> Any:
        """Images and their neighbours to tokens. `encode(images)` alone is the case of a set without neighbours: each
        image is paired with a built-in photograph."""
