"""A run's folder under faults: a second run, changed settings, kills, full disks, files in the way. Each is one line, and
the checkpoints that are there stay whole."""

import errno
import json
import os
import socket
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import save_file
from test_loop import fresh_process, guide_objective, rows_of, run
from training_runs import final_weights, said, write_pictures

from hybrid_tokenizer.errors import HybridTokenizerError
from hybrid_tokenizer.training import loop, state
from hybrid_tokenizer.training.lock import locked
from hybrid_tokenizer.training.state import find_checkpoint, keep_newest, prepare_folder, save_checkpoint, writing

__all__ = ["fresh_process"]

HOLD = """
import fcntl, sys
file = open(sys.argv[1], "a+")
fcntl.lockf(file, fcntl.LOCK_EX)
file.write("process 7 on elsewhere")
file.flush()
print("held", flush=True)
input()
"""
REMEDY = "; the checkpoints that are there are whole: mend this, and the same command goes on from the newest"


def stopped_run(pictures, folder, **changes):
    """A run of 4 steps that stopped after its first."""
    run(guide_objective(), pictures, folder, max_minutes=1e-9, **changes)
    return folder


def refusal(pictures, folder, **changes):
    with pytest.raises(HybridTokenizerError) as error:
        run(guide_objective(), pictures, folder, **changes)
    assert "\n" not in str(error.value)
    return str(error.value)


def checkpoints(folder):
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


def test_a_second_run_is_refused_until_the_first_ends(pictures, tmp_path):
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / ".lock")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout.readline() == "held\n"
    try:
        assert refusal(pictures, tmp_path, max_steps=1) == (
            f"output_dir={str(tmp_path)!r} is in use by process 7 on elsewhere; wait until it ends, or give another output_dir"
        )
    finally:
        holder.kill()
        holder.communicate()
    run(guide_objective(), pictures, tmp_path, max_steps=1)
    assert (tmp_path / ".lock").read_text() == f"process {os.getpid()} on {socket.gethostname()}\n"


def test_a_child_does_not_keep_the_lock(tmp_path):
    """As the loader's workers, which outlive a killed run for seconds."""
    with locked(tmp_path), locked(tmp_path):
        child = os.fork()
        if child == 0:
            time.sleep(60)
            os._exit(0)
    try:
        again = "import fcntl, sys; fcntl.lockf(open(sys.argv[1], 'a+'), fcntl.LOCK_EX | fcntl.LOCK_NB)"
        assert subprocess.run([sys.executable, "-c", again, str(tmp_path / ".lock")], check=False).returncode == 0
    finally:
        os.kill(child, 9)
        os.waitpid(child, 0)


def test_changed_settings_are_refused_or_listed(pictures, tmp_path, capfd):
    folder = stopped_run(pictures, tmp_path / "run", mixed_precision="no")
    step = folder / "checkpoints" / "step-00000001"
    other = write_pictures(tmp_path / "other", count=13)
    for data, changes, words in (
        (pictures, {"ema_decay": 0.5}, ["training.ema_decay was 0.9, is 0.5"]),
        (pictures, {"mixed_precision": "bf16"}, ["training.mixed_precision was 'no', is 'bf16'"]),
        (other, {}, ["the data was "]),
    ):
        message = refusal(data, folder, **{"mixed_precision": "no", **changes})
        assert message.startswith(f"{step} was trained with other settings: {words[0]}")
        assert message.endswith(
            "; give the earlier ones, use a new output_dir, or accept the changes with training.allow_changes=true"
        )
    capfd.readouterr()
    run(
        guide_objective(),
        pictures,
        folder,
        mixed_precision="no",
        ema_decay=0.5,
        allow_changes=True,
        log_every=1,
        max_steps=3,
    )
    listed = ["training.max_steps was 4, is 3", "training.ema_decay was 0.9, is 0.5"]
    lines = [f"changed after step 1: {change}" for change in listed]
    assert said(capfd.readouterr().out)[:4] == [*lines, "resumed from step 1", "finished at step 3"]
    record = json.loads((folder / "final" / "training.json").read_text())
    assert record["changes"] == [{"after_step": 1, "changes": listed}]


