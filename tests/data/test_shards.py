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

from hybrid_tokenizer.data import TrainingStream, UnreadableImage, build_loader, hold_out
from hybrid_tokenizer.data.config import DataConfig
from hybrid_tokenizer.data.items import folder_of, item_captions, item_path, list_items, open_item
from hybrid_tokenizer.data.training import CropConfig
from hybrid_tokenizer.errors import HybridTokenizerError
from hybrid_tokenizer.evaluation.images import EvalImages
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


def write_members(path, members):
    """A tar of (name, bytes), as tar itself would write it."""
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


def read(path, captions=True):
    said = []
    items = list_items(path, captions, say=said.append)
    return {item.name: item_captions(item)[0] for item in items}, said


def test_dots_in_names_lose_no_photograph(tmp_path):
    """WebDataset's key ends at the first dot: all 20 would be one sample."""
    names = [f"photo v1.{n}" for n in range(10)] + [f"IMG_2024.11.{n:02d}" for n in range(10)]
    members = [(f"{name}.png", png(n)) for n, name in enumerate(names)] + [
        (f"{name}.txt", name.encode()) for name in names
    ]
    found, said = read(write_members(tmp_path / "a.tar", members))
    assert found == {f"{name}.png": name for name in names}
    assert said == [
        "3 key(s) stand for several photographs by WebDataset's rule that a key ends at the first dot; there it ends "
        "later, the first: a.tar/photo v1.0.png"
    ]


def test_one_photograph_per_key_keeps_webdatasets_rule(tmp_path):
    members = [(f"{n}.left.png", png(n)) for n in range(3)] + [
        (f"{n}.json", b'{"caption": "%d"}' % n) for n in range(3)
    ]
    found, said = read(write_members(tmp_path / "a.tar", members))
    assert found == {f"{n}.left.png": str(n) for n in range(3)} and said == []


def test_further_images_of_a_sample_are_not_read_in_its_place(tmp_path):
    members = []
    for n in range(3):
        members += [(f"{n}.depth.png", png(200)), (f"{n}.jpg", png(n)), (f"{n}.seg_0.png", png(201))]
        members += [(f"{n}.meta.txt", b"no caption"), (f"{n}.txt", b"%d" % n)]
    found, said = read(write_members(tmp_path / "a.tar", members))
    assert found == {f"{n}.jpg": f"{n}" for n in range(3)}
    assert said == ["6 further image(s) of samples are not read, the first: a.tar/0.depth.png"]


def test_further_images_beside_dots_in_names(tmp_path):
    members = [(f"v1.{n}.{kind}", png(n)) for n in range(3) for kind in ("depth.png", "jpg")]
    found, said = read(write_members(tmp_path / "a.tar", members), captions=False)
    assert list(found) == [f"v1.{n}.jpg" for n in range(3)]
    assert len(said) == 2


def test_a_number_after_the_dot_makes_another_photograph(tmp_path):
    members = [(f"photo{dot}.png", png(n)) for n, dot in enumerate(("", ".1", ".2"))]
    assert list(read(write_members(tmp_path / "a.tar", members), captions=False)[0]) == ["photo.png", "photo.1.png", "photo.2.png"]  # fmt: skip


def test_of_two_members_with_one_name_the_later_counts(tmp_path):
    shard = write_members(tmp_path / "a.tar", [("a.png", png(10)), ("b.png", png(20)), ("a.png", png(30))])
    items = list_items(shard, captions=False)
    assert [(item.name, np.asarray(open_item(item))[0, 0, 0]) for item in items] == [("a.png", 30), ("b.png", 20)]


def test_what_names_leave_in_doubt_is_said_at_every_start(tmp_path):
    write_members(tmp_path / "a.tar", [("k.1.png", png(1)), ("k.2.png", png(2))])
    starts = []
    for _ in range(2):
        said = []
        list_items(tmp_path, False, tmp_path / "index", said.append)
        starts.append(said)
    assert starts[0] == starts[1] and len(starts[0]) == 1


def test_absolute_and_odd_names_stay_inside(tmp_path):
    names = ["/etc/a.png", "./b.png", "sub/c\nd.png", "caf\udce9.png"]
    shard = write_members(tmp_path / "a.tar", [(name, png(n)) for n, name in enumerate(names)])
    for _ in range(2):  # from the shard, from its index
        items = list_items(shard, False, tmp_path / "index")
        assert len(items) == 4
        relative = [item_path(item).relative_to(folder_of(shard)).as_posix() for item in items]
        assert relative == ["a.tar/etc/a.png", "a.tar/b.png", "a.tar/sub/c\nd.png", "a.tar/caf\udce9.png"]
        assert [np.asarray(open_item(item))[0, 0, 0] for item in items] == [0, 1, 2, 3]


def test_a_folder_is_what_it_has_more_of(tmp_path):
    """Training and evaluation read the same, and say so."""
    (tmp_path / "sub").mkdir()
    for n in range(3):
        (tmp_path / "sub" / f"{n}.png").write_bytes(png(n, width=64))
    write_members(tmp_path / "old.tar", [("x.png", png(9))])
    said = []
    assert [path.name for path in list_items(tmp_path, False, say=said.append)] == ["0.png", "1.png", "2.png"]
    note = f"{tmp_path}: 1 .tar file(s) beside the pictures are not read; name them to read them"
    assert said == [note]
    heard = []
    assert EvalImages.open(tmp_path, 32, say=heard.append, progress=False).names == [f"sub/{n}.png" for n in range(3)]
    assert heard == [note]
    for n in range(4):
        write_members(tmp_path / f"{n}.tar", [(f"{n}.png", png(n, width=64))])
    said = []
    assert len(list_items(tmp_path, False, say=said.append)) == 5
    assert said == [f"{tmp_path}: 3 picture(s) beside the 5 .tar files are not read"]
    images = EvalImages.open(tmp_path, 32, say=heard.append, progress=False)
    assert images.names == [*(f"{n}.tar/{n}.png" for n in range(4)), "old.tar/x.png"]
    assert EvalImages.open(tmp_path / "0.tar", 32, progress=False).names == ["0.tar/0.png"]


def test_odd_captions_of_a_sample(tmp_path):
    texts = {"half": b'{"caption": "\\ud83d"}', "null": b'{"captions": [null, "x"]}', "none": b'{"captions": null}', "number": b"7"}  # fmt: skip
    members = [(f"{name}.{suffix}", data) for name, text in texts.items() for suffix, data in (("png", png(1)), ("json", text))]  # fmt: skip
    items = {item.name: item for item in list_items(write_members(tmp_path / "a.tar", members), captions=True)}
    assert item_captions(items["null.png"]) == ("x",)
    reasons = {}
    for name in ("half", "none", "number"):
        with pytest.raises(UnreadableImage) as error:
            item_captions(items[f"{name}.png"])
        reasons[name] = error.value.reason
    assert reasons["half"] == "its .json: its caption holds half a character"
    assert reasons["none"] == reasons["number"] == "no caption in .json or .txt beside it"


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
