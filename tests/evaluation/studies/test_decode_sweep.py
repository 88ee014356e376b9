"""The sweep of decoding options: its rows, its choice and its files."""

import json

import pytest
import torch
from helpers.small_models import small_hybrid

from hybrid_tokenizer.errors import HybridTokenizerError
from hybrid_tokenizer.evaluation.config import DecodeSweepConfig
from hybrid_tokenizer.evaluation.images import EvalImages
from hybrid_tokenizer.evaluation.measures import Metric, metrics_named
from hybrid_tokenizer.evaluation.studies.decode_sweep import NEVER_READ, OPTIONS, recommend, sweep, write_sweep
from hybrid_tokenizer.images import resize_bicubic
from hybrid_tokenizer.metrics import pixel


def row(name, psnr, distance, strength=0.4, sharpness=0.5):
    options = {"start": "add_noise", "strength": strength, "num_inference_steps": 10, "guidance_scale": 1.0}
    options["inversion_condition"] = "generation"
    facts = {"ssim": 0.5, "seconds_per_image": 0.1, "n": 2, "high_frequency_energy": sharpness}
    return {"method": name, **options, "psnr": psnr, "effnet_lite1_distance": distance, **facts}


def test_the_smallest_distance_within_the_margin_wins():
    rows = [row("best psnr", 22.0, 5.0), row("close", 21.6, 4.0), row("too far", 21.4, 1.0)]
    assert recommend(rows, 0.5)["method"] == "close"
    assert recommend(rows, 0.0)["method"] == "best psnr"
    assert recommend([row("more steps", 22, 4, strength=0.8), row("fewer", 22, 4)], 0.5)["method"] == "fewer"


def test_measures_that_validate_the_preset_do_not_choose():
    rows = [row("a", 22.0, 4.0, sharpness=0.1), row("b", 22.0, 5.0, sharpness=1.0)]
    chosen = recommend([{**r, **dict.fromkeys(NEVER_READ, 100.0)} for r in rows], 0.5)
    assert chosen["method"] == recommend(rows, 0.5)["method"] == "a"


def test_a_sweep_writes_table_plot_and_rule(tmp_path, monkeypatch):
    config = DecodeSweepConfig(
        starts=["ddim_inversion", "add_noise"], strengths=[0.2, 0.4], steps=[5], guidance_scales=[2.0]
    )
    images = EvalImages.from_samples(32, max_images=3, progress=False)
    metrics = [
        *metrics_named("psnr", "ssim", "high_frequency_energy"),
        Metric("effnet_lite1_distance", lambda x, y: (x - y).abs().mean((1, 2, 3)).double()),
    ]
    tokenizer = small_hybrid(start="ddim_inversion")
    tokenizer.search_steps = 2  # which the sweep must not use
    encoded, encode = [], tokenizer.encode
    monkeypatch.setattr(tokenizer, "encode", lambda x, **o: (encoded.append((len(x), o)), encode(x, **o))[1])
    rows = sweep(tokenizer, images, config.settings(), metrics, batch_size=2, progress=False)
    assert encoded == [(2, {"search_steps": 0}), (1, {"search_steps": 0})], "each image once, in one pass"
    assert [r["method"] for r in rows] == [
        "guide_only", "strength 0", "ddim_inversion s0.2 n5 g2", "ddim_inversion s0.4 n5 g2", "add_noise s0.2 n5 g2",
        "add_noise s0.4 n5 g2",
    ]  # fmt: skip
    references = torch.stack([images[i] for i in range(3)])
    tokens = encode(references, search_steps=0)
    output = tokenizer.decode(
        tokens, generator=torch.Generator().manual_seed(0), start="add_noise", strength=0.4, num_inference_steps=5,
        guidance_scale=2.0,
    )  # fmt: skip
    assert rows[-1]["psnr"] == pytest.approx(pixel.psnr(output, references).mean().item(), abs=1e-3)
    assert (rows[-1]["start"], rows[-1]["strength"], rows[-1]["family"]) == ("add_noise", 0.4, "add_noise, n5, g2")
    guide = resize_bicubic(tokenizer.decode_guide(tokens.guide_indices, (32, 32)), (32, 32)).clamp(-1, 1)
    assert rows[0]["psnr"] == pytest.approx(pixel.psnr(guide, references).mean().item(), abs=1e-3)
    table, recommended = write_sweep(tmp_path, rows, 0.5, {"seed": 0})
    report = json.loads((tmp_path / "eval_decode.json").read_text())
    assert report["recommended"] == recommended and set(recommended) == set(OPTIONS)
    assert "within 0.5 dB" in report["rule"] and report["chosen_by"] == ["psnr", "effnet_lite1_distance"]
    assert "Recommended" in table and (tmp_path / "eval_decode.md").read_text() == table
    assert (tmp_path / "eval_decode.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    "change, rule",
    [
        ({"starts": []}, "at least one"),
        ({"strengths": [0.0, 0.4]}, "above 0"),
        ({"strengths": [1.2]}, "0 to 1"),
        ({"steps": [30]}, "divisor"),
        ({"starts": ["noise"]}, "expected one of"),
        ({"psnr_margin": -1.0}, "at least 0"),
    ],
)
def test_impossible_grids_are_refused(change, rule):
    with pytest.raises(HybridTokenizerError, match=rule):
        DecodeSweepConfig(**change)
