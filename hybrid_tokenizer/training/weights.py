"""Loss weights and choices of the stages. The losses themselves leave the branches unweighted."""

from dataclasses import dataclass, fields

from hybrid_tokenizer.errors import HybridTokenizerError
from hybrid_tokenizer.semantic.config import MINILM
from hybrid_tokenizer.semantic.losses import QuantizeWeights

SENTENCE, QFORMER = "sentence", "qformer"


def check_weights(weights: object) -> None:
    """No weight is negative."""
    negative = {name: value for name, value in vars(weights).items() if isinstance(value, int | float) and value < 0}
    if negative:
        raise HybridTokenizerError(f"loss weights must not be negative; got {negative}")


@dataclass
class GuideLossWeights:
    """Eq. 5 has weight 1. `vq` scales both VQ terms, whose own balance belongs to the quantizer.

    `adversarial` times VQGAN's adaptive weight is that of a hinge PatchGAN of `discriminator_layers` strided levels, from
    step `adversarial_from` on.
    """

    vq: float = 1.0
    perceptual: float = 0.0
    adversarial: float = 0.0
    adversarial_from: int = 0
    discriminator_layers: int = 2

    def __post_init__(self) -> None:
        check_weights(self)


@dataclass
class VAELossWeights:
    """Absolute error has weight 1. `colour` is the squared error of the images averaged over each latent's area: without it
    all channels of a VAE that starts from nothing settle on luminance. `latent` pulls the latents to unit size. The decoder
    sees noise of `latent_noise` on them and so learns to live with what an imperfect U-Net leaves.
    """

    perceptual: float = 0.02
    colour: float = 5.0
    latent: float = 1e-4
    latent_noise: float = 0.01

    def __post_init__(self) -> None:
        check_weights(self)


@dataclass
class UNetLossWeights:
    """How the U-Net's batches are made, not weights alone.

    `null_share` of the conditions is the null condition (for guidance), `semantic_share` of the rest Branch II's
    generation embeddings when a semantic tokenizer is given. Latents and semantic tokens are cached for `views` crops an image.
    With a guide, `guide_dropout` of the images go without it, and `prefix_dropout` of a nested guide's are shortened.
    `perceptual` weighs the efficientnet-lite0 feature distance between what the predicted latents decode to and the
    photograph, on one window of `perceptual_window` latents a side; noise prediction alone is content with a blur.
    `pixel` weighs the mean squared error of these windows.
    `vae_decoder` trains the VAE's decoder by these two as well: only it can draw what latents can not say. `vae_share` of
    the images then decode their true latents, so that it stays a decoder of any.
    Timesteps are 1000 u ** `timestep_power` for uniform u: above 1 the low noise of partial strengths is seen more often.
    `restore_share` of the images that have a guide show the guide's own latents in place of noised true ones, at the
    signal of the timestep and without noise, which is where `inversion_condition: guide` starts from; their error is that of
    the predicted clean latents.
    `crop_share` of the steps see one square of `crop` latents a side (0: none do): where the window of the decoded losses
    is smaller than the image, what the U-Net computes outside of it is mostly lost on them.
    `linear_path` lets an untrained U-Net start from the best linear estimate (`DiffusionConfig.guide_residual`).
    """

    null_share: float = 0.1
    semantic_share: float = 0.5
    guide_dropout: float = 0.1
    prefix_dropout: float = 0.3
    views: int = 2
    perceptual: float = 0.0
    perceptual_window: int = 16
    pixel: float = 0.0
    vae_decoder: bool = False
    vae_share: float = 0.2
    restore_share: float = 0.0
    timestep_power: float = 1.0
    crop: int = 0
    crop_share: float = 1.0
    linear_path: bool = False

    def __post_init__(self) -> None:
        for name in (f.name for f in fields(self) if f.name.endswith(("_share", "_dropout"))):
            if not 0 <= getattr(self, name) <= 1:
                raise HybridTokenizerError(f"unet.{name}={getattr(self, name)} must be a share in [0, 1]")
        for name in ("views", "perceptual_window"):
            if getattr(self, name) < 1:
                raise HybridTokenizerError(f"unet.{name}={getattr(self, name)} must be at least 1")
        for name in ("perceptual", "pixel", "crop"):
            if getattr(self, name) < 0:
                raise HybridTokenizerError(f"unet.{name}={getattr(self, name)} must not be negative; 0 leaves it out")
        if self.vae_decoder and not (self.perceptual or self.pixel):
            raise HybridTokenizerError(
                "unet.vae_decoder=true with unet.perceptual=0 and unet.pixel=0 has no loss that reaches the VAE's decoder; give "
                "one of them a weight"
            )
        if self.timestep_power <= 0:
            raise HybridTokenizerError(
                f"unet.timestep_power={self.timestep_power} must be positive; 1 draws all timesteps alike"
            )


@dataclass
class ContrastiveWeights:
    """Stage 1. Eq. 6 has weight 1; `distillation` teaches a vision encoder that starts from random weights.

    `text: sentence` projects a frozen sentence encoder's features; `text: qformer` is BLIP-2's way, captions through the
    causal Q-Former's own self-attention, with the BERT tokenizer in the folder `tokenizer` (null: the embedded one).
    `train_vision: false` freezes the vision encoder but for its last LayerNorm, as SEED does.
    """

    text: str = SENTENCE
    tokenizer: str | None = None
    train_vision: bool = True
    distillation: float = 1.0
    feature_width: int = 256
    temperature: float = 0.07
    temperature_floor: float = 0.01
    label_smoothing: float = 0.1
    literal_eq6: bool = False
    reference_gather: bool = False

    def __post_init__(self) -> None:
        check_weights(self)
        if self.text not in (SENTENCE, QFORMER):
            raise HybridTokenizerError(f"contrastive.text={self.text!r} is unknown; use {SENTENCE} or {QFORMER}")
        if self.distillation and (self.text != SENTENCE or not self.train_vision):
            raise HybridTokenizerError(
                f"contrastive.distillation={self.distillation} teaches a vision encoder from random weights, with "
                f"text={SENTENCE} and train_vision=true; set contrastive.distillation=0"
            )

    @classmethod
    def tiny(cls) -> "ContrastiveWeights":
        """The embedded preset's."""
        return cls()

    @classmethod
    def sd15(cls) -> "ContrastiveWeights":
        """SEED's."""
        return cls(text=QFORMER, train_vision=False, distillation=0.0)


@dataclass
class QuantizeStage(QuantizeWeights):
    """Stage 2. `text` gives eq. 8's targets: "minilm", or the folder of the Stable Diffusion in use (null: not given yet).
    `sentence`, beyond the paper: eq. 6 between the means of the generation embeddings and of their targets. The mean square
    of eq. 8 is nearly all word order, which no image tells, and alone it ends at the same embeddings for every image.

    `text_cache_mb` of host memory keep the features of captions that were met before; 0 computes them every time.
    """

    text: str | None = MINILM
    text_cache_mb: int = 0
    sentence: float = 0.0

    def __post_init__(self) -> None:
        check_weights(self)

    @classmethod
    def tiny(cls) -> "QuantizeStage":
        """The embedded preset's: its tower is cheaper than its memory."""
        return cls(sentence=0.05)

    @classmethod
    def sd15(cls) -> "QuantizeStage":
        """SEED's; the folder has to be given."""
        return cls(text=None, text_cache_mb=4096)
