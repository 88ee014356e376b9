"""Counts where a training step makes the host wait for the device, which then idles until the next kernel is queued."""

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

PACKAGE = Path(__file__).parents[2]
STEP = "_train_step"
"""The training loop's function for one step."""
aten = torch.ops.aten
WAITING = {
    aten._local_scalar_dense.default,  # item(), int(), float(), bool()
    aten.bincount.default,
    aten.equal.default,
    aten.is_nonzero.default,
    aten.masked_select.default,
    aten.nonzero.default,
    aten.repeat_interleave.Tensor,
    aten.unique_consecutive.default,
    aten._unique2.default,
}
"""Operations that hand the host a value or a size of the device, so that it waits. On a CPU they cost nothing."""
ON_THE_HOST = {"random_window", "happens"}
"""Functions that draw on the CPU, whatever the device: they wait for nothing."""
INDEXING = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default}


class _Operations(TorchDispatchMode):
    """Notes the operations that would wait if the tensors were on a GPU."""

    def __init__(self, places: list[str]):
        super().__init__()
        self.places = places

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        chosen = args[1] if function in INDEXING else ()
        masks = any(isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8) for index in chosen)
        if (function in WAITING or masks) and not _is_on_the_host():
            note(self.places)
        return function(*args, **(kwargs or {}))


def _is_on_the_host() -> bool:
    """Whether the operation is of a tensor that is on the CPU in a run on a GPU, too. AdamW counts its steps in such tensors."""
    frame = sys._getframe(2)
    while frame is not None and frame.f_code.co_name != STEP:
        if frame.f_code.co_name in ON_THE_HOST or frame.f_globals.get("__name__", "").startswith("torch.optim"):
            return True
        frame = frame.f_back
    return False


def note(places: list[str]) -> None:
    """Add the line of this package that is being run, where that is within a training step after step 0."""
    frame, place = sys._getframe(1), ""
    while frame is not None:
        file = Path(frame.f_code.co_filename)
        if not place and file.is_relative_to(PACKAGE) and file != Path(__file__):
            place = f"{file.relative_to(PACKAGE)}:{frame.f_lineno}"
        if frame.f_code.co_name == STEP:
            if frame.f_locals["self"].step > 0:
                places.append(place)
            return
        frame = frame.f_back


@contextmanager
def counted_syncs(device: torch.device) -> Iterator[list[str]]:
    """The list that is yielded gets "file:line" for every time that a training step waits for the device.

    On a GPU torch's own sync debug mode tells. On a CPU the operations are counted that would wait on a GPU; copies to the
    device, which also can, are not seen there. Step 0 is left out: it starts codebooks and chooses kernels.
    """
    places: list[str] = []
    if device.type != "cuda":
        with _Operations(places):
            yield places
        return
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        shown = warnings.showwarning

        def noted(message: Any, *rest: Any, **options: Any) -> None:
            if "synchroniz" in str(message):
                note(places)
            else:
                shown(message, *rest, **options)

        warnings.showwarning = noted
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield places
        finally:
            torch.cuda.set_sync_debug_mode(before)
