"""Figures 2 to 5 of small random tokenizers: which pictures stand in them, and the numbers written beside them."""

import json

import pytest
import torch
from helpers.small_models import small_hybrid

from hybrid_tokenizer.errors import HybridTokenizerError
from hybrid_tokenizer.evaluation.config import FiguresConfig
from hybrid_tokenizer.evaluation.controls import GuideOnly, HybridRow
from hybrid_tokenizer.evaluation.images import EvalImages
from hybrid_tokenizer.evaluation.studies import figures as paper
from hybrid_tokenizer.images import resize_bicubic, to_uint8
from hybrid_tokenizer.metrics import pixel


@pytest.fixture(scope="module")
def nested():
    return small_hybrid(nested=True)


@pytest.fixture(scope="module")
def painter():
    return paper.Painter(EvalImages.from_samples(32, max_images=2, progress=False), batch_size=2, progress=False)


def texts(drawn):
    return [text.get_text() for text in drawn.figure.texts]


def test_figure_2_has_a_column_a_row(nested, painter):
    drawn = paper.figure_2(painter, paper.rows_of_figure_2(nested))
    assert [done.row["method"] for done in drawn.evaluations] == list(paper.OUR_COLUMNS)
    assert len(drawn.figure.axes) == 2 * (1 + len(paper.OUR_COLUMNS))
    shown = " ".join(texts(drawn)).replace("\n", " ")
    for method in ("semantic only", "hybrid", "codec"):
        assert method in shown
    assert f"{32 + 21} tokens" in shown and "bytes" in shown
    asked = paper.rows_of_figure_2(nested, ["identity", "hybrid@s0.2"])
    assert [row.name for row in asked] == ["identity", "hybrid@s0.2"]


def test_figure_3_has_every_prefix_and_every_other_guide(nested, painter):
    variants = paper.guide_variants(nested, [small_hybrid(seed=1)])
    assert [(v.num_tokens, v.guide_scales) for v in variants] == [(21, 3), (5, 2), (1, 1), (16, None)]
    drawn = paper.figure_3(painter, variants)
    assert [d.row["num_tokens"] for d in drawn.evaluations] == [21, 5, 1, 16] + [32 + n for n in (21, 5, 1, 16)]
    assert len(drawn.figure.axes) == 2 * (1 + 2 * 4)
    row = GuideOnly(nested, guide_scales=2)
    images = torch.stack([painter.images[i] for i in range(2)])
    expected = row.decode(row.encode(images), (32, 32))
    assert torch.equal(drawn.evaluations[1].pictures, to_uint8(expected))
    assert f"{pixel.psnr(expected, images)[0]:.1f} dB" in texts(drawn)


def test_figures_3_and_5_show_the_guide_that_the_hybrid_starts_from(painter):
    tokenizer = small_hybrid(nested=True, start="ddim_inversion")
    tokenizer.search_steps = 2
    images = torch.stack([painter.images[i] for i in range(2)])
    tokens = tokenizer.encode(images)
    guide = tokenizer.decode_guide(tokens.guide_indices, (32, 32))
    expected = to_uint8(resize_bicubic(guide, (32, 32)).clamp(-1, 1))
    fresh = paper.Painter(painter.images, progress=False)
    for draw in (paper.figure_3, paper.figure_5):
        assert torch.equal(draw(fresh, paper.guide_variants(tokenizer)).evaluations[0].pictures, expected)


def test_figure_4_puts_the_other_tokenizer_on_the_resized_photograph(nested, painter):
    class Recorder:
        name, native_size, deterministic = "movq_67m", None, True

        def encode(self, images, generator=None):
            self.seen = images
            return images

        def decode(self, tokens, size, generator=None):
            assert size == tuple(tokens.shape[-2:])
            return tokens

        def num_tokens(self, tokens):
            return torch.full((len(tokens),), 4)

        def bits(self, tokens):
            return torch.full((len(tokens),), 48.0)

    other = Recorder()
    drawn = paper.figure_4(painter, paper.guide_variants(nested)[:1], [other])
    assert other.seen.shape == (2, 3, 16, 16)  # the guide's size
    names = [done.row["method"] for done in drawn.evaluations]
    assert names == ["lossless_guide@16px", "guide_only@21", "movq_67m@16px"]
    lossless, _, same = drawn.evaluations  # the recorder loses nothing, so its pictures are the resized photographs
    assert (lossless.pictures.int() - same.pictures.int()).abs().max() <= 2


def test_figure_5_with_and_without_super_resolution(nested, painter):
    variants = paper.guide_variants(nested)[:2]
    without = paper.figure_5(painter, variants)
    assert "super-resolution" not in texts(without)
    drawn = paper.figure_5(painter, variants, torch.nn.Upsample(scale_factor=4))
    labels = [text for text in texts(drawn) if text in ("bicubic", "super-resolution", "diffusion")]
    assert labels == ["bicubic", "super-resolution", "diffusion"] * 2
    by_name = {done.row["method"]: done for done in drawn.evaluations}
    assert not torch.equal(by_name["super_resolution@21"].pictures, by_name["guide_of_hybrid@21"].pictures)
    generator = torch.Generator().manual_seed(0)
    row = HybridRow(nested, guide_scales=2)
    images = torch.stack([painter.images[i] for i in range(2)])
    expected = to_uint8(row.decode(row.encode(images), (32, 32), generator))
    assert torch.equal(by_name["hybrid@5"].pictures, expected)


def test_files_hold_the_numbers_of_the_picture(nested, painter, tmp_path):
    drawn = paper.figure_3(painter, paper.guide_variants(nested))
    paths = paper.write_drawn(tmp_path, "3", drawn, {"seed": 0})
    assert sorted(path.name for path in paths) == ["figure3.json", "figure3.pdf", "figure3.png"]
    report = json.loads((tmp_path / "figure3.json").read_text())
    assert [row["method"] for row in report["rows"]] == [done.row["method"] for done in drawn.evaluations]
    for entry in report["per_image"]:
        assert f"{entry['psnr']:.1f} dB" in texts(drawn)


def test_unknown_figures_are_refused():
    assert FiguresConfig().chosen() == ("2", "3", "4", "5") and FiguresConfig(figure="4").chosen() == ("4",)
    with pytest.raises(HybridTokenizerError, match="figure='6' is none"):
        FiguresConfig(figure="6")
