"""Rate and distortion of guides: rows, their numbers, files, and the script."""

import json
import runpy
import sys
from pathlib import Path

import pytest
import torch
from helpers.small_models import small_hybrid

from hybrid_tokenizer.errors import HybridTokenizerError
from hybrid_tokenizer.evaluation.config import EvalGuideConfig
from hybrid_tokenizer.evaluation.images import EvalImages
from hybrid_tokenizer.evaluation.studies.guide_rates import load_movq, readings, study
from hybrid_tokenizer.guide import GuideConfig, GuideTokenizer
from hybrid_tokenizer.images import resize_area, resize_bicubic, to_pil
from hybrid_tokenizer.metrics import pixel
from hybrid_tokenizer.quantizers import QuantizerConfig

ROOT = Path(__file__).resolve().parents[2]


def small_movq():
    """f4 without a stem: its tokens are as fine as its guide."""
    config = GuideConfig(
        image_size=32, encoder_channels=[8, 8, 8], decoder_channels=[8, 8, 8], encoder_layers=1, decoder_layers=1,
        encoder_attention=[], decoder_attention=[], norm_type="group", norm_num_groups=4,
        quantizer=QuantizerConfig(codebook_size=50, codebook_dim=4),
    )  # fmt: skip
    return GuideTokenizer(config).eval()


def test_every_prefix_every_size_and_its_numbers():
    images = EvalImages.from_samples(32, max_images=3, progress=False)
    guides = {"nested": small_hybrid(nested=True).guide.eval(), "plain": small_hybrid(seed=1).guide.eval()}
    movq = small_movq()
    rows = readings(guides, movq, 32, codec=True)
    names = [row.name for row in rows]
    assert sorted(names[:4]) == ["nested@1", "nested@21", "nested@5", "plain"]
    bits = [row.bits for row in rows[:4]]
    assert bits == sorted(bits) and bits[0] == pytest.approx(5.6439, abs=1e-4), "one of 50 codes"
    assert names[4:6] == ["lossless 16px", "movq 16px"] and all(name.startswith("codec ") for name in names[6:])
    assert rows[5].tokens == 16, "as many as the plain guide spends on the same guide size"

    result = study(rows, guides, movq, images, device=torch.device("cpu"), batch_size=2, pictures=2, progress=False)
    by_name = {row["method"]: row for row in result.rows}
    x = torch.stack([images[i] for i in range(3)])
    guide = guides["nested"].decode(guides["nested"].encode(x, guide_scales=2), grid_size=(4, 4)).clamp(-1, 1)
    target = resize_area(x, (16, 16))
    prefix = by_name["nested@5"]
    assert prefix["psnr_at_guide_size"] == pytest.approx(pixel.psnr(guide, target).mean().item(), abs=1e-4)
    full = resize_bicubic(guide, (32, 32)).clamp(-1, 1)
    assert prefix["psnr"] == pytest.approx(pixel.psnr(full, x).mean().item(), abs=1e-4)
    low, high = prefix["intervals"]["psnr"]
    assert low <= prefix["psnr"] <= high
    lossless = resize_bicubic(target, (32, 32)).clamp(-1, 1)
    assert by_name["lossless 16px"]["psnr"] == pytest.approx(pixel.psnr(lossless, x).mean().item(), abs=1e-4)
    resized = movq.decode(movq.encode(target)).clamp(-1, 1)
    assert by_name["movq 16px"]["psnr_at_guide_size"] == pytest.approx(
        pixel.psnr(resized, target).mean().item(), abs=1e-4
    )
    assert {name: len(pictures) for name, pictures in result.pictures} == dict.fromkeys(["original", *names], 2)


def test_the_script_writes_table_curves_and_pictures(tmp_path, monkeypatch, capsys):
    small_hybrid(nested=True).guide.save_pretrained(tmp_path / "guide")
    photographs = tmp_path / "photographs"
    photographs.mkdir()
    images = EvalImages.from_samples(64, max_images=2, progress=False)
    for i in range(2):
        to_pil(images[i]).save(photographs / f"{i}.png")
    arguments = [
        f"+guides.ours={tmp_path / 'guide'}", "data.root=null", "data.image_size=32", "data.max_images=2", "pictures=1",
        f"train_root=[{photographs}]", f"output_dir={tmp_path / 'out'}", "device=cpu",
    ]  # fmt: skip
    monkeypatch.setattr(sys, "argv", ["eval_guide.py", *arguments])
    runpy.run_path(str(ROOT / "scripts" / "eval_guide.py"), run_name="__main__")
    assert "| ours@21 | 21 |" in capsys.readouterr().out
    report = json.loads((tmp_path / "out" / "guide.json").read_text())
    assert report["unavailable"] and report["provenance"]["train_images"] == [2]
    row = next(row for row in report["rows"] if row["method"] == "ours@21")
    assert 0 < row["codebook_usage"] <= 42 / 50 and row["perplexity"] >= 1
    for name in ("guide.png", "guide_pictures.png", "guide.md"):
        assert (tmp_path / "out" / name).stat().st_size > 0


def test_mistakes_are_named(tmp_path):
    with pytest.raises(HybridTokenizerError, match="names no guide tokenizer"):
        EvalGuideConfig()
    small_hybrid().guide.save_pretrained(tmp_path)
    with pytest.raises(HybridTokenizerError, match="smaller than its images"):
        load_movq(str(tmp_path), torch.device("cpu"))
