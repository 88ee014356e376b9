"""Rows of the GPU check: a measured value beside what it must be."""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from hybrid_tokenizer.tokens import HybridTokens


class Row(NamedTuple):
    """One line of the table."""

    check: str
    value: Any
    """A number, or a word such as a version."""
    unit: str = ""
    expected: str = ""
    """The rule that `ok` is about. Empty: the value is a fact."""
    ok: bool | None = None


def at_most(check: str, value: float, bound: float, unit: str) -> Row:
    """A row whose value must not exceed `bound`."""
    return Row(check, value, unit, f"at most {bound:g}", value <= bound)


def differing_codes(first: HybridTokens, second: HybridTokens) -> dict[str, float]:
    """Share of the indices that differ, for the semantic tokens and for each guide grid."""
    pairs = {"semantic": (first.semantic_indices, second.semantic_indices)}
    for ours, theirs in zip(first.guide_indices, second.guide_indices, strict=True):
        pairs[f"guide {ours.shape[1]}x{ours.shape[2]}"] = (ours, theirs)
    return {name: (a.cpu() != b.cpu()).double().mean().item() for name, (a, b) in pairs.items()}


def largest_difference(first: Float[Tensor, "b 3 h w"], second: Float[Tensor, "b 3 h w"]) -> float:
    """The largest difference of a value in [-1, 1]."""
    return (first.cpu().float() - second.cpu().float()).abs().max().item()


def seconds_of(function: Callable[[], Any], device: torch.device) -> float:
    """The time of one call after a first one that is not counted."""
    function()
    synchronize(device)
    start = time.perf_counter()
    function()
    synchronize(device)
    return time.perf_counter() - start


def synchronize(device: torch.device) -> None:
    """Wait for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
