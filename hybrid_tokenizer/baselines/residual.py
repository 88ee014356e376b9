"""The bias-free residual block of Open-MAGVIT2 and of MaskGIT's VQGAN, which TiTok decodes with."""

from itertools import pairwise

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

NORM_GROUPS = 32
NORM_EPS = 1e-6


class ResidualBlock(nn.Module):
    """GroupNorm, SiLU and 3x3 convolution, twice. Where widths differ, the shortcut is a 1x1 convolution.

    shortcut_of_output: MaskGIT's PyTorch port applies that convolution to the block's output and drops the input. Its
    published weights were trained this way.
    """

    def __init__(self, in_channels: int, out_channels: int, shortcut_of_output: bool = False):
        super().__init__()
        self.norm1 = nn.GroupNorm(NORM_GROUPS, in_channels, eps=NORM_EPS)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)
        self.norm2 = nn.GroupNorm(NORM_GROUPS, out_channels, eps=NORM_EPS)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.shortcut_of_output = shortcut_of_output
        self.shortcut: nn.Conv2d | None = None
        if in_channels != out_channels:
            width = out_channels if shortcut_of_output else in_channels
            self.shortcut = nn.Conv2d(width, out_channels, 1, bias=False)

    def forward(self, hidden: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d h w"]:
        output = self.conv1(F.silu(self.norm1(hidden)))
        output = self.conv2(F.silu(self.norm2(output)))
        if self.shortcut is None:
            return hidden + output
        return self.shortcut(output if self.shortcut_of_output else hidden) + output


def blocks(channels: list[int], shortcut_of_output: bool = False) -> nn.ModuleList:
    """Blocks from the first width through the others."""
    return nn.ModuleList(ResidualBlock(a, b, shortcut_of_output) for a, b in pairwise(channels))
