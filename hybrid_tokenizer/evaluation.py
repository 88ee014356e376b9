"""Tokenizer x images x measures -> one row of a table. Knows protocols only; which tokenizers there are is the caller's."""

import hashlib
import math
import os
import resource
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
import torch.distributed as dist
from einops import rearrange
from jaxtyping import Float, Int, UInt8
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from hybrid_tokenizer.data.folders import UnreadableImage, find_images, open_rgb
from hybrid_tokenizer.data.samples import sample_photographs
from hybrid_tokenizer.errors import HybridTokenizerError
from hybrid_tokenizer.images import check_range, fit_square, from_uint8, resize_bicubic, to_uint8
from hybrid_tokenizer.metrics import perceptual, pixel, weighted
from hybrid_tokenizer.metrics.codebook import CodebookUse
from hybrid_tokenizer.metrics.statistics import bootstrap_interval
from hybrid_tokenizer.protocol import ImageTokenizer, PairTokenizer
from hybrid_tokenizer.provenance import git_revision, machine, versions
from hybrid_tokenizer.published import published_values
from hybrid_tokenizer.quantizers import sum_over_ranks

CACHE_BYTES = 256 * 2**20
SMALLEST_SIDE = 32
WEIGHTED = ("lpips_alex", "lpips_vgg", "clip_i", "dino_distance", "rfid", "kid")
"""Measures that need weights from a hub, which the user brings."""


@dataclass
class EvalData:
    """`root: null` is the built-in sample photographs; `max_images` takes the first usable ones in sorted order."""

    root: str | None = None
    image_size: int = 256
    max_images: int | None = None

    def __post_init__(self) -> None:
        if self.image_size < SMALLEST_SIDE or self.image_size % 8:
            nearest = max(SMALLEST_SIDE, round(self.image_size / 8) * 8)
            raise HybridTokenizerError(
                f"data.image_size={self.image_size} must be a multiple of 8 and at least {SMALLEST_SIDE}; use {nearest}"
            )
        if self.max_images is not None and self.max_images < 1:
            raise HybridTokenizerError(f"data.max_images={self.max_images} must be at least 1, or null for all images")


@dataclass
class Components:
    """What replaces parts of the model: folders of trained components, and how far its encoder searches."""

    guide: str | None = None
    semantic: str | None = None
    diffusion: str | None = None
    search_steps: int | None = None


@dataclass
class EvalReconConfig:
    """`model_name` is a preset, a folder or a hub id; `tokenizers` are the rows by name, null the controls, the hybrid, the
    codec and `baselines`.

    `baselines` says where the weights of other tokenizers are: name -> file, folder, hub id, or `hub`. `compare_to` is the
    row that the others' paired differences are taken to; `pictures` is how many images the grid shows. `metric_weights`
    adds measures whose weights do not come with a package: lpips_alex, lpips_vgg (torchvision's files), clip_i,
    dino_distance (folders in transformers' form), rfid, kid (torch-fidelity's Inception) -> file or folder.
    """

    model_name: str = "tiny"
    output_dir: str = "outputs/eval_recon"
    data: EvalData = field(default_factory=EvalData)
    components: Components = field(default_factory=Components)
    tokenizers: list[str] | None = None
    baselines: dict[str, str] = field(default_factory=dict)
    compare_to: str = "hybrid"
    seeds: list[int] = field(default_factory=lambda: [0])
    batch_size: int = 8
    device: str | None = None
    pictures: int = 8
    metric_weights: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_run_numbers(self.seeds, self.batch_size)
        if unknown := sorted(set(self.metric_weights) - set(WEIGHTED)):
            raise HybridTokenizerError(f"metric_weights names {', '.join(unknown)}; use some of {', '.join(WEIGHTED)}")


@dataclass
class ReconstructConfig:
    """`input` is an image or a folder of images; null is the built-in photographs."""

    model_name: str = "tiny"
    input: str | None = None
    output_dir: str = "outputs/reconstruct"
    image_size: int = 256
    components: Components = field(default_factory=Components)
    seed: int = 0
    batch_size: int = 8
    device: str | None = None

    def __post_init__(self) -> None:
        EvalData(self.input, self.image_size)  # the same rule for the size
        check_run_numbers([self.seed], self.batch_size)


