"""A search for better codes than the encoder's first answer: analysis by synthesis, as encoders of speech and video do it.

The encoder answers in one pass and can not see what its codes decode to. Gradient steps on its features, through the frozen
decoder, can. No weight changes, and a decoder can not tell how codes were found.
"""

from collections.abc import Callable
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

LEARNING_RATE = 0.012
"""Of Adam on the features (docs/experiments.md)."""

CodeGrids = tuple[Int[Tensor, "b _ _"], ...]
GuideLosses = Callable[[Float[Tensor, "b 3 gh gw"]], Float[Tensor, "b"]]
"""Guide images as decoded, not clamped, to one loss an image, with a gradient."""


@runtime_checkable
class CodedGuide(Protocol):
    """What the search needs of a GuideTokenizer."""

    def nearest_codes(self, features: Float[Tensor, "b h w d"], guide_scales: int | None = None) -> CodeGrids: ...

    def code_sum(self, grids: CodeGrids, grid_size: tuple[int, int]) -> Float[Tensor, "b h w d"]: ...

    def decode_quantized(self, quantized: Float[Tensor, "b h w d"]) -> Float[Tensor, "b 3 gh gw"]: ...


def search_codes(
    guide: CodedGuide,
    features: Float[Tensor, "b h w d"],
    losses_of: GuideLosses,
    steps: int,
    guide_scales: int | None = None,
) -> CodeGrids:
    """The codes of the lowest loss, image by image, among the encoder's own and those after each of `steps` steps.

    The gradient passes the quantizer straight through. Images do not influence each other beyond rounding.
    """
    with torch.inference_mode(False), torch.enable_grad():
        moved = features.detach().float().clone().requires_grad_(True)
        optimizer = torch.optim.Adam([moved], lr=LEARNING_RATE)
        lowest = torch.full((len(moved),), torch.inf, device=moved.device)
        best: CodeGrids = ()
        for step in range(steps + 1):
            with torch.no_grad():
                grids = guide.nearest_codes(moved, guide_scales)
                codes = guide.code_sum(grids, (moved.shape[1], moved.shape[2]))
            losses = losses_of(guide.decode_quantized(moved + (codes - moved).detach()).float())
            better = losses.detach() < lowest
            lowest = torch.where(better, losses.detach(), lowest)
            best = tuple(
                torch.where(better[:, None, None], new, old) for new, old in zip(grids, best or grids, strict=True)
            )
            if step < steps:
                # of the features alone: no weight gets a gradient
                (moved.grad,) = torch.autograd.grad(losses.sum(), moved)
                optimizer.step()
    return best
