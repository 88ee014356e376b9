"""Small corpora of distinct pictures in every form that `tokenize` reads, and a small tokenizer for them."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from helpers.small_models import small_hybrid
from PIL import Image

from hybrid_tokenizer.corpus.config import EncoderConfig, TokenizeConfig
from hybrid_tokenizer.corpus.encoder import describe_tokenizer
from hybrid_tokenizer.corpus.pipeline import EncodePart, PartSink, cut_part, merge_shard
from hybrid_tokenizer.corpus.plan import DATASET_NAME, PARTS, WORK, missing_parts, open_plan
from hybrid_tokenizer.corpus.run import describe_dataset
from hybrid_tokenizer.corpus.storage import open_folder

SIDE = 32


def picture(number: int, size: tuple[int, int] = (48, 40)) -> Image.Image:
    """A smooth picture of (width, height) that no other number gives."""
    coarse = np.random.default_rng(number).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


def encoded(number: int, kind: str = "png") -> bytes:
    """The picture's file."""
    buffer = io.BytesIO()
    picture(number).save(buffer, kind)
    return buffer.getvalue()


def captions(number: int) -> list[str]:
    """One for odd numbers, two for even ones."""
    return [f"picture {number}", f"number {number}"][: 1 + (number + 1) % 2]


def write_folder(root: Path, count: int) -> Path:
    """Nested PNG files with captions.jsonl; picture 3 has an empty list of captions."""
    rows = []
    for number in range(count):
        path = root / f"{number % 3}" / f"{number:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(number))
        rows.append({"file": path.relative_to(root).as_posix(), "captions": [] if number == 3 else captions(number)})
    (root / "captions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return root


def write_tar(path: Path, numbers: range) -> Path:
    """A WebDataset shard."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for number in numbers:
            for suffix, data in (
                ("png", encoded(number)),
                ("json", json.dumps({"captions": captions(number)}).encode()),
            ):
                member = tarfile.TarInfo(f"{number:04d}.{suffix}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return path


def write_table(path: Path, numbers: range, rows_per_group: int = 3) -> Path:
    """A Parquet file in the form that `datasets` writes: a struct of bytes and path, and a caption."""
    path.parent.mkdir(parents=True, exist_ok=True)
    images = [{"bytes": encoded(number), "path": None} for number in numbers]
    texts = [captions(number)[0] for number in numbers]
    pq.write_table(pa.table({"image": images, "text": texts}), path, row_group_size=rows_per_group)
    return path


def write_saved(root: Path, numbers: range) -> Path:
    """A Hugging Face dataset on disk, of two splits."""
    import datasets

    features = datasets.Features({"image": datasets.Image(), "caption": datasets.Value("string")})
    split = {
        name: datasets.Dataset.from_dict(
            {"image": [{"bytes": encoded(n), "path": None} for n in held], "caption": [captions(n)[0] for n in held]},
            features=features,
        )
        for name, held in (("a", numbers[: len(numbers) // 2]), ("b", numbers[len(numbers) // 2 :]))
    }
    datasets.DatasetDict(split).save_to_disk(str(root))
    return root


def write_tokenizer(folder: Path, seed: int = 0) -> Path:
    """A nested one of 32 px: 32 semantic and 1 + 4 + 16 guide tokens."""
    small_hybrid(seed, nested=True).save_pretrained(folder)
    return folder


def fill(config: TokenizeConfig, shards: int = 1, stop_after: int | None = None) -> Path:
    """What `tokenize` does, step by step in this process, without Ray; as if killed after some parts where asked."""
    output = open_folder(config.output)
    described, grids = describe_tokenizer(config.model_name, config.data.image_size, config.guide_scales)
    plan = open_plan(output, config, described, grids)
    encoder = EncoderConfig(config.model_name, described["hash"], "cpu", config.dtype, 1, config.batch_size, config.guide_scales, 0)  # fmt: skip
    encode, sink = EncodePart(encoder, plan), PartSink(output / WORK / PARTS)
    for part in missing_parts(output, plan)[:stop_after]:
        sink.write([encode(cut_part(pa.table({"part": [part]}), output / WORK, plan))], None)
    if stop_after is not None:
        return Path(config.output)
    for shard in range(shards):
        merge_shard(pa.table({"shard": [shard]}), output, plan, shards, config.rows_per_group)
    output.write_json(DATASET_NAME, describe_dataset(output, plan))
    return Path(config.output)
