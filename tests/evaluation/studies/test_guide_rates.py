"""Rate and distortion of guides: lines, their numbers, files, and the command."""

import json

import pytest
import torch
from helpers.commands import run_command
from helpers.small_models import small_hybrid

from hybrid_tokenizer.errors import HybridTokenizerError
from hybrid_tokenizer.evaluation.config import GuideRatesConfig
from hybrid_tokenizer.evaluation.images import EvalImages
from hybrid_tokenizer.evaluation.studies.guide_rates import lines_of, load_movq, measure_guides
from hybrid_tokenizer.guide import GuideConfig, GuideTokenizer
from hybrid_tokenizer.images import resize_area, resize_bicubic, to_pil
from hybrid_tokenizer.metrics import pixel
from hybrid_tokenizer.quantizers import QuantizerConfig


def small_movq():
    """f4 without a stem: its tokens are as fine as its guide."""
    config = GuideConfig(
        image_size=32, encoder_channels=[8, 8, 8], decoder_channels=[8, 8, 8], encoder_layers=1, decoder_layers=1,
        encoder_attention=[], decoder_attention=[], norm_type="group", norm_num_groups=4,
        quantizer=QuantizerConfig(codebook_size=50, codebook_dim=4),
    )  # fmt: skip
    return GuideTokenizer(config).eval()


def test_every_prefix_every_size_and_its_numbers(monkeypatch):
    images = EvalImages.from_samples(32, max_images=3, progress=False)
    guides = {"nested": small_hybrid(nested=True).guide.eval(), "plain": small_hybrid(seed=1).guide.eval()}
    movq = small_movq()
    counts, encode = [], GuideTokenizer.encode
    monkeypatch.setattr(GuideTokenizer, "encode", lambda self, x: (counts.append(len(x)), encode(self, x))[1])
    lines = lines_of(guides, movq, 32, codec=True)
    names = [line.row.name for line in lines]
    assert sorted(names[:4]) == ["nested@1", "nested@21", "nested@5", "plain"]
    assert names[4:6] == ["lossless 16px", "movq 16px"] and all(name.startswith("codec ") for name in names[6:])

    result = measure_guides(lines, images, device=torch.device("cpu"), batch_size=2, pictures=2, progress=False)
    assert sum(counts) == 3 * 3, "three models, each image once"
    by_name = {row["method"]: row for row in result.rows}
    assert by_name["movq 16px"]["tokens"] == 16, "as many as the plain guide spends on the same guide size"
    bits = [row["bits"] for row in result.rows[:4]]
    assert bits == sorted(bits) and bits[0] == pytest.approx(5.6439, abs=1e-4), "one of 50 codes"
    x = torch.stack([images[i] for i in range(3)])
    guide = guides["nested"].decode(encode(guides["nested"], x, guide_scales=2), grid_size=(4, 4)).clamp(-1, 1)
    target = resize_area(x, (16, 16))
    prefix = by_name["nested@5"]
    assert prefix["psnr_at_guide_size"] == pytest.approx(pixel.psnr(guide, target).mean().item(), abs=1e-4)
    full = resize_bicubic(guide, (32, 32)).clamp(-1, 1)
    assert prefix["psnr"] == pytest.approx(pixel.psnr(full, x).mean().item(), abs=1e-4)
    for key in ("psnr", "psnr_at_guide_size"):
        low, high = prefix["intervals"][key]
        assert low <= prefix[key] <= high
    lossless = resize_bicubic(target, (32, 32)).clamp(-1, 1)
    assert by_name["lossless 16px"]["psnr"] == pytest.approx(pixel.psnr(lossless, x).mean().item(), abs=0.05)
    assert by_name["lossless 16px"]["bits"] is None and "psnr_at_guide_size" not in by_name["lossless 16px"]
    resized = movq.decode(encode(movq, target)).clamp(-1, 1)
    assert by_name["movq 16px"]["psnr_at_guide_size"] == pytest.approx(
        pixel.psnr(resized, target).mean().item(), abs=1e-4
    )
    codec = result.rows[-1]
    assert codec["bits"] > 8 * int(codec["method"].split()[1]), "no file is that small, and the row says what it costs"
    assert {name: len(pictures) for name, pictures in result.pictures} == dict.fromkeys(["original", *names], 2)


def test_the_command_writes_table_curves_and_pictures(tmp_path, capsys):
    small_hybrid(nested=True).guide.save_pretrained(tmp_path / "guide")
    photographs = tmp_path / "photographs"
    photographs.mkdir()
    images = EvalImages.from_samples(64, max_images=2, progress=False)
    for i in range(2):
        to_pil(images[i]).save(photographs / f"{i}.png")
    error = run_command(
        "eval_study", "study=guide_rates", f"+guides.ours={tmp_path / 'guide'}", "data.image_size=32", "data.max_images=2",
        "pictures=1", f"train_root=[{photographs}]", f"output_dir={tmp_path / 'out'}", "device=cpu",
    )  # fmt: skip
    assert error is None
    assert "| ours@21 " in capsys.readouterr().out
    report = json.loads((tmp_path / "out" / "guide.json").read_text())
    assert report["unavailable"] and report["provenance"]["train_images"] == [2]
    row = next(row for row in report["rows"] if row["method"] == "ours@21")
    used = {int(code) for grid in guide_codes(tmp_path / "guide", photographs) for code in grid.flatten()}
    assert row["codebook_usage"] == pytest.approx(len(used) / 50)
    for name in ("guide.png", "guide_pictures.png", "guide.md"):
        assert (tmp_path / "out" / name).stat().st_size > 0


def guide_codes(folder, photographs):
    images = EvalImages.from_folder(photographs, 32, progress=False)
    return GuideTokenizer.from_pretrained(folder).encode(torch.stack([images[i] for i in range(len(images))]))


def test_without_guides_it_measures_the_models(tmp_path):
    small_hybrid().save_pretrained(tmp_path / "model")
    error = run_command(
        "eval_study", "study=guide_rates", f"model_name={tmp_path / 'model'}", "data.image_size=32", "data.max_images=1",
        "codec=false", f"output_dir={tmp_path / 'out'}", "device=cpu",
    )  # fmt: skip
    assert error is None
    report = json.loads((tmp_path / "out" / "guide.json").read_text())
    assert [row["method"] for row in report["rows"]] == ["small", "lossless 16px"]
    assert set(report["provenance"]["weights_sha256"]) == {"small"}


def test_mistakes_are_named(tmp_path):
    with pytest.raises(HybridTokenizerError, match="must not contain '@'"):
        GuideRatesConfig(guides={"a@1": "x"})
    small_hybrid().guide.save_pretrained(tmp_path)
    with pytest.raises(HybridTokenizerError, match="smaller than its images"):
        load_movq(str(tmp_path), torch.device("cpu"))
