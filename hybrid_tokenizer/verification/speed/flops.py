"""Operation counts, and the limit that they set on a device."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

ATTAINABLE_FLOPS = {"H100": 800e12, "H200": 800e12}
"""Dense bf16, as far as matrix products reach it; by a part of the device's name."""


def share_of_limit(row: dict[str, Any], device_name: str, flops: int) -> dict[str, float]:
    """The images per second that the device could reach, and the share that ours does. Empty for an unknown device."""
    attainable = next((rate for part, rate in ATTAINABLE_FLOPS.items() if part in device_name), None)
    if attainable is None:
        return {}
    limit = attainable / flops
    rate = row["ours"] if row["unit"] == "images/s" else 1 / row["ours"]
    return {"limit_images_per_second": limit, "share_of_limit": rate / limit}


def count_flops(run: Callable[[], Any], *modules: nn.Module) -> int:
    """Floating-point operations of one call: two per multiplication of matrix products, convolutions and attention.

    Args:
        run: the call.
        modules: what it runs. They are frozen meanwhile: torch's counter fails on a parameter that needs a gradient and
            is a module's input, such as the Q-Former's queries, also under `torch.no_grad`.
    """
    # torch 2.11 does not count the CPU's fused attention; as two products it is counted everywhere
    with _frozen(modules), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


@contextmanager
def _frozen(modules: tuple[nn.Module, ...]) -> Iterator[None]:
    trainable = [weight for module in modules for weight in module.parameters() if weight.requires_grad]
    for weight in trainable:
        weight.requires_grad_(False)
    try:
        yield
    finally:
        for weight in trainable:
            weight.requires_grad_(True)
