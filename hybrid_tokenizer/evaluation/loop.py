"""Tokenizer x images x measures -> one row of a table. Knows protocols only; which tokenizers there are is the caller's."""

import resource
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
import torch.distributed as dist
from jaxtyping import Float, Int
from torch import Tensor
from tqdm import tqdm

from hybrid_tokenizer.devices import rank_and_world_size, sum_over_ranks
from hybrid_tokenizer.errors import HybridTokenizerError
from hybrid_tokenizer.evaluation.config import WEIGHTED, check_run_numbers
from hybrid_tokenizer.evaluation.images import EvalBatch, EvalImages
from hybrid_tokenizer.evaluation.published import published_values
from hybrid_tokenizer.evaluation.summary import Evaluation, Metric, list_per_image, paired_differences, summarize
from hybrid_tokenizer.images import check_range, resize_bicubic, to_uint8
from hybrid_tokenizer.metrics import weighted
from hybrid_tokenizer.metrics.codebook import CodebookUse
from hybrid_tokenizer.protocol import ImageTokenizer, PairTokenizer
from hybrid_tokenizer.provenance import git_revision, machine, versions


@runtime_checkable
class RowStore(Protocol):
    """Where finished rows are kept."""

    def read(self, name: str) -> "Evaluation | None": ...

    def write(self, name: str, done: "Evaluation") -> None: ...


@runtime_checkable
class CodebookTokenizer(ImageTokenizer, Protocol):
    """A tokenizer that can say which codes it used, so that its row gives codebook usage and perplexity."""

    def codebook_indices(self, tokens: Any) -> dict[str, tuple[Int[Tensor, "b n"], int]]:
        """Codebook name -> (indices, codebook size)."""


@torch.no_grad()
def evaluate(
    tokenizer: ImageTokenizer,
    images: EvalImages,
    metrics: Sequence[Metric],
    *,
    seeds: Sequence[int] = (0,),
    batch_size: int = 8,
    device: torch.device | str = "cpu",
    pictures: int = 0,
    progress: bool = True,
    of_a_set: Callable[[], weighted.Frechet] | None = None,
) -> Evaluation:
    """Encode, decode and measure every image under every seed; memory does not grow with the number of images.

    A tokenizer with a true attribute `deterministic` is run under the first seed, whose results stand for all of them.
    Every batch starts from a fresh generator of the seed, so a tokenizer whose noise is a function of the generator's
    state and of the image gives results that do not depend on the batch size. A tokenizer with another `native_size`
    gets the crop resized to that, and its output is resized back; its row says so. In a distributed run every process
    takes its share of the batches, and all return the same.

    of_a_set: makes an accumulator of measures of whole sets, one a seed; the row has their means over seeds.

    Raises:
        HybridTokenizerError: a reconstruction is outside the value range, or the tokenizer itself refuses an image.
    """
    check_run_numbers(seeds, batch_size)
    deterministic = bool(getattr(tokenizer, "deterministic", False))
    run_seeds = list(seeds)[:1] if deterministic else list(seeds)
    usable = [metric for metric in metrics if images.size >= metric.least_side]
    values = {metric.name: np.zeros((len(run_seeds), len(images))) for metric in usable}
    facts = {name: np.zeros((len(run_seeds), len(images))) for name in ("num_tokens", "bits", "seconds")}
    codebooks: dict[str, CodebookUse] = {}
    sets = [of_a_set() for _ in run_seeds] if of_a_set is not None else []
    kept: dict[int, Tensor] = {}
    rank, world_size = rank_and_world_size()
    total = len(images) * len(run_seeds)
    with tqdm(total=total, desc=tokenizer.name, unit="image", disable=not progress, leave=False) as bar:
        for batch in images.batches(batch_size):
            if batch.positions.start // batch_size % world_size != rank:
                continue
            batch = batch._replace(references=batch.references.to(device), next_images=batch.next_images.to(device))
            for i, seed in enumerate(run_seeds):
                output, tokens, seconds = reconstruct(tokenizer, batch, torch.Generator().manual_seed(seed))
                output = output.to(device)
                for metric in usable:
                    values[metric.name][i, batch.positions] = metric.measure(output, batch.references).cpu().numpy()
                facts["num_tokens"][i, batch.positions] = tokenizer.num_tokens(tokens).cpu().numpy()
                facts["bits"][i, batch.positions] = tokenizer.bits(tokens).cpu().numpy()
                facts["seconds"][i, batch.positions] = seconds / len(batch.positions)
                if isinstance(tokenizer, CodebookTokenizer):
                    for codebook, (indices, codebook_size) in tokenizer.codebook_indices(tokens).items():
                        codebooks.setdefault(codebook, CodebookUse(codebook_size)).update(indices)
                if sets:
                    sets[i].update(output, batch.references)
                if i == 0 and batch.positions.start < pictures:
                    kept[batch.positions.start] = to_uint8(output[: pictures - batch.positions.start]).cpu()
                bar.update(len(batch.positions))
    if world_size > 1:
        for table in (*values.values(), *facts.values()):  # zero where another process had the batch
            table += sum_over_ranks(torch.from_numpy(table).to(device)).cpu().numpy() - table
        gathered: list[dict[int, Tensor]] = [{} for _ in range(world_size)]
        dist.all_gather_object(gathered, kept)
        kept = {start: shown for of_rank in gathered for start, shown in of_rank.items()}
        for use in codebooks.values():
            use.merge_ranks(device)
    row = summarize(tokenizer.name, images.size, metrics, values, facts)
    for name in sets[0].metrics if sets else ():
        row[name] = float(np.mean([one.compute()[name] for one in sets]))
    row |= {"seeds": list(seeds), "deterministic": deterministic}
    if deterministic:
        row["psnr_std"] = 0.0
    if codebooks:
        row["codebooks"] = {codebook: use.compute() for codebook, use in codebooks.items()}
    if resize_to(tokenizer, images.size) is not None:
        side = tokenizer.native_size
        row["resized"] = f"crop resized {images.size} -> {side} for the tokenizer and its output back, bicubic"
    empty = torch.zeros(0, 3, images.size, images.size, dtype=torch.uint8)
    per_image = list_per_image(tokenizer.name, images.names, usable, values, facts)
    return Evaluation(row, per_image, torch.cat([empty, *(kept[start] for start in sorted(kept))]))


