"""Denoising as the published pipelines of other tokenizers do it: from pure noise, by a scheduler of diffusers."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from safetensors import SafetensorError
from torch import Tensor, nn

from hybrid_tokenizer.checkpoints.files import shorten
from hybrid_tokenizer.errors import HybridTokenizerError

SEED_RANGE = 2**62


class Condition(NamedTuple):
    """What a U-Net reads: cross-attention states, which of them count, SDXL's pooled states, unCLIP's class labels."""

    states: Float[Tensor, "b n d"]
    mask: Bool[Tensor, "b n"] | None = None
    pooled: Float[Tensor, "b p"] | None = None
    labels: Float[Tensor, "b l"] | None = None


def image_generators(count: int, generator: torch.Generator | None) -> list[torch.Generator]:
    """One CPU generator an image, all of one seed (0 without a generator): what an image gets does not depend on its batch."""
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

    scheduler: of diffusers; a copy of it steps, since some keep a history. image_size: what SDXL is told of the image, in
    pixels; needed with pooled states.
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
                "image_size is None, but this U-Net has pooled states and is told the image's size"
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


def load_diffusers(folder: Path, class_name: str) -> Any:
    """A diffusers model or scheduler of a folder, from safetensors or a pickle of tensors; no weight may be missing."""
    import diffusers

    kind = getattr(diffusers, class_name, None) or getattr(diffusers.pipelines.stable_diffusion, class_name, None)
    if kind is None:
        raise HybridTokenizerError(f"{folder} names the class {class_name!r}, which diffusers does not have")
    options: dict[str, Any] = {"local_files_only": True}
    is_model = issubclass(kind, nn.Module)
    if is_model:
        options |= {"output_loading_info": True, "use_safetensors": any(folder.glob("*.safetensors"))}
    try:
        loaded = kind.from_pretrained(folder, **options)
    except (OSError, ValueError, RuntimeError, TypeError, SafetensorError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise HybridTokenizerError(
            f"{folder} cannot be loaded as {class_name} ({reason}); download the folder again"
        ) from None
    if not is_model:
        return loaded
    model, report = loaded
    wrong = {
        what: [str(key) for key in report[what]] for what in ("missing_keys", "unexpected_keys", "mismatched_keys")
    }
    if any(wrong.values()):
        listed = "; ".join(f"{len(keys)} {what}: {shorten(sorted(keys))}" for what, keys in wrong.items() if keys)
        raise HybridTokenizerError(f"the weights in {folder} do not fit its config.json: {listed}; download it again")
    return model.eval()
