"""The benchmark's timing, and its alternatives giving the outputs they are compared by."""

import json
import time

import pytest
import torch
from helpers.small_models import noise_images, small_hybrid

from hybrid_tokenizer.errors import HybridTokenizerError
from hybrid_tokenizer.verification.speed import feeding, running
from hybrid_tokenizer.verification.speed.alternatives import PlainPipeline
from hybrid_tokenizer.verification.speed.bench import Bench
from hybrid_tokenizer.verification.speed.coding import decode_bf16, decode_contest
from hybrid_tokenizer.verification.speed.config import GPU_ROWS, BenchmarkConfig
from hybrid_tokenizer.verification.speed.rows import BUILDERS, report, run_rows
from hybrid_tokenizer.verification.speed.running import PLAIN_IMPORTS, peak_memory, seconds_after_torch
from hybrid_tokenizer.verification.speed.timing import Contest, Timed, measure

FORM = {"name", "ours", "alternative", "unit", "ratio", "max_output_difference"}


def contest(ours, alternative, amount=0):
    return Contest("row", "s", ours, alternative, amount, lambda left, right: abs(left - right), {"note": 1})


def test_medians_of_interleaved_repeats():
    calls = []
    times = {"ours": iter([1.0, 9.0, 2.0]), "alternative": iter([4.0, 4.0, 8.0])}

    def side(name, value):
        def run():
            calls.append(name)
            return Timed(next(times[name]), value)

        return run

    row = measure(contest(side("ours", 3), side("alternative", 5)), 3, torch.device("cpu"))
    assert set(row) > FORM and row["note"] == 1
    assert (row["ours"], row["alternative"], row["ratio"], row["max_output_difference"]) == (2.0, 4.0, 2.0, 2)
    assert all(set(pair) == {"ours", "alternative"} for pair in (calls[:2], calls[2:4], calls[4:]))
    assert calls[0] != calls[2]  # the order alternates


def test_a_rate_and_a_time_both_give_a_ratio_above_1_for_the_faster():
    fast, slow = lambda: Timed(1.0, 0), lambda: Timed(2.0, 0)
    rate = measure(contest(fast, slow, amount=8), 1, torch.device("cpu"))
    assert (rate["ours"], rate["alternative"], rate["ratio"]) == (8.0, 4.0, 2.0)
    assert measure(contest(fast, slow), 1, torch.device("cpu"))["ratio"] == 2.0
    waited = measure(contest(lambda: time.sleep(0.02) or 0, lambda: 0), 1, torch.device("cpu"))
    assert waited["ours"] >= 0.02 and waited["ratio"] < 1


@pytest.mark.parametrize("nested", [False, True])
def test_the_plain_pipeline_gives_the_same_tokens_and_images(nested):
    tokenizer = small_hybrid(nested=nested, start="ddim_inversion")
    plain = PlainPipeline(tokenizer)
    images = noise_images(2)
    tokens = tokenizer.encode(images)
    singles = [plain.encode_one(image) for image in images.split(1)]
    assert torch.cat([semantic for semantic, _ in singles]).equal(tokens.semantic_indices)
    for scale, grid in enumerate(tokens.guide_indices):
        assert torch.cat([grids[scale] for _, grids in singles]).equal(grid)
    ours = tokenizer.decode(tokens, strength=0.4, num_inference_steps=5, guidance_scale=1.0)
    theirs = plain.decode(tokens.semantic_indices, tokens.guide_indices, tokens.image_size, 5, 0.4)
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


def test_both_sides_of_a_decode_invert_alike_whatever_the_preset_inverts_with():
    bench = Bench(BenchmarkConfig(image_size=64, batch_size=2, num_inference_steps=5), torch.device("cpu"))
    # a preset whose own default asks no U-Net on the way up
    assert bench.tokenizer.diffusion.config.decode_defaults.start == "linear_estimate"
    row = measure(decode_contest(bench, bench.tokenizer, bench.plain, bench.images, "decode"), 1, torch.device("cpu"))
    assert row["max_output_difference"] < 1e-4
    rounded = decode_bf16(bench)
    # less would say that nothing was computed in bf16, more that something else was computed
    assert 1e-4 < rounded["max_output_difference"] < 0.05


def test_rows_have_the_form_that_others_read():
    config = BenchmarkConfig(
        rows=["encode", "decode", "decode_latency", "decode_batch8_vs_1"], image_size=32, batch_size=2, repeats=1,
        num_inference_steps=5, strength=0.4,
    )  # fmt: skip
    bench = Bench(config, torch.device("cpu"))
    assert bench.images.shape == (2, 3, 32, 32)
    bench.__dict__["tokenizer"] = small_hybrid()
    rows = [BUILDERS[name](bench) for name in config.rows]
    assert [row["name"] for row in rows] == config.rows
    for row in rows:
        assert set(row) > FORM and row["ratio"] > 0 and row["max_output_difference"] < 1e-4
    json.dumps(rows, allow_nan=False)
    lines = report(rows).splitlines()
    assert [line.split("|")[1].strip() for line in lines[2:6]] == config.rows
    assert lines[0].split("|")[1:-1] == [cell for cell in lines[0].split("|")[1:-1] if cell.strip()]
    assert lines[-1].startswith("- decode_batch8_vs_1: HybridTokenizer.decode, batch 2; against ")


