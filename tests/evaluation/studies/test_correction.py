"""Damages do what they say, and the table compares each method with itself on the same images."""

import json

import numpy as np
import pytest
import torch
from helpers.small_models import noise_images, small_hybrid

from hybrid_tokenizer.errors import HybridTokenizerError
from hybrid_tokenizer.evaluation.config import NO_DAMAGE, CorrectionConfig, Damage
from hybrid_tokenizer.evaluation.images import EvalImages
from hybrid_tokenizer.evaluation.measures import metrics_named
from hybrid_tokenizer.evaluation.studies.correction import (
    DamagedRow,
    damaged_guide,
    measure_correction,
    renderers,
    write_correction,
)
from hybrid_tokenizer.evaluation.studies.damage import bend, replace_tokens, turn
from hybrid_tokenizer.evaluation.token_cache import TokenCache


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


def decoded(tokenizer, images, damage, method, seed=3):
    """What the study decodes."""
    render = renderers(tokenizer, [method], {})[method]
    row = DamagedRow(tokenizer, cache_of(tokenizer), damage, method, render)
    return row.decode(row.encode(images), tuple(images.shape[-2:]), torch.Generator().manual_seed(seed))


def cache_of(tokenizer):
    def encode(images):
        tokens = tokenizer.encode(images)
        return tokens.semantic_indices, *tokens.guide_indices

    return TokenCache(encode)


def test_the_undamaged_hybrid_is_the_hybrid_and_damage_shows():
    tokenizer = small_hybrid(nested=True)
    images = noise_images(2, 32, 48)
    tokens = tokenizer.encode(images)
    expected = tokenizer.decode(tokens, generator=torch.Generator().manual_seed(3))
    assert torch.equal(decoded(tokenizer, images, NO_DAMAGE, "hybrid"), expected)
    weaker = tokenizer.decode(tokens, generator=torch.Generator().manual_seed(3), strength=0.2)
    assert torch.equal(decoded(tokenizer, images, NO_DAMAGE, "hybrid@s0.2"), weaker)
    whole = decoded(tokenizer, images, NO_DAMAGE, "bicubic")
    for damage in (Damage("tokens", 0.2), Damage("elastic", 0.1), Damage("rotation", 5.0)):
        damaged = decoded(tokenizer, images, damage, "bicubic")
        assert damaged.shape == whole.shape and not torch.equal(damaged, whole)
        alone = decoded(tokenizer, images[1:], damage, "bicubic")
        torch.testing.assert_close(alone, damaged[1:], rtol=0, atol=1e-5)  # neither batch nor place matter
        other = decoded(tokenizer, images, damage, "bicubic", seed=4)
        assert torch.equal(other, damaged) == (damage.kind == "rotation"), "only a rotation draws nothing"


def test_every_damage_gets_the_noise_of_the_undamaged_tokens(monkeypatch):
    tokenizer = small_hybrid(nested=True)
    images = noise_images(2, 32, 48)
    seen, decode = [], tokenizer.diffusion.decode

    def watched(*arguments, generator, **options):
        seen.append([one.get_state() for one in generator])
        return decode(*arguments, generator=generator, **options)

    monkeypatch.setattr(tokenizer.diffusion, "decode", watched)
    for damage in (NO_DAMAGE, Damage("tokens", 0.2), Damage("elastic", 0.1)):
        decoded(tokenizer, images, damage, "hybrid")
    first = seen[0]
    assert all(torch.equal(a, b) for states in seen for a, b in zip(states, first, strict=True))
    assert not torch.equal(first[0], first[1])


def test_a_larger_share_of_damaged_tokens_contains_a_smaller_one():
    tokenizer = small_hybrid(nested=True)
    tokens = tokenizer.encode(noise_images(2, 32, 48))
    flat = torch.cat([grid.flatten(1) for grid in tokens.guide_indices], dim=1)

    def changed(share):
        kept = []
        guide = tokenizer.decode_guide
        tokenizer.decode_guide = lambda indices, size: (kept.append(indices), guide(indices, size))[1]
        damaged_guide(tokenizer, tokens, Damage("tokens", share), seeded(0, 1))
        tokenizer.decode_guide = guide
        return torch.cat([grid.flatten(1) for grid in kept[0]], dim=1) != flat

    assert (changed(0.4) | ~changed(0.2)).all() and changed(0.4).sum() > changed(0.2).sum() > 0


def test_the_table_compares_each_method_with_itself(tmp_path):
    tokenizer = small_hybrid()
    images = EvalImages.from_samples(32, max_images=3, progress=False)
    config = CorrectionConfig(token_shares=[0.2], elastic=[], rotations=[45.0])
    methods = renderers(tokenizer, ["bicubic", "hybrid"], {})
    done = measure_correction(
        tokenizer, images, config.damages(), methods, metrics_named("psnr", "ssim"), batch_size=2, pictures=2,
        progress=False,
    )  # fmt: skip
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
    assert f"[{low:+.2f}, {high:+.2f}]" in table


@pytest.mark.parametrize(
    ("names", "baselines", "message"),
    [
        (["super_resolution"], {}, "needs weights"),
        (["magic"], {}, "'magic' is unknown"),
        (["hybrid", "hybrid"], {}, "different names"),
        ([], {}, "one or more"),
        (["hybrid@1"], {}, "changes the tokens"),
        (["hybrid@search2"], {}, "changes the tokens"),
        (None, {"movq_67m": "x"}, "take no guide"),
    ],
)
def test_impossible_methods_are_refused(names, baselines, message):
    with pytest.raises(HybridTokenizerError, match=message):
        renderers(small_hybrid(nested=True), names, baselines)


@pytest.mark.parametrize(
    "change", [{"token_shares": [0.0]}, {"elastic": [0.1, 0.1]}, {"elastic": [-0.1]}, {"rotations": [200.0]}]
)
def test_impossible_damages_are_refused(change):
    with pytest.raises(HybridTokenizerError, match="must be"):
        CorrectionConfig(**change)
