"""Reads and writes folders in diffusers' form, with every weight accounted for."""

import copy
import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from torch import Tensor, nn

from hybrid_tokenizer.checkpoints.configs import UNREADABLE, one_line
from hybrid_tokenizer.checkpoints.files import (
    CONFIG_NAME,
    check_finite,
    give_umask_mode,
    load_tensors,
    read_config,
    write_json,
)
from hybrid_tokenizer.checkpoints.libraries import quiet
from hybrid_tokenizer.diffusion.config import VAE_CLASSES, DiffusionConfig
from hybrid_tokenizer.errors import HybridTokenizerError, first_line, shorten

NULL_CONDITION_NAME = "null_condition.safetensors"
UNET_CLASS = "UNet2DConditionModel"
HUB_PATTERNS = [
    "*.json", "null_condition.safetensors", "unet/*.json", "unet/*.safetensors", "vae/*.json", "vae/*.safetensors",
    "scheduler/*", "tokenizer/*", "text_encoder/*.json", "text_encoder/*.safetensors",
]  # fmt: skip


def model_class(name: str) -> type[nn.Module]:
    """A class of diffusers, or ours in the same form, by name."""
    import diffusers  # takes seconds, as does linear_vae, which imports it

    from hybrid_tokenizer.diffusion.linear_vae import AutoencoderTinyLinear

    known = (UNET_CLASS, *VAE_CLASSES)
    if name not in known:
        raise HybridTokenizerError(f"the model class {name!r} is unknown; use one of {', '.join(known)}")
    return AutoencoderTinyLinear if name == AutoencoderTinyLinear.__name__ else getattr(diffusers, name)


def save_model(model: nn.Module, folder: Path, dtype: torch.dtype | None, max_shard_size: int | str) -> None:
    """Write a diffusers model in its own form. Its dtype in memory does not change."""
    if dtype is not None and any(p.dtype != dtype for p in model.parameters()):
        model = nn.Module.to(
            copy.deepcopy(model), dtype
        )  # diffusers' own `to` warns about fp32 modules that the model does not have
    model.save_pretrained(folder, safe_serialization=True, max_shard_size=max_shard_size)
    give_umask_mode(*folder.glob("*.safetensors"))
    config = read_config(folder / CONFIG_NAME)
    config.pop("_name_or_path", None)  # a path of this machine
    write_json(folder / CONFIG_NAME, config)


def plain_config(
    unet: nn.Module, vae: nn.Module, prediction_type: str, num_condition_tokens: int, folder: Path
) -> DiffusionConfig:
    """The configuration of a Stable Diffusion folder without our config.json."""
    if unet.config.cross_attention_dim == 1024 and unet.config.sample_size == 96 and prediction_type == "epsilon":
        raise HybridTokenizerError(
            f"{folder / 'scheduler'} says 'epsilon', but the U-Net is Stable Diffusion 2's for 768 px, which predicts v; "
            "set prediction_type to 'v_prediction' in scheduler_config.json"
        )
    return DiffusionConfig(
        unet=_arguments(unet),
        vae_class=type(vae).__name__,
        vae=_arguments(vae),
        latent_shift=[vae.config.get("shift_factor") or 0.0],
        latent_scale=[vae.config.scaling_factor],
        prediction_type=prediction_type,
        num_condition_tokens=num_condition_tokens,
    )


def _arguments(model: nn.Module) -> dict[str, Any]:
    """The keyword arguments that build the model again, without the entries that diffusers adds to a configuration."""
    accepted = inspect.signature(type(model).__init__).parameters
    return {
        key: list(value) if isinstance(value, tuple) else value
        for key, value in model.config.items()
        if key in accepted and (value is not None or accepted[key].default is not None)
    }


@contextmanager
def failure_explained(unet: nn.Module, vae: nn.Module, config: DiffusionConfig) -> Iterator[None]:
    """Say in one line what is wrong with the networks where that is why a decode fails; any other error stays as it is."""
    try:
        yield
    except HybridTokenizerError:
        raise
    except UNREADABLE:
        check_computes(unet, vae, config)
        raise


