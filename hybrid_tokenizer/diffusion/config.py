"""Configuration of the diffusion component, and the options of a decode."""

import dataclasses
from dataclasses import dataclass, field
from numbers import Integral
from typing import Any, TypedDict, Unpack

from hybrid_tokenizer.checkpoints.configs import from_json
from hybrid_tokenizer.errors import HybridTokenizerError, check_number, check_whole, shown

PREDICTION_TYPES = ("epsilon", "v_prediction")
# 1000 steps would call the model at timestep 1000, one past the last it was trained on.
VALID_NUM_INFERENCE_STEPS = tuple(n for n in range(1, 1000) if 1000 % n == 0)
MOST_GUIDANCE = 100
"""Far above any use: 7.5 is Stable Diffusion's habit."""
MOST_ITERATIONS = 100

STARTS = ("ddim_inversion", "add_noise", "linear_estimate")
SAMPLERS = ("ddim", "lcm")
INVERSION_CONDITIONS = ("generation", "null")
VAE_CLASSES = ("AutoencoderKL", "AutoencoderTiny", "AutoencoderTinyLinear")  # the last one is linear_vae.py's

SD15_UNET: dict[str, Any] = {
    "sample_size": 64,
    "in_channels": 4,
    "out_channels": 4,
    "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
    "block_out_channels": [320, 640, 1280, 1280],
    "layers_per_block": 2,
    "cross_attention_dim": 768,
    "attention_head_dim": 8,  # diffusers' historical name for the number of heads
}
SD15_VAE: dict[str, Any] = {
    "in_channels": 3,
    "out_channels": 3,
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "block_out_channels": [128, 256, 512, 512],
    "layers_per_block": 2,
    "latent_channels": 4,
    "sample_size": 512,
    "scaling_factor": 0.18215,
}
TINY_UNET: dict[str, Any] = {
    "sample_size": 32,
    "in_channels": 16,
    "out_channels": 16,
    "down_block_types": ["DownBlock2D", "DownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D", "UpBlock2D"],
    "block_out_channels": [96, 128, 160],
    "layers_per_block": 1,
    "cross_attention_dim": 384,
    "attention_head_dim": 4,
    "norm_num_groups": 8,
    "addition_embed_type": "text",  # attention pools the condition into what every block reads beside the timestep
    "addition_embed_type_num_heads": 8,
}
TINY_VAE: dict[str, Any] = {
    "block_out_channels": [16] * 4,
    "latent_channels": 16,
    "decoder_channels": 128,
    # one over the deviation of each cosine coefficient on photographs
    "decoder_gain": [1.1, 7.7, 6.8, 3.9, 8.3, 13.0, 13.0, 12.0, 25.0, 22.0, 45.0, 48.0, 18.0, 18.0, 19.0, 18.0],
}


class DecodeOverrides(TypedDict, total=False):
    """Decode options of one call: a key per field of `DecodeOptions`. A key that is left out, or None, keeps the default.

    Everything that decodes takes them as `**options: Unpack[DecodeOverrides]` and passes them on unchanged.
    """

    start: str | None
    strength: float | int | None
    num_inference_steps: int | None
    guidance_scale: float | int | None
    eta: float | int | None
    inversion_condition: str | None
    num_fixed_point_iterations: int | None
    sampler: str | None


