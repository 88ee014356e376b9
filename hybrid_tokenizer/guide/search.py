"""The encoder's code search: analysis by synthesis, as in speech and video codecs.

A single encoder pass does not see the images that its codes decode to. The search takes gradient steps on the encoder's
features through the frozen decoder. It changes no weight, and decoding does not depend on how the codes were found.
"""

from collections.abc import Callable
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

LEARNING_RATE = 0.012
"""Learning rate of Adam on the features (docs/experiments.md)."""

CodeGrids = tuple[Int[Tensor, "b _ _"], ...]
GuideLosses = Callable[[Float[Tensor, "b 3 gh gw"]], Float[Tensor, "b"]]
"""Maps unclamped guide images to one differentiable loss per image."""


@runtime_checkable
class CodedGuide(Protocol):
    """The methods of a GuideTokenizer that the search calls."""

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
    """Per image, the codes of lowest loss among the encoder's own and those after each of `steps` gradient steps.

    The quantizer's gradient is straight-through. Images affect each other only through rounding.
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
                # Gradients of the features only, not of the weights.
                (moved.grad,) = torch.autograd.grad(losses.sum(), moved)
                optimizer.step()
    return best
