import pickle
from collections import Counter
from itertools import islice

import numpy as np
import pytest
import torch
from PIL import Image

from hybrid_tokenizer.data import CaptionedImage, TrainingStream, build_loader, find_images
from hybrid_tokenizer.data.config import DataConfig
from hybrid_tokenizer.data.training import CropConfig, DrawSampler, random_crop
from hybrid_tokenizer.errors import HybridTokenizerError

WHOLE = CropConfig(size=8, scale=(1.0, 1.0), flip=False)


def level_of(image):
    """Every picture of `folder` has its own grey level."""
    return round((image.mean().item() + 1) * 127.5)


@pytest.fixture
def folder(tmp_path):
    for index in range(12):
        Image.new("RGB", (20 + index, 16), (10 * index,) * 3).save(tmp_path / f"{index:02d}.png")
    return tmp_path


def test_an_epoch_sees_each_item_once_over_ranks(folder):
    stream = TrainingStream(find_images(folder), WHOLE, seed=3)
    seen, per_step = [], []
    for rank in range(2):
        loader = build_loader(stream, batch_size=3, rank=rank, world_size=2)
        levels = [[level_of(image) for image in batch["images"]] for batch in islice(loader, 4)]
        seen += [level for batch in levels for level in batch]
        per_step.append(levels)
    assert Counter(seen) == {10 * index: 2 for index in range(12)}, "4 steps of 6 images are 2 epochs of 12"
    for first, second in zip(*per_step, strict=True):
        assert not set(first) & set(second), "ranks of a step see different images"


def test_epochs_differ_and_seeds_differ(folder):
    def order(seed, epoch):
        stream = TrainingStream(find_images(folder), WHOLE, seed)
        return [level_of(stream[draw]["images"]) for draw in range(12 * epoch, 12 * epoch + 12)]

    orders = [order(0, 0), order(0, 1), order(1, 0)]
    assert all(sorted(levels) == [10 * index for index in range(12)] for levels in orders)
    assert len({tuple(levels) for levels in orders}) == 3
    assert order(0, 0) == orders[0]


def test_workers_and_restarts_do_not_change_a_batch(folder):
    items = [CaptionedImage(path, (path.name, "another")) for path in find_images(folder)]
    stream = TrainingStream(items, CropConfig(size=8), seed=0)

    def batches(first, count, **options):
        return list(islice(iter(build_loader(stream, batch_size=5, first=first, **options)), count))

    plain = batches(0, 6)
    for other in (batches(0, 6, num_workers=2), [*batches(0, 2), *batches(2, 4, num_workers=1)]):
        for one, two in zip(plain, other, strict=True):
            assert torch.equal(one["images"], two["images"]) and one["captions"] == two["captions"]
    assert {caption for batch in plain for caption in batch["captions"]} > {"another"}
    ranks = [batches(0, 3, rank=rank, world_size=2) for rank in range(2)]
    together = [batch for pair in zip(*ranks, strict=True) for batch in pair]
    assert all(torch.equal(one["images"], two["images"]) for one, two in zip(plain, together, strict=True))


@pytest.mark.parametrize("num_workers", [0, 1])
def test_an_unreadable_image_is_replaced_and_reported(folder, num_workers):
    bad = folder / "05.png"
    bad.write_bytes(bad.read_bytes()[:60])
    stream = TrainingStream(find_images(folder), WHOLE, seed=0)
    (batch,) = islice(iter(build_loader(stream, batch_size=12, num_workers=num_workers)), 1)
    levels = Counter(level_of(image) for image in batch["images"])
    assert len(batch["images"]) == 12 and 50 not in levels
    ((path, reason),) = batch["skipped"]
    assert path == str(bad) and "\n" not in reason
    whole = Counter({10 * index: 1 for index in range(12)})
    whole.pop(50)
    assert whole - levels == Counter() and sum((levels - whole).values()) == 1, "its neighbour comes twice"


