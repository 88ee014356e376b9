"""Weights that FSDP2 spreads over the processes: gathered to be stored, and spread again when they are read."""

from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor

from hybrid_tokenizer.devices import rank_and_world_size


def gathered(tensors: dict[str, Tensor]) -> dict[str, Tensor] | None:
    """Whole tensors on the CPU for those that are spread, the others as they are. All processes call it; None on all but
    the first, which alone needs memory for all."""
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
