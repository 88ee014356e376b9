"""References of an evaluation: crops, skipped files, and the shares of a distributed run."""

from pathlib import Path

import pytest
import torch
from helpers.bad_images import write_bad_folder
from PIL import Image

from hybrid_tokenizer.data.samples import sample_photographs
from hybrid_tokenizer.errors import HybridTokenizerError
from hybrid_tokenizer.evaluation.config import EvalData
from hybrid_tokenizer.evaluation.images import EvalImages
from hybrid_tokenizer.images import fit_square, from_pil

QUIET = {"progress": False}


@pytest.fixture(scope="module")
def images():
    return EvalImages.from_samples(32, **QUIET)


@pytest.fixture
def bad_folder(tmp_path):
    return write_bad_folder(tmp_path / "bad")


def test_crops_beyond_memory_lie_in_a_file_and_without_room_are_read_again(monkeypatch):
    reads = []
    photographs = sample_photographs()

    def read(name):
        reads.append(name)
        return photographs[name]

    whole = EvalImages(list(photographs), read, 32, progress=False)
    expected = [whole[i] for i in range(len(whole))]
    assert len(reads) == len(photographs)
    monkeypatch.setattr("hybrid_tokenizer.evaluation.images.CACHE_BYTES", 3 * 32 * 32 * 2)
    reads.clear()
    spilled = EvalImages(list(photographs), read, 32, progress=False)
    assert all(torch.equal(spilled[i], expected[i]) for _ in range(2) for i in reversed(range(len(spilled))))
    assert len(reads) == len(photographs)

    def full(**options):
        raise OSError("no space left on device")

    monkeypatch.setattr("hybrid_tokenizer.evaluation.images.tempfile.TemporaryFile", full)
    reads.clear()
    again = EvalImages(list(photographs), read, 32, progress=False)
    assert all(torch.equal(again[i], expected[i]) for i in range(len(again)))
    assert len(reads) == 2 * len(photographs) - 2


def test_references_are_the_centre_squares_and_survive_a_full_cache(monkeypatch, images):
    photographs = sample_photographs()
    torch.testing.assert_close(images[0], from_pil(fit_square(photographs["astronaut"], 32)))
    monkeypatch.setattr("hybrid_tokenizer.evaluation.images.CACHE_BYTES", 3 * 32 * 32 * 2)
    uncached = EvalImages.from_samples(32, **QUIET)
    assert uncached.pixels_hash == images.pixels_hash and uncached.names_hash == images.names_hash
    for i in range(7):
        torch.testing.assert_close(uncached[i], images[i])


def test_unusable_files_are_announced_and_listed(bad_folder):
    said = []
    images = EvalImages.from_folder(bad_folder, 32, say=said.append, **QUIET)
    assert images.names == ["nested/good.jpg"]
    assert [Path(entry["path"]).name for entry in images.skipped] == [
        "huge.png",
        "one.png",
        "text.png",
        "truncated.jpg",
    ]
    assert said == [f"skipped {entry['path']}: {entry['reason']}" for entry in images.skipped]
    assert all("\n" not in line for line in said)


def test_small_images_are_skipped_under_a_quarter_of_the_size(tmp_path):
    for side in (17, 18):
        Image.new("RGB", (40, side), (9, 99, 199)).save(tmp_path / f"{side}.png")
    images = EvalImages.from_folder(tmp_path, 72, say=lambda line: None, **QUIET)
    assert images.names == ["18.png"] and "40x17" in images.skipped[0]["reason"]


def test_folders_without_a_usable_image(tmp_path, bad_folder):
    (tmp_path / "empty").mkdir()
    with pytest.raises(HybridTokenizerError, match="holds no images"):
        EvalImages.open(tmp_path / "empty", 32)
    with pytest.raises(HybridTokenizerError, match="none of the 5 image"):
        EvalImages.from_folder(bad_folder, 2048, say=lambda line: None, **QUIET)


def test_max_images_takes_the_first_usable_ones():
    images = EvalImages.from_samples(32, max_images=2, **QUIET)
    assert images.names == ["astronaut", "cat"]


def test_the_size_of_images_is_checked():
    with pytest.raises(HybridTokenizerError, match="use 104"):
        EvalData(image_size=101)
    with pytest.raises(HybridTokenizerError, match="at least 32"):
        EvalData(image_size=8)


def test_processes_share_the_batches(monkeypatch, images):
    whole = [batch.positions for batch in images.batches(2)]
    assert [list(positions) for positions in whole] == [[0, 1], [2, 3], [4, 5], [6]]
    shares = []
    for rank in range(5):
        monkeypatch.setattr("hybrid_tokenizer.evaluation.images.rank_and_world_size", lambda rank=rank: (rank, 5))
        shares.append([batch.positions for batch in images.own_batches(2, "cpu")])
    assert [len(share) for share in shares] == [1, 1, 1, 1, 0]
    assert sorted((positions for share in shares for positions in share), key=lambda p: p.start) == whole
    last = next(iter(images.own_batches(7, "cpu")), None)
    assert last is None, "the fifth process has no batch of seven images"
    monkeypatch.undo()
    batch = next(images.own_batches(7, "cpu"))
    assert torch.equal(batch.next_images[-1], images[0])
