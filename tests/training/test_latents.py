"""The U-Net's data: crops encoded once, kept while nothing changed, drawn like any other stream."""

import copy
import ctypes
import gc
import os
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.small_models import small_hybrid
from training_runs import picture

from hybrid_tokenizer.data import CaptionedImage
from hybrid_tokenizer.data.training import CropConfig
from hybrid_tokenizer.errors import HybridTokenizerError
from hybrid_tokenizer.images import from_uint8, to_uint8
from hybrid_tokenizer.training import crop_cache
from hybrid_tokenizer.training.crop_cache import CropSource, Kind, cached_rows
from hybrid_tokenizer.training.latents import LatentStream, cache_latents

CROP = CropConfig(size=32)


@pytest.fixture
def items(tmp_path):
    for index in range(5):
        picture(index).save(tmp_path / f"{index}.png")
    return [CaptionedImage(tmp_path / f"{index}.png", (f"one {index}", f"two {index}")) for index in range(5)]


@pytest.fixture
def hybrid():
    return small_hybrid()


def test_an_epoch_holds_every_view_once(items, hybrid, tmp_path, capfd):
    items[3].path.write_bytes(b"no image")
    source = CropSource(items, CROP, views=2, seed=0)
    stream = cache_latents(tmp_path / "cache", source, hybrid.diffusion, hybrid.semantic)
    assert f"skipped {items[3].path}: " in capfd.readouterr().out
    drawn = [stream[draw] for draw in range(16)]
    assert {tuple(sample["latents"].shape) for sample in drawn} == {(4, 4, 4)}
    assert all(
        sample["latents"].dtype == torch.float32 and sample["semantic_indices"].shape == (32,) for sample in drawn
    )
    for epoch in (drawn[:8], drawn[8:]):
        assert Counter(sample["captions"][-1] for sample in epoch) == {"0": 2, "1": 2, "2": 2, "4": 2}
        assert len({tuple(sample["latents"].flatten().tolist()) for sample in epoch}) == 8, "two views of each"
    by_latents = {tuple(s["latents"].flatten().tolist()): s["captions"][-1] for s in drawn}
    assert len(by_latents) == 8, "the second epoch has the same views"
    again = copy.deepcopy(stream)  # from the state that loader workers get
    assert all(torch.equal(again[draw]["latents"], drawn[draw]["latents"]) for draw in range(16))


