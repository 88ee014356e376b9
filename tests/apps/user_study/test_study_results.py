"""Scores computed by hand, and the files that the results command writes."""

import json
import runpy
import sys

import numpy as np
import pytest
from helpers.servers import ROOT
from small_study import METHODS, write_small_study

from hybrid_tokenizer.apps.user_study.results import results, write_results
from hybrid_tokenizer.apps.user_study.scores import points_of
from hybrid_tokenizer.apps.user_study.study import VOTES_NAME
from hybrid_tokenizer.apps.user_study.votes import Vote, Votes
from hybrid_tokenizer.errors import HybridTokenizerError

# (participant, set) -> places of seed, lavit, hybrid
GIVEN = {
    ("ann", 0): (3, 2, 1), ("ann", 1): (3, 1, 1), ("ann", 2): (2, 3, 1),
    ("bob", 0): (3, 2, 1), ("bob", 1): (2, 3, 1), ("bob", 2): (3, 2, 1),
    ("cyd", 0): (3, 1, 2),
}  # fmt: skip


@pytest.fixture
def study(tmp_path):
    return write_small_study(tmp_path / "study")


def votes_of(study):
    votes = []
    for (code, number), places in GIVEN.items():
        one = study.sets[number]
        of_pictures = {one.candidates[method]: place for method, place in zip(METHODS, places, strict=True)}
        votes.append(Vote(code, one.id, of_pictures, list(one.candidates.values())))
    return votes


def test_points_are_nan_where_nobody_voted(study):
    points = points_of(study, votes_of(study))
    np.testing.assert_array_equal(points[0, 1], [1, 3, 3])
    assert np.isnan(points[2, 1:]).all()


def test_scores_by_hand(study):
    report = results(study, votes_of(study))
    rows = {row["method"]: row for row in report["rows"]}
    # set 0: three participants, sets 1 and 2: two; every set counts alike
    assert rows["seed"]["score"] == pytest.approx((1 + 1.5 + 1.5) / 3)
    assert rows["lavit"]["score"] == pytest.approx((7 / 3 + 2 + 1.5) / 3)
    assert rows["hybrid"]["score"] == pytest.approx((8 / 3 + 3 + 3) / 3)
    assert rows["hybrid"]["first"] == pytest.approx(6 / 7)
    assert [rows[method]["published_score"] for method in METHODS] == [1.22, 1.90, 2.88]
    low, high = rows["hybrid"]["interval_over_sets"]
    assert 8 / 3 <= low <= rows["hybrid"]["score"] <= high <= 3
    pairs = {(pair["method"], pair["other"]): pair for pair in report["pairs"]}
    # hybrid before lavit: set 0 two of three, set 1 a tie and a win, set 2 both
    assert pairs["hybrid", "lavit"]["win_rate"] == pytest.approx((2 / 3 + 3 / 4 + 1) / 3)
    assert (pairs["hybrid", "lavit"]["wins"], pairs["hybrid", "lavit"]["ties"], pairs["hybrid", "lavit"]["losses"]) == (
        5,
        1,
        1,
    )
    for a in METHODS:
        for b in METHODS:
            if a != b:
                assert pairs[a, b]["win_rate"] + pairs[b, a]["win_rate"] == pytest.approx(1)
    assert report["position_scores"] == pytest.approx([(1 + 1 + 2 + 1 + 2 + 1 + 1) / 7, 14 / 7, 20 / 7])
    assert (report["votes"], report["participants"], report["complete"]) == (7, 3, 2)
    assert 0 < report["agreement"]["alpha"] < 1 and report["agreement"]["scale"] == "ordinal"
    assert results(study, votes_of(study), complete_only=True)["participants"] == 2
    with pytest.raises(HybridTokenizerError, match="no vote yet"):
        results(study, [])


def test_files_of_the_results(tmp_path, study):
    stored = Votes(tmp_path / "study" / VOTES_NAME, study.id)
    codes = dict(zip(("ann", "bob", "cyd"), sorted(stored.join() for _ in range(3)), strict=True))
    for vote in votes_of(study):
        stored.save(vote._replace(code=codes[vote.code]))
    stored.close()
    table = write_results(tmp_path / "study", tmp_path / "out")
    report = json.loads((tmp_path / "out" / "user_study.json").read_text())
    assert report["rows"] == results(study, votes_of(study))["rows"]
    assert (tmp_path / "out" / "user_study.md").read_text() == table
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines() if line.startswith("|")]
    assert cells[4][:2] == ["hybrid", "2.89"] and cells[4][-1] == "2.88" and "(ordinal)" in table
    rates = cells[5:]
    assert rates[0] == ["method", *METHODS] and [row[1 + i] for i, row in enumerate(rates[2:])] == ["–"] * 3
    assert rates[4][2].startswith("81% [")  # hybrid before lavit
    for kind in ("png", "pdf"):
        assert (tmp_path / "out" / f"user_study.{kind}").stat().st_size > 5000


@pytest.mark.parametrize(
    ("command", "name", "said"),
    [("results", "study", "serve the study first"), ("serve", "none", "give a folder that prepare made")],
)
def test_errors_are_one_line(tmp_path, study, monkeypatch, command, name, said):
    script = str(ROOT / "scripts" / "user_study.py")
    monkeypatch.setattr(sys, "argv", [script, command, str(tmp_path / name)])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(script, run_name="__main__")
    message = str(ended.value)
    assert message.startswith("error: ") and said in message and "\n" not in message
