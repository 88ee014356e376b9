"""File names that are not UTF-8 or hold control characters, through every place that a name goes to."""

import hashlib
import json
import os
from pathlib import Path

import pytest
from PIL import Image

from hybrid_tokenizer.checkpoints.files import read_json, write_json
from hybrid_tokenizer.data import TrainingStream, UnreadableImage, find_images, hold_out, open_rgb, read_captions
from hybrid_tokenizer.data.config import DataConfig
from hybrid_tokenizer.data.training import CropConfig
from hybrid_tokenizer.errors import HybridTokenizerError, printable
from hybrid_tokenizer.evaluation.config import PairData
from hybrid_tokenizer.evaluation.images import EvalImages
from hybrid_tokenizer.evaluation.pairs import open_pairs
from hybrid_tokenizer.training.config import TrainingConfig
from hybrid_tokenizer.training.setup import build_data

NAMES = [b"caf\xe9.png", b"\xff\xfe.png", b"red\x1b[31m.png", b"two\nlines.png", "é.png".encode(), b"plain.png"]
SHOWN = ["caf\\xe9.png", "\\xff\\xfe.png", "red\\x1b[31m.png", "two\\nlines.png", "é.png", "plain.png"]


@pytest.fixture
def folder(tmp_path):
    """Twelve pictures, and six more with the names above."""
    for number in range(12):
        Image.new("RGB", (40, 32), (number,) * 3).save(tmp_path / f"{number:02d}.png")
    for number, name in enumerate(NAMES):
        Image.new("RGB", (40, 32), (100 + number,) * 3).save(os.path.join(os.fsencode(tmp_path), name).decode("utf-8", "surrogateescape"), "png")  # fmt: skip
    return tmp_path


@pytest.mark.parametrize(("name", "shown"), list(zip(NAMES, SHOWN, strict=True)))
def test_the_printable_form(name, shown):
    text = printable(os.fsdecode(name))
    assert text == shown and text.isprintable() and text.encode()
    assert str(HybridTokenizerError(f"{os.fsdecode(name)!s} is odd")).replace("\n", "\\n") == f"{shown} is odd"


@pytest.mark.parametrize("character", ["\x00", "\x7f", "\x9b", "\u202e", "\u2028", "\ud800", "\U000e0001"])
def test_no_control_character_reaches_a_terminal(character):
    assert printable(f"a{character}b").isprintable() and character not in printable(f"a{character}b")


def test_training_reads_names_of_any_bytes(folder):
    data = DataConfig(root=str(folder), image_size=32, val_at_least=4)
    stream, batches = build_data(data, TrainingConfig(batch_size=2))
    assert len(stream.items) + sum(len(batch["images"]) for batch in batches) == 18
    assert hold_out(find_images(folder), folder)[1] == hold_out(find_images(folder)[::-1], folder)[1][::-1]


def test_training_names_what_it_skipped(folder, tmp_path):
    path = Path(os.fsdecode(os.path.join(os.fsencode(folder), NAMES[0])))
    path.write_bytes(b"no picture")
    stream = TrainingStream([path, folder / "00.png"], CropConfig(size=8), seed=0)
    skipped = {one for draw in range(4) for one in stream[draw]["skipped"]}
    assert {name for name, _ in skipped} == {f"{folder}/caf\\xe9.png"}
    write_json(tmp_path / "training.json", {"skipped": sorted(name for name, _ in skipped)})
    assert json.loads((tmp_path / "training.json").read_text(encoding="utf-8"))


def test_evaluation_reads_and_records_names_of_any_bytes(folder):
    (folder / os.fsdecode(b"bad\xe9\x07.png")).write_bytes(b"no picture")
    said = []
    images = EvalImages.open(folder, 32, say=said.append, progress=False)
    assert set(SHOWN) < set(images.names) and len(images) == 18
    assert {os.fsencode(name) for name in images.sources} > set(NAMES)
    level = {name: round((images[i][0, 0, 0].item() + 1) * 127.5) for i, name in enumerate(images.names)}
    assert [level[name] for name in SHOWN] == [100, 101, 102, 103, 104, 105]
    assert images.skipped[0]["path"] == f"{folder}/bad\\xe9\\x07.png"
    assert said == [f"skipped {folder}/bad\\xe9\\x07.png: {images.skipped[0]['reason']}"]
    assert json.dumps(images.skipped, ensure_ascii=False).encode() and "\n".join(images.names).encode()


def test_hashes_of_ordinary_names_are_what_they_were(folder):
    images = EvalImages.open(folder / "00.png", 32, progress=False)
    assert images.names_hash == hashlib.sha256(b"00.png").hexdigest()


def test_pairs_name_files_of_any_bytes(folder):
    rows = [{"file": os.fsdecode(name), "captions": [f"caption {n}"]} for n, name in enumerate(NAMES)]
    (folder / "captions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert len(read_captions(folder)) == len(NAMES)
    pairs = open_pairs(PairData(root=str(folder), image_size=32), progress=False)
    assert dict(zip(pairs.images.names, pairs.captions, strict=True)) == {
        name: f"caption {n}" for n, name in enumerate(SHOWN)
    }
    assert len(pairs.captions_hash) == 64


def test_rows_that_were_skipped_are_in_the_record(folder):
    rows = [{"file": "plain.png", "captions": ["good"]}, {"file": "plain.png", "captions": [None]}]
    (folder / "captions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pairs = open_pairs(PairData(root=str(folder), image_size=32), progress=False, say=lambda line: None)
    assert pairs.images.skipped == [
        {"path": f"{folder}/captions.jsonl line 2", "reason": "no caption; give at least one"}
    ]


def test_json_takes_any_name_and_gives_it_back(tmp_path):
    names = [os.fsdecode(name) for name in NAMES]
    write_json(tmp_path / "names.json", names)
    assert read_json(tmp_path / "names.json") == names
    assert (tmp_path / "names.json").read_text(encoding="utf-8")


def test_messages_are_one_printable_line(tmp_path):
    path = tmp_path / os.fsdecode(b"caf\xe9\x1b.png")
    with pytest.raises(UnreadableImage) as error:
        open_rgb(path)
    assert str(error.value) == f"{tmp_path}/caf\\xe9\\x1b.png: No such file or directory"
    assert error.value.path == path and error.value.name == f"{tmp_path}/caf\\xe9\\x1b.png"
    with pytest.raises(HybridTokenizerError) as error:
        find_images(path)
    assert str(error.value).isprintable()
