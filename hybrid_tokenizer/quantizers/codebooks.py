"""Vector quantizers with one channel-last interface, shared by (b, h, w, d) guides and (b, n, d) sequences.

`VectorQuantizer` computes what diffusers' class of that name does, as do MoVQGAN, taming-transformers and SEED. The
running-mean codebook is implemented here, because exact resume needs control of its state, its randomness and its
agreement between ranks. SimVQ, FSQ and LFQ wrap vector-quantize-pytorch.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from hybrid_tokenizer.devices import same_on_all_ranks, sum_over_ranks
from hybrid_tokenizer.quantizers.config import QuantizerConfig

DISTANCE_ENTRIES = 2**19  # size of one block of the distance matrix on a CPU: 2 MB in fp32, which stay in the cache
GPU_DISTANCE_ENTRIES = 2**26  # elsewhere: 256 MB


class Quantized(NamedTuple):
    """Output of a quantizer, the same in training and evaluation."""

    quantized: Float[Tensor, "*grid d"]
    """Code vectors, with a straight-through gradient to the features."""
    indices: Int[Tensor, "*grid"]
    codebook_loss: Float[Tensor, ""]
    """Moves the codes towards the features."""
    commitment_loss: Float[Tensor, ""]
    """Moves the features towards the codes. For `lfq` it is the sum of its entropy and commitment losses."""


class VectorQuantizer(nn.Module):
    """Nearest code in squared Euclidean distance, gradient-trained codebook.

    The same function as diffusers' `VectorQuantizer`, which takes (b, d, h, w) and returns one loss. Here both loss
    terms are returned unweighted, and distances are computed in fp32 even under autocast.
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
            indices = nearest_codes(flat, weight.detach()).reshape(features.shape[:-1])
            codes = F.embedding(indices, weight)
            return Quantized(
                quantized=features + (codes - features).detach(),
                indices=indices,
                codebook_loss=F.mse_loss(codes, features.detach()),
                commitment_loss=F.mse_loss(features, codes.detach()),
            )

    def codes(self, indices: Int[Tensor, "*grid"]) -> Float[Tensor, "*grid d"]:
        """All code vectors, one per row."""
        return F.embedding(indices, self.embedding.weight)

    def lookup(self, features: Float[Tensor, "*grid d"]) -> tuple[Float[Tensor, "*grid d"], Int[Tensor, "*grid"]]:
        """Code vectors and indices, without losses."""
        indices = nearest_codes(features.reshape(-1, features.shape[-1]), self.embedding.weight)
        indices = indices.reshape(features.shape[:-1])
        return self.codes(indices), indices


