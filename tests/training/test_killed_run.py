"""A run that is killed in the middle of a step, and whose newest checkpoint is damaged, ends as one that was never stopped.

Each stage is a fixture that runs once; what it leaves behind is tested by itself.
"""

import contextlib
import io
import json
import os
import shutil
import signal
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from helpers.small_models import small_hybrid
from PIL import Image
from safetensors.torch import load_file
from training_runs import SMALL_GUIDE, final_weights, run_script, said

from hybrid_tokenizer.guide import GuideTokenizer
from hybrid_tokenizer.hybrid import HybridTokenizer
from hybrid_tokenizer.training.guide import GuideObjective

STEPS, KILLED_AT = 10, 7
NOT_TO_MATTER = ("training.num_workers=2", "training.tracker=tensorboard")
"""Options in which the killed run differs from the unbroken one."""


@dataclass
class Run:
    folder: Path
    said: list[str]

    @property
    def facts(self):
        return json.loads((self.folder / "final" / "training.json").read_text())

    @property
    def rows(self):
        """Logged rows, without the time that a step waited."""
        rows = [json.loads(line) for line in (self.folder / "metrics.jsonl").read_text().splitlines()]
        return [{name: value for name, value in row.items() if name != "waited_for_data"} for row in rows]

    @property
    def checkpoints(self):
        return sorted(path.name for path in (self.folder / "checkpoints").iterdir())


def options(pictures, folder):
    return (
        *SMALL_GUIDE, f"data.root={pictures}", f"output_dir={folder}", f"training.max_steps={STEPS}",
        "training.save_every=2",
    )  # fmt: skip


def finish(folder, *arguments):
    """Run train_guide.py to its end in this process."""
    with contextlib.redirect_stdout(io.StringIO()) as stdout, contextlib.redirect_stderr(io.StringIO()) as stderr:
        error = run_script("train_guide.py", *arguments)
    assert error is None and "Traceback" not in stderr.getvalue(), error
    return Run(folder, said(stdout.getvalue()))


@pytest.fixture(scope="module")
def killed(pictures, tmp_path_factory):
    """In a process forked from this one, which ends by SIGKILL in the middle of a step."""
    folder = tmp_path_factory.mktemp("killed") / "run"
    log = folder.with_name("log")
    child = os.fork()
    if child == 0:
        try:
            os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT, 0o644), 1)
            sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115  pytest's takes no lines of another process
            GuideObjective.forward = deadly
            run_script("train_guide.py", *options(pictures, folder), *NOT_TO_MATTER)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    return Run(folder, said(log.read_text()))


def deadly(objective, batch, step, forward=GuideObjective.forward):
    if step == KILLED_AT:
        os.kill(os.getpid(), signal.SIGKILL)
    return forward(objective, batch, step)


@pytest.fixture(scope="module")
def resumed(killed, pictures, tmp_path_factory):
    """The killed run, its newest checkpoint cut off as by a full disk, started again."""
    folder = tmp_path_factory.mktemp("resumed") / "run"
    shutil.copytree(killed.folder, folder)
    earlier, newest = sorted((folder / "checkpoints").glob("step-*"))
    weights = newest / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-50])
    shutil.copytree(earlier, newest.with_name(".step-99999999.1.tmp"))  # a checkpoint that was being written
    return finish(folder, *options(pictures, folder), *NOT_TO_MATTER)


@pytest.fixture(scope="module")
def whole(pictures, tmp_path_factory):
    """A run that was never stopped."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    return finish(folder, *options(pictures, folder))


def test_a_killed_run_leaves_its_last_two_checkpoints(killed):
    assert killed.said == ["starting from step 0"]
    assert killed.checkpoints == ["step-00000004", "step-00000006"]
    assert not (killed.folder / "final").exists()


def test_it_resumes_before_the_damage_and_says_so(resumed):
    newest = resumed.folder / "checkpoints" / "step-00000006"
    assert resumed.said == [
        f"passed over damaged checkpoint {newest}: model.safetensors changed since it was written",
        "resumed from step 4",
        f"finished at step {STEPS}",
    ]
    assert resumed.checkpoints == [f"step-{STEPS - 2:08d}", f"step-{STEPS:08d}"], "what was being written is gone"


def test_it_ends_with_the_weights_and_the_log_of_an_unbroken_run(resumed, whole):
    assert whole.said == ["starting from step 0", f"finished at step {STEPS}"]
    assert final_weights(resumed.folder) == final_weights(whole.folder)
    assert resumed.rows == whole.rows
    assert resumed.facts["weights_sha256_by_rank"] == whole.facts["weights_sha256_by_rank"]


def test_a_run_says_what_it_was(whole):
    facts = whole.facts
    assert facts["step"] == STEPS and facts["images_seen"] == 2 * STEPS and facts["processes"] == 1
    assert facts["config"]["training"]["max_steps"] == STEPS and facts["provenance"]["versions"]["torch"]
    assert Image.open(whole.folder / "validation" / f"step-{STEPS:08d}.png").width > 90


def test_tensorboard_shows_each_step_once(resumed):
    """From files whose names hold no time."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = resumed.folder / "tensorboard"
    starts = [f"events.out.tfevents.from-step-{step:08d}" for step in (0, 4)]
    assert sorted(path.name for path in folder.iterdir()) == starts
    shown = EventAccumulator(str(folder)).Reload().Scalars("train/total")
    logged = {row["step"]: row["total"] for row in resumed.rows if "total" in row}
    assert [event.step for event in shown] == list(logged)
    assert [event.value for event in shown] == pytest.approx(list(logged.values()), rel=1e-6)


def test_the_final_folder_holds_the_averaged_weights(whole):
    guide = GuideTokenizer.from_pretrained(whole.folder / "final")
    newest = whole.folder / "checkpoints" / f"step-{STEPS:08d}"
    averages, live = load_file(newest / "ema.safetensors"), load_file(newest / "model.safetensors")
    for name, weight in guide.named_parameters():
        assert torch.equal(weight, averages[name]) and not torch.equal(weight, live[f"model.{name}"])
    assert torch.equal(guide.quantizer.codebook, live["model.quantizer.codebook"])


def test_the_final_folder_is_a_component_of_a_whole_tokenizer(whole, tmp_path):
    small_hybrid().save_pretrained(tmp_path / "hybrid")
    hybrid = HybridTokenizer.from_pretrained(tmp_path / "hybrid", guide=whole.folder / "final")
    images = torch.rand(2, 3, 32, 48) * 2 - 1
    tokens = hybrid.encode(images)
    assert tokens.guide_indices[0].shape == (2, 4, 6)
    decoded = hybrid.decode(tokens, num_inference_steps=5, generator=torch.Generator().manual_seed(0), progress=False)
    assert decoded.shape == images.shape


def test_a_finished_run_stays_finished(whole, pictures, tmp_path):
    shutil.copytree(whole.folder, tmp_path / "run")
    again = finish(tmp_path / "run", *options(pictures, tmp_path / "run"))
    assert again.said == [f"resumed from step {STEPS}", f"finished at step {STEPS}"]
    assert final_weights(again.folder) == final_weights(whole.folder)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("training.batch_size=3", "use a new output_dir"),
        ("guide.encoder_channels=[8,8,16]", "does not fit"),
        ("loss.perceptual=1", "loss.perceptual was 0.0, is 1.0"),
    ],
)
def test_another_batch_or_model_is_refused(script, whole, pictures, change, words):
    error, stdout, _ = script("train_guide.py", *options(pictures, whole.folder), change)
    assert error.startswith("error: ") and words in error and "\n" not in error
    assert said(stdout) == []
