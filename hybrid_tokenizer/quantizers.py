"""The one interface to codebooks, channel last, so that (b, h, w, d) guides and (b, n, d) sequences share it.

The faithful quantizer follows `VectorQuantizer` of diffusers (MoVQGAN, taming-transformers and SEED compute the same);
the others wrap vector-quantize-pytorch.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from hybrid_tokenizer.errors import HybridTokenizerError

KINDS = ("vq", "ema", "cosine", "simvq", "fsq", "lfq")


class Quantized(NamedTuple):
    """What a quantizer returns, the same in training and evaluation."""

    quantized: Float[Tensor, "*grid d"]
    """The codes' values with the features' gradient (straight-through)."""
    indices: Int[Tensor, "*grid"]
    codebook_loss: Float[Tensor, ""]
    """Moves the codes to the features."""
    commitment_loss: Float[Tensor, ""]
    """Moves the features to the codes (for `lfq`: its entropy and commitment sum)."""


@dataclass
class QuantizerConfig:
    """`kind`: vq (gradient codebook), ema (k-means start, dead-code restart), cosine, simvq, fsq, lfq.

    `codebook_weight` and `commitment_weight` weigh the two terms of the VQ loss. MoVQGAN, taming and SEED use the legacy
    form, 0.25 on the codebook term and 1 on the commitment term; the VQ-VAE paper has them the other way round.
    """

    kind: str = "vq"
    codebook_size: int = 16384
    codebook_dim: int = 4
    codebook_weight: float = 0.25
    commitment_weight: float = 1.0
    ema_decay: float = 0.99
    restart_below: float = 0.1
    fsq_levels: list[int] | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise HybridTokenizerError(f"quantizer kind={self.kind!r} is unknown; use one of {', '.join(KINDS)}")
        if self.codebook_size < 2:
            raise HybridTokenizerError(f"codebook_size={self.codebook_size} must be at least 2")
        if self.kind == "fsq":
            if not self.fsq_levels or math.prod(self.fsq_levels) != self.codebook_size:
                raise HybridTokenizerError(
                    f"fsq_levels={self.fsq_levels} must multiply to codebook_size={self.codebook_size}, e.g. [8, 5, 5, 5] and 1000"
                )
            if len(self.fsq_levels) != self.codebook_dim:
                raise HybridTokenizerError(
                    f"codebook_dim={self.codebook_dim} must equal the {len(self.fsq_levels)} fsq_levels"
                )
        if self.kind == "lfq" and 2**self.codebook_dim != self.codebook_size:
            raise HybridTokenizerError(
                f"lfq needs codebook_size = 2**codebook_dim; got {self.codebook_size} and {self.codebook_dim}"
            )


class VectorQuantizer(nn.Module):
    """Nearest code in squared Euclidean distance, gradient-trained codebook.

    The same function as diffusers' `VectorQuantizer`, which wants (b, d, h, w) and folds the two loss terms into one
    number; here both terms leave unweighted and distances are taken in fp32 whatever autocast is in force.
    """

    def __init__(self, codebook_size: int, codebook_dim: int):
        super().__init__()
        self.embedding = nn.Embedding(codebook_size, codebook_dim)
        nn.init.uniform_(self.embedding.weight, -1 / codebook_size, 1 / codebook_size)

    def forward(self, features: Float[Tensor, "*grid d"]) -> Quantized:
        with torch.autocast(features.device.type, enabled=False):
            features = features.float()
            weight = self.embedding.weight.float()
            flat = features.detach().reshape(-1, features.shape[-1])
            indices = torch.cdist(flat, weight.detach()).argmin(dim=1).reshape(features.shape[:-1])
            codes = F.embedding(indices, weight)
            return Quantized(
                quantized=features + (codes - features).detach(),
                indices=indices,
                codebook_loss=F.mse_loss(codes, features.detach()),
                commitment_loss=F.mse_loss(features, codes.detach()),
            )

    def codes(self, indices: Int[Tensor, "*grid"]) -> Float[Tensor, "*grid d"]:
        """Rows of the codebook."""
        return F.embedding(indices, self.embedding.weight)


class LibraryQuantizer(nn.Module):
    """vector-quantize-pytorch's quantizers behind the same call."""

    def __init__(self, config: QuantizerConfig):
        super().__init__()
        import vector_quantize_pytorch as vqp

        self.kind = config.kind
        size, dim = config.codebook_size, config.codebook_dim
        if config.kind in ("ema", "cosine"):
            self.body = vqp.VectorQuantize(
                dim=dim, codebook_size=size, decay=config.ema_decay, threshold_ema_dead_code=config.restart_below,
                kmeans_init=True, kmeans_iters=10, use_cosine_sim=config.kind == "cosine",
                commitment_weight=1.0, rotation_trick=False,
            )  # fmt: skip
        elif config.kind == "simvq":
            self.body = vqp.SimVQ(dim=dim, codebook_size=size, rotation_trick=True)
        elif config.kind == "fsq":
            self.body = vqp.FSQ(levels=list(config.fsq_levels or []), dim=dim)
        else:
            self.body = vqp.LFQ(dim=dim, codebook_size=size)

    def forward(self, features: Float[Tensor, "*grid d"]) -> Quantized:
        with torch.autocast(features.device.type, enabled=False):
            features = features.float()
            flat = features.reshape(features.shape[0], -1, features.shape[-1])
            if self.kind == "fsq":
                quantized, indices = self.body(flat)
                loss = flat.new_zeros(())
            else:
                quantized, indices, loss = self.body(flat)
        return Quantized(
            quantized=quantized.reshape(features.shape),
            indices=indices.reshape(features.shape[:-1]).long(),
            codebook_loss=features.new_zeros(()),  # EMA, implicit or absent codebooks take no gradient of their own
            commitment_loss=loss.reshape(()),
        )

    def codes(self, indices: Int[Tensor, "*grid"]) -> Float[Tensor, "*grid d"]:
        """Values of the codes at `indices`."""
        flat = indices.reshape(indices.shape[0], -1)
        if self.kind in ("ema", "cosine"):
            codes = self.body.get_codes_from_indices(flat)
        else:
            codes = self.body.indices_to_codes(flat)
        return codes.reshape(*indices.shape, codes.shape[-1])


def build_quantizer(config: QuantizerConfig) -> VectorQuantizer | LibraryQuantizer:
    """The quantizer that `config.kind` names."""
    return (
        VectorQuantizer(config.codebook_size, config.codebook_dim) if config.kind == "vq" else LibraryQuantizer(config)
    )


def vq_loss(quantized: Quantized, config: QuantizerConfig) -> Float[Tensor, ""]:
    """The weighted sum of the two terms."""
    return config.codebook_weight * quantized.codebook_loss + config.commitment_weight * quantized.commitment_loss


def flatten_grid(grid: Int[Tensor, "b h w"]) -> Int[Tensor, "b n"]:
    """Raster order, the order of the LLM sequence."""
    return rearrange(grid, "b h w -> b (h w)")
