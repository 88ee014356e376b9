"""Options of a training run: those of the loop, and those of each stage's loss and batches."""

import math
import os
from dataclasses import dataclass, field, fields
from typing import Any

from hybrid_tokenizer.errors import HybridTokenizerError
from hybrid_tokenizer.semantic.config import MINILM, QuantizeLossOptions

PRECISIONS = ("auto", "no", "bf16")
TRACKERS = ("tensorboard", "wandb", "none")
WANDB_MODES = ("offline", "online")
SENTENCE, QFORMER = "sentence", "qformer"
AT_LEAST_ONE = (
    "max_steps", "batch_size", "accumulation", "save_every", "keep_checkpoints", "validate_every", "log_every",
    "max_val_images", "num_threads",
)  # fmt: skip
AT_LEAST_ZERO = ("learning_rate", "min_learning_rate", "warmup_steps", "weight_decay", "num_workers", "seed")


SHORT_RUN = 24
"""Steps that show that a run works."""


def machine_threads() -> int:
    """The cores that this process may use, divided by the training processes on the machine."""
    return max(1, len(os.sched_getaffinity(0)) // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


@dataclass
class TrainingConfig:
    """The loop's options, the same for every stage."""

    max_steps: int = SHORT_RUN
    """Optimizer steps of the whole run. 24 show within minutes on a CPU that a run works; a recipe sets a real length."""
    epochs: float | None = None
    """Passes over the training images, in place of `max_steps`."""
    batch_size: int = 8
    """Images per micro-batch of one process. A step sees batch_size * accumulation * processes images."""
    accumulation: int = 1
    """Micro-batches whose gradients are averaged before each optimizer step."""
    learning_rate: float = 4e-4
    """Peak of the schedule: linear warm-up, then a cosine down to `min_learning_rate` at `max_steps`."""
    min_learning_rate: float = 2e-5
    """Learning rate at the last step."""
    warmup_steps: int = 100
    """Steps of linear warm-up to the peak."""
    weight_decay: float = 0.01
    """AdamW's decay of matrices and convolution kernels. Biases, norms and other vectors have none."""
    betas: list[float] = field(default_factory=lambda: [0.9, 0.99])
    """AdamW's two decay rates. 0.99 instead of 0.999 suits runs of a few thousand steps."""
    max_grad_norm: float = 1.0
    """Gradients are scaled down to this norm, over all parameters together."""
    ema_decay: float = 0.999
    """Decay per step of the averaged weights that are validated and exported. 0 exports the trained weights themselves."""
    mixed_precision: str = "auto"
    """"bf16", "no" (fp32), or "auto": bf16 where the device computes it faster."""
    compile: bool = False
    """Compile the model with torch.compile."""
    seed: int = 0
    """Seed of the initial weights, of the data order and of every random draw."""
    num_workers: int = 1
    """Loader processes per training process. They do not change the weights."""
    num_threads: int = field(default_factory=machine_threads)
    """CPU threads; not used on a GPU. The default is the machine's cores, shared by its training processes. Sums split over
    threads round differently, so a one-process CPU run gives the same weights on every machine if this is given."""
    save_every: int = 100
    """Steps between checkpoints."""
    keep_checkpoints: int = 2
    """Newest checkpoints that are kept. With two, a damaged newest one costs `save_every` steps and not the run."""
    validate_every: int = 100
    """Steps between validations."""
    max_val_images: int = 32
    """Validation images, spread evenly over the validation set."""
    log_every: int = 10
    """Steps between log rows. Each row is a mean over the steps since the last."""
    max_minutes: float | None = None
    """Save and stop after this many minutes; null sets no limit. The same command resumes."""
    tracker: str = "tensorboard"
    """"tensorboard", "wandb" or "none". metrics.jsonl is always written."""
    run_name: str | None = None
    """Name in Weights & Biases. null is the name of `output_dir`. A resumed run continues under its id in `run_id.txt`."""
    wandb_project: str = "hybrid_tokenizer"
    """Project name in Weights & Biases."""
    wandb_mode: str = "offline"
    """"offline" keeps the run's files on this machine, "online" sends them."""
    progress: bool = True
    """Show a progress bar."""
    allow_changes: bool = False
    """Resume with other data, options or precision than the checkpoint was trained with. The changes are listed, and
    training.json records them. false refuses such a resume."""

    def __post_init__(self) -> None:
        if self.mixed_precision not in PRECISIONS:
            raise HybridTokenizerError(
                f"training.mixed_precision={self.mixed_precision!r} is unknown; use one of {', '.join(PRECISIONS)}"
            )
        if self.tracker not in TRACKERS:
            raise HybridTokenizerError(
                f"training.tracker={self.tracker!r} is unknown; use one of {', '.join(TRACKERS)}"
            )
        if self.wandb_mode not in WANDB_MODES:
            raise HybridTokenizerError(
                f"training.wandb_mode={self.wandb_mode!r} is unknown; use {' or '.join(WANDB_MODES)}"
            )
        for name, value in vars(self).items():
            if isinstance(value, float) and not math.isfinite(value):
                raise HybridTokenizerError(f"training.{name}={value} must be a finite number")
        for names, least in ((AT_LEAST_ONE, 1), (AT_LEAST_ZERO, 0)):
            for name in names:
                if getattr(self, name) < least:
                    raise HybridTokenizerError(f"training.{name}={getattr(self, name)} must be at least {least}")
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise HybridTokenizerError(f"training.betas={self.betas} must be two numbers in [0, 1), e.g. [0.9, 0.99]")
        if self.max_grad_norm <= 0:
            raise HybridTokenizerError(
                f"training.max_grad_norm={self.max_grad_norm} must be positive; a large one clips nothing"
            )
        if self.epochs is not None and self.epochs <= 0:
            raise HybridTokenizerError(f"training.epochs={self.epochs} must be positive; null counts max_steps")
        if self.max_minutes is not None and self.max_minutes <= 0:
            raise HybridTokenizerError(f"training.max_minutes={self.max_minutes} must be positive; null sets no limit")
        if not 0 <= self.ema_decay < 1:
            raise HybridTokenizerError(f"training.ema_decay={self.ema_decay} must be in [0, 1); 0 turns averaging off")


def check_not_negative(group: str, options: Any) -> None:
    """Raise where a number of `options` is negative."""
    for name, value in vars(options).items():
        if isinstance(value, int | float) and value < 0:
            raise HybridTokenizerError(f"{group}.{name}={value} must not be negative; 0 leaves it out")


@dataclass
class GuideLossOptions:
    """Loss of Branch I: eq. 5 with weight 1, and these terms."""

    vq: float = 1.0
    """Weight of the VQ loss. The balance of its two terms belongs to the quantizer (`guide.quantizer`)."""
    perceptual: float = 0.0
    """Weight of the efficientnet-lite0 feature distance at the guide's size. The paper's loss has no such term."""
    adversarial: float = 0.0
    """Weight of a hinge PatchGAN, on top of VQGAN's adaptive weight. The paper's loss has no such term."""
    adversarial_from: int = 0
    """First step with the discriminator."""
    discriminator_layers: int = 2
    """Strided levels of the discriminator. MoVQGAN has 2."""

    def __post_init__(self) -> None:
        check_not_negative("loss", self)


@dataclass
class VAELossOptions:
    """Loss of the embedded preset's VAE: the mean absolute error with weight 1, and these terms."""

    perceptual: float = 0.02
    """Weight of the efficientnet-lite0 feature distance."""
    colour: float = 5.0
    """Weight of the squared error of the images averaged over each latent's area. Without it all channels of a VAE that
    starts from random weights settle on luminance."""
    latent: float = 1e-4
    """Weight of the latents' mean square, which pulls them to unit size."""
    latent_noise: float = 0.01
    """Deviation of the noise that the decoder sees on its latents, so that it tolerates the errors of a U-Net."""

    def __post_init__(self) -> None:
        check_not_negative("vae_loss", self)


@dataclass
class UNetOptions:
    """Batches and loss of the U-Net: the denoising error with weight 1, and these terms."""

    null_share: float = 0.1
    """Share of the images that train under the null condition, which classifier-free guidance needs. 0.1 is the usual
    value (Ho and Salimans 2022)."""
    semantic_share: float = 0.5
    """Share of the other images that read Branch II's generation embeddings; the rest read text features. It matters only
    where both are given. 0.5 is an equal mix; 1 trains on what decoding uses."""
    guide_dropout: float = 0.1
    """Share of the images that do not see their guide, so that decoding without a guide works too."""
    prefix_dropout: float = 0.3
    """Share of the images that see a shorter prefix of a nested guide, so that every token budget decodes well."""
    views: int = 2
    """Random crops per image that are encoded once and cached. The cache and its computation grow in proportion."""
    perceptual: float = 0.0
    """Weight of the efficientnet-lite0 feature distance between the decoded prediction and the photograph, on one window
    per image. Noise prediction alone settles for a blur. 0 by default, because each step then also decodes latents."""
    perceptual_window: int = 16
    """Side of that window, in latents. 16 latents of an f8 VAE are 128 pixels, a quarter of an image of 256."""
    pixel: float = 0.0
    """Weight of the mean squared error on the same window."""
    vae_decoder: bool = False
    """Also train the VAE's decoder by `perceptual` and `pixel`: it alone can draw detail that latents do not carry."""
    vae_share: float = 0.2
    """With `vae_decoder`, share of the images whose true latents are decoded, so that it stays a decoder of any latents."""
    restore_share: float = 0.0
    """Share of the images with a guide that show the U-Net the guide's own latents, scaled by the timestep's signal and
    without noise, in place of noised true latents. `start="linear_estimate"` decodes from there. Their loss is the error
    of the predicted clean latents."""
    timestep_power: float = 1.0
    """Timesteps are num_train_timesteps * u ** timestep_power for uniform u: 1 draws all alike, more than 1 favours low
    noise, less than 1 high noise."""
    crop: int = 0
    """Side, in latents, of the square that a step sees; 0 shows whole images. With decoded losses on a small window, most
    of what the U-Net computes elsewhere gets no gradient from them."""
    crop_share: float = 1.0
    """Share of the steps that see such a square; the others see whole images."""
    linear_path: bool = False
    """Start an untrained U-Net from the best linear estimate (`DiffusionConfig.guide_residual`), which needs a guide."""

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
                "unet.vae_decoder=true with unet.perceptual=0 and unet.pixel=0 has no loss that reaches the VAE's decoder; "
                "give one of them a weight"
            )
        if self.timestep_power <= 0:
            raise HybridTokenizerError(
                f"unet.timestep_power={self.timestep_power} must be positive; 1 draws all timesteps alike"
            )