@dataclass(frozen=True)
class Metric:
    """A measure of images against references, both in [-1, 1], a value an image.

    Args:
        geometric: its values are ratios, averaged by their logarithms.
        least_side: smaller images have no value.
    """

    name: str
    measure: Callable[[Tensor, Tensor], Tensor]
    geometric: bool = False
    least_side: int = 1


def default_metrics(device: torch.device | str = "cpu", weights: Mapping[str, str] | None = None) -> list[Metric]:
    """The measures of every table. `efficientnet-lite0` is a teacher of `tiny`, and its column says so.

    weights: of measures that need some, name -> file or folder; those of whole sets (rFID, KID) are `of_a_set`'s.
    """
    lite2, lite0 = (perceptual.EfficientNetDistance(name).to(device) for name in ("lite2", "lite0"))
    return [
        Metric("psnr", pixel.psnr),
        Metric("ssim", pixel.ssim),
        Metric("ms_ssim", pixel.ms_ssim, least_side=pixel.MS_SSIM_LEAST_SIDE),
        Metric("ssim_paper_compat", pixel.ssim_paper_compat),
        Metric("effnet_lite2_distance", lambda x, y: perceptual.efficientnet_distance(lite2, x, y)),
        Metric("haarpsi", perceptual.haarpsi),
        Metric("mdsi", perceptual.mdsi),
        Metric("high_frequency_energy", pixel.high_frequency_energy, geometric=True),
        Metric("effnet_lite0_distance (trained on)", lambda x, y: perceptual.efficientnet_distance(lite0, x, y)),
        *(Metric(name, measure) for name, measure in weighted.per_image(weights or {}, device).items()),
    ]


class EvalBatch(NamedTuple):
    """Positions in the set, references, and each one's next image (the material of controls)."""

    positions: range
    references: Float[Tensor, "b 3 r r"]
    next_images: Float[Tensor, "b 3 r r"]