def evaluate_rows(
    tokenizers: Sequence[ImageTokenizer],
    images: EvalImages,
    metrics: Sequence[Metric],
    compare_to: str,
    *,
    store: RowStore | None = None,
    **options: Any,
) -> list[Evaluation]:
    """`evaluate` for each tokenizer, then every row's paired differences to the one called `compare_to`, if it is there.

    A tokenizer with an attribute `compare_to` of its own is compared to the row of that name instead.
    Rows that `store` already has are taken from it, the others are kept there.
    """
    evaluations = []
    for tokenizer in tqdm(tokenizers, desc="rows", unit="row", disable=not options.get("progress", True)):
        done = None if store is None else store.read(tokenizer.name)
        if done is None:
            done = evaluate(tokenizer, images, metrics, **options)
            if store is not None and rank_and_world_size()[0] == 0:
                store.write(tokenizer.name, done)
        evaluations.append(done)
    by_name = {done.row["method"]: done for done in evaluations}
    for tokenizer, done in zip(tokenizers, evaluations, strict=True):
        done.row.update(published_values(done.row))
        other = getattr(tokenizer, "compare_to", compare_to)
        reference = by_name.get(other)
        if reference is not None and done is not reference:
            done.row["difference_to"] = other
            done.row["differences"] = paired_differences(done, reference, metrics)
    return evaluations


def resize_to(tokenizer: ImageTokenizer, size: int) -> int | None:
    """The side that crops of `size` must be brought to for this tokenizer, None where they fit as they are."""
    return tokenizer.native_size if tokenizer.native_size not in (None, size) else None


def reconstruct(
    tokenizer: ImageTokenizer, batch: EvalBatch, generator: torch.Generator
) -> tuple[Float[Tensor, "b 3 r r"], Any, float]:
    """Reconstructions at the references' size, the tokens they were decoded from, and the seconds of both steps.

    Resizing to and from the tokenizer's own size is not timed.
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
    output = tokenizer.decode(tokens, (side, side), generator)
    seconds = _now(inputs.device) - start
    expected = (len(inputs), 3, side, side)
    if tuple(output.shape) != expected:
        raise HybridTokenizerError(f"{tokenizer.name} decoded to shape {tuple(output.shape)}, expected {expected}")
    try:
        check_range(output)
    except HybridTokenizerError as error:
        raise HybridTokenizerError(f"{tokenizer.name} decoded outside the value range: {error}") from None
    return resize_bicubic(output.float(), (size, size)), tokens, seconds


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def provenance(
    images: EvalImages, device: torch.device | str, started: float, weights: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Where numbers come from: code, images, versions, machine, time since `started` (time.perf_counter), memory.

    weights: those of `default_metrics`; measures without any are listed as unavailable.
    """
    lacking = [name for name in WEIGHTED if name not in (weights or {})]
    return {
        "revision": git_revision(),
        "images": {
            "n": len(images),
            "size": images.size,
            "names_sha256": images.names_hash,
            "pixels_sha256": images.pixels_hash,
        },
        "skipped": images.skipped,
        "unavailable_metrics": {name: f"no weights were given: metric_weights.{name}=FILE" for name in lacking},
        "versions": versions(),
        "device": str(device),
        "machine": machine(),
        "wall_seconds": time.perf_counter() - started,
        "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }
