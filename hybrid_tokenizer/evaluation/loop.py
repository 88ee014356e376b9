"""The measuring loop: rows x images x measures, resumed from a store and shared among the processes of a run.

It knows protocols only; the caller chooses the rows and the measures.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm import tqdm

from hybrid_tokenizer.devices import gather_over_ranks, rank_and_world_size
from hybrid_tokenizer.errors import HybridTokenizerError
from hybrid_tokenizer.evaluation.config import check_run_numbers
from hybrid_tokenizer.evaluation.images import EvalBatch, EvalImages
from hybrid_tokenizer.evaluation.measures import Measure, forget_references
from hybrid_tokenizer.evaluation.summary import Evaluation, list_per_image, paired_differences, summarize
from hybrid_tokenizer.images import check_range, resize_area, resize_bicubic, to_uint8
from hybrid_tokenizer.metrics.codebook import CodebookUse
from hybrid_tokenizer.protocol import ImageTokenizer, PairTokenizer

FACTS = ("num_tokens", "bits", "seconds")


@runtime_checkable
class RowStore(Protocol):
    """Where finished rows are kept."""

    def read(self, name: str) -> Evaluation | None: ...

    def write(self, name: str, done: Evaluation) -> None: ...


@runtime_checkable
class CodebookTokenizer(ImageTokenizer, Protocol):
    """A tokenizer that tells which codes it used, so that its row has codebook usage and perplexity."""

    def codebook_indices(self, tokens: Any) -> dict[str, tuple[Int[Tensor, "b n"], int]]:
        """Codebook name -> (indices, codebook size)."""


@runtime_checkable
class SetMeasure(Protocol):
    """Measures of a whole set, such as rFID. `compute` runs in every process of a run, `update` where there are batches."""

    names: list[str]

    def update(self, images: Float[Tensor, "b 3 r r"], references: Float[Tensor, "b 3 r r"], first: int) -> None: ...

    def compute(self, count: int) -> dict[str, float | None]: ...


@dataclass
class Tally:
    """What one process measured: zeros where another process had the image."""

    values: dict[str, Float[np.ndarray, "s n"]]
    facts: dict[str, Float[np.ndarray, "s n"]]
    codebooks: dict[str, CodebookUse] = field(default_factory=dict)
    pictures: dict[int, Tensor] = field(default_factory=dict)
    """Decoded images by the position of their batch's first image."""

    def add(self, other: "Tally") -> None:
        """The measurements of another process."""
        for mine, theirs in ((self.values, other.values), (self.facts, other.facts)):
            for name, table in theirs.items():
                mine[name] += table
        for name, use in other.codebooks.items():
            self.codebooks.setdefault(name, CodebookUse(len(use.counts))).counts += use.counts
        self.pictures |= other.pictures


