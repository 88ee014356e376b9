"""Decoding in a few steps: a latent consistency LoRA for the U-Net, and the sampler that goes with it."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hybrid_tokenizer.checkpoints.files import check_finite
from hybrid_tokenizer.checkpoints.libraries import quiet
from hybrid_tokenizer.diffusion.ddim import NoisePredictor, Step
from hybrid_tokenizer.diffusion.scheduler import Schedule
from hybrid_tokenizer.errors import HybridTokenizerError, first_line


def lcm_sampler(
    schedule: Schedule, num_inference_steps: int, strength: float, device: torch.device
) -> tuple[Any, tuple[Step, ...]]:
    """diffusers' `LCMScheduler` on the pinned noise levels, and its steps, cleanest first.

    Unlike DDIM, it takes all `num_inference_steps`, spread over the `strength` share of the schedule (Luo et al. 2023).
    """
    from diffusers import LCMScheduler

    config = {key: value for key, value in schedule.diffusers_config.items() if key != "timestep_spacing"}
    scheduler = LCMScheduler(
        **{**config, "prediction_type": "epsilon"}
    )  # our noise predictor returns noise, whatever the U-Net predicts
    try:
        scheduler.set_timesteps(num_inference_steps, device, strength=strength)
    except ValueError:
        raise HybridTokenizerError(
            f"sampler 'lcm' cannot take {num_inference_steps} steps at strength {strength}: it was distilled at "
            f"{scheduler.config.original_inference_steps} levels; use fewer steps, e.g. 4, or more strength"
        ) from None
    levels = schedule.levels
    times = scheduler.timesteps.tolist()[::-1]
    return scheduler, tuple(Step(i, time, levels[0], levels[time]) for i, time in enumerate(times))


def lcm_denoise(
    scheduler: Any,
    latents: Float[Tensor, "b c h w"],
    steps: Iterable[Step],
    noise_predictor: NoisePredictor,
    generator: torch.Generator | list[torch.Generator] | None,
) -> Float[Tensor, "b c h w"]:
    """Noisy latents to clean ones through `steps` (noisiest first). Every step but the last adds fresh noise."""
    for step, time in zip(steps, scheduler.timesteps, strict=True):
        noise_pred = noise_predictor(latents, step)
        latents = scheduler.step(noise_pred, time, latents, generator=generator, return_dict=False)[0]
    return latents


def fuse_lora(unet: nn.Module, path: str | Path, scale: float = 1.0) -> None:
    """Merge a LoRA into the U-Net, from a folder or file in diffusers' or Kohya's form.

    Raises where the file holds no weights for a U-Net, or weights for another one.
    """
    from diffusers.loaders import StableDiffusionLoraLoaderMixin
    from diffusers.utils import is_peft_available, logging

    if not is_peft_available():
        raise HybridTokenizerError("a LoRA needs the package peft; pip install 'hybrid_tokenizer[lora]'")
    path = Path(path)
    if not path.exists():
        raise HybridTokenizerError(f"{path} does not exist; give a LoRA's .safetensors file or its folder")
    folder, name = (path, None) if path.is_dir() else (path.parent, path.name)
    before = {key: weight.clone() for key, weight in unet.state_dict().items()}
    try:
        with quiet(logging):
            state, alphas = StableDiffusionLoraLoaderMixin.lora_state_dict(
                folder, weight_name=name, unet_config=unet.config, local_files_only=True, use_safetensors=True
            )
            StableDiffusionLoraLoaderMixin.load_lora_into_unet(state, network_alphas=alphas, unet=unet)
            unet.fuse_lora(scale)
            unet.unload_lora()
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise HybridTokenizerError(
            f"{path} is not a LoRA for this U-Net ({first_line(error)}); use one that was trained for this Stable Diffusion"
        ) from None
    after = unet.state_dict()
    check_finite(after, str(path))
    if set(after) != set(before) or all(torch.equal(after[key], weight) for key, weight in before.items()):
        raise HybridTokenizerError(
            f"{path} holds no LoRA weights for a U-Net; use one that was trained for Stable Diffusion"
        )