class EvalImages:
    """Square references in the given order, each the shorter side brought to `size` and the centre cut out.

    All are read once when this is built; those that can not be used are announced by `say` as `skipped PATH: reason`
    and kept in `skipped`. References stay in memory up to `CACHE_BYTES`; beyond that they are read again when needed.

    Args:
        names: what the results call the images, paths relative to `root` where there is one.
        read: gives the RGB image of a name, or raises `UnreadableImage`.
        max_images: take the first usable ones only.
    """

    def __init__(
        self,
        names: Sequence[str],
        read: Callable[[str], Image.Image],
        size: int,
        *,
        root: Path = Path(),
        max_images: int | None = None,
        say: Callable[[str], None] = tqdm.write,
        progress: bool = True,
    ):
        self.size = size
        self.names: list[str] = []
        self.skipped: list[dict[str, str]] = []
        self._read, self._root = read, root
        self._cache: dict[str, UInt8[Tensor, "3 r r"]] = {}
        pixels = hashlib.sha256()
        for name in tqdm(names, desc="reading images", unit="image", disable=not progress, leave=False):
            if len(self.names) == max_images:
                break
            try:
                levels = self._crop(name)
            except UnreadableImage as error:
                self.skipped.append({"path": str(error.path), "reason": error.reason})
                say(f"skipped {error.path}: {error.reason}")
                continue
            self.names.append(name)
            pixels.update(levels.numpy().tobytes())
            if (len(self._cache) + 1) * levels.nbytes <= CACHE_BYTES:
                self._cache[name] = levels
        if not self.names:
            raise HybridTokenizerError(
                f"none of the {len(names)} image(s) under {self._root} can be used, each is listed above with its reason; "
                "give a folder with readable images of sufficient size"
            )
        self.pixels_hash = pixels.hexdigest()
        self.names_hash = hashlib.sha256("\n".join(self.names).encode()).hexdigest()

    @classmethod
    def open(cls, source: str | os.PathLike[str] | None, size: int, **options: Any) -> "EvalImages":
        """A folder, one file, or for None the built-in photographs. Options as for the constructor."""
        if source is None:
            return cls.from_samples(size, **options)
        return (cls.from_file if Path(source).is_file() else cls.from_folder)(source, size, **options)

    @classmethod
    def from_folder(cls, root: str | os.PathLike[str], size: int, **options: Any) -> "EvalImages":
        """A folder of images, nested or flat; names are paths relative to it. Options as for the constructor."""
        root = Path(root)
        names = [path.relative_to(root).as_posix() for path in find_images(root)]
        return cls(names, lambda name: open_rgb(root / name), size, root=root, **options)

    @classmethod
    def from_file(cls, path: str | os.PathLike[str], size: int, **options: Any) -> "EvalImages":
        """One image file."""
        path = Path(path)
        return cls([path.name], lambda name: open_rgb(path), size, root=path.parent, **options)

    @classmethod
    def from_samples(cls, size: int, **options: Any) -> "EvalImages":
        """The built-in photographs."""
        photographs = sample_photographs()
        return cls(list(photographs), photographs.__getitem__, size, **options)

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Float[Tensor, "3 r r"]:
        name = self.names[index]
        return from_uint8(self._cache[name] if name in self._cache else self._crop(name))

    def batches(self, batch_size: int) -> Iterator[EvalBatch]:
        """All images in order. The next of the last image is the first; a single image's is a built-in photograph."""
        for start in range(0, len(self), batch_size):
            stop = min(start + batch_size, len(self))
            images = [self[i] for i in range(start, stop)]
            follower = self[stop % len(self)] if len(self) > 1 else self._stranger()
            yield EvalBatch(range(start, stop), torch.stack(images), torch.stack([*images[1:], follower]))

    def _stranger(self) -> Float[Tensor, "3 r r"]:
        crops = (from_uint8(_levels(photograph, self.size)) for photograph in sample_photographs().values())
        return next(crop for crop in crops if not torch.equal(crop, self[0]))

    def _crop(self, name: str) -> UInt8[Tensor, "3 r r"]:
        image = self._read(name)
        if min(image.size) < self.size / 4:  # enlarged further, a score would measure the enlargement
            reason = (
                f"{image.width}x{image.height} pixels, the shorter side is under a quarter of image_size={self.size}"
            )
            raise UnreadableImage(self._root / name, reason)
        return _levels(image, self.size)


def _levels(image: Image.Image, size: int) -> UInt8[Tensor, "3 r r"]:
    return rearrange(torch.from_numpy(np.array(fit_square(image, size))), "h w c -> c h w").contiguous()


@runtime_checkable
class RowStore(Protocol):
    """Where finished rows are kept."""

    def read(self, name: str) -> "Evaluation | None": ...

    def write(self, name: str, done: "Evaluation") -> None: ...


class Evaluation(NamedTuple):
    """A row of the table, what it was averaged from, and the first few reconstructions."""

    row: dict[str, Any]
    per_image: list[dict[str, Any]]
    """An entry an image: every measure's mean over seeds, PSNR of each seed, tokens, bits, seconds; null is not finite."""
    pictures: UInt8[Tensor, "k 3 r r"]
    """Of the first seed."""


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