def test_the_search_is_measured_with_8_steps_whatever_the_presets_default_is(monkeypatch):
    bench = Bench(BenchmarkConfig(image_size=32, batch_size=2, repeats=1), torch.device("cpu"))
    bench.__dict__["tokenizer"] = tokenizer = small_hybrid(start="ddim_inversion")
    assert tokenizer.search_steps == 0
    steps = []
    encode = tokenizer.encode
    monkeypatch.setattr(
        tokenizer, "encode", lambda images, **options: steps.append(options) or encode(images, **options)
    )
    row = BUILDERS["encode_search"](bench)
    assert sorted(options["search_steps"] for options in steps) == [0, 8] and row["search_steps"] == 8
    assert row["ours_is"] == "HybridTokenizer.encode with 8 steps of search, batch 2"


@pytest.mark.parametrize("name", GPU_ROWS)
def test_the_rows_of_the_papers_sizes_run_with_narrow_layers(name):
    config = BenchmarkConfig(
        rows=[name], image_size=128, batch_size=1, repeats=1, num_inference_steps=5, strength=0.4, reduced=True
    )
    (row,) = run_rows(config, torch.device("cpu"), lambda line: None)
    assert set(row) > FORM and row["name"] == name and row["reduced"] and row["dtype"] == "float32"
    assert row["model"] == "sd15 reduced (random weights)" and row["tflop_per_image"] > 1e-5
    assert row["max_output_difference"] < 1e-3
    report([row])


def test_the_memory_of_an_evaluation_is_of_its_own_process():
    held = torch.ones(2**29)  # 2 GB in the process that starts it
    assert 1e8 < peak_memory(2) < 1.5e9
    assert held[0] == 1


def test_kept_features_of_references_change_no_distance():
    config = BenchmarkConfig(rows=["harness_references"], image_size=64, batch_size=8, repeats=1)
    (row,) = run_rows(config, torch.device("cpu"), lambda line: None)
    assert row["max_output_difference"] == 0 and row["n"] == 7 and "4 rows and 3 feature" in row["ours_is"]


def test_draws_from_cached_latents_are_those_of_a_fresh_permutation(monkeypatch):
    monkeypatch.setattr(feeding, "CACHED_ROWS", 3000)
    (row,) = run_rows(BenchmarkConfig(rows=["latent_draw"], repeats=1), torch.device("cpu"), lambda line: None)
    assert row["max_output_difference"] == 0 and "from 3,072 cached rows" in row["ours_is"]


def test_the_harness_measures_as_scikit_image_does():
    config = BenchmarkConfig(rows=["harness_ssim_psnr"], image_size=64, batch_size=3, repeats=1)
    (row,) = run_rows(config, torch.device("cpu"), lambda line: None)
    assert row["n"] > config.batch_size and row["max_output_difference"] < 1e-4


def test_importing_the_package_is_measured_against_the_plain_imports(monkeypatch):
    """That it loads no model library is tested in test_api.py."""
    measured = {"import hybrid_tokenizer": 0.5, "from hybrid_tokenizer import HybridTokenizer": 3.0, PLAIN_IMPORTS: 2.0}
    monkeypatch.setattr(running, "seconds_after_torch", measured.__getitem__)
    (row,) = run_rows(BenchmarkConfig(rows=["import"], repeats=1), torch.device("cpu"), lambda line: None)
    assert (row["ours"], row["alternative"], row["ratio"], row["import_of_HybridTokenizer"]) == (0.5, 2.0, 4.0, 3.0)


def test_a_statement_is_timed_in_a_fresh_interpreter():
    assert 0.2 <= seconds_after_torch("time.sleep(0.2)") < 5


def test_unknown_rows_are_refused():
    with pytest.raises(HybridTokenizerError, match="use some of encode"):
        BenchmarkConfig(rows=["speed"])


def test_what_feeds_training_is_measured(monkeypatch):
    monkeypatch.setattr(feeding, "LOADER_BATCHES", 2)
    monkeypatch.setattr(feeding, "LOADER_WORKERS", 1)
    monkeypatch.setattr(feeding, "CACHED_IMAGES", 3)
    config = BenchmarkConfig(rows=["loader", "loader_resident", "cache"], image_size=64, batch_size=2, repeats=1)
    loader, resident, cache = run_rows(config, torch.device("cpu"), lambda line: None)
    assert loader["unit"] == resident["unit"] == cache["unit"] == "images/s"
    assert loader["max_output_difference"] is None and 0 < resident["max_output_difference"] < 0.05
    assert cache["max_output_difference"] < 0.02 and cache["n"] == 3
