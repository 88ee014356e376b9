"""Configuration of a branch's codebook."""

import math
from dataclasses import dataclass

from hybrid_tokenizer.errors import HybridTokenizerError

KINDS = ("vq", "ema", "cosine", "simvq", "fsq", "lfq")


@dataclass
class QuantizerConfig:
    """`kind`: vq (gradient codebook), ema (running means, k-means start, dead-code restart), cosine, simvq, fsq, lfq.

    cosine is ema on unit vectors. Codes used less often than `restart_below` times the mean restart at a random
    feature.

    `codebook_weight` and `commitment_weight` are the weights of the two terms of the VQ loss. MoVQGAN, taming and SEED
    use the legacy form, 0.25 for the codebook term and 1 for the commitment term. The VQ-VAE paper has them the other
    way round.
    """

    kind: str = "vq"
    """"vq", "ema", "cosine", "simvq", "fsq" or "lfq"."""
    codebook_size: int = 16384
    """Number of codes."""
    codebook_dim: int = 4
    """Width of a code."""
    codebook_weight: float = 0.25
    """Weight of the loss term that moves codes to features."""
    commitment_weight: float = 1.0
    """Weight of the loss term that moves features to codes."""
    ema_decay: float = 0.99
    """Decay per step of the running means, for "ema" and "cosine"."""
    restart_below: float = 0.1
    """Codes used less often than this share of the mean restart at a random feature, for "ema" and "cosine"."""
    fsq_levels: list[int] | None = None
    """Levels of each dimension, for "fsq". Their product is `codebook_size`."""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise HybridTokenizerError(f"quantizer kind={self.kind!r} is unknown; use one of {', '.join(KINDS)}")
        if self.codebook_size < 2 or self.codebook_dim < 1:
            raise HybridTokenizerError(
                f"codebook_size={self.codebook_size} and codebook_dim={self.codebook_dim} must be at least 2 and 1"
            )
        if self.kind == "fsq":
            if not self.fsq_levels or math.prod(self.fsq_levels) != self.codebook_size:
                raise HybridTokenizerError(
                    f"fsq_levels={self.fsq_levels} must multiply to codebook_size={self.codebook_size}, e.g. [8, 5, 5, 5] and 1000"
                )
            if len(self.fsq_levels) != self.codebook_dim:
                raise HybridTokenizerError(
                    f"codebook_dim={self.codebook_dim} must equal the {len(self.fsq_levels)} fsq_levels"
                )
        # log2, because an unbounded number could overflow the power
        if self.kind == "lfq" and math.log2(self.codebook_size) != self.codebook_dim:
            raise HybridTokenizerError(
                f"lfq needs codebook_size = 2**codebook_dim; got {self.codebook_size} and {self.codebook_dim}"
            )
