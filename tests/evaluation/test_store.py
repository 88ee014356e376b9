"""A killed run resumes and ends as if it had never been killed."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers.caption_data import write_pairs, write_probe
from helpers.commands import environment, run_command, without_times
from helpers.small_models import small_hybrid

from hybrid_tokenizer.evaluation import loop
from hybrid_tokenizer.evaluation.controls import Identity, Unrelated
from hybrid_tokenizer.evaluation.images import EvalImages
from hybrid_tokenizer.evaluation.loop import evaluate_rows
from hybrid_tokenizer.evaluation.measures import metrics_named
from hybrid_tokenizer.evaluation.store import FOLDER, FinishedRows, run_facts
from hybrid_tokenizer.evaluation.summary import Evaluation

KILLED_RUNS = Path(__file__).with_name("killed_runs.py")
COMMANDS = {  # a run -> its command and arguments, its report, its pictures
    "eval_recon": ("eval_recon", ["tokenizers=[identity,unrelated,guide_only,hybrid]"], "recon.json", ["recon.png"]),
    "eval_alignment": ("eval_alignment", ["tokenizers=[guide_only,hybrid]", "pictures=2"], "alignment.json", ["alignment.png"]),
    "decode_sweep": (
        "eval_study", ["study=decode_sweep", "strengths=[0.2]", "steps=[10]", "guidance_scales=[1.0]"], "eval_decode.json", [],
    ),
    "guide_rates": ("eval_study", ["study=guide_rates", "codec=false"], "guide.json", ["guide.png", "guide_pictures.png"]),
    "correction": (
        "eval_study", ["study=correction", "elastic=[]", "rotations=[]", "token_shares=[0.2]"], "correction.json",
        ["correction.png"],
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def material(tmp_path_factory):
    folder = tmp_path_factory.mktemp("material")
    small_hybrid(nested=True).save_pretrained(folder / "model")
    write_pairs(folder / "pairs")
    write_probe(folder / "probe")
    return folder


def arguments_of(name, material, output):
    """The whole command line: two images, or the pairs."""
    command, arguments, *_ = COMMANDS[name]
    data = ["data.root=null", "data.max_images=2"]
    if name == "eval_alignment":
        data = [f"data.root={material / 'pairs'}", f"+score_weights.probe_score={material / 'probe'}"]
    common = [f"model_name={material / 'model'}", "data.image_size=32", f"output_dir={output}", "device=cpu"]
    return [command, *common, *data, *arguments]


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


@pytest.fixture(scope="module")
def killed(material):
    """A folder with a run of every command that was killed at its third row."""
    jobs = [arguments_of(name, material, material / "killed" / name) for name in COMMANDS]
    (material / "jobs.json").write_text(json.dumps([[command, arguments] for command, *arguments in jobs]))
    command = [sys.executable, str(KILLED_RUNS), str(material / "jobs.json")]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    statuses = json.loads(done.stdout.splitlines()[-1])
    assert [os.WTERMSIG(status) for status in statuses] == [signal.SIGKILL] * len(COMMANDS), done.stderr[-2000:]
    return material / "killed"


@pytest.mark.parametrize("name", COMMANDS)
def test_a_killed_run_ends_the_same(material, killed, tmp_path, name, monkeypatch):
    _, _, report, pictures = COMMANDS[name]
    assert not (killed / name / report).exists() and len(list((killed / name / FOLDER).glob("*.json"))) == 2
    measured, evaluate = [], loop.evaluate
    monkeypatch.setattr(loop, "evaluate", lambda row, *o, **k: (measured.append(row.name), evaluate(row, *o, **k))[1])
    assert run_command(*arguments_of(name, material, tmp_path)) is None
    everything, measured[:] = list(measured), []
    assert run_command(*arguments_of(name, material, killed / name)) is None
    assert len(everything) > 2 and measured == everything[2:], "the two finished rows are not measured again"
    assert without_times(killed / name / report) == without_times(tmp_path / report)
    for picture in pictures:
        assert (killed / name / picture).read_bytes() == (tmp_path / picture).read_bytes()
    assert not (killed / name / FOLDER).exists()


def test_other_images_start_anew(material, tmp_path, monkeypatch):
    command = arguments_of("eval_recon", material, tmp_path)
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
