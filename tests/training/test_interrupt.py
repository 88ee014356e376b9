"""Ctrl-C: a run saves and ends with 130, the same command resumes it, and a second Ctrl-C ends it at once."""

import os
import signal

import pytest
from training_runs import SMALL_GUIDE, final_weights, run_script

from hybrid_tokenizer.training.guide import GuideObjective
from hybrid_tokenizer.training.interrupt import catching_interrupt


def test_a_run_stops_after_its_step_and_resumes_with_the_same_weights(pictures, tmp_path, capfd, monkeypatch):
    def arguments(name):
        folder = tmp_path / name
        options = ["training.max_steps=3", "training.save_every=50", "training.num_workers=1"]
        return ["train_guide.py", f"data.root={pictures}", f"output_dir={folder}", *SMALL_GUIDE, *options]

    forward, handler = GuideObjective.forward, signal.getsignal(signal.SIGINT)

    def pressing(self, batch, step):
        if step == 1:
            os.kill(os.getpid(), signal.SIGINT)
        return forward(self, batch, step)

    with monkeypatch.context() as patch:
        patch.setattr(GuideObjective, "forward", pressing)
        assert run_script(*arguments("stopped")) == 130
    assert "stopped at step 2; run the same command to resume" in capfd.readouterr().out.splitlines()
    assert signal.getsignal(signal.SIGINT) is handler
    assert run_script(*arguments("stopped")) is None
    final = tmp_path / "stopped" / "final"
    assert capfd.readouterr().out.splitlines()[-1] == (
        f"the weights are in {final}; next: hybrid-tokenizer eval components.guide={final}"
    )
    assert run_script(*arguments("whole")) is None
    assert final_weights(tmp_path / "stopped") == final_weights(tmp_path / "whole")


def test_a_second_press_ends_at_once():
    with catching_interrupt() as interrupt:
        os.kill(os.getpid(), signal.SIGINT)
        assert interrupt.pressed
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
