"""torch.compile as all branches use it."""

import torch
from torch import nn

INDUCTOR = "inductor"


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