def test_what_changed_is_made_anew(items, hybrid, tmp_path):
    written = {}

    def made(items=items, crop=CROP, views=1, seed=0, semantic=hybrid.semantic):
        cache_latents(tmp_path / "cache", CropSource(items, crop, views, seed), hybrid.diffusion, semantic)
        before = dict(written)
        written.update({path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*.safetensors")})
        return {path.parent.name for path, time in written.items() if before.get(path) != time}

    both = {"latents", "semantic_indices"}
    assert made() == both and made() == set()
    assert made(semantic=small_hybrid(seed=1).semantic) == {"semantic_indices"} and made() == {"semantic_indices"}
    assert made(semantic=None) == set()
    assert made(items=items[1:]) == both and made(items=items[1:], views=2) == both
    assert made(seed=1) == both and made(seed=1, crop=CropConfig(size=32, flip=False)) == both
    os.utime(items[4].path)
    assert made() == both, "another time"
    with torch.no_grad():
        next(hybrid.diffusion.vae.decoder.parameters()).add_(1)
        assert made() == set(), "what decodes is nothing to what is encoded"
        next(hybrid.diffusion.vae.encoder.parameters()).add_(1)
    assert made() == {"latents"}


def test_pixels_are_those_of_the_latents(items, hybrid, tmp_path):
    source = CropSource(items, CROP, views=2, seed=0)
    stream = cache_latents(tmp_path / "cache", source, hybrid.diffusion, None, pixels=True)
    for draw in range(10):
        sample = stream[draw]
        assert sample["pixels"].dtype == torch.uint8 and sample["pixels"].shape == (3, 32, 32)
        encoded = hybrid.diffusion.encode_latents(from_uint8(sample["pixels"])[None])[0]
        torch.testing.assert_close(sample["latents"], encoded, rtol=2e-2, atol=2e-2)  # 8 bits, and fp16
    assert "pixels" not in cache_latents(tmp_path / "cache", source, hybrid.diffusion, None)[0]


def test_latents_and_tokens_of_different_images_are_refused(items, hybrid, tmp_path):
    source = CropSource(items, CROP, views=1, seed=0)
    cache_latents(tmp_path / "cache", source, hybrid.diffusion, None)
    before = items[2].path.stat()
    items[2].path.write_bytes(bytes(before.st_size))  # damaged without a trace in its size and time
    os.utime(items[2].path, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(HybridTokenizerError, match="different images"):
        cache_latents(tmp_path / "cache", source, hybrid.diffusion, hybrid.semantic)


def mean_colours(images, first):
    return images.mean((2, 3))


def read_all(folder, items, encode=mean_colours, **options):
    source = CropSource(items, CROP, views=1, seed=0)
    return cached_rows(folder, source, [Kind("colours", [], encode)], torch.device("cpu"), **options)


def test_a_killed_run_goes_on_with_the_next_shard(items, tmp_path, monkeypatch):
    """Of shards of two items, one of which cannot be read. A shard that was cut off is made anew."""
    monkeypatch.setattr(crop_cache, "ROWS_OF_SHARD", 2)
    items[1].path.write_bytes(b"no image")
    calls = []

    def killed(images, first):
        calls.append(first)
        if first == 4:
            raise KeyboardInterrupt
        return mean_colours(images, first)

    with pytest.raises(KeyboardInterrupt):
        read_all(tmp_path / "cache", items, killed)
    assert calls == [0, 2, 4] and len(list((tmp_path / "cache" / "colours").iterdir())) == 2
    second = tmp_path / "cache" / "colours" / "00001.safetensors"
    second.write_bytes(second.read_bytes()[:-4])
    kept, rows = read_all(
        tmp_path / "cache", items, lambda images, first: (calls.append(first), mean_colours(images, first))[1]
    )
    assert calls[3:] == [2, 4] and kept.tolist() == [0, 2, 3, 4] and len(rows["colours"]) == 4
    whole = read_all(tmp_path / "other", items, num_workers=1)[1]["colours"]
    assert torch.equal(
        torch.stack([rows["colours"][row] for row in range(4)]), torch.stack([whole[row] for row in range(4)])
    )


def test_values_that_are_not_finite_are_refused(items, tmp_path):
    with pytest.raises(HybridTokenizerError, match="colours computed from the training images are not finite"):
        read_all(tmp_path, items, lambda images, first: mean_colours(images, first) / 0)
    for item in items:
        item.path.write_bytes(b"no image")
    with pytest.raises(HybridTokenizerError, match="no training image can be read"):
        read_all(tmp_path, items)


def test_the_residual_is_of_all_rows(items, tmp_path):
    hybrid = small_hybrid(nested=True)
    stream = cache_latents(
        tmp_path, CropSource(items, CROP, views=3, seed=0), hybrid.diffusion, None, hybrid.guide
    )  # fmt: skip
    samples = [stream[draw] for draw in range(stream.epoch_length)]
    assert samples[0]["guide_latents"].shape == (2, 4, 4, 4), "a shorter prefix and the whole guide"
    differences = torch.stack([sample["latents"] - sample["guide_latents"][-1] for sample in samples])
    torch.testing.assert_close(stream.guide_residual(), differences.square().mean((0, 2, 3)))


def own_memory():
    """Bytes of this process that no file backs, without what is free and only kept by the allocator."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    return 1024 * int(re.search(r"RssAnon:\s+(\d+)", Path("/proc/self/status").read_text())[1])


def test_memory_does_not_grow_with_the_set(tmp_path, monkeypatch):
    """300 more images of 256 px, 59 MB of pixels, all of which are read."""
    monkeypatch.setattr(crop_cache, "ROWS_OF_SHARD", 32)
    picture(0).save(tmp_path / "one.png")

    def memory_after(count):
        source = CropSource([tmp_path / "one.png"] * count, CropConfig(size=256), views=1, seed=0)
        folder = tmp_path / str(count)
        kept, rows = cached_rows(folder, source, [Kind("pixels", [], lambda i, _: to_uint8(i))], torch.device("cpu"))
        stream = LatentStream(source.items, kept, 1, rows, seed=0)
        assert sum(int(stream[draw]["pixels"][0, 0, 0]) for draw in range(count)) > 0
        return own_memory(), stream

    few, stream = memory_after(100)
    many, another = memory_after(400)
    assert len(stream.kept) == 100 and len(another.kept) == 400
    assert many - few < 20e6


def test_an_epoch_is_permuted_once(tmp_path):
    """At 2.5 million rows a permutation takes far longer than a draw."""
    shard = tmp_path / "shard.safetensors"
    crop_cache.ShardFile(shard, "key").write([torch.arange(500)[:, None]], list(range(500)))
    rows = crop_cache.CachedRows([shard] * 5000, [500] * 5000)
    stream = LatentStream([tmp_path / "one.png"] * 2_500_000, np.arange(2_500_000), 1, {"latents": rows}, seed=0)
    drawn = [int(stream[draw]["latents"]) for draw in (0, 1, 1_000_000, 2_499_999, 2_500_000, 2_500_001)]
    assert stream._permutation.cache_info().misses == 2
    orders = [np.random.default_rng((0, 0, epoch)).permutation(2_500_000) % 500 for epoch in (0, 1)]
    assert drawn == [*orders[0][[0, 1, 1_000_000, 2_499_999]], *orders[1][[0, 1]]]
