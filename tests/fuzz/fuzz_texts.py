"""Damaged captions, COCO files and shards: rows and members are skipped, files are refused, nothing else happens."""

import io
import json
import random
import tarfile
from pathlib import Path
from typing import Any

from fuzz_bytes import DAMAGES
from fuzz_driver import Attempt, Door
from PIL import Image

from hybrid_tokenizer.data.coco import read_coco
from hybrid_tokenizer.data.items import folder_of, item_captions, item_path, list_items, open_item
from hybrid_tokenizer.data.open import UnreadableImage
from hybrid_tokenizer.errors import HybridTokenizerError
from hybrid_tokenizer.evaluation.config import PairData
from hybrid_tokenizer.evaluation.pairs import open_pairs

COUNT = 6
ODD_VALUES: list[Any] = [
    None, True, 0, -1, 1e308, 10**400, "", " ", "\ud83d", "a\udce9.png", "../0.png", "/etc/hostname", "\0", "x" * 5000,
    "\x1b[31m", [], {}, [None], [[]], {"a": 1}, ["\ud800"],
]  # fmt: skip


def odd_json(value: Any, draw: random.Random) -> Any:
    """The value with one part replaced, removed, doubled, or nested deep."""
    if isinstance(value, (dict, list)) and value and draw.random() < 0.85:
        changed = dict(value) if isinstance(value, dict) else list(value)
        key = draw.choice(list(changed) if isinstance(changed, dict) else range(len(changed)))
        if draw.random() < 0.15:
            del changed[key]
        else:
            changed[key] = odd_json(changed[key], draw)
        return changed
    return draw.choice(ODD_VALUES)


def odd_text(value: Any, draw: random.Random) -> tuple[str, bytes]:
    """(kind of damage, JSON with it)."""
    kind = draw.choice(["odd_value", "odd_value", "odd_value", "deep", *DAMAGES])
    if kind == "deep":
        depth = draw.choice([2000, 100_000])
        return kind, draw.choice([b"[" * depth, b'{"a":' * depth, b"[" * depth + b"]" * depth])
    if kind == "odd_value":
        for _ in range(draw.choice([1, 1, 3])):
            value = odd_json(value, draw)
        return kind, json.dumps(value).encode()
    return kind, DAMAGES[kind](json.dumps(value).encode(), draw)


def pictures(folder: Path) -> Path:
    for number in range(COUNT):
        Image.new("RGB", (32, 32), (40 * number,) * 3).save(folder / f"{number}.png")
    return folder


def captions(root: Path, draw: random.Random, folder: Path) -> Attempt:
    """One row is odd; the others are read as they are."""
    rows = [json.dumps({"file": f"{n}.png", "captions": [f"caption {n}", "another"]}).encode() for n in range(COUNT)]
    kind, rows[2] = odd_text(json.loads(rows[2]), draw)
    (root / "captions.jsonl").write_bytes(b"\n".join(rows))
    said: list[str] = []
    try:
        pairs = open_pairs(PairData(root=str(root), image_size=32), progress=False, say=said.append)
    except HybridTokenizerError as error:
        assert "\n" not in str(error)
        assert "twice" in str(error), "the damaged row can name another row's image, and nothing else stops a run"
        return Attempt(kind, True)
    assert all(line.isprintable() for line in said)
    kept = {name: text for name, text in zip(pairs.images.names, pairs.captions, strict=True) if name != "2.png"}
    lost = [n for n in range(COUNT) if n != 2 and kept.get(f"{n}.png") not in (f"caption {n}", "another")]
    return Attempt(kind, False, len(lost) / COUNT, 0.0)


def coco(root: Path, draw: random.Random, folder: Path) -> Attempt:
    """A whole file is odd somewhere; images that it does not touch keep their captions."""
    images = [{"id": n, "file_name": f"{n}.png"} for n in range(COUNT)]
    content: Any = {"images": images, "annotations": [{"image_id": n, "caption": f"caption {n}"} for n in range(COUNT)]}
    if draw.random() < 0.5:
        rows = [{"filename": f"{n}.png", "split": "test", "sentences": [{"raw": f"caption {n}"}]} for n in range(COUNT)]
        content = {"images": rows}
    kind, data = odd_text(content, draw)
    (root / "annotations.json").write_bytes(data)
    said: list[str] = []
    try:
        pairs = read_coco(root / "annotations.json", root, say=said.append)
    except HybridTokenizerError as error:
        assert "\n" not in str(error)
        return Attempt(kind, True)
    assert all(line.isprintable() for line in said)
    assert all(text.encode() for pair in pairs for text in pair.captions)
    assert all(pair.path.resolve().is_relative_to(root.resolve()) for pair in pairs)
    return Attempt(kind, False)


def shard(folder: Path) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for number in range(COUNT):
            picture = io.BytesIO()
            Image.new("RGB", (32, 32), (40 * number,) * 3).save(picture, "PNG")
            texts = json.dumps({"captions": [f"caption {number}"]}).encode()
            for suffix, data in (("png", picture.getvalue()), ("json", texts)):
                member = tarfile.TarInfo(f"{number}.{suffix}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def shards(whole: bytes, draw: random.Random, folder: Path) -> Attempt:
    """Every sample is read or named; those that are read have their own captions."""
    kind = draw.choice([*DAMAGES, "odd_names"])
    path = folder / "a.tar"
    path.write_bytes(_odd_names(draw) if kind == "odd_names" else DAMAGES[kind](whole, draw))
    said: list[str] = []
    read = 0
    try:
        for item in list_items(path, captions=True, say=said.append):
            assert item_path(item).relative_to(folder_of(path))
            try:
                open_item(item)
                assert all(text.encode() for text in item_captions(item))
                read += 1
            except UnreadableImage as error:
                assert "\n" not in str(error) and str(error).isprintable()
    except HybridTokenizerError as error:
        assert "\n" not in str(error)
        return Attempt(kind, True)
    assert all(line.isprintable() for line in said)
    return Attempt(kind, False)


def _odd_names(draw: random.Random) -> bytes:
    """Members with any names, whose pictures are whole."""
    buffer, picture = io.BytesIO(), io.BytesIO()
    Image.new("RGB", (32, 32)).save(picture, "PNG")
    parts = ["a", "b.c", "..", "", ".", "\n", "caf\udce9", "\x1b", " ", "x" * 200, "1", "depth", "/", "é"]
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT if draw.random() < 0.5 else tarfile.GNU_FORMAT) as tar:  # fmt: skip
        for _ in range(draw.randrange(1, 8)):
            name = draw.choice([".", "/", ""]).join(draw.choices(parts, k=draw.randrange(1, 5)))
            member = tarfile.TarInfo(name + draw.choice([".png", ".JPG", ".json", ".txt", "", ".tar"]))
            member.size = len(picture.getvalue())
            tar.addfile(member, io.BytesIO(picture.getvalue()))
    return buffer.getvalue()


DOORS = [
    Door("captions", pictures, captions, share=2.5),
    Door("coco", pictures, coco, share=2.5),
    Door("shards", shard, shards, share=2.5),
]
