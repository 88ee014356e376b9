"""What a folder of tokens holds: how its codes are used, what they cost, and how they hold when decoded."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.special import gammaln
from torch import Tensor

from hybrid_tokenizer.corpus.dataset import TokenDataset
from hybrid_tokenizer.hybrid import HybridTokenizer
from hybrid_tokenizer.metrics.codebook import codebook_usage, index_entropy, perplexity
from hybrid_tokenizer.tokens import HybridTokens

PRIORS = (0.01, 0.03, 0.1, 0.3, 1.0)
"""What an adaptive code adds to each count. The best one is named in the code, which costs two to three bits."""
CORRUPTED_SHARES = (0.01, 0.05, 0.2)


class Kind(NamedTuple):
    """Tokens that share a codebook and a place in the row: the semantic ones, or a scale of the guide."""

    name: str
    column: str
    positions: slice
    codebook_size: int


def kinds_of(dataset: TokenDataset) -> list[Kind]:
    """The semantic tokens, then the guide's grids, coarse to fine."""
    sizes = dataset.info["tokenizer"]
    kinds = [Kind("semantic", "semantic", slice(0, 32), sizes["semantic_codebook_size"])]
    first = 0
    for height, width in dataset.grid_shapes:
        last = first + height * width
        kinds.append(Kind(f"guide {height}x{width}", "guide", slice(first, last), sizes["guide_codebook_size"]))
        first = last
    return kinds


def count_codes(dataset: TokenDataset, groups: range) -> tuple[list[Int[Tensor, "positions codes"]], int, int]:
    """How often each code stands at each position, per kind; the rows read, and how many of them repeat an earlier one."""
    kinds = kinds_of(dataset)
    counts = [torch.zeros(_width(kind), kind.codebook_size, dtype=torch.int64) for kind in kinds]
    seen: set[bytes] = set()
    rows = 0
    for number in groups:
        group = dataset.read_group(number)
        rows += len(group["semantic"])
        for kind, counted in zip(kinds, counts, strict=True):
            codes = group[kind.column][:, kind.positions]
            for position in range(codes.shape[1]):
                counted[position] += torch.bincount(torch.from_numpy(codes[:, position]), minlength=kind.codebook_size)
        seen |= {row.tobytes() for row in np.concatenate([group["semantic"], group["guide"]], axis=1).astype(np.uint32)}
    return counts, rows, rows - len(seen)


def code_length(counts: Int[Tensor, "contexts codes"]) -> float:
    """Bits that an adaptive arithmetic coder writes for all that was counted, one model per context.

    Each model starts from equal counts and learns from what it has coded, so nothing has to be sent beside the code.
    """
    values = counts.double().numpy()
    codes = counts.shape[1]
    lengths = []
    for prior in PRIORS:
        total = gammaln(codes * prior) - gammaln(values.sum(1) + codes * prior)
        likelihood = total + (gammaln(values + prior) - gammaln(prior)).sum(1)
        lengths.append(-likelihood.sum() / math.log(2))
    return min(lengths) + math.log2(len(PRIORS))


def use_of(kind: Kind, counts: Int[Tensor, "positions codes"], rows: int) -> dict[str, Any]:
    """A row of the table. Entropies are of the counted frequencies, which a few rows underestimate."""
    pooled = counts.sum(0)
    uniform = math.log2(kind.codebook_size)
    best = min(code_length(counts), code_length(pooled[None]))
    return {
        "kind": kind.name,
        "tokens": len(counts),
        "codebook_size": kind.codebook_size,
        "codebook_usage": codebook_usage(pooled),
        "dead_codes": int((pooled == 0).sum()),
        "perplexity": perplexity(pooled),
        "entropy": index_entropy(pooled),
        "entropy_per_position": [index_entropy(position) for position in counts],
        "uniform_bits": uniform * len(counts),
        "coded_bits": best / rows,
    }


def inspect_codes(dataset: TokenDataset, max_rows: int | None) -> dict[str, Any]:
    """The use and the cost of the codes of whole row groups, until `max_rows` rows are read."""
    starts = [group.first for group in dataset.groups]
    groups = range(len(starts) if max_rows is None else sum(start < max_rows for start in starts))
    counts, rows, duplicates = count_codes(dataset, groups)
    table = [use_of(kind, counted, rows) for kind, counted in zip(kinds_of(dataset), counts, strict=True)]
    total = {name: sum(row[name] for row in table) for name in ("tokens", "uniform_bits", "coded_bits")}
    size = sum(file["num_bytes"] for file in dataset.info["files"])
    return {
        "rows": rows,
        "duplicate_rows": duplicates,
        "kinds": table,
        **total,
        "stored_bits": 8 * size / len(dataset),
    }


def stability(
    tokenizer: HybridTokenizer, batches: Sequence[HybridTokens], decoded: Sequence[Float[Tensor, "b 3 h w"]]
) -> dict[str, float]:
    """The share of ids that decoding and encoding again leaves as they were, per kind.

    decoded: the images of each batch of tokens.
    """
    equal: dict[str, list[float]] = {}
    for tokens, images in zip(batches, decoded, strict=True):
        again = tokenizer.encode(images, guide_scales=len(tokens.guide_indices), search_steps=0)
        grids = zip(tokens.grid_shapes, tokens.guide_indices, again.guide_indices, strict=True)
        pairs = [("semantic", tokens.semantic_indices, again.semantic_indices)]
        pairs += [(f"guide {height}x{width}", before, after) for (height, width), before, after in grids]
        for name, before, after in pairs:
            equal.setdefault(name, []).extend((before == after.cpu()).flatten(1).double().mean(1).tolist())
    return {name: sum(shares) / len(shares) for name, shares in equal.items()}


def robustness(
    tokenizer: HybridTokenizer,
    batches: Sequence[HybridTokens],
    decoded: Sequence[Float[Tensor, "b 3 h w"]],
    seed: int,
) -> list[dict[str, Any]]:
    """PSNR of images decoded from damaged ids to those of the whole ids. A share of the ids of one kind, or of all, is drawn
    anew from the codebook.

    decoded: the images of each batch of tokens.
    """
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for name in ("semantic", "guide", "all"):
        for share in CORRUPTED_SHARES:
            errors = []
            for tokens, images in zip(batches, decoded, strict=True):
                damaged = _corrupt(tokens, share, name, tokenizer, generator)
                errors += (tokenizer.decode(damaged) - images).square().flatten(1).mean(1).tolist()
            mean = sum(10 * math.log10(4 / max(error, 1e-12)) for error in errors) / len(errors)
            rows.append({"kind": name, "share": share, "psnr": mean})
    return rows


def _corrupt(
    tokens: HybridTokens, share: float, name: str, tokenizer: HybridTokenizer, generator: torch.Generator
) -> HybridTokens:
    def damage(codes: Tensor, size: int, chosen: bool) -> Tensor:
        hit = torch.rand(codes.shape, generator=generator) < share
        drawn = torch.randint(size, codes.shape, generator=generator)
        return torch.where(hit, drawn, codes) if chosen else codes

    return HybridTokens(
        damage(tokens.semantic_indices, tokenizer.semantic.codebook_size, name in ("semantic", "all")),
        tuple(damage(grid, tokenizer.guide.codebook_size, name in ("guide", "all")) for grid in tokens.guide_indices),
        tokens.image_size,
        tokens.source,
    )


def _width(kind: Kind) -> int:
    return kind.positions.stop - kind.positions.start
