"""The `codec` row: WebP or AVIF of the downscaled image in no more bytes than the tokens take."""

import io
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from PIL import Image, features
from torch import Tensor

from hybrid_tokenizer.errors import HybridTokenizerError
from hybrid_tokenizer.images import from_pil, resize_bicubic, to_pil, to_uint8

SCALES = (1, 3 / 4, 1 / 2, 3 / 8, 1 / 4, 3 / 16, 1 / 8, 3 / 32, 1 / 16, 1 / 32)
ENCODER_OPTIONS = {"WEBP": {"method": 6}, "AVIF": {"speed": 6}}  # AVIF: slower speeds save under 5 % at these sizes
MAX_QUALITY = 100


@dataclass(frozen=True)
class CodecTokens:
    """One file per image. The decoder knows the image size, as it does for tokens."""

    files: tuple[bytes, ...]
    device: torch.device


class Codec:
    """The file with the best PSNR over formats, scales and qualities, within the bits allowed for the image's size.

    budget_bits: (height, width) -> bits that a tokenizer spends on such an image. If no file is that small, the smallest
    one is taken, and `bits` reports its true size.
    """

    native_size = None
    deterministic = True

    def __init__(self, budget_bits: Callable[[tuple[int, int]], float], name: str = "codec"):
        self.budget_bits = budget_bits
        self.name = name
        self.formats = tuple(kind for kind in ENCODER_OPTIONS if features.check(kind.lower()))
        if not self.formats:
            raise HybridTokenizerError("this Pillow reads neither WebP nor AVIF; install Pillow from its wheels")

    def encode(self, images: Float[Tensor, "b 3 h w"], generator: torch.Generator | None = None) -> CodecTokens:
        """One file per image."""
        budget = int(self.budget_bits((images.shape[-2], images.shape[-1])) // 8)
        files = tuple(best_file(image[None].float().cpu(), budget, self.formats) for image in images)
        return CodecTokens(files, images.device)

    def decode(
        self, tokens: CodecTokens, size: tuple[int, int], generator: torch.Generator | None = None
    ) -> Float[Tensor, "b 3 H W"]:
        """Files to images of `size`, bicubic."""
        return torch.cat([read_file(file, size) for file in tokens.files]).to(tokens.device)

    def num_tokens(self, tokens: CodecTokens) -> Int[Tensor, "b"]:
        """Bytes, one token each."""
        return torch.tensor([len(file) for file in tokens.files])

    def bits(self, tokens: CodecTokens) -> Float[Tensor, "b"]:
        """Size of the file, header included."""
        return self.num_tokens(tokens).float() * 8


def best_file(image: Float[Tensor, "1 3 h w"], budget: int, formats: tuple[str, ...] = ("WEBP", "AVIF")) -> bytes:
    """The file of at most `budget` bytes with the highest PSNR after resizing back, or else the smallest file."""
    height, width = image.shape[-2:]
    sizes = dict.fromkeys((max(1, round(height * scale)), max(1, round(width * scale))) for scale in SCALES)
    target = to_uint8(image).float()
    best: tuple[float, bytes] | None = None
    smallest: bytes | None = None
    for size in sizes:
        picture = to_pil(resize_bicubic(image, size)[0])
        for kind in formats:
            lowest = write_file(picture, kind, 0)
            if smallest is None or len(lowest) < len(smallest):
                smallest = lowest
            if len(lowest) > budget:
                continue
            file = highest_quality(picture, kind, budget, lowest)
            error = (to_uint8(read_file(file, (height, width))).float() - target).square().mean().item()
            if best is None or error < best[0]:  # the least squared error is the highest PSNR
                best = (error, file)
    if best is None:
        if smallest is None:
            raise HybridTokenizerError(f"formats={formats} names no codec; use some of {', '.join(ENCODER_OPTIONS)}")
        return smallest
    return best[1]


def highest_quality(picture: Image.Image, kind: str, budget: int, lowest: bytes) -> bytes:
    """The file of the highest quality within `budget`, found by bisection. `lowest` has quality 0 and fits."""
    fits, file, too_much = 0, lowest, MAX_QUALITY + 1
    while too_much - fits > 1:
        quality = (fits + too_much) // 2
        candidate = write_file(picture, kind, quality)
        if len(candidate) <= budget:
            fits, file = quality, candidate
        else:
            too_much = quality
    return file


def write_file(picture: Image.Image, kind: str, quality: int) -> bytes:
    """One encoded file."""
    buffer = io.BytesIO()
    picture.save(buffer, kind, quality=quality, **ENCODER_OPTIONS[kind])
    return buffer.getvalue()


def read_file(file: bytes, size: tuple[int, int]) -> Float[Tensor, "1 3 H W"]:
    """A file as an image of `size` in [-1, 1]."""
    with Image.open(io.BytesIO(file)) as picture:
        return resize_bicubic(from_pil(picture.convert("RGB"))[None], size).clamp(-1, 1)
