"""The kill storm, reduced to one script and two kills."""

import json
import random
import sys

import pytest
import torch
from helpers.commands import ROOT

sys.path.insert(0, str(ROOT / "tools"))
import kill_storm


@pytest.fixture
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_a_run_that_is_killed_twice_ends_as_an_undisturbed_one(tmp_path, one_thread, monkeypatch):
    monkeypatch.setattr(kill_storm, "LOOP", (*kill_storm.LOOP, "training.num_workers=0"))
    kill_storm.write_pairs(tmp_path / "pairs")
    (tmp_path / "undisturbed").mkdir()
    kill_storm.wait(kill_storm.start(kill_storm.STAGES["guide"], tmp_path, tmp_path / "undisturbed" / "guide"))
    storms = kill_storm.storms(kill_storm.STAGES["guide"], tmp_path, "guide", 2, 1.0, random.Random(0))
    row = kill_storm.summary("guide", storms)
    assert row["kills"] == 2 and all(storm[what] for storm in storms for what in kill_storm.CHECKS)
    log = tmp_path / "undisturbed" / "guide" / "metrics.jsonl"
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    assert [row["step"] for row in rows if "val_psnr" in row] == list(range(0, kill_storm.STEPS + 1, 2))