@dataclass
class DecodeOptions:
    """How a guide becomes an image: the defaults of a decoder, each of which a call can replace.

    Raises:
        HybridTokenizerError: a value of another type or outside its range, or options that contradict each other.

    Examples:
        >>> tokenizer.decode(tokens, start="ddim_inversion", strength=0.6, num_inference_steps=50)
    """

    start: str = "ddim_inversion"
    """How the guide's latents reach the noise level of `strength`. "ddim_inversion" (the paper) runs the U-Net upwards.
    "add_noise" adds Gaussian noise (SDEdit). "linear_estimate" only scales the latents by the level's signal: under the
    linear estimate of `DiffusionConfig.guide_residual` the guide has no noise, so its inversion needs no U-Net call."""
    strength: float = 0.6
    """Share of the schedule that is inverted or noised and then denoised, 0 to 1. 0 is the VAE's round trip."""
    num_inference_steps: int = 20
    """Steps of the whole schedule, of which a decode takes the `strength` share."""
    guidance_scale: float = 1.0
    """Classifier-free guidance while denoising. 1 turns it off and halves the U-Net's batch."""
    eta: float = 0.0
    """Share of DDPM's fresh noise while denoising."""
    inversion_condition: str = "generation"
    """Condition of the DDIM inversion, always without guidance: the "generation" embeddings, or the "null" condition."""
    num_fixed_point_iterations: int = 0
    """Refinements of each inversion step. Each costs one U-Net call."""
    sampler: str = "ddim"
    """"lcm" is for U-Nets distilled to a few steps (`DiffusionDecoder.fuse_lora`); it needs start="add_noise"."""

    def __post_init__(self) -> None:
        if self.start not in STARTS:
            raise HybridTokenizerError(f"start is {self.start!r}, expected one of {', '.join(STARTS)}")
        if self.sampler not in SAMPLERS:
            raise HybridTokenizerError(f"sampler is {self.sampler!r}, expected one of {', '.join(SAMPLERS)}")
        check_number("strength", self.strength, 0, 1, " (0 keeps the guide, 1 forgets most of it); try 0.6")
        check_num_inference_steps(self.num_inference_steps)
        check_number("guidance_scale", self.guidance_scale, 0, MOST_GUIDANCE, "; use 1 for no guidance")
        check_number("eta", self.eta, 0, 1, "; use 0 for deterministic steps")
        if self.inversion_condition not in INVERSION_CONDITIONS:
            renamed = "; what 'guide' did is start='linear_estimate' now" if self.inversion_condition == "guide" else ""
            raise HybridTokenizerError(
                f"inversion_condition is {self.inversion_condition!r}, expected one of "
                f"{', '.join(INVERSION_CONDITIONS)}{renamed}"
            )
        check_whole(
            "num_fixed_point_iterations", self.num_fixed_point_iterations, 0, MOST_ITERATIONS, "; use 0 for none"
        )
        if self.sampler == "lcm" and (self.start != "add_noise" or self.eta):
            raise HybridTokenizerError(
                f"sampler 'lcm' does not go with start {self.start!r} and eta {self.eta}: it cannot be inverted and draws "
                "its own noise; use start='add_noise' and eta=0"
            )

    @property
    def deterministic(self) -> bool:
        """Whether decoding from a guide draws no noise."""
        return self.start != "add_noise" and self.eta == 0

    def override(self, **options: Unpack[DecodeOverrides]) -> "DecodeOptions":
        """These options with `options` in their place; None keeps the value. Raises on a name that is no option."""
        kinds = {field.name: field.type for field in dataclasses.fields(self)}
        if unknown := sorted(set(options) - set(kinds)):
            raise HybridTokenizerError(f"unknown decode options {', '.join(unknown)}; use some of {', '.join(kinds)}")
        given = {
            name: float(value) if kinds[name] is float and type(value) is int else value
            for name, value in options.items()
            if value is not None
        }
        return dataclasses.replace(self, **given)

    @classmethod
    def from_dict(cls, values: dict[str, Any], source: str = "the decode options") -> "DecodeOptions":
        """Options as a folder stores them. Unknown names and values of another type raise.

        Folders from before "linear_estimate" had its name wrote it as the inversion condition "guide", which is read as
        what it did.
        """
        if isinstance(values, dict) and values.get("inversion_condition") == "guide":
            inverts = values.get("start", "ddim_inversion") == "ddim_inversion"
            values = values | {"inversion_condition": "generation"} | ({"start": "linear_estimate"} if inverts else {})
        return from_json(cls, values, source)


