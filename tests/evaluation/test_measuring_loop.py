"""The measuring loop on tokenizers whose results are known."""

import json
import math

import numpy as np
import pytest
import torch
from helpers.small_models import small_hybrid

from hybrid_tokenizer.data.samples import sample_photographs
from hybrid_tokenizer.errors import HybridTokenizerError
from hybrid_tokenizer.evaluation.config import EvalReconConfig
from hybrid_tokenizer.evaluation.controls import Identity, LosslessGuide, Unrelated
from hybrid_tokenizer.evaluation.images import EvalImages
from hybrid_tokenizer.evaluation.loop import evaluate, evaluate_rows
from hybrid_tokenizer.evaluation.measures import Metric, metrics_named
from hybrid_tokenizer.evaluation.rows import rows_by_name
from hybrid_tokenizer.evaluation.summary import paired_differences
from hybrid_tokenizer.images import resize_area

METRICS = metrics_named("psnr", "ssim", "ms_ssim", "high_frequency_energy")
QUIET = {"progress": False}


class Noisy:
    """Stochastic: the image plus noise from the generator, one draw an image."""

    name, native_size = "noisy", None

    def encode(self, images, generator=None):
        return images

    def decode(self, tokens, size, generator=None):
        seeds = [int(image.sum() * 1000) + generator.initial_seed() for image in tokens]
        noise = [torch.randn(image.shape, generator=torch.Generator().manual_seed(s % 2**62)) for s, image in zip(seeds, tokens, strict=True)]  # fmt: skip
        return (tokens + 0.2 * torch.stack(noise)).clamp(-1, 1)

    def num_tokens(self, tokens):
        return torch.full((len(tokens),), 4)

    def bits(self, tokens):
        return torch.full((len(tokens),), 40.0)


class Native(Identity):
    """Wants 24 px, and checks that it gets and is asked for them."""

    name, native_size = "native", 24

    def encode(self, images, generator=None):
        assert tuple(images.shape[-2:]) == (24, 24)
        return images

    def decode(self, tokens, size, generator=None):
        assert size == (24, 24)
        return tokens


class Overflowing(Identity):
    name = "overflowing"

    def decode(self, tokens, size, generator=None):
        return tokens * 127.5 + 127.5


class Counting(Identity):
    name = "counting"

    def codebook_indices(self, tokens):
        return {"book": (torch.zeros(len(tokens), 5, dtype=torch.int64), 10)}


@pytest.fixture(scope="module")
def images():
    return EvalImages.from_samples(32, **QUIET)


def test_identity_is_perfect_and_says_why_it_has_no_psnr(images):
    row = evaluate(Identity(), images, METRICS, **QUIET).row
    assert row["psnr"] is None and "infinite" in row["psnr_note"]
    assert row["ms_ssim"] is None and "161" in row["ms_ssim_note"]
    assert row["ssim"] == pytest.approx(1) and row["high_frequency_energy"] == pytest.approx(1)
    assert (row["method"], row["n"], row["num_tokens"], row["bits"]) == ("identity", 7, 1024, 1024 * 24)
    json.dumps(row, allow_nan=False)


def test_unrelated_is_the_next_image_and_at_chance(images):
    done = evaluate(Unrelated(), images, METRICS, batch_size=3, pictures=7, **QUIET)
    assert 6 < done.row["psnr"] < 13 and done.row["ssim"] < 0.35
    following = torch.stack([images[(i + 1) % 7] for i in range(7)])
    torch.testing.assert_close(done.pictures.float() / 127.5 - 1, following)


def test_unrelated_of_a_single_image_is_another_photograph():
    photographs = sample_photographs()
    alone = EvalImages(["astronaut"], photographs.__getitem__, 32, **QUIET)
    assert evaluate(Unrelated(), alone, METRICS, **QUIET).row["psnr"] < 15
    for other in ("cat", "coffee"):
        alone = EvalImages([other], photographs.__getitem__, 32, **QUIET)
        assert evaluate(Unrelated(), alone, METRICS, **QUIET).row["psnr"] < 15


def test_row_is_the_mean_of_its_images_whatever_the_batch_size(images):
    one, all_at_once = (evaluate(Noisy(), images, METRICS, batch_size=b, **QUIET) for b in (1, 7))
    assert [e["psnr"] for e in one.per_image] == pytest.approx([e["psnr"] for e in all_at_once.per_image])
    assert one.row["psnr"] == pytest.approx(np.mean([entry["psnr"] for entry in one.per_image]))
    assert one.row["ssim"] == pytest.approx(all_at_once.row["ssim"])
    low, high = one.row["intervals"]["psnr"]
    assert low < one.row["psnr"] < high


def test_hybrid_results_do_not_depend_on_the_batch_size(images):
    (hybrid,) = rows_by_name(small_hybrid(), ["hybrid"])
    one, four = (evaluate(hybrid, images, METRICS, batch_size=b, pictures=7, **QUIET) for b in (1, 4))
    assert (one.pictures.int() - four.pictures.int()).abs().max() <= 1
    assert one.row["psnr"] == pytest.approx(four.row["psnr"], abs=1e-3)
    assert one.row["codebooks"] == four.row["codebooks"] and set(one.row["codebooks"]) == {"semantic", "guide"}


