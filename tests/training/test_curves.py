import io
import json
import runpy
import sys
from pathlib import Path

import pytest
from PIL import Image

from hybrid_tokenizer.errors import HybridTokenizerError
from hybrid_tokenizer.training.curves import draw_curves, read_curves

SCRIPT = Path(__file__).resolve().parents[2] / "tools" / "plot_curves.py"
ROWS = [
    {"step": 0, "val_psnr": 7.0, "val_recall@10": 0.02},
    {"step": 20, "total": 2.0, "vq": 1, "lr": 1e-4, "grad_norm": 3.0, "waited_for_data": 0.1},
    {"step": 40, "total": 1.0, "vq": 0.5, "lr": 1e-4, "note": "text", "broken": float("nan")},
    {"step": 40, "val_psnr": 9.0, "val_recall@10": 0.3},
]


def write(path, curve):
    path.write_text(json.dumps({"training": {"step": 40}, "curve": curve}))
    return path


def test_losses_come_first_and_settings_are_no_curves(tmp_path):
    curves = read_curves(write(tmp_path / "vae.json", ROWS))
    assert list(curves) == ["total", "vq", "val_psnr", "val_recall@10"]
    assert curves["total"] == [(20, 2.0), (40, 1.0)] and curves["val_psnr"] == [(0, 7.0), (40, 9.0)]


def test_every_run_has_its_block_of_panels():
    few = {f"loss{number}": [(1, 2.0), (2, 1.0)] for number in range(2)}
    many = {f"val_{number}": [(1, 2.0)] for number in range(7)}
    one, both = (Image.open(io.BytesIO(draw_curves(runs))) for runs in ({"a": few}, {"a": few, "b": many}))
    assert one.width == both.width and both.height > 2.5 * one.height, "7 panels take two more rows"
    assert len(one.convert("RGB").getcolors(2**16)) > 10, "something is drawn"


def test_the_script_writes_the_picture_or_one_line(tmp_path, monkeypatch, capsys):
    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["plot_curves.py", *map(str, arguments)])
        runpy.run_path(str(SCRIPT), run_name="__main__")

    output = tmp_path / "plots" / "curves.png"
    run(write(tmp_path / "vae.json", ROWS), write(tmp_path / "guide.json", ROWS), "--output", output)
    assert capsys.readouterr().out == f"{output}\n" and Image.open(output).format == "PNG"

    table = tmp_path / "recon.json"
    table.write_text(json.dumps({"rows": []}))
    for file, target, words in (
        (table, output, "holds no curve"),
        (write(tmp_path / "empty.json", []), output, "empty curve"),
        (tmp_path / "none.json", output, "does not exist"),
        (table, tmp_path / "curves.pdf", "must end in .png"),
    ):
        with pytest.raises(SystemExit, match=words) as leaving:
            run(file, "--output", target)
        assert leaving.value.code.startswith("error: ") and "\n" not in leaving.value.code


def test_rows_without_a_step_are_no_curve(tmp_path):
    with pytest.raises(HybridTokenizerError, match="holds no curve"):
        read_curves(write(tmp_path / "a.json", [{"total": 1.0}]))
