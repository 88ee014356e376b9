"""A few hundred damaged inputs, the same at every run; `python tests/fuzz/run_fuzz.py` for as many as you like."""

import random
import time

import fuzz_driver
import jaxtyping
import pytest
from fuzz_doors import DOORS
from fuzz_driver import Attempt, Door, run

from hybrid_tokenizer.errors import HybridTokenizerError

CASES = 30


@pytest.fixture
def users_checks():
    """What a user meets: the package's own checks, without the shape annotations that tests execute."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.mark.parametrize("door", DOORS, ids=lambda door: door.name)
@pytest.mark.filterwarnings("ignore")
def test_damaged_inputs_are_refused_in_one_line_or_read_right(door, tmp_path, users_checks):
    report = run([door], CASES, seed=0, folder=tmp_path)
    assert not report.faults, "\n".join(report.faults)
    assert report.inputs == door.count(CASES)
    assert len(report.rows) >= min(5, report.inputs), "kinds of damage"


def test_the_driver_sees_what_it_looks_for(tmp_path, monkeypatch):
    """A traceback, a hang, too much memory, and a wrong result are each a fault of their own."""
    monkeypatch.setattr(fuzz_driver, "MOST_SECONDS", 0.2)
    monkeypatch.setattr(fuzz_driver, "MOST_BYTES", 64e6)
    kept = []

    def attempt(state, draw, folder):
        assert isinstance(draw, random.Random) and folder.is_dir()
        case = len(kept)
        kept.append(case)
        started = time.process_time()
        if case == 1:
            raise HybridTokenizerError("left the door")
        if case == 2:
            while time.process_time() < started + 0.3:
                pass
        if case == 4:
            bytearray(100_000_000)
        return Attempt("any", False, wrong=0.5 if case == 3 else 0.0, promised=0.1)

    report = run([Door("door", lambda folder: None, attempt)], 5, seed=7, folder=tmp_path)
    assert report.inputs == 5 and len(report.faults) == 4
    assert "case 1" in report.faults[0] and "left the door" in report.faults[0]
    assert "case 2: any took 0.3 s" in report.faults[1]
    assert "case 3: any was read with 0.500 of it wrong, over 0.1" in report.faults[2]
    assert "case 4: any took 1" in report.faults[3] and " MB" in report.faults[3]
    assert "| door | any | 4 | 0 | 3 | 0.500 |" in report.table()