def test_seeds_are_averaged_inside_the_row(images):
    three = evaluate(Noisy(), images, METRICS, seeds=(0, 1, 2), **QUIET)
    singles = [evaluate(Noisy(), images, METRICS, seeds=(s,), **QUIET).row["psnr"] for s in (0, 1, 2)]
    assert three.row["psnr"] == pytest.approx(np.mean(singles))
    assert three.row["psnr_std"] == pytest.approx(np.std(singles, ddof=1)) and three.row["psnr_std"] > 0
    assert three.row["seeds"] == [0, 1, 2] and three.row["n"] == 7
    assert len(three.per_image[0]["psnr_of_seeds"]) == 3
    assert evaluate(Noisy(), images, METRICS, **QUIET).row["psnr_std"] is None


def test_deterministic_rows_run_once_and_have_no_spread(images):
    done = evaluate(LosslessGuide(16), images, METRICS, seeds=(0, 1), **QUIET)
    assert done.row["psnr_std"] == 0 and done.row["deterministic"] and len(done.per_image[0]["psnr_of_seeds"]) == 1


def test_another_native_size_is_resized_and_the_row_says_so(images):
    row = evaluate(Native(), images, METRICS, **QUIET).row
    assert "32 -> 24" in row["resized"] and 15 < row["psnr"] < 40
    assert "resized" not in evaluate(Identity(), images, METRICS, **QUIET).row


def test_wrong_range_names_the_row(images):
    with pytest.raises(HybridTokenizerError, match=r"overflowing decoded outside the value range.*\[-1, 1\]"):
        evaluate(Overflowing(), images, METRICS, **QUIET)


def test_codebook_use_over_the_whole_set(images):
    row = evaluate(Counting(), images, METRICS, batch_size=2, **QUIET).row
    assert row["codebooks"]["book"]["codebook_usage"] == pytest.approx(0.1)
    assert row["codebooks"]["book"]["perplexity"] == pytest.approx(1.0)


def test_paired_differences(images):
    guide, noisy = (evaluate(t, images, METRICS, **QUIET) for t in (LosslessGuide(16), Noisy()))
    difference = paired_differences(guide, noisy, METRICS)["psnr"]
    assert difference["mean"] == pytest.approx(guide.row["psnr"] - noisy.row["psnr"])
    assert difference["n"] == 7 and difference["interval"][0] < difference["mean"] < difference["interval"][1]
    rows = [done.row for done in evaluate_rows([Identity(), Noisy()], images, METRICS, "noisy", **QUIET)]
    assert "ssim" in rows[0]["differences"] and "psnr" not in rows[0]["differences"] and "differences" not in rows[1]
    noisy = Noisy()
    noisy.compare_to = "identity"
    same, other = (done.row for done in evaluate_rows([Identity(), noisy], images, METRICS, "noisy", **QUIET))
    assert same["difference_to"] == "noisy" and other["difference_to"] == "identity"  # its own comes first


def test_undefined_values_leave_the_mean_and_are_noted(images):
    sometimes = Metric("odd", lambda x, y: torch.tensor([math.nan, *[2.0] * (len(x) - 1)], dtype=torch.float64))
    row = evaluate(Identity(), images, [sometimes], batch_size=7, **QUIET).row
    assert row["odd"] == 2.0 and "undefined for 1 of 7" in row["odd_note"]


class Small(Identity):
    """Compared to the area-resized image of its own size."""

    name = "small"

    def __init__(self, reference_size):
        self.reference_size = reference_size

    def decode(self, tokens, size, generator=None):
        assert size == (self.reference_size, self.reference_size)
        return resize_area(tokens, size)


def test_a_row_that_states_a_reference_size_is_measured_there(images):
    done = evaluate(Small(12), images, METRICS, pictures=2, **QUIET)
    assert "infinite" in done.row["psnr_note"] and done.row["ssim"] == pytest.approx(1)
    assert done.row["image_size"] == 12 and done.pictures.shape == (2, 3, 12, 12)
    assert evaluate(Small(8), images, METRICS, **QUIET).row["ssim_note"].startswith("needs images of at least 11")


def test_a_measure_sees_the_batch(images):
    class Position:
        name, geometric, least_side = "position", False, 1

        def __call__(self, output, batch):
            assert torch.equal(output, batch.references)
            return torch.tensor([float(position) for position in batch.positions])

    done = evaluate(Identity(), images, [Position()], batch_size=3, **QUIET)
    assert [entry["position"] for entry in done.per_image] == list(range(7)) and done.row["position"] == 3


def test_impossible_runs_are_refused():
    with pytest.raises(HybridTokenizerError, match="seeds"):
        EvalReconConfig(seeds=[1, 1])
    with pytest.raises(HybridTokenizerError, match="batch_size=0"):
        EvalReconConfig(batch_size=0)
