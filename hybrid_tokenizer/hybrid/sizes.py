"""What follows from images of another size than the guide was made for."""

from math import prod

from hybrid_tokenizer.data.config import say_other_size
from hybrid_tokenizer.hybrid.tokenizer import HybridTokenizer


def say_token_count(option: str, side: int, tokenizer: HybridTokenizer, guide_scales: int | None = None) -> None:
    """Where images of `side` px have another number of guide tokens than those of `native_size`, the first process says so.

    option: the option that gave `side`, as the user wrote it. guide_scales: only this many of the grids count.
    """
    count, usual = (
        sum(prod(grid) for grid in tokenizer.guide.guide_scale_sizes((one, one))[:guide_scales])
        for one in (side, tokenizer.native_size)
    )
    say_other_size(option, side, tokenizer.native_size, f"an image has {count} guide tokens instead of {usual}")
