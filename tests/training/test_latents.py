"""The U-Net's data: crops encoded once, kept while nothing changed, drawn like any other stream."""

import os
from collections import Counter

import pytest
import torch
from helpers.small_models import small_hybrid
from training_runs import picture

from hybrid_tokenizer.data import CaptionedImage
from hybrid_tokenizer.data.training import CropConfig
from hybrid_tokenizer.errors import HybridTokenizerError
from hybrid_tokenizer.images import from_uint8
from hybrid_tokenizer.training.latents import cache_latents

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
    stream = cache_latents(tmp_path / "cache", items, CROP, 2, 0, hybrid.diffusion, hybrid.semantic)
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
    again = cache_latents(tmp_path / "other", items, CROP, 2, 0, hybrid.diffusion, hybrid.semantic)
    assert all(torch.equal(again[draw]["latents"], drawn[draw]["latents"]) for draw in range(16))


def test_what_changed_is_made_anew(items, hybrid, tmp_path, capfd):
    def made(items=items, crop=CROP, views=1, seed=0, semantic=hybrid.semantic):
        cache_latents(tmp_path / "cache", items, crop, views, seed, hybrid.diffusion, semantic)
        text = capfd.readouterr().err
        return {name for name in ("latents", "semantic tokens") if f"{name}: " in text}

    both = {"latents", "semantic tokens"}
    assert made() == both and made() == set()
    assert made(semantic=small_hybrid(seed=1).semantic) == {"semantic tokens"} and made() == {"semantic tokens"}
    assert made(semantic=None) == set()
    assert made(items=items[1:]) == both and made(items=items[1:], views=2) == both
    assert made(seed=1) == both and made(seed=1, crop=CropConfig(size=32, flip=False)) == both
    made()
    with torch.no_grad():
        next(hybrid.diffusion.vae.decoder.parameters()).add_(1)
        assert made() == set(), "what decodes is nothing to what is encoded"
        next(hybrid.diffusion.vae.encoder.parameters()).add_(1)
    assert made() == {"latents"}


def test_pixels_are_those_of_the_latents(items, hybrid, tmp_path):
    stream = cache_latents(tmp_path / "cache", items, CROP, 2, 0, hybrid.diffusion, None, pixels=True)
    for draw in range(10):
        sample = stream[draw]
        assert sample["pixels"].dtype == torch.uint8 and sample["pixels"].shape == (3, 32, 32)
        encoded = hybrid.diffusion.encode_latents(from_uint8(sample["pixels"])[None])[0]
        torch.testing.assert_close(sample["latents"], encoded, rtol=2e-2, atol=2e-2)  # 8 bits, and fp16
    assert "pixels" not in cache_latents(tmp_path / "cache", items, CROP, 2, 0, hybrid.diffusion, None)[0]


def test_latents_and_tokens_of_different_images_are_refused(items, hybrid, tmp_path):
    cache_latents(tmp_path / "cache", items, CROP, 1, 0, hybrid.diffusion, None)
    before = items[2].path.stat()
    items[2].path.write_bytes(bytes(before.st_size))  # damaged without a trace in its size and time
    os.utime(items[2].path, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(HybridTokenizerError, match="different images"):
        cache_latents(tmp_path / "cache", items, CROP, 1, 0, hybrid.diffusion, hybrid.semantic)
