"""A run that was killed and resumed, and one that two processes share, report what an undisturbed run of one process reports."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.commands import environment, run_command, without_times
from report_runs import RUNS, command_of, write_material
from two_ranks import rows_of_few_images, shared_images

from hybrid_tokenizer.evaluation import loop
from hybrid_tokenizer.evaluation.store import FOLDER

TWO_RANKS = Path(__file__).with_name("two_ranks.py")
LAUNCHER = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]


def test_killed_and_shared_runs_report_what_an_undisturbed_one_does(tmp_path, monkeypatch, subtests):
    """One test, so that the two processes are started once."""
    write_material(tmp_path)
    for place in ("killed", "shared"):
        commands = [command_of(report, tmp_path, tmp_path / place) for report in RUNS]
        (tmp_path / f"{place}.json").write_text(json.dumps(commands))
    done = subprocess.run(
        [*LAUNCHER, str(TWO_RANKS), *(str(tmp_path / f"{name}.json") for name in ("killed", "shared", "facts"))],
        env=environment(), capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    facts = json.loads((tmp_path / "facts.json").read_text())
    with subtests.test("one process speaks"):
        assert done.stdout.count("3 images, 0 skipped") == 1 and done.stdout.count("recommended: ") == 1
    with subtests.test("each image is read by one process"):
        check_shared_images(facts)
    with subtests.test("a process without an image waits for nobody"):
        check_few_images(facts["few"])
    assert [os.WTERMSIG(status) for status in facts["statuses"]] == [signal.SIGKILL] * len(RUNS), done.stderr[-3000:]
    measured, evaluate = [], loop.evaluate
    monkeypatch.setattr(loop, "evaluate", lambda row, *o, **k: (measured.append(row.name), evaluate(row, *o, **k))[1])
    for report, run in RUNS.items():
        with subtests.test(report):
            whole, killed, shared = (tmp_path / place / report for place in ("whole", "killed", "shared"))
            assert not (killed / report).exists() and len(list((killed / FOLDER).glob("*.json"))) == 2
            measured.clear()
            assert run_command(*command_of(report, tmp_path, tmp_path / "whole")) is None
            everything = list(measured)
            measured.clear()
            assert run_command(*command_of(report, tmp_path, tmp_path / "killed")) is None
            assert len(everything) > 2 and measured == everything[2:], "the two finished rows are not measured again"
            assert not (killed / FOLDER).exists() and not (shared / FOLDER).exists()
            for other in (killed, shared):
                assert without_times(other / report) == without_times(whole / report)
                for picture in run.pictures:
                    assert (other / picture).read_bytes() == (whole / picture).read_bytes(), (
                        f"{other.parent.name} {picture}"
                    )


def check_shared_images(facts):
    """Both processes hold the same set as one alone, in the same order, and skip the same file."""
    expected, read_alone = shared_images()
    assert facts["images"] == [expected] * 2 and len(expected[0]) == 36 and expected[1][0]["reason"] == "damaged"
    assert len(read_alone) == 37, "one process reads no further than it must"
    assert sorted([*facts["read"][0], *facts["read"][1]]) == [f"{number:02d}" for number in range(40)]
    assert [len(read) for read in facts["read"]] == [20, 20]


def check_few_images(two):
    """One image on two processes: codebook statistics, rFID and KID are those of one process."""
    one = list(rows_of_few_images())
    for ours, theirs in zip(two, json.loads(json.dumps(one)), strict=True):
        for name in ("rfid", "kid"):
            value, expected = ours["row"].pop(name), theirs["row"].pop(name)
            assert value == (None if expected is None else pytest.approx(expected, rel=1e-9))
        assert ours == theirs and set(ours["row"]["codebooks"]) == {"semantic", "guide"}
    assert two[0]["row"]["n"] == 1 and two[1]["row"]["n"] == 3 and "rfid_note" in two[0]["row"]
