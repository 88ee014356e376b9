"""Reads and writes folders in diffusers' form, with every weight accounted for."""

import copy
import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from torch import Tensor, nn

from hybrid_tokenizer.checkpoints.files import CONFIG_NAME, read_json, shorten, write_json
from hybrid_tokenizer.diffusion.config import DiffusionConfig
from hybrid_tokenizer.errors import HybridTokenizerError, first_line

NULL_CONDITION_NAME = "null_condition.safetensors"
HUB_PATTERNS = [
    "*.json", "null_condition.safetensors", "unet/*.json", "unet/*.safetensors", "vae/*.json", "vae/*.safetensors",
    "scheduler/*", "tokenizer/*", "text_encoder/*.json", "text_encoder/*.safetensors",
]  # fmt: skip


@contextmanager
def quiet(logging: ModuleType) -> Iterator[None]:
    """Silence a library's progress bars and its notes about its own configuration keys; restore its settings afterwards.

    logging: `diffusers.utils.logging` or `transformers.utils.logging`.
    """
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def model_class(name: str) -> type[nn.Module]:
    """A class of diffusers, or ours in the same form, by name."""
    import diffusers  # takes seconds, as does linear_vae, which imports it

    from hybrid_tokenizer.diffusion.linear_vae import AutoencoderTinyLinear

    return AutoencoderTinyLinear if name == AutoencoderTinyLinear.__name__ else getattr(diffusers, name)


def load_model(folder: Path, class_name: str, dtype: torch.dtype) -> nn.Module:
    """A diffusers model. Raises on a missing or surplus weight, which diffusers' own loader leaves random or drops."""
    import diffusers

    try:
        with quiet(diffusers.utils.logging):
            model, report = model_class(class_name).from_pretrained(
                folder, torch_dtype=dtype, use_safetensors=True, local_files_only=True, output_loading_info=True
            )
    except (OSError, ValueError, RuntimeError, TypeError, SafetensorError) as error:
        raise HybridTokenizerError(
            f"{folder} cannot be loaded as {class_name} ({first_line(error)}); expected {CONFIG_NAME} and "
            "diffusion_pytorch_model.safetensors of one model: download the folder again"
        ) from None
    wrong = {
        what: [str(key) for key in report[what]] for what in ("missing_keys", "unexpected_keys", "mismatched_keys")
    }
    if any(wrong.values()):
        listed = "; ".join(
            f"{len(keys)} {what.replace('_', ' ')}: {shorten(keys)}" for what, keys in wrong.items() if keys
        )
        raise HybridTokenizerError(
            f"the weights in {folder} do not fit its {CONFIG_NAME}: {listed}; download the folder again"
        )
    return model


def save_model(model: nn.Module, folder: Path, dtype: torch.dtype | None, max_shard_size: int | str) -> None:
    """Write a diffusers model in its own form. Its dtype in memory does not change."""
    if dtype is not None and any(p.dtype != dtype for p in model.parameters()):
        model = nn.Module.to(
            copy.deepcopy(model), dtype
        )  # diffusers' own `to` warns about fp32 modules that the model does not have
    model.save_pretrained(folder, safe_serialization=True, max_shard_size=max_shard_size)
    config = read_json(folder / CONFIG_NAME)
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

    try:
        with quiet(logging):
            tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)
            text_encoder, report = CLIPTextModel.from_pretrained(
                folder / "text_encoder", local_files_only=True, dtype=torch.float32, output_loading_info=True
            )
    except (OSError, ValueError, RuntimeError, TypeError, SafetensorError) as error:
        raise HybridTokenizerError(
            f"the text encoder in {folder} cannot be loaded ({first_line(error)}); download the folder again"
        ) from None
    if report["missing_keys"]:
        raise HybridTokenizerError(
            f"the text encoder in {folder} lacks {shorten(sorted(report['missing_keys']))}; download the folder again"
        )
    return tokenizer, text_encoder.eval()