@torch.no_grad()
def evaluate(
    tokenizer: ImageTokenizer,
    images: EvalImages,
    measures: Sequence[Measure],
    *,
    seeds: Sequence[int] = (0,),
    batch_size: int = 8,
    device: torch.device | str = "cpu",
    pictures: int = 0,
    progress: bool = True,
    of_a_set: Callable[[], SetMeasure] | None = None,
) -> Evaluation:
    """Encode, decode and measure every image under every seed. Memory grows with the number of images, not of pixels.

    Every batch starts from a fresh generator of the seed, so a tokenizer whose noise is a function of the generator's
    state and of the image gives results that do not depend on the batch size. What a tokenizer states about itself:
    - `deterministic` (true): it runs under the first seed only, which stands for all of them;
    - `native_size`: the crop is resized to that size and the output is resized back; the row says so;
    - `reference_size`: it decodes to that size and is compared to the area-resized image;
    - `render_size`: its diffusion model draws at that size, and the output is resized; the row has it;
    - that it is a module: it is moved to `device`.

    In a distributed run every process takes its share of the batches, which may be none, and all return the same.

    of_a_set: makes an accumulator of measures of whole sets, one per seed; the row has their means over seeds.

    Raises:
        HybridTokenizerError: a decoded image is outside the value range, or the tokenizer itself refuses an image.
    """
    check_run_numbers(seeds, batch_size)
    if isinstance(tokenizer, torch.nn.Module):
        tokenizer.to(device)
    deterministic = bool(getattr(tokenizer, "deterministic", False))
    run_seeds = list(seeds)[:1] if deterministic else list(seeds)
    size = reference_size(tokenizer, images.size)
    usable = [measure for measure in measures if size >= measure.least_side]
    sets = [of_a_set() for _ in run_seeds] if of_a_set is not None else []
    own = _run_batches(tokenizer, images, usable, run_seeds, sets, batch_size, device, pictures, progress)
    tally, *others = gather_over_ranks(own)
    for other in others:
        tally.add(other)
    row = summarize(tokenizer.name, size, measures, tally.values, tally.facts)
    of_seeds = [accumulator.compute(len(images)) for accumulator in sets]
    for name in sets[0].names if sets else ():
        values = [values[name] for values in of_seeds]
        row[name] = None if None in values else float(np.mean(values))
        if row[name] is None:
            row[f"{name}_note"] = "needs at least two images"
    row |= {"seeds": list(seeds), "deterministic": deterministic}
    if (drawn := getattr(tokenizer, "render_size", None)) is not None:
        row["render_size"] = drawn
    if deterministic and "psnr" in tally.values:
        row["psnr_std"] = 0.0
    if tally.codebooks:
        row["codebooks"] = {codebook: use.compute() for codebook, use in tally.codebooks.items()}
    if (side := resize_to(tokenizer, images.size)) is not None:
        row["resized"] = f"crop resized {images.size} -> {side} for the tokenizer and its output back, bicubic"
    empty = torch.zeros(0, 3, size, size, dtype=torch.uint8)
    shown = torch.cat([empty, *(tally.pictures[first] for first in sorted(tally.pictures))])
    return Evaluation(row, list_per_image(tokenizer.name, images.names, usable, tally.values, tally.facts), shown)


def _run_batches(
    tokenizer: ImageTokenizer,
    images: EvalImages,
    measures: Sequence[Measure],
    seeds: Sequence[int],
    sets: Sequence[SetMeasure],
    batch_size: int,
    device: torch.device | str,
    pictures: int,
    progress: bool,
) -> Tally:
    """This process's share of `evaluate`."""
    rank, world_size = rank_and_world_size()
    size, shape = reference_size(tokenizer, images.size), (len(seeds), len(images))
    tally = Tally({m.name: np.zeros(shape) for m in measures}, {name: np.zeros(shape) for name in FACTS})
    total, shown = len(images) * len(seeds), progress and rank == 0
    with tqdm(total=total, desc=tokenizer.name, unit="image", disable=not shown, leave=False) as bar:
        for batch in images.own_batches(batch_size, device):
            first, target = batch.positions.start, batch
            if size != images.size:
                target = batch._replace(references=resize_area(batch.references, (size, size)))
            for i, seed in enumerate(seeds):
                output, tokens, seconds = reconstruct(tokenizer, batch, torch.Generator().manual_seed(seed))
                output = output.to(device)
                for measure in measures:
                    tally.values[measure.name][i, batch.positions] = measure(output, target).cpu().numpy()
                tally.facts["num_tokens"][i, batch.positions] = tokenizer.num_tokens(tokens).cpu().numpy()
                tally.facts["bits"][i, batch.positions] = tokenizer.bits(tokens).cpu().numpy()
                tally.facts["seconds"][i, batch.positions] = seconds / len(batch.positions)
                if isinstance(tokenizer, CodebookTokenizer):
                    for codebook, (indices, codebook_size) in tokenizer.codebook_indices(tokens).items():
                        tally.codebooks.setdefault(codebook, CodebookUse(codebook_size)).update(indices)
                if sets:
                    sets[i].update(output, target.references, first)
                if i == 0 and first < pictures:
                    tally.pictures[first] = to_uint8(output[: pictures - first]).cpu()
                # the other processes are about as far
                bar.update(min(world_size * len(batch.positions), total - bar.n))
    return tally