def test_moved_data_is_the_same_data(pictures, tmp_path):
    (tmp_path / "moved").symlink_to(pictures)
    folder = stopped_run(pictures, tmp_path / "run", max_steps=2)
    run(guide_objective(), tmp_path / "moved", folder, max_steps=2)
    assert (folder / "final" / "training.json").exists()


def test_a_kill_between_saving_and_validating_loses_no_row(pictures, tmp_path, monkeypatch):
    options = {"max_steps": 3, "save_every": 1, "validate_every": 2}
    run(guide_objective(), pictures, tmp_path / "whole", **options)
    validate = loop._Run._validate

    def killed(self):
        if self.step == 2:
            raise KeyboardInterrupt
        validate(self)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(loop._Run, "_validate", killed)
        run(guide_objective(), pictures, tmp_path / "killed", **options)
    run(guide_objective(), pictures, tmp_path / "killed", **options)
    rows = [[row for row in rows_of(tmp_path / name) if "val_psnr" in row] for name in ("whole", "killed")]
    assert rows[0] == rows[1] and [row["step"] for row in rows[0]] == [0, 2, 3]
    grids = [
        {path.name: path.read_bytes() for path in (tmp_path / name / "validation").iterdir()}
        for name in ("whole", "killed")
    ]
    assert grids[0] == grids[1] and len(grids[0]) == 3
    assert final_weights(tmp_path / "whole") == final_weights(tmp_path / "killed")


def test_a_finished_run_keeps_its_record(pictures, tmp_path, capfd):
    run(guide_objective(), pictures, tmp_path, max_steps=2)
    final = tmp_path / "final"
    before = {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in final.iterdir()}
    newest = tmp_path / "checkpoints" / "step-00000002"
    run(guide_objective(), pictures, tmp_path, max_steps=2, log_every=1)
    lines = said(capfd.readouterr().out)
    assert lines[lines.index("resumed from step 2") + 1] == "finished at step 2"
    assert refusal(pictures, tmp_path, max_steps=2, weight_decay=0.5).startswith(
        f"{newest} was trained with other settings: "
    )
    assert refusal(pictures, tmp_path, max_steps=2, weight_decay=0.5, allow_changes=True) == (
        "no step is left to train with other settings: training.weight_decay was 0.01, is 0.5; give more than "
        "training.max_steps=2, or use a new output_dir"
    )
    assert refusal(pictures, tmp_path, max_steps=1) == (
        f"{newest} is beyond training.max_steps=1; give at least 2, or use a new output_dir"
    )
    assert before == {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in final.iterdir()}


