"""What is kept of finished rows, and when a run takes it up again. Killed runs are in test_two_processes.py."""

import json

import pytest
import torch
from helpers.commands import run_command
from helpers.small_models import small_hybrid

from hybrid_tokenizer.evaluation import loop
from hybrid_tokenizer.evaluation.controls import Identity, Unrelated
from hybrid_tokenizer.evaluation.images import EvalImages
from hybrid_tokenizer.evaluation.loop import evaluate_rows
from hybrid_tokenizer.evaluation.measures import metrics_named
from hybrid_tokenizer.evaluation.store import FOLDER, FinishedRows, run_facts
from hybrid_tokenizer.evaluation.summary import Evaluation


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


@pytest.mark.parametrize("kind", ["json", "safetensors"])
@pytest.mark.parametrize("damage", ["cut", "gone", "other"])
def test_a_damaged_row_is_measured_again(tmp_path, kind, damage):
    images = EvalImages.from_samples(32, max_images=2, progress=False)
    store = FinishedRows(tmp_path, "facts")
    rows, options = [Identity(), Unrelated()], {"store": store, "pictures": 1, "progress": False}
    first = evaluate_rows(rows, images, metrics_named("psnr"), **options)
    file = tmp_path / FOLDER / f"unrelated.{kind}"
    if damage == "gone":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:40] if damage == "cut" else json.dumps({"key": store.key}).encode())
    assert store.read("unrelated") is None and store.read("identity") is not None
    again = evaluate_rows(rows, images, metrics_named("psnr"), **options)
    assert [done.row["psnr"] for done in again] == [done.row["psnr"] for done in first]
    assert store.read("unrelated").row["psnr"] == first[1].row["psnr"]


def test_other_images_start_anew(tmp_path, monkeypatch):
    small_hybrid().save_pretrained(tmp_path / "model")
    command = [
        "eval_recon", f"model_name={tmp_path / 'model'}", "data.image_size=32", "data.max_images=2", "pictures=0",
        "tokenizers=[identity]", "compare_to=identity", f"output_dir={tmp_path / 'run'}", "device=cpu",
    ]  # fmt: skip
    monkeypatch.setattr("hybrid_tokenizer.evaluation.store.FinishedRows.clear", lambda self: None)
    assert run_command(*command) is None
    monkeypatch.setattr(loop, "evaluate", lambda row, *others, **options: pytest.fail(f"{row.name} is measured again"))
    assert run_command(*command) is None
    with pytest.raises(pytest.fail.Exception, match="identity is measured again"):
        run_command(*command, "data.max_images=1")


def test_a_run_says_where_its_numbers_come_from():
    images = EvalImages.from_samples(32, max_images=2, progress=False)
    facts = run_facts(images, "cpu", 0.0)
    assert facts["images"]["n"] == 2 and facts["images"]["pixels_sha256"] == images.pixels_hash
    assert facts["skipped"] == [] and facts["wall_seconds"] > 0 and facts["versions"]["torch"]
    json.dumps(facts, allow_nan=False)
