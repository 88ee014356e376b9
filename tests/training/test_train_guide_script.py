import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers.small_models import small_hybrid
from PIL import Image
from safetensors.torch import load_file
from training_runs import SMALL_GUIDE, environment, final_weights, said

from hybrid_tokenizer.guide import GuideTokenizer
from hybrid_tokenizer.hybrid import HybridTokenizer

STEPS = 10


def rows_of(folder):
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if name != "waited_for_data"} for row in rows]


def test_a_killed_run_ends_as_an_unbroken_one(script, pictures, tmp_path):
    """The two runs also differ in all that must not matter: loader workers, tracker, threads by the environment."""
    options = (*SMALL_GUIDE, f"data.root={pictures}", f"training.max_steps={STEPS}", "training.save_every=2")
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    other = (*options, f"output_dir={killed}", "training.num_workers=2", "training.tracker=tensorboard")
    run = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("killed_run.py")), "7", *other],
        stdout=subprocess.PIPE, text=True, env=environment(OMP_NUM_THREADS="2"), timeout=900,
    )  # fmt: skip
    assert run.returncode == -signal.SIGKILL
    assert said(run.stdout) == ["starting from step 0"]
    earlier, newest = sorted((killed / "checkpoints").glob("step-*"))
    assert (earlier.name, newest.name) == ("step-00000004", "step-00000006")

    weights = newest / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-50])  # cut off by a full disk
    leftover = newest.with_name(".step-99999999.1.tmp")
    shutil.copytree(earlier, leftover)
    error, stdout, stderr = script("train_guide.py", *other)
    assert error is None and "Traceback" not in stderr
    assert said(stdout) == [
        f"passed over damaged checkpoint {newest}: model.safetensors changed since it was written",
        "resumed from step 4",
        f"finished at step {STEPS}",
    ]
    kept = sorted(path.name for path in (killed / "checkpoints").iterdir())
    assert kept == [f"step-{STEPS - 2:08d}", f"step-{STEPS:08d}"], "the leftover is gone"

    error, stdout, _ = script("train_guide.py", *options, f"output_dir={whole}")
    assert error is None and said(stdout) == ["starting from step 0", f"finished at step {STEPS}"]
    assert final_weights(killed) == final_weights(whole)
    assert rows_of(killed) == rows_of(whole)
    check_events(killed, resumed=4)
    facts = [json.loads((folder / "final" / "training.json").read_text()) for folder in (killed, whole)]
    assert facts[0]["weights_sha256_by_rank"] == facts[1]["weights_sha256_by_rank"]
    assert facts[1]["step"] == STEPS and facts[1]["images_seen"] == 2 * STEPS and facts[1]["processes"] == 1
    assert facts[1]["config"]["training"]["max_steps"] == STEPS and facts[1]["provenance"]["versions"]["torch"]
    assert Image.open(whole / "validation" / f"step-{STEPS:08d}.png").width > 90

    check_final_folder(whole, tmp_path)
    check_starting_again(script, whole, options)