def check_computes(unet: nn.Module, vae: nn.Module, config: DiffusionConfig) -> None:
    """Raise where the networks cannot be run one after the other, or make another size than they are asked for.

    Their configurations hold words and numbers that diffusers reads in a forward pass alone. The pass here is one over shapes:
    nothing is computed, and no memory is used.
    """
    side = 2 ** len(unet.config.block_out_channels)
    pixels, latents = (1, 3, *(side * config.vae_factor,) * 2), (1, config.latent_channels, side, side)
    inputs = (1, unet.config.in_channels, side, side)
    condition = (1, config.num_condition_tokens, config.cross_attention_dim)
    with one_line("the diffusion component"):
        encoded = _on_meta(vae, "encode", pixels)
        encoded = encoded.latents if hasattr(encoded, "latents") else encoded.latent_dist.mode()
        decoded = _on_meta(vae, "decode", latents).sample
        predicted = _on_meta(unet, "forward", inputs, torch.zeros((), dtype=torch.long), condition).sample
    for what, output, expected in (
        ("the VAE encodes to", encoded, latents),
        ("the VAE decodes to", decoded, pixels),
        ("the U-Net predicts", predicted, latents),
    ):
        if tuple(output.shape) != expected:
            raise HybridTokenizerError(
                f"{what} {tuple(output.shape)}, expected {expected}; a config.json of the diffusion component is damaged, download "
                "it again"
            )


class _Method(nn.Module):
    """A method of a model as a forward pass."""

    def __init__(self, model: nn.Module, name: str):
        super().__init__()
        self.model, self.name = model, name

    def forward(self, *arguments: Any) -> Any:
        return getattr(self.model, self.name)(*arguments)


def _on_meta(model: nn.Module, method: str, *arguments: Any) -> Any:
    """What a method returns, as shapes. Tuples stand for tensors of that shape."""
    wrapped = _Method(model, method)
    weights = {name: value.to("meta") for name, value in (*wrapped.named_parameters(), *wrapped.named_buffers())}
    dtype = next(model.parameters()).dtype
    given = tuple(torch.empty(one, dtype=dtype, device="meta") if isinstance(one, tuple) else one.to("meta") for one in arguments)  # fmt: skip
    with torch.no_grad():
        return torch.func.functional_call(wrapped, weights, given)


def read_null_condition(path: Path) -> Float[Tensor, "1 n d"]:
    """The stored null condition of a folder of ours."""
    stored = load_tensors(path).get("null_condition")
    if stored is None or not stored.is_floating_point() or stored.ndim != 3 or len(stored) != 1:
        raise HybridTokenizerError(f"{path} holds no floating null_condition of shape 1 x n x d; download it again")
    return stored.float()


def null_condition_of_text_encoder(folder: Path) -> Float[Tensor, "1 n d"]:
    """The folder's text encoder on the empty prompt, padded to its full length, as in diffusers' pipeline."""
    if not (folder / "text_encoder").is_dir() or not (folder / "tokenizer").is_dir():
        raise HybridTokenizerError(
            f"{folder} has neither {NULL_CONDITION_NAME} nor both text_encoder/ and tokenizer/, expected one of the two "
            "for the null condition; download the whole Stable Diffusion folder"
        )
    tokenizer, text_encoder = load_text_encoder(folder)
    length = text_encoder.config.max_position_embeddings
    tokens = tokenizer("", padding="max_length", max_length=length, truncation=True, return_tensors="pt")
    with torch.no_grad():
        return text_encoder(tokens.input_ids).last_hidden_state.float()


def load_text_encoder(folder: Path) -> tuple[Any, nn.Module]:
    """The CLIP tokenizer and text encoder of a Stable Diffusion folder, in fp32. Raises when weights are missing."""
    from transformers import CLIPTextModel, CLIPTokenizer
    from transformers.utils import logging

    read_config(folder / "text_encoder" / CONFIG_NAME)  # of a size that can be built
    try:
        with quiet(logging):
            tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)
            text_encoder, report = CLIPTextModel.from_pretrained(
                folder / "text_encoder", local_files_only=True, dtype=torch.float32, output_loading_info=True
            )
    except (SafetensorError, *UNREADABLE) as error:
        raise HybridTokenizerError(
            f"the text encoder in {folder} cannot be loaded ({first_line(error)}); download the folder again"
        ) from None
    if report["missing_keys"]:
        raise HybridTokenizerError(
            f"the text encoder in {folder} lacks {shorten(sorted(report['missing_keys']))}; download the folder again"
        )
    check_finite(text_encoder.state_dict(), f"the text encoder in {folder}")
    return tokenizer, text_encoder.eval()
