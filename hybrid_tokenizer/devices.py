"""Devices, ranks of a distributed run, sums and gathers over ranks, and torch.compile in place."""

import os
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float, Num
from torch import Tensor, nn

from hybrid_tokenizer.errors import HybridTokenizerError, first_line

INDUCTOR = "inductor"


def count_parameters(network: nn.Module) -> str:
    """How many numbers a network trains, for people."""
    return f"{sum(weight.numel() for weight in network.parameters()) / 1e6:.1f} M parameters"


def compile_in_place(
    network: nn.Module, mode: str = "default", backend: str = INDUCTOR, fullgraph: bool = False
) -> nn.Module:
    """The network's calls go through torch.compile; each new shape compiles anew, once. `mode` is for inductor alone.

    On a CPU inductor also packs the weights for its convolutions (its `freezing`, which from here on holds for everything
    that the process compiles): a call without gradients no longer sees weights that are changed after the first.
    """
    on_cpu = all(weight.device.type == "cpu" for weight in network.parameters())
    if backend == INDUCTOR and on_cpu:
        # read when a network is traced, so that the options of one torch.compile come too late
        torch._inductor.config.freezing = True
    network.compile(fullgraph=fullgraph, backend=backend, mode=mode if backend == INDUCTOR else None)
    return network


def rank_and_world_size() -> tuple[int, int]:
    """Of this process; (0, 1) outside a distributed run."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def choose_device(device: str | None) -> torch.device:
    """`device`, or without one the GPU where there is one. Raises when torch does not know or have it."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        from accelerate import PartialState  # joins the processes and knows which device is whose

        return PartialState(cpu=not torch.accelerator.is_available()).device
    try:
        chosen = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(1, device=chosen)
    except (RuntimeError, AssertionError) as error:
        reason = first_line(error)
        raise HybridTokenizerError(f"device={device!r} can not be used ({reason}); use cpu or cuda") from None
    return chosen


def sum_over_ranks(values: Num[Tensor, "*s"]) -> Num[Tensor, "*s"]:
    """Summed over the processes of a distributed run, where there is one."""
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(values)
    return values


def same_on_all_ranks(values: Float[Tensor, "*s"]) -> Float[Tensor, "*s"]:
    """Rank 0's values on every process of a distributed run, where there is one."""
    if dist.is_available() and dist.is_initialized():
        values = values.contiguous()
        dist.broadcast(values, src=0)
    return values


def gather_over_ranks(value: Any) -> list[Any]:
    """`value` of every process of a distributed run, by rank: anything that pickle takes. Every process must call it."""
    _, world_size = rank_and_world_size()
    if world_size == 1:
        return [value]
    gathered: list[Any] = [None] * world_size
    dist.all_gather_object(gathered, value)
    return gathered
