"""A table whose run was killed goes on where it was, and ends as if it never had been."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch
from helpers.small_models import small_hybrid

from hybrid_tokenizer.evaluation.plots import draw_rates
from hybrid_tokenizer.evaluation.store import FOLDER, FinishedRows
from hybrid_tokenizer.evaluation.summary import Evaluation

ROOT = Path(__file__).resolve().parents[2]


def test_a_row_comes_back_for_the_same_facts_only(tmp_path):
    pictures = torch.randint(0, 256, (2, 3, 4, 4), dtype=torch.uint8)
    done = Evaluation({"method": "hybrid@s0.4", "psnr": 20.123456789}, [{"image": "a/b.png", "psnr": None}], pictures)
    store = FinishedRows(tmp_path, {"seed": 0})
    assert store.read("hybrid@s0.4") is None
    store.write("hybrid@s0.4", done)
    back = FinishedRows(tmp_path, {"seed": 0}).read("hybrid@s0.4")
    assert back.row == done.row and back.per_image == done.per_image and torch.equal(back.pictures, pictures)
    assert FinishedRows(tmp_path, {"seed": 1}).read("hybrid@s0.4") is None
    store.clear()
    assert not (tmp_path / FOLDER).exists() and store.read("hybrid@s0.4") is None


def without_times(path):
    """The table of a report, the seconds taken out."""
    report = json.loads(path.read_text())
    return [{key: value for key, value in row.items() if key != "seconds_per_image"} for row in report["rows"]]


def test_a_killed_table_ends_the_same(tmp_path):
    small_hybrid().save_pretrained(tmp_path / "model")

    def command(output):
        return [
            sys.executable, str(ROOT / "scripts" / "eval_recon.py"), f"model_name={tmp_path / 'model'}", "data.root=null",
            "data.image_size=32", "data.max_images=2", "tokenizers=[identity,unrelated,guide_only,hybrid,codec]",
            f"output_dir={output}", "device=cpu",
        ]  # fmt: skip

    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    process = subprocess.Popen(
        command(killed), env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    started = time.monotonic()
    while not (killed / FOLDER / "unrelated.json").exists():
        assert process.poll() is None and time.monotonic() - started < 120, "it ended before it could be killed"
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (killed / "recon.json").exists()
    kept = {path.name: path.stat().st_mtime_ns for path in (killed / FOLDER).iterdir()}
    assert "unrelated.json" in kept
    for output in (killed, whole):
        subprocess.run(command(output), env=environment, check=True, capture_output=True)
    assert without_times(killed / "recon.json") == without_times(whole / "recon.json")
    assert (killed / "recon.png").read_bytes() == (whole / "recon.png").read_bytes()
    assert (killed / "recon_rd.png").stat().st_size > 0 and not (killed / FOLDER).exists()


def test_rates_draw_with_and_without_codecs():
    rows = [
        {"method": name, "bits_per_pixel": bits, "psnr": 20.0, "ssim": None}
        for name, bits in (("hybrid", 0.05), ("codec", 0.06), ("unrelated", 0.0))
    ]
    assert draw_rates(rows).startswith(b"\x89PNG") and draw_rates(rows[:1]).startswith(b"\x89PNG")
    assert draw_rates([]).startswith(b"\x89PNG")


def test_two_processes_make_the_table_of_one(tmp_path):
    """Five images in batches of 2: the processes share them 3 to 2."""
    small_hybrid().save_pretrained(tmp_path / "model")
    script = str(ROOT / "scripts" / "eval_recon.py")
    launchers = {"one": [sys.executable], "two": [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2",
    ]}  # fmt: skip
    for name, launcher in launchers.items():
        done = subprocess.run(
            [
                *launcher, script, f"model_name={tmp_path / 'model'}", "data.root=null", "data.image_size=32",
                "data.max_images=5", "tokenizers=[unrelated,hybrid]", "batch_size=2", "pictures=5", "seeds=[0,1]",
                f"output_dir={tmp_path / name}",
            ],
            env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "GLOO_SOCKET_IFNAME": "lo", "CUDA_VISIBLE_DEVICES": ""},
            capture_output=True, text=True, timeout=300,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
        assert done.stdout.count("5 images, 0 skipped") == 1, "the main process alone reports"
    assert without_times(tmp_path / "one" / "recon.json") == without_times(tmp_path / "two" / "recon.json")
    assert (tmp_path / "one" / "recon.png").read_bytes() == (tmp_path / "two" / "recon.png").read_bytes()
