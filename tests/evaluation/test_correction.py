"""Damages do what they say, and the table compares each method with itself on the same images."""

import json

import numpy as np
import pytest
import torch
from helpers.small_models import noise_images, small_hybrid

from hybrid_tokenizer.errors import HybridTokenizerError
from hybrid_tokenizer.evaluation.config import NO_DAMAGE, Damage, EvalCorrectionConfig
from hybrid_tokenizer.evaluation.images import EvalImages
from hybrid_tokenizer.evaluation.studies.correction import (
    damaged_guide,
    evaluate_correction,
    renderers,
    write_correction,
)
from hybrid_tokenizer.evaluation.studies.damage import bend, replace_tokens, turn
from hybrid_tokenizer.evaluation.summary import Metric
from hybrid_tokenizer.metrics import pixel


def seeded(*seeds):
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def ramp(height=40, width=56):
    """Channels: row, column, nothing, each in pixels scaled to [-1, 1]."""
    rows = torch.linspace(-1, 1, height)[:, None].expand(height, width)
    columns = torch.linspace(-1, 1, width)[None].expand(height, width)
    return torch.stack([rows, columns, torch.zeros(height, width)])[None]


def test_the_asked_share_of_tokens_becomes_other_codes():
    grids = (torch.zeros(3, 2, 2, dtype=torch.int64), torch.full((3, 4, 6), 7))
    damaged = replace_tokens(grids, 0.25, 8, seeded(0, 1, 1))
    changed = torch.cat([(a != b).flatten(1) for a, b in zip(grids, damaged, strict=True)], dim=1)
    assert changed.sum(1).tolist() == [7, 7, 7] and [grid.shape for grid in damaged] == [grid.shape for grid in grids]
    assert all(grid.min() >= 0 and grid.max() < 8 for grid in damaged)
    assert not torch.equal(changed[0], changed[1]) and torch.equal(changed[1], changed[2])
    assert grids[0].sum() == 0  # the input stays
    more = replace_tokens(grids, 0.5, 8, seeded(0, 1, 1))
    more = torch.cat([(a != b).flatten(1) for a, b in zip(grids, more, strict=True)], dim=1)
    assert (more | ~changed).all()


def test_a_bend_is_smooth_and_as_long_as_asked():
    images = ramp()
    bent = bend(images.expand(2, -1, -1, -1), 0.1, seeded(0, 1))
    assert not torch.equal(bent[0], bent[1])
    shift = torch.stack([(bent - images)[:, 0] * 39 / 2, (bent - images)[:, 1] * 55 / 2], dim=1)
    inner = shift[..., 6:-6, 6:-6].square().sum(1).sqrt()  # a reflected border moves the other way
    assert inner.max() <= 0.1 * 40 + 0.1 and inner.amax((1, 2)).min() > 1.5
    assert (shift[..., 6:-6, 6:-7] - shift[..., 6:-6, 7:-6]).abs().max() < 1  # no folds
    assert (bend(images, 1e-6, seeded(0)) - images).abs().max() < 1e-3


def test_a_turn_is_a_rotation_of_square_pixels():
    images = noise_images(2, 32, 32)
    torch.testing.assert_close(turn(images, 90.0), torch.rot90(images, 1, (2, 3)), rtol=0, atol=1e-4)
    images = noise_images(1, 40, 56)
    there_and_back = turn(turn(images, 7.0), -7.0)[..., 10:-10, 12:-12]
    assert (there_and_back - images[..., 10:-10, 12:-12]).abs().max() < 0.03
    assert (turn(images, 7.0) - images).abs().max() > 0.1


def test_undamaged_hybrid_is_the_hybrid_and_damage_shows():
    tokenizer = small_hybrid(nested=True)
    images = noise_images(2, 32, 48)
    tokens = tokenizer.encode(images)
    methods = renderers(tokenizer, ["bicubic", "hybrid", "hybrid@s0.2"], {}, seed=3)
    guide = damaged_guide(tokenizer, tokens, NO_DAMAGE, range(2), 0)
    expected = tokenizer.decode(tokens, generator=torch.Generator().manual_seed(3))
    assert torch.equal(methods["hybrid"](guide, tokens), expected)
    weaker = tokenizer.decode(tokens, generator=torch.Generator().manual_seed(3), strength=0.2)
    assert torch.equal(methods["hybrid@s0.2"](guide, tokens), weaker)
    for damage in (Damage("tokens", 0.2), Damage("elastic", 0.1), Damage("rotation", 5.0)):
        damaged = damaged_guide(tokenizer, tokens, damage, range(2), 0)
        assert damaged.shape == guide.shape and not torch.equal(damaged, guide)
        alone = damaged_guide(tokenizer, tokens[1:], damage, [1], 0)
        torch.testing.assert_close(alone, damaged[1:], rtol=0, atol=1e-5)


def test_the_table_compares_each_method_with_itself(tmp_path):
    tokenizer = small_hybrid()
    images = EvalImages.from_samples(32, max_images=3, progress=False)
    config = EvalCorrectionConfig(token_shares=[0.2], elastic=[], rotations=[45.0])
    methods = renderers(tokenizer, ["bicubic", "hybrid"], {}, 0)
    metrics = [Metric("psnr", pixel.psnr), Metric("ssim", pixel.ssim)]
    done = evaluate_correction(
        tokenizer, images, config.damages(), methods, metrics, batch_size=2, pictures=2, progress=False
    )
    assert [(row["damage"], row["method"]) for row in done.rows] == [
        (damage, method) for damage in ("none", "20 % of tokens", "rotated 45°") for method in ("bicubic", "hybrid")
    ]
    by_cell = {(row["damage"], row["method"]): row for row in done.rows}
    assert "change" not in by_cell["none", "hybrid"]
    for method in ("bicubic", "hybrid"):
        undamaged, damaged = by_cell["none", method], by_cell["rotated 45°", method]
        assert damaged["change"]["psnr"]["mean"] == pytest.approx(damaged["psnr"] - undamaged["psnr"])
    assert {len(pictures) for pictures in done.pictures.values()} == {2}
    table = write_correction(tmp_path, done, images, {"seed": 0})
    assert {path.name for path in tmp_path.iterdir()} == {f"correction.{kind}" for kind in ("json", "md", "png", "pdf")}
    report = json.loads((tmp_path / "correction.json").read_text())
    assert report["rows"] == done.rows and report["provenance"] == {"seed": 0}
    assert f"{by_cell['none', 'bicubic']['psnr']:.2f}" in table and "3 images" in table
    low, high = report["rows"][-1]["change"]["psnr"]["interval"]
    assert np.isfinite([low, high]).all() and low <= report["rows"][-1]["change"]["psnr"]["mean"] <= high


@pytest.mark.parametrize(
    ("names", "baselines", "message"),
    [
        (["super_resolution"], {}, "needs weights"),
        (["magic"], {}, "'magic' is unknown"),
        (["hybrid", "hybrid"], {}, "different names"),
        ([], {}, "one or more"),
        (["hybrid@1"], {}, "leave the number out"),
        (None, {"movq_67m": "x"}, "take no guide"),
    ],
)
def test_impossible_methods_are_refused(names, baselines, message):
    with pytest.raises(HybridTokenizerError, match=message):
        renderers(small_hybrid(nested=True), names, baselines, 0)


@pytest.mark.parametrize(
    "change", [{"token_shares": [0.0]}, {"elastic": [0.1, 0.1]}, {"elastic": [-0.1]}, {"rotations": [200.0]}]
)
def test_impossible_damages_are_refused(change):
    with pytest.raises(HybridTokenizerError, match="must be"):
        EvalCorrectionConfig(**change)
