"""The control rows of every table: what chance, the guide and each kind of token reach alone.

Rows of the hybrid call the branches of one HybridTokenizer, so that every token they count is a token they decode from.
Where the encoder searches, all rows that read the hybrid's guide tokens share one search, which decodes with the image's own
semantic tokens and the decoder's default options: rows differ in what they decode from, not in the search. `guide_only` is
Branch I alone and its search minimises eq. 5.
"""

import functools
import math
from dataclasses import dataclass
from typing import Unpack

import torch
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor

from hybrid_tokenizer.baselines.codec import Codec
from hybrid_tokenizer.data import sample_photographs
from hybrid_tokenizer.diffusion import DecodeOverrides
from hybrid_tokenizer.errors import HybridTokenizerError
from hybrid_tokenizer.evaluation.token_cache import TokenCache
from hybrid_tokenizer.hybrid import HybridTokenizer
from hybrid_tokenizer.images import fit_square, from_pil, from_uint8, resize_area, resize_bicubic, to_uint8
from hybrid_tokenizer.protocol import ImageTokenizer

BITS_PER_PIXEL = 24
SAME_IMAGE = 0.02  # mean absolute difference, in [-1, 1], below which two photographs count as the same


@dataclass(frozen=True)
class BranchTokens:
    """The indices that a row reads, of one branch or of both."""

    semantic_indices: Int[Tensor, "b n"] | None
    guide_indices: tuple[Int[Tensor, "b _ _"], ...] | None
    image_size: tuple[int, int]

    @property
    def batch_size(self) -> int:
        """Number of images."""
        indices = self.guide_indices[0] if self.semantic_indices is None else self.semantic_indices
        return len(indices)

    @property
    def num_semantic_tokens(self) -> int:
        """Semantic tokens per image, 0 without them."""
        return 0 if self.semantic_indices is None else self.semantic_indices.shape[1]

    @property
    def num_guide_tokens(self) -> int:
        """Guide tokens per image, 0 without them."""
        return sum(grid.shape[1] * grid.shape[2] for grid in self.guide_indices or ())


class FoundGuides:
    """`encode_guide` of a HybridTokenizer with a cache, so that rows share one search per image, scales and steps.

    The cache takes 4 bytes per token.
    """

    def __init__(self, hybrid: HybridTokenizer):
        self.hybrid = hybrid
        self._searches: dict[tuple[int | None, int], TokenCache] = {}

    def encode(
        self, images: Float[Tensor, "b 3 h w"], guide_scales: int | None, search_steps: int
    ) -> tuple[Int[Tensor, "b _ _"], ...]:
        """Guide indices of `images`; a search decodes with the images' own semantic tokens."""
        if not search_steps:
            return self.hybrid.guide.encode(images, guide_scales=guide_scales)

        def search(images: Float[Tensor, "b 3 h w"]) -> tuple[Int[Tensor, "b _ _"], ...]:
            semantic_indices = self.hybrid.semantic.encode(images)
            return self.hybrid.encode_guide(images, semantic_indices, guide_scales, search_steps)

        return self._searches.setdefault((guide_scales, search_steps), TokenCache(search))(images)


