"""Photographs that stay on the device."""

import pytest
import torch
from helpers.small_models import noise_images
from PIL import Image

from hybrid_tokenizer.data import TrainingStream, build_loader, find_images
from hybrid_tokenizer.data.config import CropConfig, DataConfig
from hybrid_tokenizer.data.resident import DoesNotFit, ResidentStream
from hybrid_tokenizer.errors import HybridTokenizerError
from hybrid_tokenizer.images import to_pil
from hybrid_tokenizer.training.config import TrainingConfig
from hybrid_tokenizer.training.setup import build_data

CPU = torch.device("cpu")
CROP = CropConfig(size=16, scale=(0.5, 1.0))


@pytest.fixture
def folder(tmp_path):
    for index, image in enumerate(noise_images(6, 40, 56)):
        picture = to_pil(image).resize((14, 10)).resize((56, 40))  # smooth, as photographs are
        picture.save(tmp_path / f"{index}.png")
    return tmp_path


def resident(folder, crop=CROP, megabytes=1, workers=0):
    return ResidentStream(find_images(folder), crop, 3, "cheap", CPU, megabytes, workers, progress=False)


def test_draws_are_those_of_the_stream_from_disk(folder):
    (folder / "2.png").write_bytes(b"damaged")
    ours, theirs = resident(folder), TrainingStream(find_images(folder), CROP, 3)
    skipped = 0
    for draw in range(24):
        one, other = ours[draw], theirs[draw]
        assert one["captions"] == other["captions"] and one["skipped"] == other["skipped"]
        assert (one["images"] - other["images"]).abs().mean() < 0.08
        assert (one["images"] - theirs[draw + 1]["images"]).abs().mean() > 0.2  # what another draw differs by
        skipped += len(one["skipped"])
    assert skipped > 0


def test_whole_squares_are_the_same_pixels(folder):
    for path in find_images(folder):
        Image.open(path).crop((0, 0, 16, 16)).save(path)
    crop = CropConfig(size=16, scale=(1.0, 1.0))
    ours, theirs = resident(folder, crop), TrainingStream(find_images(folder), crop, 3)
    for draw in range(12):
        assert torch.equal(ours[draw]["images"], theirs[draw]["images"])


def test_photographs_are_as_large_as_the_smallest_crop_needs(folder):
    Image.new("RGB", (20, 300), (9, 9, 9)).save(folder / "small.png")
    sizes = {tuple(photograph.shape) for photograph in resident(folder).photographs.values()}
    assert sizes == {(3, 32, 45), (3, 300, 20)}


def test_workers_change_no_photograph(folder):
    alone, by_two = resident(folder).photographs, resident(folder, workers=2).photographs
    assert alone.keys() == by_two.keys()
    assert all(torch.equal(by_two[name], photograph) for name, photograph in alone.items())


def test_the_loader_reads_it_without_workers_from_any_batch_on(folder):
    stream = resident(folder)
    loader = build_loader(stream, batch_size=4, first=2, num_workers=2)
    assert loader.num_workers == 0 and not loader.pin_memory
    assert torch.equal(next(iter(loader))["images"], torch.stack([stream[draw]["images"] for draw in range(8, 12)]))


def test_more_than_the_bound_is_read_from_disk(folder, capsys):
    for index, image in enumerate(noise_images(4, 600, 600)):
        to_pil(image).save(folder / f"large_{index}.png")
    crop = CropConfig(size=600, scale=(1.0, 1.0))
    with pytest.raises(DoesNotFit, match="6 of 10 photographs"):
        resident(folder, crop)
    data = DataConfig(root=str(folder), image_size=600, crop_scale=[1.0, 1.0], val_at_least=1, resident_mb=1)
    stream, _ = build_data(data, TrainingConfig(num_workers=0, progress=False))
    assert type(stream) is TrainingStream
    assert capsys.readouterr().out == "data.resident_mb=1 holds 5 of 9 photographs; they are read from disk\n"
    stream, _ = build_data(DataConfig(root=str(folder), val_at_least=1, image_size=16, resident_mb=9), TrainingConfig())
    assert isinstance(stream, ResidentStream)


def test_a_negative_bound_is_refused():
    with pytest.raises(HybridTokenizerError, match=r"data\.resident_mb=-1 must not be negative; 0 reads from disk"):
        DataConfig(root="photos", resident_mb=-1)
