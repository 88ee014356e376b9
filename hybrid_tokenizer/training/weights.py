"""Loss weights of the stages. The losses themselves leave the branches unweighted."""

from dataclasses import dataclass

from hybrid_tokenizer.errors import HybridTokenizerError


def check_weights(weights: object) -> None:
    """No weight is negative."""
    negative = {name: value for name, value in vars(weights).items() if value < 0}
    if negative:
        raise HybridTokenizerError(f"loss weights must not be negative; got {negative}")


@dataclass
class GuideLossWeights:
    """Eq. 5 has weight 1. `vq` scales both VQ terms, whose own balance belongs to the quantizer."""

    vq: float = 1.0
    perceptual: float = 0.0

    def __post_init__(self) -> None:
        check_weights(self)


@dataclass
class VAELossWeights:
    """Absolute error has weight 1. `latent` pulls latents to unit size so that noise of `latent_noise` means the same
    to every model: the decoder learns to live with what an imperfect U-Net leaves."""

    perceptual: float = 0.02
    latent: float = 1e-4
    latent_noise: float = 0.05

    def __post_init__(self) -> None:
        check_weights(self)


@dataclass
class UNetLossWeights:
    """How the U-Net's batches are made, not weights alone.

    `null_share` of the conditions is the null condition (for guidance), `semantic_share` of the rest Branch II's
    generation embeddings when a semantic tokenizer is given. Latents and semantic tokens are cached for `views` crops an image.
    """

    null_share: float = 0.1
    semantic_share: float = 0.5
    views: int = 2

    def __post_init__(self) -> None:
        for name in ("null_share", "semantic_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise HybridTokenizerError(f"unet.{name}={getattr(self, name)} must be a share in [0, 1]")
        if self.views < 1:
            raise HybridTokenizerError(f"unet.views={self.views} must be at least 1")


@dataclass
class ContrastiveWeights:
    """Stage 1. Eq. 6 has weight 1; `distillation` teaches a vision encoder that starts from random weights."""

    distillation: float = 1.0
    feature_width: int = 256
    temperature: float = 0.07
    temperature_floor: float = 0.01
    label_smoothing: float = 0.1
    literal_eq6: bool = False
    reference_gather: bool = False

    def __post_init__(self) -> None:
        check_weights(self)