def check_events(run, resumed):
    """TensorBoard shows each step once, from files whose names hold no time."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = run / "tensorboard"
    starts = [f"events.out.tfevents.from-step-{step:08d}" for step in (0, resumed)]
    assert sorted(path.name for path in folder.iterdir()) == starts
    shown = EventAccumulator(str(folder)).Reload().Scalars("train/total")
    logged = {row["step"]: row["total"] for row in rows_of(run) if "total" in row}
    assert [event.step for event in shown] == list(logged)
    assert [event.value for event in shown] == pytest.approx(list(logged.values()), rel=1e-6)


def check_final_folder(run, tmp_path):
    """final/ holds the averaged weights, as a component of a whole tokenizer."""
    guide = GuideTokenizer.from_pretrained(run / "final")
    averages = load_file(run / "checkpoints" / f"step-{STEPS:08d}" / "ema.safetensors")
    live = load_file(run / "checkpoints" / f"step-{STEPS:08d}" / "model.safetensors")
    for name, weight in guide.named_parameters():
        assert torch.equal(weight, averages[name]) and not torch.equal(weight, live[f"model.{name}"])
    assert torch.equal(guide.quantizer.codebook, live["model.quantizer.codebook"])
    small_hybrid().save_pretrained(tmp_path / "hybrid")
    hybrid = HybridTokenizer.from_pretrained(tmp_path / "hybrid", guide=run / "final")
    images = torch.rand(2, 3, 32, 48) * 2 - 1
    tokens = hybrid.encode(images)
    assert tokens.guide_indices[0].shape == (2, 4, 6)
    decoded = hybrid.decode(tokens, num_inference_steps=5, generator=torch.Generator().manual_seed(0), progress=False)
    assert decoded.shape == images.shape


def check_starting_again(script, run, options):
    """A finished run stays finished; other geometry is refused; a run without its checkpoints starts over."""
    weights = final_weights(run)
    error, stdout, _ = script("train_guide.py", *options, f"output_dir={run}")
    assert error is None and said(stdout) == [f"resumed from step {STEPS}", f"finished at step {STEPS}"]
    assert final_weights(run) == weights
    error, stdout, _ = script("train_guide.py", *options, f"output_dir={run}", "training.batch_size=3")
    assert error.startswith("error: ") and "use a new output_dir" in error and stdout == ""
    error, stdout, _ = script("train_guide.py", *options, f"output_dir={run}", "guide.encoder_channels=[8,8,16]")
    assert error.startswith("error: ") and "does not fit" in error and "\n" not in error


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (["model=none_such"], "none_such"),
        (["training.max_step=3"], "training.max_step"),
        (["guide.stem=unshufle"], "unshufle"),
        (["training.learning_rate=fast"], "learning_rate"),
        (["training.num_threads=0"], "training.num_threads"),
        (["data.root={empty}"], "holds no images"),
        (["data.root={empty}/absent"], "is not a folder"),
        (["data.image_size=100"], "100x100"),
        (["data.val_root={empty}"], "holds no images"),
        (["guide.init={empty}"], "{empty}"),
        (["output_dir={empty}/file/run"], "output_dir"),
        (["~data.root"], "data.root"),
        (["data.root=???"], "data.root"),
        (["output_dir=???"], "output_dir"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_mistakes_are_one_line(script, pictures, tmp_path, changes, words):
    empty = tmp_path / "empty"
    empty.mkdir()
    (tmp_path / "file").write_bytes(b"")
    given = [f"data.root={pictures}", f"output_dir={tmp_path / 'out'}"]
    changes = [change.format(empty=empty).replace("empty/file", "file") for change in changes]
    given = [option for option in given if option.split("=")[0] not in {c.lstrip("~").split("=")[0] for c in changes}]
    if changes[0].startswith("~"):
        changes = []
    error, stdout, stderr = script("train_guide.py", *SMALL_GUIDE, *given, *changes)
    assert error.startswith("error: ") and "\n" not in error and "Traceback" not in error + stderr
    assert words.format(empty=empty) in error
    assert not [line for line in said(stdout) if line != "starting from step 0"]


def test_a_folder_of_broken_images_is_one_line(script, pictures, tmp_path):
    """Found by a worker process, whose traceback is left out."""
    for index in range(3):
        (tmp_path / f"{index}.png").write_bytes(b"no image")
    options = (f"data.root={tmp_path}", f"data.val_root={pictures}", f"output_dir={tmp_path / 'out'}")
    error, stdout, _ = script("train_guide.py", *SMALL_GUIDE, *options, "training.num_workers=1")
    assert error.startswith("error: 100 images in a row are unreadable") and "\n" not in error
    error, stdout, _ = script("train_guide.py", *SMALL_GUIDE, f"data.root={tmp_path}", f"output_dir={tmp_path / 'two'}")
    assert error.startswith("error: no validation image can be read") and stdout.startswith(f"skipped {tmp_path}")


def test_help_shows_the_options(script):
    error, stdout, _ = script("train_guide.py", "--help")
    assert error in (None, 0)
    for option in ("max_steps", "codebook_size", "val_fraction", "perceptual"):
        assert option in stdout
