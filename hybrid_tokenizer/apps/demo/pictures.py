"""What the demo page computes: the token ids of an image, and the images that the ids decode to."""

import base64
import io
import time
from collections.abc import Sequence
from typing import Any, Literal

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from hybrid_tokenizer.diffusion.config import VALID_NUM_INFERENCE_STEPS
from hybrid_tokenizer.errors import HybridTokenizerError
from hybrid_tokenizer.hybrid import HybridTokenizer
from hybrid_tokenizer.images import fit_square, resize_bicubic, to_pil
from hybrid_tokenizer.tokens import HybridTokens, HybridVocabulary

Part = Literal["guide", "semantic", "hybrid"]
MAX_ID = 2**40
MAX_STEPS = 100
MAX_SEED = 2**32 - 1
SEARCH_STEPS = 8


class DemoTokenizer:
    """A tokenizer for square images of its native size. Equal ids, options and seeds give equal images."""

    def __init__(self, tokenizer: HybridTokenizer, text_vocab_size: int = 0):
        self.tokenizer = tokenizer
        self.vocabulary = tokenizer.vocabulary(text_vocab_size)

    def facts(self) -> dict[str, Any]:
        """What the page's controls need."""
        defaults = self.tokenizer.diffusion.config.decode_defaults
        vocabulary = self.vocabulary
        return {
            "name": self.tokenizer.name,
            "side": self.tokenizer.native_size,
            "sequence_lengths": vocabulary.sequence_lengths,
            "semantic_bits": (vocabulary.semantic_codebook_size - 1).bit_length(),
            "guide_bits": (vocabulary.guide_codebook_size - 1).bit_length(),
            "first_id": vocabulary.begin_id,
            "last_id": vocabulary.size - 1,
            "strength": defaults.strength,
            "steps": defaults.num_inference_steps,
            "step_choices": [steps for steps in sorted(VALID_NUM_INFERENCE_STEPS) if steps <= MAX_STEPS],
            "guidance": defaults.guidance_scale,
            "search_steps": SEARCH_STEPS if self.tokenizer.deterministic else 0,  # it decodes without noise
        }

    def encode(self, image: Image.Image, search: bool = False) -> dict[str, Any]:
        """The ids with all guide tokens, the square that was encoded, and the seconds that encoding took."""
        square = fit_square(image, self.tokenizer.native_size)
        started = time.perf_counter()
        tokens = self.tokenizer.encode(square, search_steps=SEARCH_STEPS if search else 0)
        seconds = round(time.perf_counter() - started, 2)
        return {"seconds": seconds, "ids": tokens.to_token_ids(self.vocabulary)[0].tolist(), "picture": as_png(square)}

    def decode(
        self, ids: Sequence[int], part: Part, strength: float, steps: int, guidance: float, seed: int = 0
    ) -> dict[str, Any]:
        """One image. The ids may be those of a nested guide's prefix."""
        tokens = tokens_of_ids(ids, self.vocabulary)
        return {"picture": as_png(to_pil(self._render(tokens, part, strength, steps, guidance, seed)[0]))}

    def _render(
        self, tokens: HybridTokens, part: Part, strength: float, steps: int, guidance: float, seed: int
    ) -> Float[Tensor, "1 3 h w"]:
        size = tokens.image_size
        if part == "guide":
            return resize_bicubic(self.tokenizer.decode_guide(tokens.guide_indices, size), size).clamp(-1, 1)
        grids = None if part == "semantic" else tokens.guide_indices
        return self.tokenizer.decode_indices(
            tokens.semantic_indices, grids, size, generator=torch.Generator().manual_seed(seed),
            strength=strength, num_inference_steps=steps, guidance_scale=guidance,
        )  # fmt: skip


def tokens_of_ids(ids: Sequence[int], vocabulary: HybridVocabulary) -> HybridTokens:
    """One image from the ids that a page sent."""
    if wrong := next((value for value in ids if abs(value) > MAX_ID), None):
        raise HybridTokenizerError(f"id {wrong} is not in this vocabulary; copy the ids again")
    return HybridTokens.from_token_ids(torch.tensor([list(ids)], dtype=torch.int64), vocabulary)


def as_png(image: Image.Image) -> str:
    """PNG in base64, for JSON."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()