class Identity:
    """`identity`: the image itself. Its tokens are the pixels, 24 bits each."""

    name = "identity"
    native_size = None
    deterministic = True

    def encode(
        self, images: Float[Tensor, "b 3 h w"], generator: torch.Generator | None = None
    ) -> Float[Tensor, "b 3 h w"]:
        """The images."""
        return images

    def decode(
        self, tokens: Float[Tensor, "b 3 h w"], size: tuple[int, int], generator: torch.Generator | None = None
    ) -> Float[Tensor, "b 3 H W"]:
        """The images, resized to `size`."""
        return resize_bicubic(tokens, size).clamp(-1, 1)

    def num_tokens(self, tokens: Float[Tensor, "b 3 h w"]) -> Int[Tensor, "b"]:
        """Pixels."""
        return torch.full((len(tokens),), tokens.shape[-2] * tokens.shape[-1])

    def bits(self, tokens: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b"]:
        """24 per pixel."""
        return self.num_tokens(tokens).float() * BITS_PER_PIXEL


class LosslessGuide(Identity):
    """`lossless_guide`: the image area-resized to the guide's size in 8 bits, then enlarged bicubically: a perfect guide.

    guide_size: the guide's shorter side at the tokenizer's native size, kept for images of any size.
    """

    name = "lossless_guide"

    def __init__(self, guide_size: int):
        self.guide_size = guide_size

    def encode(
        self, images: Float[Tensor, "b 3 h w"], generator: torch.Generator | None = None
    ) -> Float[Tensor, "b 3 guide_h guide_w"]:
        """The target of eq. 4."""
        shorter = min(images.shape[-2:])
        height, width = (max(1, round(side * self.guide_size / shorter)) for side in images.shape[-2:])
        return from_uint8(to_uint8(resize_area(images, (height, width))))


class Unrelated(Identity):
    """`unrelated`: the next image instead. It uses no token of the image: 0 tokens, 0 bits."""

    name = "unrelated"
    needs_next = True

    def encode(
        self, images: Float[Tensor, "b 3 h w"], generator: torch.Generator | None = None
    ) -> Float[Tensor, "b 3 h w"]:
        """A built-in photograph for every image."""
        return self.encode_pair(images, other_photographs(images), generator)

    def encode_pair(
        self,
        images: Float[Tensor, "b 3 h w"],
        next_images: Float[Tensor, "b 3 h w"],
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, "b 3 h w"]:
        """The next images."""
        return next_images

    def num_tokens(self, tokens: Float[Tensor, "b 3 h w"]) -> Int[Tensor, "b"]:
        """Zero."""
        return torch.zeros(len(tokens), dtype=torch.int64)


class HybridRow:
    """A HybridTokenizer reading both kinds of token, or one, with fixed options.

    use_guide: False starts from pure noise and takes all steps.
    use_semantic: False decodes under the null condition.
    search_steps: None takes the tokenizer's own.
    found: rows that share it search once per image.
    options: override the decoder's defaults. An unknown one raises here, not at the first image.
    """

    def __init__(
        self,
        hybrid: HybridTokenizer,
        name: str = "hybrid",
        *,
        use_guide: bool = True,
        use_semantic: bool = True,
        guide_scales: int | None = None,
        search_steps: int | None = None,
        found: FoundGuides | None = None,
        **options: Unpack[DecodeOverrides],
    ):
        if not (use_guide or use_semantic):
            raise HybridTokenizerError(f"row {name!r} reads neither guide nor semantic tokens; switch one of them on")
        self.hybrid = hybrid
        self.name = name
        self.native_size = hybrid.native_size
        self.use_guide = use_guide
        self.use_semantic = use_semantic
        self.guide_scales = guide_scales
        self.search_steps = hybrid.search_steps if search_steps is None else search_steps
        self.found = found or FoundGuides(hybrid)
        self.options = options
        self.deterministic = use_guide and hybrid.diffusion.config.decode_defaults.override(**options).deterministic

    @property
    def render_size(self) -> int | None:
        """The side at which diffusion draws; None draws at the size asked for."""
        return self.hybrid.render_size

    @torch.no_grad()
    def encode(self, images: Float[Tensor, "b 3 h w"], generator: torch.Generator | None = None) -> BranchTokens:
        """The indices that this row decodes from."""
        return self._encode(images, images)

    @torch.no_grad()
    def decode(
        self, tokens: BranchTokens, size: tuple[int, int], generator: torch.Generator | None = None
    ) -> Float[Tensor, "b 3 H W"]:
        """Through diffusion."""
        semantic, guide = tokens.semantic_indices, tokens.guide_indices
        return self.hybrid.decode_indices(semantic, guide, tokens.image_size, size, generator, **self.options)

    def num_tokens(self, tokens: BranchTokens) -> Int[Tensor, "b"]:
        """Tokens per image, of the kinds that this row reads."""
        return torch.full((tokens.batch_size,), tokens.num_semantic_tokens + tokens.num_guide_tokens)

    def bits(self, tokens: BranchTokens) -> Float[Tensor, "b"]:
        """Bits per image, of the kinds that this row reads."""
        semantic = tokens.num_semantic_tokens * math.log2(self.hybrid.semantic.codebook_size)
        guide = tokens.num_guide_tokens * math.log2(self.hybrid.guide.codebook_size)
        return torch.full((tokens.batch_size,), semantic + guide)

    def codebook_indices(self, tokens: BranchTokens) -> dict[str, tuple[Int[Tensor, "b n"], int]]:
        """By branch, the indices that this row reads, flattened, and the size of their codebook."""
        read = {}
        if tokens.semantic_indices is not None:
            read["semantic"] = (tokens.semantic_indices, self.hybrid.semantic.codebook_size)
        if tokens.guide_indices is not None:
            flat = torch.cat([grid.flatten(1) for grid in tokens.guide_indices], dim=1)
            read["guide"] = (flat, self.hybrid.guide.codebook_size)
        return read

    def _encode(self, images: Float[Tensor, "b 3 h w"], semantic_images: Float[Tensor, "b 3 h w"]) -> BranchTokens:
        self.hybrid.check_size(images.shape[-2], images.shape[-1])
        images, semantic_images = images.to(self.hybrid.device), semantic_images.to(self.hybrid.device)
        return BranchTokens(
            semantic_indices=self.hybrid.semantic.encode(semantic_images) if self.use_semantic else None,
            guide_indices=self._guide_indices(images) if self.use_guide else None,
            image_size=(images.shape[-2], images.shape[-1]),
        )

    def _guide_indices(self, images: Float[Tensor, "b 3 h w"]) -> tuple[Int[Tensor, "b _ _"], ...]:
        return self.found.encode(images, self.guide_scales, self.search_steps)


class GuideOfHybrid(HybridRow):
    """`guide_of_hybrid`: the hybrid's guide tokens through the guide decoder, enlarged bicubically, without diffusion.

    Compared to `hybrid` after a search, it shows what diffusion adds at equal tokens. Without a search it is `guide_only`.
    """

    def __init__(
        self,
        hybrid: HybridTokenizer,
        name: str = "guide_of_hybrid",
        *,
        guide_scales: int | None = None,
        search_steps: int | None = None,
        found: FoundGuides | None = None,
    ):
        super().__init__(
            hybrid, name, use_semantic=False, guide_scales=guide_scales, search_steps=search_steps, found=found
        )
        self.deterministic = True

    @property
    def render_size(self) -> None:
        """Nothing is drawn."""
        return None

    def decode(
        self, tokens: BranchTokens, size: tuple[int, int], generator: torch.Generator | None = None
    ) -> Float[Tensor, "b 3 H W"]:
        """The guide, resized."""
        return resize_bicubic(self.hybrid.decode_guide(tokens.guide_indices, tokens.image_size), size).clamp(-1, 1)


class GuideOnly(GuideOfHybrid):
    """`guide_only`: Branch I alone. A search of its encoder minimises eq. 5."""

    def __init__(
        self,
        hybrid: HybridTokenizer,
        name: str = "guide_only",
        *,
        guide_scales: int | None = None,
        search_steps: int | None = None,
    ):
        super().__init__(hybrid, name, guide_scales=guide_scales, search_steps=search_steps)

    def _guide_indices(self, images: Float[Tensor, "b 3 h w"]) -> tuple[Int[Tensor, "b _ _"], ...]:
        return self.hybrid.guide.encode(images, guide_scales=self.guide_scales, search_steps=self.search_steps)


class WrongSemantics(HybridRow):
    """`hybrid_wrong_semantics`: the image's guide tokens with the next image's semantic tokens.

    `semantic_only_wrong_semantics` has the next image's semantic tokens alone and is compared to `semantic_only`.
    """

    needs_next = True

    def __init__(
        self,
        hybrid: HybridTokenizer,
        *,
        use_guide: bool = True,
        found: FoundGuides | None = None,
        **options: Unpack[DecodeOverrides],
    ):
        of = "hybrid" if use_guide else "semantic_only"
        super().__init__(hybrid, f"{of}_wrong_semantics", use_guide=use_guide, found=found, **options)
        self.compare_to = of

    def encode(self, images: Float[Tensor, "b 3 h w"], generator: torch.Generator | None = None) -> BranchTokens:
        """With the semantic tokens of a built-in photograph."""
        return self.encode_pair(images, other_photographs(images), generator)

    @torch.no_grad()
    def encode_pair(
        self,
        images: Float[Tensor, "b 3 h w"],
        next_images: Float[Tensor, "b 3 h w"],
        generator: torch.Generator | None = None,
    ) -> BranchTokens:
        """Guide indices of `images`, semantic indices of `next_images`."""
        return self._encode(images, next_images)


def control_rows(hybrid: HybridTokenizer, found: FoundGuides | None = None) -> list[ImageTokenizer]:
    """Every control in the order of the table, `hybrid`, and the codec at the hybrid's bits."""
    found = found or FoundGuides(hybrid)
    return [
        Identity(),
        Unrelated(),
        LosslessGuide(hybrid.guide.config.guide_size),
        GuideOnly(hybrid),
        *([GuideOfHybrid(hybrid, found=found)] if hybrid.search_steps else []),  # without a search it is guide_only
        HybridRow(hybrid, "semantic_only", use_guide=False),
        WrongSemantics(hybrid, use_guide=False),
        HybridRow(hybrid, "guide_tokens_null_condition", use_semantic=False, found=found),
        WrongSemantics(hybrid, found=found),
        HybridRow(hybrid, found=found),
        Codec(functools.partial(bits_at_native_size, hybrid)),
    ]


def bits_at_native_size(hybrid: HybridTokenizer, image_size: tuple[int, int]) -> float:
    """Bits of all tokens of an image of (height, width) whose shorter side is resized to the native size."""
    factor, shorter = hybrid.guide.downsample_factor, min(image_size)
    height, width = (max(1, round(side * hybrid.guide.config.image_size / shorter / factor)) for side in image_size)
    num_guide_tokens = sum(h * w for h, w in hybrid.guide.guide_scale_sizes((height * factor, width * factor)))
    guide_bits = num_guide_tokens * math.log2(hybrid.guide.codebook_size)
    return guide_bits + hybrid.semantic.num_queries * math.log2(hybrid.semantic.codebook_size)


def other_photographs(images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h w"]:
    """For each image the first built-in photograph that is not the image itself, at the same size."""
    height, width = images.shape[-2:]
    side = max(height, width)
    top, left = (side - height) // 2, (side - width) // 2
    photographs = torch.stack(
        [
            from_pil(fit_square(picture, side))[:, top : top + height, left : left + width]
            for picture in _two_photographs()
        ]
    ).to(images)
    is_first = (images - photographs[:1]).abs().mean(dim=(1, 2, 3)) < SAME_IMAGE
    return photographs[is_first.long()]


@functools.cache
def _two_photographs() -> list[Image.Image]:
    return list(sample_photographs().values())[:2]
