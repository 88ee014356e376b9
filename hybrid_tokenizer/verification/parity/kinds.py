"""Kind of fixture -> the function that computes its tensors with this package.

Each family is a module with a table `KINDS: dict[kind, function]`, imported when one of its kinds is needed. A function takes
`(state, inputs, config)`: the `state.*` and `in.*` tensors without their prefix (floats in fp32) and the fixture's `config`.
It returns its tensors under their names below `out.`. It uses the package's own modules and converters, and reads every size
from `config` or from the shapes of the weights.
"""

from collections.abc import Callable
from importlib import import_module
from typing import Any

from torch import Tensor

from hybrid_tokenizer.errors import HybridTokenizerError

Produce = Callable[[dict[str, Tensor], dict[str, Tensor], dict[str, Any]], dict[str, Tensor]]

FAMILIES = {
    "hybrid_tokenizer.verification.parity.semantic": (
        "eva_vit",
        "lavis_qformer",
        "seed_causal_qformer",
        "seed1_quantizer",
        "seed2_quantizer_mlp",
        "seed2_quantizer_revq",
        "seed_stage1_loss",
        "seed_stage2_loss",
    ),
    "hybrid_tokenizer.verification.parity.vq": ("movq", "taming_vqgan"),
    "hybrid_tokenizer.verification.parity.baselines": (
        "taming_gumbel",
        "var_vqvae",
        "magvit2_lfq",
        "ibq",
        "llamagen_vq",
        "titok_legacy",
        "titok_rgb",
        "lavit_tokenizer",
    ),
}
KINDS = {kind: family for family, kinds in FAMILIES.items() for kind in kinds}


def produce_function(kind: str) -> Produce:
    """The function of a kind. Raises if the table does not have it."""
    if kind not in KINDS:
        raise HybridTokenizerError(f"unknown kind {kind!r}; known kinds: {', '.join(sorted(KINDS))}")
    return import_module(KINDS[kind]).KINDS[kind]
