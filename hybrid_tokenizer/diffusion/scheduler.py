"""The noise schedule, from one dictionary that inversion, denoising, training and the stored `scheduler/` folder share.

No sampler's defaults are used: those of diffusers' two DDIM classes differ from Stable Diffusion in beta schedule, clipping,
offset and last level, and a round trip hides most such mistakes.
"""

from functools import cached_property
from pathlib import Path
from typing import Any

from hybrid_tokenizer.checkpoints.files import read_config, write_json
from hybrid_tokenizer.diffusion.config import PREDICTION_TYPES, check_num_inference_steps, unknown_prediction_type
from hybrid_tokenizer.diffusion.ddim import (
    Level,
    Step,
    leading_steps,
    noise_levels,
    scaled_linear_alphas_cumprod,
)
from hybrid_tokenizer.errors import HybridTokenizerError

PINNED: dict[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
    "timestep_spacing": "leading",
    "rescale_betas_zero_snr": False,
    "thresholding": False,
}
"""All but the prediction type, which belongs to the model."""

# What the model was trained with. A file must state them: their absence means another schedule.
STATED = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule")
# Off where a file does not state them. The other keys of PINNED only choose a sampler's timesteps; ours replace them.
OFF = ("rescale_betas_zero_snr", "clip_sample", "thresholding")

SCHEDULER_FILE = "scheduler_config.json"


class Schedule:
    """The noise levels of the pinned schedule and its intervals for a number of steps."""

    def __init__(self, prediction_type: str):
        if prediction_type not in PREDICTION_TYPES:
            raise unknown_prediction_type(prediction_type)
        self.prediction_type = prediction_type
        self.alphas_cumprod = scaled_linear_alphas_cumprod(
            PINNED["num_train_timesteps"], PINNED["beta_start"], PINNED["beta_end"]
        )

    @property
    def num_train_timesteps(self) -> int:
        return len(self.alphas_cumprod)

    @property
    def diffusers_config(self) -> dict[str, Any]:
        """Keyword arguments of diffusers' DDIMScheduler. Its inverse takes all but `thresholding`."""
        return {**PINNED, "prediction_type": self.prediction_type}

    @cached_property
    def levels(self) -> list[Level]:
        return noise_levels(self.alphas_cumprod)

    def steps(self, num_inference_steps: int) -> tuple[Step, ...]:
        """All intervals, cleanest first. Raises where the number does not divide the 1000 trained timesteps."""
        check_num_inference_steps(num_inference_steps)
        return leading_steps(self.levels, num_inference_steps, PINNED["steps_offset"])


def read_prediction_type(folder: Path) -> str:
    """The prediction type of a diffusers `scheduler/` folder of any sampler.

    Raises where the model was trained on other noise levels, or is to be sampled with clipping.
    """
    path = folder / SCHEDULER_FILE
    config = read_config(path)
    for key in STATED + OFF:
        value = config.get(key, PINNED[key] if key in OFF else None)
        if value != PINNED[key]:
            raise HybridTokenizerError(
                f"{path} has {key}={value!r}, expected {PINNED[key]!r}: DDIM inversion needs Stable "
                f"Diffusion's own schedule without clipping; set it to {PINNED[key]!r} if the model was trained with it, "
                "or use another model"
            )
    if config.get("trained_betas") is not None:
        raise HybridTokenizerError(
            f"{path} has its own trained_betas, expected null: only Stable Diffusion's scaled_linear schedule is "
            "supported; use another model"
        )
    prediction_type = config.get("prediction_type", "epsilon")  # older files have no such key
    if prediction_type not in PREDICTION_TYPES:
        raise unknown_prediction_type(prediction_type)
    return prediction_type


def save_scheduler(folder: Path, schedule: Schedule) -> None:
    """The `scheduler/` folder, readable by diffusers."""
    write_json(folder / SCHEDULER_FILE, {"_class_name": "DDIMScheduler", **schedule.diffusers_config})