@dataclass
class ContrastiveOptions:
    """Stage 1 of Branch II: eq. 6 with weight 1. The defaults are the embedded preset's."""

    text: str = SENTENCE
    """"sentence" projects the features of a frozen sentence encoder. "qformer" is BLIP-2's way: captions go through the
    causal Q-Former's own self-attention."""
    tokenizer: str | None = None
    """Folder of the BERT tokenizer for `text: qformer`; null is the embedded one."""
    train_vision: bool = True
    """Train the vision encoder. false freezes it except for its last LayerNorm, as SEED does."""
    distillation: float = 1.0
    """Weight of a loss by which the patches also predict a feature network's map. A vision encoder that starts from random
    weights learns little from a few thousand captions alone; a pretrained one needs 0."""
    feature_width: int = 256
    """Width of the projections that eq. 6 compares. BLIP-2 has 256."""
    temperature: float = 0.07
    """Initial temperature, which is learnt. SEED starts at 0.07."""
    temperature_floor: float = 0.01
    """Lowest temperature. It protects small batches; with SEED's batch of 4096 the temperature stays far above it."""
    label_smoothing: float = 0.1
    """Label smoothing of the cross-entropy, as in SEED."""
    literal_eq6: bool = False
    """Eq. 6 as printed: image to text only, without smoothing."""
    reference_gather: bool = False
    """Gather features without gradient as SEED does, which halves the gradient of the same loss."""
    chunk_size: int | None = None
    """Pairs whose activations are in memory at once. Features are computed chunk by chunk without activations, eq. 6 is taken
    over the whole batch of all processes, and each chunk runs again for its gradient (GradCache): a large `batch_size` then
    costs the memory of a small one, for a second forward pass. null runs the batch as one."""

    def __post_init__(self) -> None:
        check_not_negative("contrastive", self)
        if self.text not in (SENTENCE, QFORMER):
            raise HybridTokenizerError(f"contrastive.text={self.text!r} is unknown; use {SENTENCE} or {QFORMER}")
        if self.chunk_size is not None and self.chunk_size < 1:
            raise HybridTokenizerError(
                f"contrastive.chunk_size={self.chunk_size} must be at least 1; null is no chunks"
            )
        if self.distillation and (self.text != SENTENCE or not self.train_vision):
            raise HybridTokenizerError(
                f"contrastive.distillation={self.distillation} teaches a vision encoder from random weights, with "
                f"text={SENTENCE} and train_vision=true; set contrastive.distillation=0"
            )

    @classmethod
    def tiny(cls) -> "ContrastiveOptions":
        """The embedded preset's."""
        return cls()

    @classmethod
    def sd15(cls) -> "ContrastiveOptions":
        """SEED's."""
        return cls(text=QFORMER, train_vision=False, distillation=0.0)


@dataclass
class QuantizeOptions(QuantizeLossOptions):
    """Stage 2 of Branch II: eqs. 7 and 8 and the VQ loss."""

    text: str | None = MINILM
    """Targets of eq. 8: "minilm" (the embedded sentence encoder), or the folder of the Stable Diffusion in use, whose text
    encoder gives them."""
    text_cache_mb: int = 0
    """Megabytes of host memory that keep the features of captions seen before; 0 computes them every time."""
    sentence: float = 0.0
    """Weight of eq. 6 between the means of the generation embeddings and of their targets; beyond the paper. The mean square
    of eq. 8 is nearly all word order, which no image shows: alone it can end at the same embeddings for every image."""

    def __post_init__(self) -> None:
        check_not_negative("quantize", self)

    @classmethod
    def tiny(cls) -> "QuantizeOptions":
        """The embedded preset's. Its text encoder costs less than the memory of a cache."""
        return cls(sentence=0.05)

    @classmethod
    def sd15(cls) -> "QuantizeOptions":
        """SEED's. `text` must be given."""
        return cls(text=None, text_cache_mb=4096)
