"""Options of language models on hybrid tokens. Importing them loads no model library."""

from dataclasses import dataclass, field
from typing import Any

from hybrid_tokenizer.errors import HybridTokenizerError
from hybrid_tokenizer.training.config import TrainingConfig

ROW_STARTS = ("statistics", "codebooks")
DTYPES = ("float32", "bfloat16", "float16")


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
    """Semantic tokens."""
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


@dataclass
class LanguageModelConfig:
    """The model that is trained. The sizes are those of a new Llama; with `base` the base's own hold."""

    base: str | None = None
    """Folder or hub id of a causal language model of transformers. null: a new Llama of the sizes below."""
    revision: str | None = None
    """Of a hub id."""
    dtype: str = "float32"
    """Of the base's weights. bfloat16 halves the memory of a base that LoRA leaves frozen."""
    lora_rank: int | None = None
    """Train LoRA adapters of this rank and the rows of the image tokens; the rest of `base` stays. null: train all."""
    lora_alpha: float = 32.0
    """Scale of the adapters, divided by their rank."""
    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass: less memory, about a third more time."""
    row_start: str = "codebooks"
    """How the rows of image tokens start: "codebooks" projects the codes' vectors, "statistics" draws from the mean and
    covariance of the text's rows."""
    tokenizer: str | None = None
    """Folder or hub id of a fast tokenizer. null: that of `base`; without a base, a byte-level BPE of the captions."""
    text_vocab_size: int = 4096
    """Ids of that BPE, at most."""
    width: int = 384
    """Width of a new model."""
    layers: int = 8
    """Its blocks."""
    heads: int = 6
    """Its attention heads."""
    mlp_width: int = 1024
    """Hidden width of its MLPs."""
    embedding_width: int | None = 128
    """Width of the vocabulary's rows. null: that of the model, without the two matrices in between."""
    max_length: int = 1024
    """Longest sequence."""

    def __post_init__(self) -> None:
        if self.row_start not in ROW_STARTS:
            raise HybridTokenizerError(
                f"lm.row_start={self.row_start!r} is unknown; use one of {', '.join(ROW_STARTS)}"
            )
        if self.dtype not in DTYPES:
            raise HybridTokenizerError(f"lm.dtype={self.dtype!r} is unknown; use one of {', '.join(DTYPES)}")
        for name in ("width", "layers", "heads", "mlp_width", "embedding_width", "max_length", "lora_rank"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise HybridTokenizerError(f"lm.{name}={value} must be at least 1")
        if self.width % (2 * self.heads):
            raise HybridTokenizerError(
                f"lm.width={self.width} must be a multiple of twice lm.heads={self.heads}, since positions rotate pairs"
            )
        if self.lora_rank is not None and self.base is None:
            raise HybridTokenizerError(
                "lm.lora_rank adapts a trained model; give it in lm.base, or leave lora_rank out"
            )
        if self.text_vocab_size < 300:
            raise HybridTokenizerError(
                f"lm.text_vocab_size={self.text_vocab_size} must be at least 300: 256 bytes, three marks and some words"
            )


@dataclass
class SamplingConfig:
    """How a language model's tokens are drawn."""

    temperature: float = 1.0
    """Divides the logits. 0 takes the likeliest token."""
    top_k: int = 0
    """Draw among the likeliest k tokens. 0: among all that may come."""
    top_p: float = 1.0
    """Draw among the likeliest tokens that have this probability together."""
    guidance: float = 1.0
    """Classifier-free guidance towards the caption. 1: none."""
    batch_size: int = 16
    """Sequences at once. The samples depend on it."""

    def __post_init__(self) -> None:
        if self.temperature < 0 or self.top_k < 0 or not 0 < self.top_p <= 1:
            raise HybridTokenizerError(
                f"sampling.temperature={self.temperature} and top_k={self.top_k} must be 0 or more, top_p={self.top_p} in "
                "(0, 1]"
            )
        if self.guidance <= 0 or self.batch_size < 1:
            raise HybridTokenizerError(
                f"sampling.guidance={self.guidance} must be positive, batch_size={self.batch_size} at least 1"
            )


@dataclass
class TokenData:
    """Which token shards a language model learns from."""

    tokens: Any = "???"
    """A folder that tokenize_corpus wrote, or a list of such folders."""
    val_tokens: Any = None
    """The same, for validation. null holds out `val_share` of the images."""
    val_share: float = 0.02
    """Share of the images, by the hash of their names; all views of an image are held out together."""

    @property
    def folders(self) -> list[str]:
        return as_list("data.tokens", self.tokens)

    @property
    def val_folders(self) -> list[str]:
        return [] if self.val_tokens is None else as_list("data.val_tokens", self.val_tokens)


def as_list(name: str, value: Any) -> list[str]:
    """A path or a list of paths."""
    listed = [value] if isinstance(value, str) else value
    if not isinstance(listed, list) or not listed or not all(isinstance(one, str) for one in listed):
        raise HybridTokenizerError(f"{name}={value!r} must be a folder or a list of folders")
    return listed


@dataclass
class TrainLMConfig:
    """A language model on hybrid tokens."""

    model_name: str = "tiny"
    """The image tokenizer that made the tokens: a preset, a folder or a hub id."""
    output_dir: str = "???"
    data: TokenData = field(default_factory=TokenData)
    lm: LanguageModelConfig = field(default_factory=LanguageModelConfig)
    documents: DocumentConfig = field(default_factory=DocumentConfig)
    loss: TokenLossWeights = field(default_factory=TokenLossWeights)
    row_length: int = 448
    """Tokens per packed row: at least those of the longest document."""
    pictures: int = 4
    """Held-out captions that are drawn at each validation. 0: none, which saves time."""
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    """How they are drawn."""
    training: TrainingConfig = field(default_factory=TrainingConfig)

    def __post_init__(self) -> None:
        if self.row_length < 1 or self.pictures < 0:
            raise HybridTokenizerError(
                f"row_length={self.row_length} must be at least 1 and pictures={self.pictures} at least 0"
            )


@dataclass
class GenerateConfig:
    """Pictures from text."""

    model_name: str = "tiny"
    """The image tokenizer: a preset, a folder or a hub id."""
    language_model: str = "tiny_lm"
    """A preset, a folder that train_lm wrote, or a hub id."""
    prompt: str | None = None
    """What to draw."""
    semantic_of: str | None = None
    """A picture whose semantic tokens are kept; the language model draws the guide."""
    samples: int = 4
    """Pictures to draw."""
    budget: int | None = None
    """Tokens per picture: 36, 52, 116 or 372 for the embedded preset. null: all."""
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    seed: int = 0
    output_dir: str = "outputs/generate"
    device: str | None = None
    """cpu or cuda. null: cuda where there is one."""

    def __post_init__(self) -> None:
        if self.prompt is None and self.semantic_of is None:
            raise HybridTokenizerError(
                'there is nothing to draw; give prompt="a dog on the grass" or semantic_of=PICTURE'
            )
        if self.samples < 1:
            raise HybridTokenizerError(f"samples={self.samples} must be at least 1")


@dataclass
class CompleteConfig:
    """Pictures whose finer tokens the language model supplies."""

    model_name: str = "tiny"
    """The image tokenizer: a preset, a folder or a hub id."""
    language_model: str = "tiny_lm"
    """A preset, a folder that train_lm wrote, or a hub id."""
    input: str = "???"
    """The picture."""
    keep: int = 84
    """Guide tokens of the picture that are kept, beside its semantic tokens: 0, 4, 20 or 84 for the embedded preset."""
    prompt: str | None = None
    """A caption to follow. null: none."""
    samples: int = 4
    """Completions to draw."""
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    seed: int = 0
    output_dir: str = "outputs/complete"
    device: str | None = None
    """cpu or cuda. null: cuda where there is one."""

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise HybridTokenizerError(f"samples={self.samples} must be at least 1")


@dataclass
class CaptionConfig:
    """Captions of pictures."""

    model_name: str = "tiny"
    """The image tokenizer: a preset, a folder or a hub id."""
    language_model: str = "tiny_lm"
    """A preset, a folder that train_lm wrote, or a hub id."""
    input: str = "???"
    """A picture, or a folder of pictures."""
    budget: int | None = None
    """Tokens per picture that the model reads. null: all."""
    sampling: SamplingConfig = field(default_factory=lambda: SamplingConfig(temperature=0.0))
    seed: int = 0
    device: str | None = None
    """cpu or cuda. null: cuda where there is one."""
