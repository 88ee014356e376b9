"""The hash of a tokenizer, which decides whether tokens belong to it.

Configuration values that are the defaults of their class are left out, so that a new option, of this package or of diffusers,
does not make another tokenizer of every stored one.
"""

import dataclasses
import hashlib
import inspect
import json
from collections.abc import Mapping
from typing import Any

from torch import nn

from hybrid_tokenizer.diffusion import DiffusionConfig, DiffusionDecoder
from hybrid_tokenizer.guide import GuideTokenizer
from hybrid_tokenizer.semantic import SemanticTokenizer
from hybrid_tokenizer.tokens import HASH_PREFIX

TRAINING_ONLY = frozenset(
    ["cosine_stack", "prefix_dropout", "dropout", "codebook_weight", "commitment_weight", "ema_decay", "restart_below"]
)
"""Configuration entries that neither encoding nor decoding reads."""
AS_BUILT = frozenset(["unet", "vae", "vae_class"])
"""Entries of the diffusion configuration that only describe its networks. Those have configurations of their own."""
OF_A_CALL = frozenset(["decode_defaults"])


def tokenizer_hash(
    weights: Mapping[str, str], guide: GuideTokenizer, semantic: SemanticTokenizer, diffusion: DiffusionDecoder
) -> str:
    """sha256 of the weights and of every configuration value that changes what encoding or decoding makes of them.

    Args:
        weights: the sha256 of each branch's tensors, rounded to fp16.
    """
    facts = {
        "weights": dict(weights),
        "guide": config_facts(guide.config),
        "semantic": config_facts(semantic.config),
        "diffusion": config_facts(diffusion.config),
        "unet": library_facts(diffusion.unet),
        "vae": library_facts(diffusion.vae),
    }
    text = json.dumps(facts, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return HASH_PREFIX + hashlib.sha256(text.encode()).hexdigest()


def first_hash(weights: Mapping[str, str], config: DiffusionConfig) -> str:
    """The hash in token files of version 1. It covers the weights and four settings of the diffusion branch."""
    settings = [config.latent_shift, config.latent_scale]
    settings += [config.guide_residual] if config.guide_residual else []
    numbers = [[float(value) for value in values] for values in settings]
    text = "".join(weights.values()) + json.dumps([config.prediction_type, *numbers])
    return hashlib.sha256(text.encode()).hexdigest()


def config_facts(config: Any) -> dict[str, Any]:
    """Non-default values of one of this package's configurations, without those that only affect training or a single call."""
    facts = {}
    for field in dataclasses.fields(config):
        if field.name in TRAINING_ONLY | AS_BUILT | OF_A_CALL:
            continue
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            facts[field.name] = config_facts(value)
            continue
        made = field.default_factory
        default = field.default if made is dataclasses.MISSING else made()
        if canonical(value) != canonical(default):
            facts[field.name] = canonical(value)
    return facts


def library_facts(model: nn.Module) -> dict[str, Any]:
    """Class and non-default arguments of a diffusers model."""
    accepted = inspect.signature(type(model).__init__).parameters
    arguments = {
        name: canonical(value)
        for name, value in model.config.items()
        if name in accepted and canonical(value) != canonical(accepted[name].default)
    }
    return {"class": type(model).__name__, **arguments}


def canonical(value: Any) -> Any:
    """A form in which equal values give equal JSON: tuples become lists, 1.0 becomes 1."""
    if isinstance(value, Mapping):
        return {str(key): canonical(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [canonical(entry) for entry in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value
