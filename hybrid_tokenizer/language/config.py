"""Options of language models on hybrid tokens. Importing them loads no model library."""

from dataclasses import dataclass

from hybrid_tokenizer.errors import HybridTokenizerError


@dataclass
class DocumentConfig:
    """How a row of captions and tokens becomes a document of the language model."""

    image_first: float = 0.5
    """Share of documents that describe a picture (image, then caption); the others draw one (caption, then image)."""
    caption_dropout: float = 0.1
    """Share of documents with an image alone. Classifier-free guidance needs them."""
    budget_weights: list[float] | None = None
    """How often an image keeps its first 1, 2, ... guide grids, coarse to fine. null: each equally often."""
    max_caption_tokens: int = 48
    """Longer captions are cut."""

    def __post_init__(self) -> None:
        for name in ("image_first", "caption_dropout"):
            if not 0 <= getattr(self, name) <= 1:
                raise HybridTokenizerError(f"documents.{name}={getattr(self, name)} is a share; give 0 to 1")
        weights = self.budget_weights
        if weights is not None and (not weights or min(weights) < 0 or sum(weights) <= 0):
            raise HybridTokenizerError(
                f"documents.budget_weights={weights} must be numbers from 0, one of them positive, e.g. [1, 1, 2, 4]"
            )
        if self.max_caption_tokens < 1:
            raise HybridTokenizerError(f"documents.max_caption_tokens={self.max_caption_tokens} must be at least 1")


@dataclass
class TokenLossWeights:
    """Weight of a token in the loss, by its kind."""

    text: float = 1.0
    """Captions before their image."""
    caption: float = 1.0
    """Captions after their image."""
    boundary: float = 1.0
    """`<img>`, `</img>`, and the end of a document after an image."""
    semantic: float = 1.0
    guide: list[float] | None = None
    """One per grid, coarse to fine. null: 1 for each."""

    def __post_init__(self) -> None:
        for name in ("text", "caption", "boundary", "semantic"):
            if getattr(self, name) < 0:
                raise HybridTokenizerError(f"loss.{name}={getattr(self, name)} must be 0 or more")
        if self.guide is not None and min(self.guide, default=-1.0) < 0:
            raise HybridTokenizerError(f"loss.guide={self.guide} must be numbers from 0, one per grid")

    def by_kind(self, num_grids: int) -> list[float]:
        """In the order of `documents.kind_names`."""
        guide = [1.0] * num_grids if self.guide is None else self.guide
        if len(guide) != num_grids:
            raise HybridTokenizerError(f"loss.guide={guide} has {len(guide)} weights for {num_grids} grids")
        return [self.text, self.caption, self.boundary, self.semantic, *guide]