class EmaQuantizer(nn.Module):
    """Codes are running means of the features assigned to them (van den Oord et al. 2017, appendix A.1).

    k-means on the first training batch initialises the codes. Codes that fall out of use restart at features of rank
    0's batch. Every rank ends a step with the same codebook. All state is in buffers and all draws come from torch's
    CPU generator, so a run resumed from both continues exactly. `cosine` normalises features and codes to unit length.
    """

    KMEANS_ITERATIONS = 10

    def __init__(self, config: QuantizerConfig):
        super().__init__()
        self.config = config
        self.cosine = config.kind == "cosine"
        size, dim = config.codebook_size, config.codebook_dim
        codebook = torch.randn(size, dim)
        self.register_buffer("codebook", F.normalize(codebook, dim=-1) if self.cosine else codebook)
        self.register_buffer("code_counts", torch.zeros(size))
        self.register_buffer("code_sums", torch.zeros(size, dim))
        self.register_buffer("started", torch.tensor(False))
        self.known_started = False

    def _load_from_state_dict(self, *arguments: Any) -> None:
        super()._load_from_state_dict(*arguments)
        self.known_started = False

    def forward(self, features: Float[Tensor, "*grid d"]) -> Quantized:
        with torch.autocast(features.device.type, enabled=False):
            features = self._place(features)
            if self.training:
                self.start(features)
            codes, indices = self.lookup(features)
            if self.training:
                self._update(features.detach().reshape(-1, features.shape[-1]), indices.reshape(-1))
            return Quantized(
                quantized=features + (codes - features).detach(),
                indices=indices,
                codebook_loss=features.new_zeros(()),  # codes are updated by averaging, not by gradients
                commitment_loss=F.mse_loss(features, codes),
            )

    def codes(self, indices: Int[Tensor, "*grid"]) -> Float[Tensor, "*grid d"]:
        """Rows of the codebook."""
        return F.embedding(indices, self.codebook)

    @torch.no_grad()
    def lookup(self, features: Float[Tensor, "*grid d"]) -> tuple[Float[Tensor, "*grid d"], Int[Tensor, "*grid"]]:
        """Code vectors and indices. The codebook is not changed."""
        features = self._place(features)
        indices = nearest_codes(features.reshape(-1, features.shape[-1]), self.codebook).reshape(features.shape[:-1])
        return self.codes(indices), indices

    def state_from(self, codebook: Float[Tensor, "k d"]) -> dict[str, Tensor]:
        """State of a codebook that starts at the given codes, as if each had been chosen once per step."""
        return {
            "codebook": F.normalize(codebook.float(), dim=-1) if self.cosine else codebook.float(),
            "code_counts": torch.ones_like(self.code_counts),
            "code_sums": codebook.float().clone(),
            "started": torch.tensor(True),
        }

    def _place(self, features: Float[Tensor, "*grid d"]) -> Float[Tensor, "*grid d"]:
        return F.normalize(features.float(), dim=-1) if self.cosine else features.float()

    @torch.no_grad()
    def start(self, features: Float[Tensor, "*grid d"]) -> None:
        """Initialise the codes by k-means on a first batch. Does nothing once the codebook has started."""
        if self.known_started or self.started:
            self.known_started = True  # reading the buffer makes the host wait for the device: once is enough
            return
        flat = self._place(features.detach()).reshape(-1, features.shape[-1])
        means = same_on_all_ranks(draw_rows(flat, len(self.codebook)))
        for _ in range(self.KMEANS_ITERATIONS):
            counts, sums = self._assigned(flat, nearest_codes(flat, means))
            means = torch.where(counts[:, None] > 0, sums / counts.clamp(min=1)[:, None], means)
            if self.cosine:
                means = F.normalize(means, dim=-1)
        self.codebook.copy_(means)
        self.code_counts.copy_(counts)
        self.code_sums.copy_(means * counts[:, None])
        self.started.fill_(True)
        self.known_started = True

    def _assigned(
        self, flat: Float[Tensor, "n d"], indices: Int[Tensor, "n"]
    ) -> tuple[Float[Tensor, "k"], Float[Tensor, "k d"]]:
        """Number and sum of the features assigned to each code, over all ranks."""
        ones = torch.ones_like(indices, dtype=flat.dtype)  # summed, since bincount makes the host wait for a GPU
        counts = torch.zeros_like(self.code_counts).index_add_(0, indices, ones)
        sums = torch.zeros_like(self.codebook).index_add_(0, indices, flat)
        return sum_over_ranks(counts), sum_over_ranks(sums)

    @torch.no_grad()
    def _update(self, flat: Float[Tensor, "n d"], indices: Int[Tensor, "n"]) -> None:
        counts, sums = self._assigned(flat, indices)
        self.code_counts.lerp_(counts, 1 - self.config.ema_decay)
        self.code_sums.lerp_(sums, 1 - self.config.ema_decay)
        least = self.config.restart_below * self.code_counts.mean()
        dead = self.code_counts < least  # not their indices, whose number the host would have to wait for
        order = torch.randperm(len(flat)).to(flat.device, non_blocking=True)
        rows = flat[order[(dead.cumsum(0) - 1) % len(flat)]]  # of dead codes distinct, if there are enough
        self.code_counts.copy_(torch.where(dead, least, self.code_counts))
        self.code_sums.copy_(torch.where(dead[:, None], same_on_all_ranks(rows) * least, self.code_sums))
        # a count of zero is possible only with restart_below=0; the code then keeps its value
        used = self.code_counts[:, None] > 1e-6
        means = torch.where(used, self.code_sums / self.code_counts[:, None].clamp(min=1e-6), self.codebook)
        self.codebook.copy_(F.normalize(means, dim=-1) if self.cosine else means)


