"""WebDataset shards as a data set: written by webdataset's own writer, read by random access."""

import io
import json
import tarfile
from collections import Counter
from itertools import islice

import numpy as np
import pytest
import webdataset
from PIL import Image

from hybrid_tokenizer.data import TrainingStream, build_loader, hold_out
from hybrid_tokenizer.data.config import DataConfig
from hybrid_tokenizer.data.items import folder_of, item_captions, item_path, list_items, open_item
from hybrid_tokenizer.data.training import CropConfig
from hybrid_tokenizer.errors import HybridTokenizerError
from hybrid_tokenizer.training.config import TrainingConfig
from hybrid_tokenizer.training.setup import build_data

WHOLE = CropConfig(size=8, scale=(1.0, 1.0), flip=False)


def png(level, width=20):
    buffer = io.BytesIO()
    Image.new("RGB", (width, 16), (level,) * 3).save(buffer, "png")
    return buffer.getvalue()


def write_shard(path, samples):
    with webdataset.TarWriter(str(path)) as writer:
        for sample in samples:
            writer.write(sample)


@pytest.fixture
def folder(tmp_path):
    """Three shards of four images with grey levels 0, 10, ..., 110 and two captions each."""
    root = tmp_path / "shards"
    root.mkdir()
    for shard in range(3):
        numbers = range(4 * shard, 4 * shard + 4)
        write_shard(
            root / f"pairs-{shard:03d}.tar",
            [
                {"__key__": f"{n:05d}", "png": png(10 * n), "json": {"captions": [f"picture {n}", f"number {n}"]}}
                for n in numbers
            ],
        )
    return root


def levels(batch):
    return [round((image.mean().item() + 1) * 127.5) for image in batch["images"]]


def test_a_folder_and_a_pattern_name_the_same_samples(folder):
    items = list_items(folder, captions=True)
    assert items == list_items(folder / "pairs-{000..002}.tar", captions=True)
    assert [item_path(item).relative_to(folder).as_posix() for item in items[3:5]] == [
        "pairs-000.tar/00003.png",
        "pairs-001.tar/00004.png",
    ]
    assert [np.asarray(open_item(item))[0, 0, 0] for item in items] == [10 * n for n in range(12)]
    assert item_captions(items[7]) == ("picture 7", "number 7")
    assert list_items(folder / "pairs-001.tar", captions=True) == items[4:8]