def evaluate_rows(
    tokenizers: Sequence[ImageTokenizer],
    images: EvalImages,
    measures: Sequence[Measure],
    compare_to: str | None = None,
    *,
    store: RowStore | None = None,
    **options: Any,
) -> list[Evaluation]:
    """`evaluate` for each tokenizer, then the paired differences of every row to the row called `compare_to`, if any.

    A tokenizer with an attribute `compare_to` of its own is compared to the row of that name instead. Rows that `store`
    has are read from it, the others are written to it. In a distributed run only the first process uses the store.
    """
    rank, _ = rank_and_world_size()
    evaluations = []
    for tokenizer in tqdm(tokenizers, desc="rows", unit="row", disable=rank > 0 or not options.get("progress", True)):
        stored = None if store is None or rank else store.read(tokenizer.name)
        done = gather_over_ranks(stored)[0]  # every process must skip the same rows, whatever its disk holds
        if done is None:
            try:
                done = evaluate(tokenizer, images, measures, **options)
            except KeyboardInterrupt:
                kept = "" if store is None else "; they are kept, and the same command goes on from there"
                raise KeyboardInterrupt(f"{len(evaluations)} of {len(tokenizers)} rows are finished{kept}") from None
            if store is not None and rank == 0:
                store.write(tokenizer.name, done)
        evaluations.append(done)
    forget_references()
    by_name = {done.row["method"]: done for done in evaluations}
    for tokenizer, done in zip(tokenizers, evaluations, strict=True):
        other = getattr(tokenizer, "compare_to", compare_to)
        reference = by_name.get(other)
        if reference is not None and done is not reference:
            done.row["difference_to"] = other
            done.row["differences"] = paired_differences(done, reference, measures)
    return evaluations


def reference_size(tokenizer: ImageTokenizer, size: int) -> int:
    """The side at which a row's decoded images are measured: that of the images, unless it states another."""
    return getattr(tokenizer, "reference_size", None) or size


def resize_to(tokenizer: ImageTokenizer, size: int) -> int | None:
    """The side that crops of `size` are resized to for this tokenizer, None where they fit as they are."""
    return tokenizer.native_size if tokenizer.native_size not in (None, size) else None


def reconstruct(
    tokenizer: ImageTokenizer, batch: EvalBatch, generator: torch.Generator
) -> tuple[Float[Tensor, "b 3 r r"], Any, float]:
    """Decoded images, the tokens they were decoded from, and the seconds that encoding and decoding took.

    The images have the size of the references, or the row's `reference_size`. Resizing to and from the tokenizer's own
    size is not timed.
    """
    size = batch.references.shape[-1]
    side = resize_to(tokenizer, size) or size
    inputs = resize_bicubic(batch.references, (side, side)).clamp(-1, 1)
    start = _now(inputs.device)
    if isinstance(tokenizer, PairTokenizer):
        others = resize_bicubic(batch.next_images, (side, side)).clamp(-1, 1)
        tokens = tokenizer.encode_pair(inputs, others, generator)
    else:
        tokens = tokenizer.encode(inputs, generator)
    target = reference_size(tokenizer, side)
    output = tokenizer.decode(tokens, (target, target), generator)
    seconds = _now(inputs.device) - start
    expected = (len(inputs), 3, target, target)
    if tuple(output.shape) != expected:
        raise HybridTokenizerError(f"{tokenizer.name} decoded to shape {tuple(output.shape)}, expected {expected}")
    try:
        check_range(output)
    except HybridTokenizerError as error:
        raise HybridTokenizerError(f"{tokenizer.name} decoded outside the value range: {error}") from None
    measured = reference_size(tokenizer, size)
    return resize_bicubic(output.float(), (measured, measured)), tokens, seconds


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
