"""Devices, ranks of a distributed run, sums and gathers over ranks, and torch.compile in place."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float, Num
from torch import Tensor, nn

from hybrid_tokenizer.errors import HybridTokenizerError, first_line

INDUCTOR = "inductor"
ENCODED_AT_ONCE = 16
"""Images per call of an encoder on a GPU, always: fewer are filled up."""


def count_parameters(network: nn.Module) -> str:
    """Number of trainable parameters, formatted for people."""
    return f"{sum(weight.numel() for weight in network.parameters()) / 1e6:.1f} M parameters"


def compile_in_place(
    network: nn.Module, mode: str = "default", backend: str = INDUCTOR, fullgraph: bool = False
) -> nn.Module:
    """Run the network's calls through torch.compile. Each new input shape is compiled once. `mode` applies to inductor only.

    On a CPU inductor also packs the weights of convolutions (`freezing`, which from then on applies to everything that
    the process compiles; torch 2.11 does not pack here). Calls without gradients then ignore weights that change after
    the first call.
    """
    on_cpu = all(weight.device.type == "cpu" for weight in network.parameters())
    if backend == INDUCTOR and on_cpu:
        # read when a network is traced; the options of a single torch.compile call come too late
        torch._inductor.config.freezing = True
    network.compile(fullgraph=fullgraph, backend=backend, mode=mode if backend == INDUCTOR else None)
    return network


def on_device(values: Sequence[int | float], dtype: torch.dtype, device: torch.device) -> Num[Tensor, "n"]:
    """A short list of numbers as a tensor. The host does not wait until a GPU has done what was queued before."""
    return torch.tensor(values, dtype=dtype).to(device, non_blocking=True)


def fixed_batch(device: torch.device) -> int | None:
    """How many images every call of an encoder takes on this device. None where results do not depend on it: on a CPU."""
    return None if device.type == "cpu" else ENCODED_AT_ONCE


@contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    """Whether matrix products and convolutions in fp32 may round their inputs to TF32 on a GPU. A CPU ignores it."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = allowed
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


@contextmanager
def codebook_precision() -> Iterator[None]:
    """Around what feeds a codebook: no TF32, and convolutions that give the same bits every time. A code flips where two are
    nearly as near, and in a nested guide one coarse code changes all finer ones."""
    before = torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
    try:
        with tf32(False):
            yield
    finally:
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = before


def rank_and_world_size() -> tuple[int, int]:
    """Rank and world size of this process; (0, 1) outside a distributed run."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def choose_device(device: str | None) -> torch.device:
    """`device`, or if None the GPU if there is one. Raises if torch does not know or does not have the device."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        from accelerate import PartialState  # joins the processes and assigns a device to each

        return PartialState(cpu=not torch.accelerator.is_available()).device
    try:
        chosen = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(1, device=chosen)
    except (RuntimeError, AssertionError) as error:
        reason = first_line(error)
        raise HybridTokenizerError(f"device={device!r} cannot be used ({reason}); use cpu or cuda") from None
    return chosen


def sum_over_ranks(values: Num[Tensor, "*s"]) -> Num[Tensor, "*s"]:
    """Sum over the processes of a distributed run. Outside one, the value itself."""
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(values)
    return values


def same_on_all_ranks(values: Float[Tensor, "*s"]) -> Float[Tensor, "*s"]:
    """Rank 0's values on every process of a distributed run. Outside one, the values themselves."""
    if dist.is_available() and dist.is_initialized():
        values = values.contiguous()
        dist.broadcast(values, src=0)
    return values


def gather_over_ranks(value: Any) -> list[Any]:
    """`value` of every process of a distributed run, in rank order. It may be anything that pickles. Every process must
    call this."""
    _, world_size = rank_and_world_size()
    if world_size == 1:
        return [value]
    gathered: list[Any] = [None] * world_size
    dist.all_gather_object(gathered, value)
    return gathered