@dataclass
class DiffusionConfig:
    """U-Net, VAE, latent normalisation and prediction type of a DiffusionDecoder. Stored as its `config.json`."""

    unet: dict[str, Any] = field(default_factory=lambda: dict(TINY_UNET))
    """Keyword arguments of diffusers' UNet2DConditionModel."""
    vae_class: str = "AutoencoderTinyLinear"
    """Class of diffusers, or "AutoencoderTinyLinear"."""
    vae: dict[str, Any] = field(default_factory=lambda: dict(TINY_VAE))
    """Keyword arguments of diffusers' class of that name."""
    latent_shift: list[float] = field(default_factory=lambda: [0.0])
    """Subtracted from the VAE's output before scaling, one number, or one per channel."""
    latent_scale: list[float] = field(default_factory=lambda: [1.0])
    """latents = (VAE output - latent_shift) * latent_scale; one number, or one per channel."""
    prediction_type: str = "v_prediction"
    """What the U-Net predicts: "epsilon" (the noise) or "v_prediction"."""
    num_condition_tokens: int = 77
    """Generation embeddings that condition the U-Net."""
    guide_conditioning: bool = False
    """The U-Net also reads the guide's latents, as input channels after its own; zeros where there is no guide."""
    guide_residual: list[float] | None = None
    """Variance per channel of an image's latents minus its guide's. With it the U-Net's output is added to that of the best
    linear estimate from the guide (`ddim.linear_prediction`), for training from scratch. Published U-Nets have none."""
    decode_defaults: DecodeOptions = field(default_factory=DecodeOptions)

    def __post_init__(self) -> None:
        if self.vae_class not in VAE_CLASSES:
            raise HybridTokenizerError(f"vae_class is {self.vae_class!r}, expected one of {', '.join(VAE_CLASSES)}")
        if self.prediction_type not in PREDICTION_TYPES:
            raise unknown_prediction_type(self.prediction_type)
        if self.num_condition_tokens < 1:
            raise HybridTokenizerError(
                f"num_condition_tokens is {self.num_condition_tokens}, expected at least 1; Branch II makes 77"
            )
        added = {
            name: self.unet.get(name) for name in ("class_embed_type", "addition_embed_type", "encoder_hid_dim_type")
        }
        for name, kind in added.items():
            pools_condition = name == "addition_embed_type" and kind == "text"
            if kind is not None and not pools_condition:
                raise HybridTokenizerError(
                    f"the U-Net has {name}={kind!r}, expected none: it needs more than the generation "
                    "embeddings; use a Stable Diffusion 1.x or 2.x text-to-image model"
                )
        channels = (self.unet.get("in_channels", 4), self.unet.get("out_channels", 4))
        expected = (self.latent_channels * (2 if self.guide_conditioning else 1), self.latent_channels)
        if channels != expected:
            raise HybridTokenizerError(
                f"the U-Net has {channels[0]} input and {channels[1]} output channels, expected {expected[0]} and "
                f"{expected[1]} with this VAE and guide_conditioning={self.guide_conditioning}; use a text-to-image model "
                "(not one for inpainting or editing) and its own VAE"
            )
        for name in ("latent_shift", "latent_scale"):
            values = getattr(self, name)
            if len(values) not in (1, self.latent_channels):
                raise HybridTokenizerError(
                    f"{name} has {len(values)} numbers, expected 1 or {self.latent_channels} (one per latent channel)"
                )
        residual = self.guide_residual
        if residual is not None and not (
            self.guide_conditioning and len(residual) == self.latent_channels and min(residual) > 0
        ):
            raise HybridTokenizerError(
                f"guide_residual={residual} with guide_conditioning={self.guide_conditioning}; expected "
                f"{self.latent_channels} numbers above 0 (one per latent channel) and a U-Net that reads guides, or none"
            )
        if not all(value > 0 for value in self.latent_scale):
            raise HybridTokenizerError(f"latent_scale is {self.latent_scale}, expected numbers above 0")

    @property
    def latent_channels(self) -> int:
        return self.vae.get("latent_channels", 4)

    @property
    def cross_attention_dim(self) -> int:
        return self.unet.get("cross_attention_dim", 1280)  # diffusers' own default

    @property
    def vae_factor(self) -> int:
        """Pixels per latent, along each side."""
        name = "encoder_block_out_channels" if self.vae_class == "AutoencoderTiny" else "block_out_channels"
        return 2 ** (len(self.vae[name]) - 1)

    @property
    def trained_size(self) -> int | None:
        """The side in pixels of the images that the U-Net was trained on; None where its configuration does not say."""
        side = self.unet.get("sample_size")
        return side * self.vae_factor if isinstance(side, int) else None

    @classmethod
    def from_dict(cls, values: dict[str, Any], source: str = "the diffusion configuration") -> "DiffusionConfig":
        """The inverse of dataclasses.asdict. Unknown names and values of another type raise."""
        if isinstance(values, dict) and "decode_defaults" in values:
            values = values | {
                "decode_defaults": DecodeOptions.from_dict(values["decode_defaults"], f"{source}: decode_defaults")
            }
        return from_json(cls, values, source)

    @classmethod
    def sd15(cls) -> "DiffusionConfig":
        """Stable Diffusion 1.x: a U-Net of 859.5 M parameters and a VAE of 83.7 M."""
        return cls(
            unet=dict(SD15_UNET),
            vae_class="AutoencoderKL",
            vae=dict(SD15_VAE),
            latent_scale=[SD15_VAE["scaling_factor"]],
            prediction_type="epsilon",
        )

    @classmethod
    def tiny(cls) -> "DiffusionConfig":
        """The embedded preset: 32 x 32 x 16 latents of 256 px, text width 384."""
        return cls()


def check_num_inference_steps(num_inference_steps: Any) -> None:
    """Raise unless the steps divide the 1000 trained timesteps: otherwise the two directions use different levels."""
    if not isinstance(num_inference_steps, Integral) or isinstance(num_inference_steps, bool):
        raise HybridTokenizerError(
            f"num_inference_steps is {shown(num_inference_steps)}, expected a whole number that divides 1000; try 20"
        )
    if num_inference_steps in VALID_NUM_INFERENCE_STEPS:
        return
    below = max((n for n in VALID_NUM_INFERENCE_STEPS if n < num_inference_steps), default=None)
    above = min((n for n in VALID_NUM_INFERENCE_STEPS if n > num_inference_steps), default=None)
    nearest = " or ".join(str(n) for n in (below, above) if n is not None)
    raise HybridTokenizerError(
        f"num_inference_steps is {shown(num_inference_steps)}, expected a divisor of 1000 below it; the nearest is {nearest}"
    )


def unknown_prediction_type(prediction_type: str) -> HybridTokenizerError:
    """The error for a prediction type that is neither epsilon nor v."""
    return HybridTokenizerError(
        f"prediction_type is {prediction_type!r}, expected one of {', '.join(PREDICTION_TYPES)}; "
        "take the value from the model's scheduler/scheduler_config.json"
    )


DECODE_PRESETS: dict[str, DecodeOptions] = {
    "paper": DecodeOptions(strength=1.0, num_inference_steps=50, guidance_scale=7.5),
    "balanced": DecodeOptions(),
}
"""Named decode options of Stable Diffusion. "paper" inverts to z_T and comes back, with the steps and the guidance that are
usual there; the paper does not discuss strength. "balanced" keeps more of the guide at a quarter of the U-Net calls."""
