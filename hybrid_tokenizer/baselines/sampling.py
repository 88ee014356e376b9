"""Sampling as in the published pipelines of other tokenizers: from pure noise, with a scheduler of diffusers."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from hybrid_tokenizer.checkpoints.files import one_line, read_config
from hybrid_tokenizer.checkpoints.libraries import quiet
from hybrid_tokenizer.errors import HybridTokenizerError

SEED_RANGE = 2**62
SCHEDULER_FILE = "scheduler_config.json"
SCHEDULERS = ("DDIMScheduler", "DDPMScheduler", "PNDMScheduler", "EulerDiscreteScheduler", "LMSDiscreteScheduler")
"""The classes that published folders name."""


class Condition(NamedTuple):
    """Inputs of a U-Net: cross-attention states and their mask, SDXL's pooled states, unCLIP's class labels."""

    states: Float[Tensor, "b n d"]
    mask: Bool[Tensor, "b n"] | None = None
    pooled: Float[Tensor, "b p"] | None = None
    labels: Float[Tensor, "b l"] | None = None


def same_generators(count: int, generator: torch.Generator | None) -> list[torch.Generator]:
    """One CPU generator per image, all of one seed (0 without a generator), so that no image depends on its batch."""
    seed = 0
    if generator is not None:
        seed = int(torch.randint(SEED_RANGE, (1,), generator=generator, device=generator.device).item())
    return [torch.Generator().manual_seed(seed) for _ in range(count)]


@torch.no_grad()
def sample(
    unet: nn.Module,
    scheduler: Any,
    condition: Condition,
    null: Condition,
    size: tuple[int, int],
    *,
    num_inference_steps: int,
    guidance_scale: float,
    generators: Sequence[torch.Generator],
    image_size: tuple[int, int] | None = None,
) -> Float[Tensor, "b c h w"]:
    """Latents of `size` from pure noise under classifier-free guidance.

    scheduler: of diffusers. It is copied, since some keep a history. image_size: in pixels; SDXL reads it beside its
    pooled states.
    """
    device, dtype = condition.states.device, next(unet.parameters()).dtype
    scheduler = type(scheduler).from_config(scheduler.config)
    scheduler.set_timesteps(num_inference_steps, device=device)
    shape = (1, unet.config.in_channels, *size)
    latents = torch.cat([torch.randn(shape, generator=one) for one in generators]).to(device)
    latents = latents * scheduler.init_noise_sigma
    options: dict[str, Any] = {"encoder_hidden_states": torch.cat([null.states, condition.states]).to(dtype)}
    if condition.mask is not None and null.mask is not None:
        options["encoder_attention_mask"] = torch.cat([null.mask, condition.mask])
    if condition.pooled is not None and null.pooled is not None:
        if image_size is None:
            raise HybridTokenizerError(
                "image_size is None, but this U-Net reads pooled states and the image's size; give it"
            )
        times = torch.tensor([[*image_size, 0, 0, *image_size]], dtype=dtype, device=device)
        pooled = torch.cat([null.pooled, condition.pooled]).to(dtype)
        options["added_cond_kwargs"] = {"text_embeds": pooled, "time_ids": times.expand(len(pooled), -1)}
    if condition.labels is not None and null.labels is not None:
        options["class_labels"] = torch.cat([null.labels, condition.labels]).to(dtype)
    for timestep in scheduler.timesteps:
        doubled = scheduler.scale_model_input(torch.cat([latents, latents]), timestep)
        without, with_it = unet(doubled.to(dtype), timestep, **options).sample.float().chunk(2)
        latents = scheduler.step(without + guidance_scale * (with_it - without), timestep, latents).prev_sample
    return latents


def load_scheduler(folder: Path, name: str | None = None) -> Any:
    """The scheduler of a folder in diffusers' form: the class `name`, by default the one that its file names."""
    import diffusers

    path = folder / SCHEDULER_FILE
    config = read_config(path)
    name = name or config.get("_class_name")
    if name not in SCHEDULERS:
        raise HybridTokenizerError(f"{path} names the class {name!r}, expected one of {', '.join(SCHEDULERS)}")
    with one_line(str(path)), quiet(diffusers.utils.logging):
        return getattr(diffusers, name).from_config(config)