@pytest.mark.parametrize("name", ["save_tensors", "write_json"])
def test_a_full_disk_spares_the_checkpoints(pictures, tmp_path, monkeypatch, name):
    write = getattr(state, name)

    def full(path, *arguments):
        if "step-00000002" in str(path):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        write(path, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(state, name, full)
        message = refusal(pictures, tmp_path, max_steps=2, save_every=1)
    assert message.endswith(f" cannot be written (No space left on device){REMEDY}")
    assert checkpoints(tmp_path) == ["step-00000001"] and find_checkpoint(tmp_path / "checkpoints") is not None
    run(guide_objective(), pictures, tmp_path, max_steps=2, save_every=1)
    assert checkpoints(tmp_path) == ["step-00000001", "step-00000002"]


def test_failures_of_safetensors_are_one_line(tmp_path):
    with pytest.raises(HybridTokenizerError) as error, writing(tmp_path):
        save_file({"a": torch.ones(1)}, tmp_path / "none" / "x")
    assert str(error.value) == f"{tmp_path} cannot be written (No such file or directory){REMEDY}"


def test_a_read_only_folder_is_one_line(pictures, tmp_path, monkeypatch):
    def read_only(path, *_, **__):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    monkeypatch.setattr("hybrid_tokenizer.training.lock.open", read_only, raising=False)
    assert refusal(pictures, tmp_path) == f"{tmp_path / '.lock'} cannot be written (Read-only file system){REMEDY}"


def test_a_file_in_place_of_a_folder_is_found_at_the_start(pictures, tmp_path):
    (tmp_path / "file").write_text("mine")
    assert refusal(pictures, tmp_path / "file") == f"{tmp_path / 'file'} cannot be written (File exists){REMEDY}"
    for name in ("checkpoints", "validation", "final"):
        (tmp_path / name).write_text("mine")
        assert refusal(pictures, tmp_path) == (
            f"{tmp_path / name} is a file, and this run needs a folder of that name; move the file, or give another output_dir"
        )
        assert (tmp_path / name).read_text() == "mine"
        (tmp_path / name).unlink()
    (tmp_path / "metrics.jsonl").mkdir()
    assert refusal(pictures, tmp_path) == f"{tmp_path / 'metrics.jsonl'} cannot be written (Is a directory){REMEDY}"


def test_weights_and_biases_without_a_key_is_one_line(pictures, tmp_path, monkeypatch):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert refusal(pictures, tmp_path / "run", tracker="wandb", wandb_mode="online") == (
        "training.tracker=wandb cannot start (No API key configured. Use `wandb login` to log in); set WANDB_API_KEY, or give "
        "training.wandb_mode=offline or training.tracker=tensorboard"
    )


def saved(root, step):
    tensors = {"model.safetensors": {"weight": torch.ones(1)}, "optimizer.safetensors": {}}
    facts = {"geometry": {}, "seconds": 1.0, "settings": {}, "changes": []}
    return save_checkpoint(root, step, 2, tensors, facts)


@pytest.mark.parametrize("field", ["step", "seconds", "sha256", "geometry"])
def test_a_state_without_a_field_is_passed_over(tmp_path, capsys, field):
    saved(tmp_path, 2)
    path = saved(tmp_path, 4) / "state.json"
    facts = json.loads(path.read_text())
    value = facts.pop(field)
    path.write_text(json.dumps(facts))
    assert find_checkpoint(tmp_path)[1]["step"] == 2
    assert capsys.readouterr().out == f"passed over damaged checkpoint {path.parent}: state.json has no {field!r}\n"
    path.write_text(json.dumps({**facts, field: "x"}))
    assert find_checkpoint(tmp_path)[1]["step"] == 2
    assert f"state.json has {field}='x', expected {type(value).__name__}" in capsys.readouterr().out


def test_a_checkpoint_of_an_earlier_version_is_read(pictures, tmp_path, capfd):
    path = stopped_run(pictures, tmp_path, max_steps=2) / "checkpoints" / "step-00000001" / "state.json"
    facts = json.loads(path.read_text())
    path.write_text(json.dumps({name: facts[name] for name in ("step", "seconds", "sha256", "geometry")}))
    capfd.readouterr()
    run(guide_objective(), pictures, tmp_path, max_steps=2)
    line = f"{path.parent} does not record its settings, so that they are not compared with this run's"
    assert said(capfd.readouterr().out)[:3] == [line, "resumed from step 1", "finished at step 2"]


def test_files_have_the_umasks_mode(pictures, tmp_path):
    before = os.umask(0o027)
    try:
        run(guide_objective(), pictures, tmp_path, max_steps=1)
    finally:
        os.umask(before)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) >= 9 and {path.stat().st_mode & 0o777 for path in files} == {0o640}


def test_a_resumed_run_deletes_what_a_kill_left_undeleted(tmp_path):
    for step in (2, 4, 6):
        folder = save_checkpoint(tmp_path / "checkpoints", step, 3, {}, {})
    keep_newest(folder.with_name("step-00000004"), 1)
    assert checkpoints(tmp_path) == ["step-00000004", "step-00000006"]


def test_what_a_killed_run_was_writing_is_removed(tmp_path):
    stale = [".metrics.jsonl.7.tmp", "checkpoints/.step-00000004.7.tmp/model.safetensors", "final/unet/.tmpAb3xYz"]
    kept = ["mine.tmp", ".tmp", ".config.tmp", "final/.tmp-notes", "data/.x.7.tmp"]
    for name in (*stale, *kept):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    prepare_folder(tmp_path)
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()) == sorted(kept)
    assert not (tmp_path / "checkpoints" / ".step-00000004.7.tmp").exists()
