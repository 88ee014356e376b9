"""Random generators for the noise of a decode."""

import hashlib
from collections.abc import Sequence

import torch
from jaxtyping import Int
from torch import Tensor

from hybrid_tokenizer.errors import HybridTokenizerError, check_whole, shown

SEED_RANGE = 2**62


def image_generators(
    indices: Sequence[Int[Tensor, "b ..."]], generator: torch.Generator | None
) -> list[torch.Generator]:
    """One CPU generator per image, seeded by one draw from `generator` (0 if None) and the image's own indices.

    An image's noise depends neither on the rest of the batch nor on its place in it. Equal images get equal noise.
    """
    base = 0
    if generator is not None:
        base = int(torch.randint(SEED_RANGE, (1,), generator=generator, device=generator.device).item())
    flat = torch.cat([part.flatten(1) for part in indices], dim=1).to("cpu", torch.int64)
    generators = []
    for row in flat.numpy():
        digest = hashlib.sha256(base.to_bytes(8, "little") + row.tobytes()).digest()
        seed = int.from_bytes(digest[:8], "little") % SEED_RANGE
        generators.append(torch.Generator().manual_seed(seed))
    return generators


def as_generator(generator: torch.Generator | None, seed: int | None) -> torch.Generator | None:
    """The generator, or a new one from `seed`. Raises if both are given."""
    if generator is not None and not isinstance(generator, torch.Generator):
        raise HybridTokenizerError(
            f"generator is {shown(generator)}, expected a torch.Generator; give a number as seed="
        )
    if seed is None:
        return generator
    if generator is not None:
        raise HybridTokenizerError(f"both seed={shown(seed)} and a generator are given; give one of them")
    return torch.Generator().manual_seed(check_whole("seed", seed, 0, 2**63 - 1))