def test_a_folder_of_unreadable_images_ends_with_one_line(tmp_path):
    for index in range(3):
        (tmp_path / f"{index}.png").write_bytes(b"no image")
    with pytest.raises(HybridTokenizerError, match=r"images in a row are unreadable, the last: .*\.png: ") as error:
        TrainingStream(find_images(tmp_path), WHOLE, seed=0)[0]
    assert "\n" not in str(error.value)
    with pytest.raises(HybridTokenizerError, match="no training images"):
        TrainingStream([], WHOLE, seed=0)


def test_a_stream_travels_to_spawned_workers(folder):
    stream = TrainingStream(find_images(folder), CropConfig(size=8), seed=0)
    copy = pickle.loads(pickle.dumps(stream))  # noqa: S301
    assert torch.equal(copy[17]["images"], stream[17]["images"])


def test_crops_stay_inside_and_options_do_not_shift_each_other():
    ramp = np.zeros((40, 60, 3), dtype=np.uint8)
    ramp[..., 0], ramp[..., 1] = np.arange(40)[:, None] * 6, np.arange(60) * 4
    image = Image.fromarray(ramp)

    def crop(seed, **options):
        return np.asarray(random_crop(image, CropConfig(size=10, **options), np.random.default_rng(seed))).astype(int)

    spans = []
    for seed in range(30):
        plain, flipped = crop(seed, flip=False), crop(seed, flip=True)
        assert np.array_equal(flipped, plain) or np.array_equal(flipped, plain[:, ::-1])
        assert (
            plain.shape == (10, 10, 3) and (np.diff(plain[:, 0, 0]) > 0).all() and (np.diff(plain[0, :, 1]) > 0).all()
        )
        spans.append((np.ptp(plain[..., 0]) / 6, np.ptp(plain[..., 1]) / 4))
    assert all(abs(rows - columns) < 1.5 for rows, columns in spans), "square"
    assert min(map(min, spans)) > 0.7 * 40 * 0.8 and max(map(max, spans)) <= 40
    assert random_crop(image.resize((3, 2)), CropConfig(size=10), np.random.default_rng(0)).size == (10, 10)


def test_draws_of_ranks_and_starts():
    steps = [list(islice(iter(DrawSampler(2, 5, rank, 3)), 2)) for rank in range(3)]
    assert steps == [[[30, 31], [36, 37]], [[32, 33], [38, 39]], [[34, 35], [40, 41]]]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"root": []}, "data.root"),
        ({"root": 7}, "data.root"),
        ({"root": ["a", 7]}, "data.root"),
        ({"root": ["a", "b"], "repeats": [1]}, "data.repeats"),
        ({"root": ["a", "b"], "repeats": [1, 0]}, "data.repeats"),
        ({"root": "a", "val_fraction": 0.0}, "data.val_fraction"),
        ({"root": "a", "val_at_least": 0}, "data.val_at_least"),
        ({"root": "a", "image_size": 0}, "data.image_size"),
        ({"root": "a", "crop_scale": [0.9]}, "data.crop_scale"),
        ({"root": "a", "crop_scale": [0.9, 0.5]}, "crop_scale"),
        ({"root": "a", "val_image_size": -8}, "data.val_image_size"),
    ],
)
def test_wrong_data_options_are_refused(options, words):
    with pytest.raises(HybridTokenizerError, match=words) as error:
        DataConfig(**options)
    assert "\n" not in str(error.value)


def test_roots():
    assert [str(root) for root in DataConfig(root="a").roots] == ["a"]
    config = DataConfig(root=["a", "b"], repeats=[1, 3])
    assert [str(root) for root in config.roots] == ["a", "b"] and config.repeats_of_roots == [1, 3]


def test_wrong_crops_are_refused():
    for options in ({"scale": (0.9, 0.5)}, {"scale": (0.0, 1.0)}, {"scale": (0.5, 1.1)}, {"size": 0}):
        with pytest.raises(HybridTokenizerError, match="must"):
            CropConfig(**options)
