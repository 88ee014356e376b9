"""FSDP2 in the loop: weights that are spread over the processes, gathered to be stored and spread again when read.

Accelerate decides by its own configuration (`accelerate launch --use_fsdp --fsdp_version 2`, or a configuration file).
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from torch import Tensor, nn
from torch.distributed.fsdp import register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor

from hybrid_tokenizer.devices import rank_and_world_size
from hybrid_tokenizer.errors import HybridTokenizerError
from hybrid_tokenizer.training.objective import Objective


def shards_weights(accelerator: Accelerator) -> bool:
    """Whether this run's weights are spread by FSDP. Version 1 is refused."""
    asked = os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"
    if not asked or accelerator.num_processes == 1:
        return False
    if accelerator.device.type == "cpu":
        _shard_on_cpu(accelerator)
    if not accelerator.is_fsdp2:
        raise HybridTokenizerError("this loop shards by FSDP2; set fsdp_version: 2 in Accelerate's configuration")
    return True


def _shard_on_cpu(accelerator: Accelerator) -> None:
    """Accelerate leaves FSDP out on CPUs, where only tests want it; torch does it there too."""
    plugin = FullyShardedDataParallelPlugin()
    if accelerator.mixed_precision != "no":
        plugin.set_mixed_precision(accelerator.mixed_precision)
    AcceleratorState._shared_state["fsdp_plugin"] = plugin
    for state in (AcceleratorState, PartialState):
        state._shared_state["distributed_type"] = DistributedType.FSDP


def prepare_sharded(
    accelerator: Accelerator, objective: Objective, optimizer: torch.optim.Optimizer
) -> tuple[Any, Any]:
    """Accelerate's prepare. Validation, which calls the model past `forward`, then finds whole weights as well."""
    prepared = accelerator.prepare(objective, optimizer)
    register_fsdp_forward_method(objective, "validate")
    return prepared


@contextmanager
def whole_weights(module: nn.Module) -> Iterator[None]:
    """Inside the block the first process finds whole weights, on the CPU. All processes enter it.

    FSDP's own unsharding would not do: a state dict that is taken then shards them again.
    """
    places = {
        f"{name}/{key}": (owner, key, weight)
        for name, owner in module.named_modules()
        for key, weight in owner.named_parameters(recurse=False)
        if isinstance(weight, DTensor)
    }
    whole = gathered({place: weight.detach() for place, (_, _, weight) in places.items()}) or {}
    for place, value in whole.items():
        owner, key, weight = places[place]
        setattr(owner, key, nn.Parameter(value, weight.requires_grad))
    try:
        yield
    finally:
        for owner, key, weight in places.values():
            setattr(owner, key, weight)


def gathered(tensors: dict[str, Tensor]) -> dict[str, Tensor] | None:
    """Whole tensors on the CPU for those that are spread, the others as they are.

    All processes call it. It is None on all but the first, which alone needs memory for all.
    """
    first = rank_and_world_size()[0] == 0
    whole = {}
    for name, tensor in tensors.items():
        value = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        if first:
            whole[name] = value.cpu() if isinstance(tensor, DTensor) else value
    return whole if first else None


def spread_as(value: Tensor, like: Tensor) -> Tensor:
    """`value`, which every process holds whole, as `like` is spread."""
    if not isinstance(like, DTensor):
        return value
    # no source rank: each process cuts its part from its own copy
    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements, src_data_rank=None)
