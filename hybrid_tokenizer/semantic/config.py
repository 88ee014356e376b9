"""Configuration of Branch II. The defaults are SEED v1's sizes, which the paper uses."""

from dataclasses import dataclass, field

from hybrid_tokenizer.errors import HybridTokenizerError
from hybrid_tokenizer.quantizers.config import QuantizerConfig

MINILM = "minilm"
"""Value of `quantize.text` that selects the packaged sentence encoder."""

VARIANTS = ("seed1", "seed2_mlp", "seed2_revq")


@dataclass
class SemanticConfig:
    """Configuration of Branch II. `variant` selects how decoded codes become generation embeddings.

    seed1: reverse Q-Former with 77 queries (cross-attention states of Stable Diffusion 1.x); seed2_revq: the same with one
    query (an image embedding for unCLIP); seed2_mlp: a bias-free MLP per code, flattened and projected to one embedding.
    """

    variant: str = "seed1"
    """"seed1", "seed2_mlp" or "seed2_revq"."""
    image_size: int = 224
    """Side in pixels of the vision encoder's input."""
    patch_size: int = 14
    """Side of a patch in pixels."""
    vision_width: int = 1408
    """Width of the vision encoder."""
    vision_layers: int = 39
    """Blocks of the vision encoder. EVA-CLIP has 40; BLIP-2 reads the output of the last but one."""
    vision_heads: int = 16
    """Attention heads of the vision encoder."""
    vision_mlp_width: int = 6144
    """Hidden width of its MLPs."""
    width: int = 768
    """Width of both Q-Formers and of the decoder blocks."""
    num_queries: int = 32
    """Semantic tokens per image."""
    causal: bool = True
    """Each query sees itself and earlier ones. The reference code infers this from a count of exactly 32 queries."""
    qformer_layers: int = 12
    """Blocks of the causal Q-Former."""
    qformer_heads: int = 12
    """Attention heads of both Q-Formers."""
    qformer_mlp_width: int = 3072
    """Hidden width of their MLPs."""
    cross_attention_every: int = 2
    """Every so many blocks of the Q-Former one reads the image."""
    quantizer: QuantizerConfig = field(
        default_factory=lambda: QuantizerConfig(kind="vq", codebook_size=8192, codebook_dim=32)
    )
    """The codebook."""
    decoder_layers: int = 4
    """Blocks between the codes and the embeddings."""
    decoder_heads: int = 12
    """Attention heads of these blocks."""
    decoder_mlp_width: int = 3072
    """Hidden width of their MLPs."""
    cosine_stack: bool = True
    """Has the decoder stack of eq. 7, which only training uses."""
    reverse_layers: int = 4
    """Blocks of the reverse Q-Former."""
    num_generation_embeds: int = 77
    """Generation embeddings per image: 77 for Stable Diffusion, 1 for unCLIP."""
    generation_width: int = 768
    """Width of a generation embedding."""
    mlp_widths: list[int] = field(default_factory=lambda: [256, 128, 32])
    """Hidden widths of the MLP of "seed2_mlp"."""
    dropout: float = 0.0
    """Dropout of hidden states and attention in the Q-Formers. SEED trains with 0.1."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            least = 0 if name.endswith("_layers") else 1
            if isinstance(value, int) and not isinstance(value, bool) and value < least:
                raise HybridTokenizerError(f"{name}={value} must be at least {least}")
        if not all(width >= 1 for width in self.mlp_widths):
            raise HybridTokenizerError(f"mlp_widths={self.mlp_widths} must be at least 1 each")
        if self.variant not in VARIANTS:
            raise HybridTokenizerError(f"variant={self.variant!r} is unknown; use one of {', '.join(VARIANTS)}")
        if self.image_size % self.patch_size:
            raise HybridTokenizerError(
                f"image_size={self.image_size} must be a multiple of patch_size={self.patch_size}; "
                f"use {self.image_size // self.patch_size * self.patch_size}"
            )
        for name, width, heads in (
            ("vision_heads", self.vision_width, self.vision_heads),
            ("qformer_heads", self.width, self.qformer_heads),
            ("decoder_heads", self.width, self.decoder_heads),
        ):
            if width % heads:
                raise HybridTokenizerError(f"{name}={heads} must divide the width {width}; choose a divisor")
        if self.variant == "seed2_mlp" and self.num_generation_embeds != 1:
            raise HybridTokenizerError(
                f"num_generation_embeds={self.num_generation_embeds} with variant={self.variant!r}; the MLP makes 1"
            )
        if not 0 <= self.dropout < 1:
            raise HybridTokenizerError(f"dropout={self.dropout} must be in [0, 1); SEED trains with 0.1")

    @classmethod
    def seed1(cls, cosine_stack: bool = False) -> "SemanticConfig":
        """SEED v1 as published: ViT-g of 39 blocks, 8192 codes of 32, 77 x 768 out. Training needs `cosine_stack=True`."""
        return cls(cosine_stack=cosine_stack)

    @classmethod
    def seed2(cls, variant: str = "seed2_mlp", reverse_layers: int = 4) -> "SemanticConfig":
        """SEED-2: decodes to one image embedding of width 1024. Its checkpoint includes the cosine stack."""
        return cls(variant=variant, num_generation_embeds=1, generation_width=1024, reverse_layers=reverse_layers)

    @classmethod
    def tiny(cls) -> "SemanticConfig":
        """The embedded preset's sizes: 128 px (64 patches), 32 queries, 4096 codes of width 16 (EMA), output 77 x 384
        (MiniLM's width)."""
        return cls(
            image_size=128,
            patch_size=16,
            vision_width=192,
            vision_layers=6,
            vision_heads=6,
            vision_mlp_width=768,
            width=192,
            qformer_layers=3,
            qformer_heads=6,
            qformer_mlp_width=768,
            quantizer=QuantizerConfig(kind="ema", codebook_size=4096, codebook_dim=16),
            decoder_layers=2,
            decoder_heads=6,
            decoder_mlp_width=768,
            reverse_layers=3,
            generation_width=384,
        )


@dataclass
class QuantizeLossOptions:
    """Loss weights of stage 2, from SEED's training code. The paper gives none."""

    vq: float = 5.0
    """Weight of the VQ loss."""
    cosine: float = 2.0
    """Weight of eq. 7."""
    generation: float = 0.5
    """Weight of eq. 8."""
