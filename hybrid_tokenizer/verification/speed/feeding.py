"""The rows of what feeds training: loaders, caches, and draws from a cache."""

import statistics
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from hybrid_tokenizer.data import TrainingStream, find_images
from hybrid_tokenizer.data.resident import ResidentStream
from hybrid_tokenizer.data.training import CropConfig, build_loader, one_thread
from hybrid_tokenizer.images import from_uint8
from hybrid_tokenizer.training.crop_cache import ROWS_OF_SHARD, CachedRows, CropSource, ShardFile
from hybrid_tokenizer.training.latents import LatentStream, cache_latents, encode_guides
from hybrid_tokenizer.verification.speed.bench import Bench
from hybrid_tokenizer.verification.speed.timing import Contest, Timed

CACHED_ROWS = 2_500_000
"""About two crops of each image of ImageNet."""
LOADER_WORKERS = 2
LOADER_BATCHES = 24
RESIDENT_MEGABYTES = 4000
CACHED_IMAGES, FEWER_CACHED_IMAGES = 48, 6
"""Of the full and of the reduced form."""


def loader(bench: Bench) -> dict[str, Any]:
    """Training batches from disk."""
    size, batch_size = bench.config.image_size, bench.config.batch_size
    with tempfile.TemporaryDirectory() as scratch:
        paths = find_images(bench.photographs_folder(Path(scratch)))
        stream = TrainingStream(paths, CropConfig(size), seed=0)
        contest = Contest(
            name="loader",
            unit="images/s",
            ours=lambda: timed(build_loader(stream, batch_size, num_workers=LOADER_WORKERS)),
            alternative=lambda: timed(torchvision_loader(paths, size, batch_size)),
            amount=LOADER_BATCHES * batch_size,
            difference=lambda left, right: None,
            notes={
                "ours_is": f"TrainingStream and build_loader, {LOADER_WORKERS} workers: damage is checked, draws resume exactly",
                "alternative_is": f"a Dataset with torchvision's transforms in a DataLoader, {LOADER_WORKERS} workers",
                "difference_is": "other random crops",
                "batch_size": batch_size,
            },
        )
        return bench.measure(contest)


def loader_resident(bench: Bench) -> dict[str, Any]:
    """Training batches from photographs that are kept on the device."""
    crop, batch_size = CropConfig(bench.config.image_size), bench.config.batch_size
    with tempfile.TemporaryDirectory() as scratch:
        paths = find_images(bench.photographs_folder(Path(scratch)))
        resident = ResidentStream(
            paths, crop, 0, "cheap", bench.device, RESIDENT_MEGABYTES, LOADER_WORKERS, progress=False
        )
        stream = TrainingStream(paths, crop, seed=0)
        contest = Contest(
            name="loader_resident",
            unit="images/s",
            ours=lambda: timed(build_loader(resident, batch_size)),
            alternative=lambda: timed(build_loader(stream, batch_size, num_workers=LOADER_WORKERS)),
            amount=LOADER_BATCHES * batch_size,
            difference=lambda left, right: (left.cpu() - right).abs().mean().item(),
            notes={
                "ours_is": "data.resident_mb: crops are cut on the device by the training process",
                "alternative_is": f"the same draws from disk, {LOADER_WORKERS} workers",
                "difference_is": "mean difference of a crop's values in [-1, 1]",
                "batch_size": batch_size,
            },
        )
        return bench.measure(contest)


