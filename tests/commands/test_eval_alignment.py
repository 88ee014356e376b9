"""scripts/eval_alignment.py as a user runs it: public layouts of weights, and mistakes."""

import json
import sys

import pytest
import torch
from helpers.caption_data import write_pairs, write_probe
from helpers.commands import ROOT, run_command
from helpers.small_models import small_hybrid

from hybrid_tokenizer.data.folders import RUN_MARK
from hybrid_tokenizer.errors import HybridTokenizerError
from hybrid_tokenizer.evaluation.scores import find_file
from hybrid_tokenizer.evaluation.store import FOLDER

sys.path.insert(0, str(ROOT / "tests" / "metrics"))
from preference_files import image_reward_state, save_clip, save_hps, small_blip, small_open_clip

ROWS = ["identity", "semantic_only", "guide_only", "hybrid", "hybrid_wrong_semantics", "unrelated"]


@pytest.fixture(scope="module")
def material(tmp_path_factory):
    folder = tmp_path_factory.mktemp("material")
    write_pairs(folder / "pairs")
    write_probe(folder / "probe")
    small_hybrid().save_pretrained(folder / "small")
    return folder


@pytest.fixture
def script(capfd, material):
    """The command with the small model: its error or None, and stdout."""

    def run(*arguments):
        common = [f"model_name={material / 'small'}", "data.image_size=32", f"+score_weights.probe_score={material / 'probe'}"]  # fmt: skip
        given = {argument.split("=")[0] for argument in arguments}
        common = [one for one in common if one.split("=")[0] not in given]
        return run_command("eval_alignment", *common, *arguments), capfd.readouterr().out

    return run


def test_without_weights_the_probe_scores_and_the_others_are_named(script, material, tmp_path):
    error, stdout = script(f"data.root={material / 'pairs'}", f"output_dir={tmp_path}")
    assert error is None
    report = json.loads((tmp_path / "alignment.json").read_text())
    assert [row["method"] for row in report["rows"]] == ROWS
    for row in report["rows"]:
        assert set(row["scores"]) == {"probe_score"} and 0 <= row["win_rate"] <= 1 and row["n"] == 3
    facts = report["provenance"]
    assert set(facts["unavailable_scores"]) == {"pickscore", "image_reward", "hps_v2", "hps_v21", "clip_score"}
    assert "unavailable_metrics" not in facts and facts["captions_sha256"] and facts["weights_sha256"]["probe_score"]
    assert "pickscore is unavailable: no weights were given" in stdout
    assert len((tmp_path / "per_image.jsonl").read_text().splitlines()) == 3 * len(ROWS)
    assert all((tmp_path / f"alignment.{kind}").is_file() for kind in ("md", "tex", "csv", "png"))
    assert not (tmp_path / FOLDER).exists()


def test_every_score_from_its_published_layout(script, material, tmp_path):
    torch.manual_seed(0)
    torch.save(image_reward_state(*small_blip()), tmp_path / "ImageReward.pt")
    save_hps(tmp_path / "HPS_v2_compressed.pt", small_open_clip())
    save_hps(tmp_path / "v21.pt", small_open_clip())
    save_clip(tmp_path / "clip")
    weights = {
        "pickscore": "clip", "clip_score": "clip", "hps_v2": "", "hps_v21": "v21.pt", "image_reward": "ImageReward.pt"
    }  # fmt: skip
    arguments = [f"+score_weights.{name}={tmp_path / file}" for name, file in weights.items()]
    error, stdout = script(
        f"data.root={material / 'pairs'}", f"output_dir={tmp_path / 'out'}", "tokenizers=[hybrid]", "dtype=bfloat16", *arguments
    )  # fmt: skip
    assert error is None and "PickScore share" in stdout and "unavailable" not in stdout
    report = json.loads((tmp_path / "out" / "alignment.json").read_text())
    assert [row["method"] for row in report["rows"]] == ["identity", "hybrid"]
    assert set(report["rows"][1]["scores"]) == {*weights, "probe_score"}
    assert report["rows"][1]["win_rate_by"] == "pickscore" and report["provenance"]["unavailable_scores"] == {}
    hashes = report["provenance"]["weights_sha256"]
    assert hashes["hps_v2"] != hashes["hps_v21"] and hashes["pickscore"] == hashes["clip_score"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "data.root has no value"),
        (["data.root={folder}"], "captions.jsonl does not exist"),
        (["data.root={pairs}", "+score_weights.pickscore={folder}"], "cannot be loaded"),
        (["data.root={pairs}", "+score_weights.pick={folder}"], "use some of pickscore"),
        (["data.root={pairs}", "share_among=[seed]"], "share_among names seed"),
    ],
)
def test_mistakes_are_one_line(script, material, tmp_path, arguments, message):
    (tmp_path / "empty").mkdir()
    filled = [one.format(folder=tmp_path / "empty", pairs=material / "pairs") for one in arguments]
    error, _ = script(*filled, f"output_dir={tmp_path / 'out'}")
    assert error.startswith("error: ") and message in error and "\n" not in error
    assert {path.name for path in (tmp_path / "out").glob("*")} <= {RUN_MARK}  # no result is written


def test_files_of_scores_are_found_or_refused(tmp_path):
    for name in ("HPS_v2.1_compressed.pt", "other.pt"):
        (tmp_path / name).touch()
    assert find_file("hps_v21", str(tmp_path)).name == "HPS_v2.1_compressed.pt"
    assert find_file("hps_v21", str(tmp_path / "other.pt")).name == "other.pt"
    with pytest.raises(
        HybridTokenizerError, match=r"has no ImageReward.pt; give the file of score_weights.image_reward"
    ):
        find_file("image_reward", str(tmp_path))
    with pytest.raises(
        HybridTokenizerError, match=r"give HPS_v2_compressed.pt of score_weights.hps_v2, its folder, a hub id"
    ):
        find_file("hps_v2", str(tmp_path / "none.pt"))
