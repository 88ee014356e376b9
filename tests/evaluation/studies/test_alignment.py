"""Scores of rows and who wins, with scores and tokenizers that are known in closed form."""

import json

import numpy as np
import pytest
import torch
from helpers.caption_data import write_pairs

from hybrid_tokenizer.errors import HybridTokenizerError
from hybrid_tokenizer.evaluation.config import EvalAlignmentConfig, PairData
from hybrid_tokenizer.evaluation.controls import Identity
from hybrid_tokenizer.evaluation.pairs import open_pairs
from hybrid_tokenizer.evaluation.studies.alignment import finish_rows, ranked_by, score_rows, shared_by, write_alignment


class Brightness:
    """The mean level, times the caption's length where asked."""

    def __init__(self, name, by_length=False):
        self.name, self.by_length = name, by_length

    def __call__(self, images, captions):
        lengths = torch.tensor([len(caption) if self.by_length else 1 for caption in captions])
        return images.double().mean((1, 2, 3)) * lengths


class Shifted(Identity):
    """Every image lightened; `wobble` adds what the generator says."""

    deterministic = False

    def __init__(self, name, shift, wobble=0.0):
        self.name, self.shift, self.wobble = name, shift, wobble

    def decode(self, tokens, size, generator=None):
        noise = self.wobble * torch.randn((), generator=generator).item()
        return (0.5 * tokens + self.shift + noise).clamp(-1, 1)


@pytest.fixture
def pairs(tmp_path):
    return open_pairs(PairData(str(write_pairs(tmp_path / "pairs")), 48), progress=False)


def run(pairs, rows, scores, **options):
    return score_rows(rows, pairs, scores, progress=False, **options)


def test_rows_are_scored_image_by_image_whatever_the_batch(pairs):
    scores = [Brightness("pickscore"), Brightness("hps_v2", by_length=True)]
    (one,), (all_at_once,) = (run(pairs, [Shifted("hybrid", 0.1)], scores, batch_size=b, pictures=2) for b in (1, 3))
    assert one.pictures.shape == (2, 3, 48, 48)
    for name in ("pickscore", "hps_v2"):
        assert [entry[name] for entry in one.per_image] == [entry[name] for entry in all_at_once.per_image]
    for i, entry in enumerate(one.per_image):
        expected = (0.5 * pairs.images[i] + 0.1).double().mean().item()
        assert entry["pickscore"] == pytest.approx(expected, abs=1e-6)
        assert entry["hps_v2"] == pytest.approx(expected * len(pairs.captions[i]), abs=1e-4)


def test_seeds_are_averaged(pairs):
    scores = [Brightness("pickscore")]
    singles = [run(pairs, [Shifted("x", 0.0, 0.1)], scores, seeds=(s,))[0] for s in (0, 1)]
    (both,) = run(pairs, [Shifted("x", 0.0, 0.1)], scores, seeds=(0, 1))
    mean = np.mean([[entry["pickscore"] for entry in single.per_image] for single in singles], axis=0)
    assert [entry["pickscore"] for entry in both.per_image] == pytest.approx(list(mean))