def cache(bench: Bench) -> dict[str, Any]:
    """The caches of latents, semantic tokens and guide latents that the U-Net trains on."""
    tokenizer = bench.tokenizer
    semantic, guide, decoder = tokenizer.semantic, tokenizer.guide, tokenizer.diffusion
    prefixes = [1, None] if guide.config.guide_scales else [None]
    with tempfile.TemporaryDirectory() as scratch:
        paths = find_images(bench.photographs_folder(Path(scratch)))
        count = FEWER_CACHED_IMAGES if bench.config.reduced else CACHED_IMAGES
        paths = (paths * -(-count // len(paths)))[:count]
        source = CropSource(paths, CropConfig(bench.config.image_size), 1, 0)

        def ours() -> Tensor:
            with tempfile.TemporaryDirectory() as folder:
                stream = cache_latents(Path(folder), source, decoder, semantic, guide, num_workers=1)
                return torch.stack([stream.rows["latents"][row] for row in range(len(paths))])

        @torch.no_grad()
        def theirs() -> Tensor:
            kept = []
            for number in range(len(paths)):
                crop = from_uint8(source.read(number).to(bench.device))
                semantic.encode(crop)
                encode_guides(decoder, guide, crop, prefixes)
                kept.append(decoder.encode_latents(crop).half().cpu())
            return torch.cat(kept)

        contest = Contest(
            name="cache",
            unit="images/s",
            ours=ours,
            alternative=theirs,
            amount=len(paths),
            difference=lambda left, right: (left.float() - right.float()).abs().max().item(),
            notes={
                "ours_is": "cache_latents with one loader worker, in batches, with shards written to disk",
                "alternative_is": "the same reading and encoding of one image after the other in one process",
                "difference_is": "largest difference of a latent in fp16",
                "n": len(paths),
            },
        )
        return bench.measure(contest)


def timed(loader: Iterable[dict[str, Any]]) -> Timed:
    """The seconds of `LOADER_BATCHES` batches, after a first one for which the workers start. The result is the first batch."""
    batches = iter(loader)
    first = next(batches)["images"]
    start = time.perf_counter()
    for _ in range(LOADER_BATCHES):
        next(batches)
    return Timed(time.perf_counter() - start, first)


class TorchvisionCrops(torch.utils.data.Dataset):
    """What a user writes: a random square crop, flipped half of the time, in [-1, 1]."""

    def __init__(self, paths: list[Path], size: int):
        from torchvision import transforms

        self.paths = paths
        self.transform = transforms.Compose([
            transforms.RandomResizedCrop(
                size, (0.49, 1.0), (1.0, 1.0), transforms.InterpolationMode.BICUBIC
            ),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize((0.5,) * 3, (0.5,) * 3),
        ])  # fmt: skip

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        from PIL import Image

        with Image.open(self.paths[index]) as image:
            return {"images": self.transform(image.convert("RGB"))}


def torchvision_loader(paths: list[Path], size: int, batch_size: int) -> DataLoader:
    """Endless enough for one measurement."""
    times = -(-(LOADER_BATCHES + 2 * LOADER_WORKERS + 1) * batch_size // len(paths))
    data = TorchvisionCrops(paths * times, size)
    return DataLoader(data, batch_size, shuffle=True, num_workers=LOADER_WORKERS, worker_init_fn=one_thread)


def latent_draw(bench: Bench) -> dict[str, Any]:
    """A draw of the U-Net's training from a cache of latents (4 x 32 x 32, fp16), in an epoch that is under way."""
    with tempfile.TemporaryDirectory() as folder:
        shard = ShardFile(Path(folder) / "shard.safetensors", "")
        shard.write([torch.randn(ROWS_OF_SHARD, 4, 32, 32).half()], list(range(ROWS_OF_SHARD)))
        shards = -(-CACHED_ROWS // ROWS_OF_SHARD)
        rows = CachedRows(
            [shard.path] * shards, [ROWS_OF_SHARD] * shards
        )  # one file in all places: 20 GB of them say no more
        stream = LatentStream([Path("image.png")] * len(rows), np.arange(len(rows)), 1, {"latents": rows}, seed=0)
        stream[0]  # permutes the epoch

        def drawn(draws: range, forget: bool) -> Timed:
            seconds, latents = [], []
            for draw in draws:
                if forget:
                    stream._permutation.cache_clear()
                start = time.perf_counter()
                latents.append(stream[draw]["latents"])
                seconds.append(time.perf_counter() - start)
            return Timed(statistics.median(seconds), torch.stack(latents[:10]))

        contest = Contest(
            name="latent_draw",
            unit="s",
            ours=lambda: drawn(range(1000), forget=False),
            alternative=lambda: drawn(range(10), forget=True),
            amount=0,
            difference=lambda left, right: (left - right).abs().max().item(),
            notes={
                "ours_is": f"LatentStream: median of 1,000 draws from {len(rows):,} cached rows, memory-mapped",
                "alternative_is": "the same with the epoch permuted for each of 10 draws",
                "difference_is": "largest difference of a latent",
            },
        )
        return bench.measure(contest)
