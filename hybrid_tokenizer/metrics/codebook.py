"""Usage and perplexity of a codebook over a set of images."""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hybrid_tokenizer.devices import sum_over_ranks
from hybrid_tokenizer.errors import HybridTokenizerError


def codebook_usage(counts: Int[Tensor, "codes"]) -> float:
    """Share of the codes that occur at least once, 0 to 1."""
    return (counts > 0).double().mean().item()


def index_entropy(counts: Int[Tensor, "codes"]) -> float:
    """Mean bits per index, 0 to log2 of the codebook's size."""
    shares = counts.double() / counts.sum().clamp_min(1)
    entropy: Float[Tensor, ""] = -torch.special.xlogy(shares, shares).sum()
    return entropy.item() / math.log(2)


def perplexity(counts: Int[Tensor, "codes"]) -> float:
    """exp of the entropy of the codes' frequencies: 1 (a single code) to the codebook's size (all equally frequent)."""
    return 2 ** index_entropy(counts)


class CodebookUse:
    """Counts code use over a set of images. The result does not depend on how the set is split into batches."""

    def __init__(self, codebook_size: int):
        self.counts = torch.zeros(codebook_size, dtype=torch.int64)

    def update(self, indices: Int[Tensor, "..."]) -> None:
        """Add the codebook positions of some images. Raises on a position outside the codebook."""
        flat = indices.detach().reshape(-1).cpu().long()
        if flat.numel() and (flat.min() < 0 or flat.max() >= len(self.counts)):
            raise HybridTokenizerError(
                f"codebook indices span {flat.min()} to {flat.max()}, expected 0 to {len(self.counts) - 1}; "
                "pass codebook positions, not token ids"
            )
        self.counts += torch.bincount(flat, minlength=len(self.counts))

    def merge_ranks(self, device: torch.device | str = "cpu") -> None:
        """Sum the counts over the processes of a distributed run. All must call it, and all then compute the same.

        device: where the counts are summed, a GPU under NCCL.
        """
        self.counts = sum_over_ranks(self.counts.to(device, copy=True)).cpu()

    def compute(self) -> dict[str, float]:
        """Compute `codebook_usage`, `perplexity`, `index_entropy` (bits) and `dead_codes` of everything counted so far."""
        return {
            "codebook_usage": codebook_usage(self.counts),
            "perplexity": perplexity(self.counts),
            "index_entropy": index_entropy(self.counts),
            "dead_codes": float((self.counts == 0).sum()),
        }