def test_the_table_has_wins_shares_intervals_and_the_papers_values(pairs, tmp_path):
    rows = [Identity(), Shifted("hybrid", 0.2), Shifted("seed", 0.1), Shifted("unrelated", 0.0)]
    done = run(pairs, rows, [Brightness("pickscore"), Brightness("probe_score", by_length=True)])
    table = finish_rows(done, "pickscore")
    by_name = {row["method"]: row for row in table}
    means = {name: np.array([e["pickscore"] for e in d.per_image]) for name, d in zip(by_name, done, strict=True)}
    expected = np.mean([means["hybrid"] > means[name] for name in ("identity", "seed", "unrelated")])
    assert by_name["hybrid"]["win_rate"] == pytest.approx(expected)
    assert np.mean([row["win_rate"] for row in table]) == pytest.approx(0.5)
    assert by_name["hybrid"]["win_rates"].keys() == {"pickscore", "probe_score"}
    assert by_name["identity"]["shares"] == by_name["unrelated"]["shares"] == {}
    assert by_name["hybrid"]["shares"]["best"] == 1 and by_name["seed"]["shares"]["best"] == 0
    power = np.exp(means["hybrid"] - means["seed"])
    assert by_name["hybrid"]["shares"]["pickscore"] == pytest.approx(np.mean(power / (1 + power)))
    low, high = by_name["seed"]["intervals"]["pickscore"]
    assert low <= by_name["seed"]["scores"]["pickscore"] <= high
    assert by_name["seed"]["differences"]["pickscore"]["mean"] == pytest.approx(
        np.mean(means["seed"] - means["hybrid"])
    )
    assert by_name["seed"]["published_hps_v2"] == 18.65 and by_name["hybrid"]["published_pickscore_share"] == 0.45
    assert "published_hps_v2" not in by_name["identity"]
    only = finish_rows(done, "probe_score", share_among=["seed", "identity"])
    assert sum(row["shares"].get("best", 0) for row in only) == pytest.approx(1)

    facts = {"unavailable_scores": {"hps_v2": "no weights"}}
    markdown = write_alignment(tmp_path / "out", table, done, pairs.captions, facts)
    entries = [json.loads(line) for line in (tmp_path / "out" / "per_image.jsonl").read_text().splitlines()]
    assert [entry["caption"] for entry in entries[:3]] == pairs.captions and entries[0]["method"] == "identity"
    assert not (tmp_path / "out" / "alignment.png").exists(), "no pictures were kept"
    assert "PickScore, the paper's" in markdown and "hps_v2 is unavailable: no weights" in markdown
    assert "Minus `hybrid`" in markdown and "add up to 1 over hybrid, seed" in markdown
    assert json.loads((tmp_path / "out" / "alignment.json").read_text())["rows"] == table
    header = (tmp_path / "out" / "alignment.csv").read_text().splitlines()[0]
    assert "pickscore low" in header and "win_rate high" in header
    assert r"\begin{tabular}" in (tmp_path / "out" / "alignment.tex").read_text()


def test_one_row_has_no_win_rate(pairs):
    (row,) = finish_rows(run(pairs, [Identity()], [Brightness("pickscore")]), "pickscore")
    assert row["win_rate"] is None and row["intervals"]["win_rate"] is None and row["shares"] == {}


def test_which_score_ranks_and_who_shares():
    assert ranked_by(["pickscore", "probe_score"], None) == "pickscore"
    assert ranked_by(["pickscore", "probe_score"], "probe_score") == "probe_score"
    with pytest.raises(HybridTokenizerError, match="no score has weights"):
        ranked_by([], None)
    with pytest.raises(HybridTokenizerError, match="has no weights"):
        ranked_by(["probe_score"], "hps_v2")
    with pytest.raises(HybridTokenizerError, match="share_among names x; the rows are"):
        shared_by(["identity", "hybrid"], ["x"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"score_weights": {"pick": "x"}}, "score_weights names pick"),
        ({"rank_by": "pick"}, "is no score"),
        ({"dtype": "half"}, "dtype='half' is unknown; use float32"),
        ({"seeds": []}, "different whole numbers"),
    ],
)
def test_impossible_configurations_are_refused(change, message):
    with pytest.raises(HybridTokenizerError, match=message):
        EvalAlignmentConfig(**change)


def test_the_real_image_is_always_the_first_row():
    assert EvalAlignmentConfig().row_names()[0] == "identity" and len(EvalAlignmentConfig().row_names()) == 6
    assert EvalAlignmentConfig(baselines={"seed": "x"}).row_names()[-1] == "seed"
    assert EvalAlignmentConfig(tokenizers=["hybrid", "identity"]).row_names() == ["identity", "hybrid"]