class LibraryQuantizer(nn.Module):
    """vector-quantize-pytorch's quantizers with the same interface."""

    def __init__(self, config: QuantizerConfig):
        super().__init__()
        import vector_quantize_pytorch as vqp

        self.kind = config.kind
        size, dim = config.codebook_size, config.codebook_dim
        if config.kind == "simvq":
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
            codebook_loss=features.new_zeros(()),  # implicit or absent codebooks have no codebook loss
            commitment_loss=loss.reshape(()),
        )

    def codes(self, indices: Int[Tensor, "*grid"]) -> Float[Tensor, "*grid d"]:
        """Code vectors at `indices`."""
        codes = self.body.indices_to_codes(indices.reshape(indices.shape[0], -1))
        return codes.reshape(*indices.shape, codes.shape[-1])

    @torch.no_grad()
    def lookup(self, features: Float[Tensor, "*grid d"]) -> tuple[Float[Tensor, "*grid d"], Int[Tensor, "*grid"]]:
        """Codes and indices, no losses."""
        indices = self.forward(features).indices
        return self.codes(indices), indices


def build_quantizer(config: QuantizerConfig) -> VectorQuantizer | EmaQuantizer | LibraryQuantizer:
    """The quantizer that `config.kind` names."""
    if config.kind == "vq":
        return VectorQuantizer(config.codebook_size, config.codebook_dim)
    return EmaQuantizer(config) if config.kind in ("ema", "cosine") else LibraryQuantizer(config)


@torch.no_grad()
def nearest_codes(features: Float[Tensor, "n d"], codebook: Float[Tensor, "k d"]) -> Int[Tensor, "n"]:
    """Index of the nearest code in Euclidean distance, computed in fp32 even under autocast, in blocks of bounded memory.

    The nearest code maximises f·c - c·c / 2. This is minus half the squared distance, without the term f·f that all
    codes share.
    """
    with torch.autocast(features.device.type, enabled=False):
        features, codebook = features.float(), codebook.float()
        half_squares, columns = -0.5 * codebook.square().sum(1), codebook.T.contiguous()
        blocks = features.split(rows_at_once(len(codebook), features.device))
        # reused for all blocks: allocating memory takes longer than the sums
        scores = features.new_empty(len(blocks[0]), len(codebook))
        return torch.cat(
            [torch.addmm(half_squares, block, columns, out=scores[: len(block)]).max(dim=1).indices for block in blocks]
        )


def rows_at_once(codes: int, device: torch.device) -> int:
    """How many features to compare with `codes` codes at once."""
    return max(1, (DISTANCE_ENTRIES if device.type == "cpu" else GPU_DISTANCE_ENTRIES) // codes)


def draw_rows(rows: Float[Tensor, "n d"], count: int) -> Float[Tensor, "count d"]:
    """Random rows, distinct if there are enough of them. Drawn on the CPU, so that devices agree."""
    order = torch.randperm(len(rows)) if len(rows) >= count else torch.randint(len(rows), (count,))
    return rows[order[:count].to(rows.device)]


def vq_loss(quantized: Quantized, config: QuantizerConfig) -> Float[Tensor, ""]:
    """Weighted sum of the codebook and commitment terms."""
    return config.codebook_weight * quantized.codebook_loss + config.commitment_weight * quantized.commitment_loss