def test_an_epoch_sees_each_sample_once_over_workers_and_ranks_and_resumes_at_any_step(folder):
    stream = TrainingStream(list_items(folder, captions=True), WHOLE, seed=3)
    seen = []
    for rank in range(2):
        loader = build_loader(stream, batch_size=3, rank=rank, world_size=2, num_workers=1)
        batches = list(islice(loader, 2))
        seen += [level for batch in batches for level in levels(batch)]
        resumed = next(iter(build_loader(stream, batch_size=3, first=1, rank=rank, world_size=2)))
        assert levels(resumed) == levels(batches[1]) and resumed["captions"] == batches[1]["captions"]
        for batch in batches:
            for level, caption in zip(levels(batch), batch["captions"], strict=True):
                assert caption.split()[1] == str(level // 10), "a caption belongs to its image"
    assert Counter(seen) == {10 * n: 1 for n in range(12)}


def test_images_alone_need_no_captions(tmp_path):
    write_shard(tmp_path / "a.tar", [{"__key__": f"{n}", "png": png(n)} for n in range(4)])
    stream = TrainingStream(list_items(tmp_path, captions=False), WHOLE, seed=0)
    assert stream[0]["captions"] == "" and stream[0]["skipped"] == []


def test_corrupt_samples_are_skipped_and_named(tmp_path):
    write_shard(
        tmp_path / "a.tar",
        [
            {"__key__": "whole", "png": png(10), "txt": " a caption "},
            {"__key__": "cut", "png": png(20)[:40], "txt": "b"},
            {"__key__": "silent", "png": png(30)},
            {"__key__": "blank", "png": png(40), "txt": "  "},
            {"__key__": "broken", "png": png(50), "json": b"{"},
            {"__key__": "deep", "png": png(60), "json": b"[" * 200_000},
            {"__key__": "long", "png": png(70), "txt": "x" * (2**20 + 1)},
        ],
    )
    stream = TrainingStream(list_items(tmp_path, captions=True), WHOLE, seed=0)
    samples = [stream[draw] for draw in range(7)]
    assert {sample["captions"] for sample in samples} == {"a caption"}
    reasons = {path.rsplit("/", 1)[1]: reason for sample in samples for path, reason in sample["skipped"]}
    assert set(reasons) == {"cut.png", "silent.png", "blank.png", "broken.png", "deep.png", "long.png"}
    assert "no caption" in reasons["silent.png"] and "no caption" in reasons["blank.png"]
    assert "its .json is damaged" in reasons["broken.png"] and "its .json is damaged" in reasons["deep.png"]
    assert "over the limit" in reasons["long.png"]
    assert not any("\n" in reason for reason in reasons.values())


def test_members_of_other_kinds_are_left_alone(tmp_path):
    """Folders, links, pickles, hidden files: none is opened or followed."""
    with tarfile.open(tmp_path / "a.tar", "w") as tar:

        def add(name, data=b"", **fields):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            for field, value in fields.items():
                setattr(member, field, value)
            tar.addfile(member, io.BytesIO(data))

        add("sub", type=tarfile.DIRTYPE)
        add("sub/._hidden.png", png(1))
        add("sub/x.pkl", b"cos\nsystem\n")
        add("sub/x.PNG", png(2))
        add("sub/x.txt", b"two")
        add("sub/y.png", type=tarfile.SYMTYPE, linkname="/etc/hostname")
        add("sub/README", b"text")
        add("other/x.jpeg", png(3))
    items = list_items(tmp_path, captions=True)
    assert [item.name for item in items] == ["sub/x.PNG", "other/x.jpeg"]
    assert item_captions(items[0]) == ("two",)


def test_the_index_is_kept_elsewhere_and_renewed_with_the_shard(folder, tmp_path):
    index = tmp_path / "run" / "shards"
    items = list_items(folder, True, index)
    assert len(list(index.iterdir())) == 3 and {path.suffix for path in folder.iterdir()} == {".tar"}
    for path in index.iterdir():  # an index that still fits its shard is believed
        known = json.loads(path.read_text())
        known["samples"] = known["samples"][:1]
        path.write_text(json.dumps(known))
    assert len(list_items(folder, True, index)) == 3
    write_shard(folder / "pairs-000.tar", [{"__key__": f"{n}", "png": png(n), "txt": "new"} for n in range(9)])
    renewed = list_items(folder, True, index)
    assert len(renewed) == 9 + 1 + 1 and renewed[-1] in items


@pytest.mark.parametrize("kept", [0.3, "header", "mark", 0])
def test_a_half_downloaded_shard_is_one_line(folder, kept):
    shard = folder / "pairs-001.tar"
    data = shard.read_bytes()
    with tarfile.open(shard) as tar:
        headers = [member.offset for member in tar]
        end = tar.offset
    size = {"header": headers[2] + 100, "mark": end}.get(kept) if isinstance(kept, str) else int(kept * len(data))
    shard.write_bytes(data[:size])
    with pytest.raises(HybridTokenizerError, match=r"pairs-001\.tar is incomplete") as error:
        list_items(folder, captions=True)
    assert "\n" not in str(error.value)


def test_wrong_roots_are_one_line(folder, tmp_path):
    def fails(match, root):
        with pytest.raises(HybridTokenizerError, match=match) as error:
            list_items(root, captions=True)
        assert "\n" not in str(error.value)

    fails(r"2 of 5 shards of .* are not there, the first: .*pairs-003\.tar", folder / "pairs-{000..004}.tar")
    fails("is compressed; unpack it", folder / "pairs-000.tar.gz")
    write_shard(tmp_path / "texts.tar", [{"__key__": "a", "txt": "no image"}])
    fails("holds no images", tmp_path / "texts.tar")
    (tmp_path / "page.tar").write_text("<html>404</html>" * 100)
    fails("is incomplete or no tar", tmp_path / "page.tar")


@pytest.mark.parametrize("pattern", ["", "pairs-{000..002}.tar"])
def test_training_and_validation_share_no_sample(folder, tmp_path, pattern, monkeypatch):
    monkeypatch.chdir(tmp_path)
    root = f"shards/{pattern}".rstrip("/")
    data = DataConfig(root=root, image_size=16, val_at_least=4)
    stream, batches = build_data(data, TrainingConfig(batch_size=2), captions=True, index_folder=tmp_path / "index")
    held = {level for batch in batches for level in levels(batch)}
    assert len(stream.items) == 8 and len(held) == 4
    assert not held & {round(np.asarray(open_item(item)).mean()) for item in stream.items}
    assert [len(batch["captions"]) for batch in batches] == [2, 2]
    names = [item_path(item) for item in stream.items]
    assert hold_out(names, folder_of(data.roots[0]))[0], "relative names exist for a pattern too"