def rank_and_world_size() -> tuple[int, int]:
    """Of this process; (0, 1) outside a distributed run."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


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


def summarize(
    name: str,
    size: int,
    metrics: Sequence[Metric],
    values: dict[str, Float[np.ndarray, "s n"]],
    facts: dict[str, Float[np.ndarray, "s n"]],
) -> dict[str, Any]:
    """The row: means over images of the means over seeds, intervals over images, spread of PSNR over seeds."""
    row: dict[str, Any] = {"method": name}
    intervals: dict[str, list[float] | None] = {}
    for metric in metrics:
        if metric.name not in values:
            row[metric.name] = intervals[metric.name] = None
            row[f"{metric.name}_note"] = f"needs images of at least {metric.least_side} pixels, these have {size}"
            continue
        of_image = seed_mean(values[metric.name], metric)
        finite = of_image[np.isfinite(of_image)]
        row[metric.name], intervals[metric.name] = mean_and_interval(finite, metric)
        if len(finite) < len(of_image):
            what = "infinite (equal to the original)" if np.isposinf(of_image).any() else "undefined"
            left_out = len(of_image) - len(finite)
            row[f"{metric.name}_note"] = f"{what} for {left_out} of {len(of_image)} images, which the mean leaves out"
    if "psnr" in values:
        row["psnr_std"] = _spread(values["psnr"])
    for fact in ("num_tokens", "bits"):
        row[fact] = float(facts[fact].mean())
    row["bits_per_pixel"] = row["bits"] / size**2
    row["seconds_per_image"] = float(facts["seconds"].mean())
    return row | {"n": facts["bits"].shape[1], "image_size": size, "intervals": intervals}


def seed_mean(values: Float[np.ndarray, "s n"], metric: Metric) -> Float[np.ndarray, "n"]:
    """One value an image: its mean over seeds."""
    return np.exp(np.log(values).mean(0)) if metric.geometric else values.mean(0)


def mean_and_interval(values: Float[np.ndarray, "n"], metric: Metric) -> tuple[float | None, list[float] | None]:
    """Mean over images and its 95 % bootstrap interval; None where there is nothing to average."""
    if not len(values):
        return None, None
    scaled = np.log(values) if metric.geometric else values
    back = math.exp if metric.geometric else float
    interval = bootstrap_interval(scaled)
    return back(scaled.mean()), None if interval is None else [back(interval.low), back(interval.high)]


def _spread(psnr: Float[np.ndarray, "s n"]) -> float | None:
    """Standard deviation over seeds of the mean PSNR; None for one seed or infinite values."""
    means = psnr.mean(1)
    return float(means.std(ddof=1)) if len(means) > 1 and np.isfinite(means).all() else None


def list_per_image(
    method: str,
    names: Sequence[str],
    metrics: Sequence[Metric],
    values: dict[str, Float[np.ndarray, "s n"]],
    facts: dict[str, Float[np.ndarray, "s n"]],
) -> list[dict[str, Any]]:
    """`Evaluation.per_image`."""
    columns = {metric.name: seed_mean(values[metric.name], metric) for metric in metrics}
    columns |= {fact: table.mean(0) for fact, table in facts.items()}
    entries = []
    for i, name in enumerate(names):
        entry: dict[str, Any] = {"method": method, "image": name} | {
            key: _finite(column[i]) for key, column in columns.items()
        }
        if "psnr" in values:
            entry["psnr_of_seeds"] = [_finite(value) for value in values["psnr"][:, i]]
        entries.append(entry)
    return entries


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def paired_differences(
    evaluation: Evaluation, reference: Evaluation, metrics: Sequence[Metric]
) -> dict[str, dict[str, Any]]:
    """`evaluation` minus `reference` over the same images: metric -> mean and 95 % bootstrap interval.

    Images without a finite value on either side are left out, ratios (geometric measures) altogether.
    """
    differences = {}
    for name in (metric.name for metric in metrics if not metric.geometric):
        pairs = [
            (ours.get(name), theirs.get(name))
            for ours, theirs in zip(evaluation.per_image, reference.per_image, strict=True)
        ]
        values = np.array([ours - theirs for ours, theirs in pairs if ours is not None and theirs is not None])
        if len(values):
            interval = bootstrap_interval(values)
            differences[name] = {
                "mean": float(values.mean()),
                "interval": None if interval is None else list(interval),
                "n": len(values),
            }
    return differences


def check_run_numbers(seeds: Sequence[int], batch_size: int) -> None:
    """Raise on seeds or a batch size that no run can use."""
    if not seeds or len(set(seeds)) < len(seeds) or min(seeds) < 0:
        raise HybridTokenizerError(f"seeds={list(seeds)} must be different whole numbers from 0 up, e.g. [0, 1, 2]")
    if batch_size < 1:
        raise HybridTokenizerError(f"batch_size={batch_size} must be at least 1")


def choose_device(device: str | None) -> torch.device:
    """`device`, or without one the GPU where there is one. Raises when torch does not know or have it."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        from accelerate import PartialState  # joins the processes and knows which device is whose

        return PartialState(cpu=not torch.accelerator.is_available()).device
    try:
        chosen = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(1, device=chosen)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise HybridTokenizerError(f"device={device!r} can not be used ({reason}); use cpu or cuda") from None
    return chosen


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
