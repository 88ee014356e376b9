"""Two processes measure what one does, also where the second has nothing to do."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.caption_data import write_pairs, write_probe
from helpers.commands import environment, run_command, without_times
from helpers.small_models import small_hybrid
from two_ranks import rows_of_few_images

TWO_RANKS = Path(__file__).with_name("two_ranks.py")
LAUNCHER = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
JOBS = {  # report -> command, arguments
    "recon.json": ("eval_recon", ["data.max_images=5", "tokenizers=[unrelated,hybrid]", "pictures=5", "seeds=[0,1]"]),
    "alignment.json": ("eval_alignment", ["tokenizers=[hybrid,semantic_only]", "data.root={pairs}", "+score_weights.probe_score={probe}"]),
    "eval_decode.json": ("eval_study", ["study=decode_sweep", "data.max_images=3", "strengths=[0.2]", "steps=[10]", "guidance_scales=[1.0]"]),
    "guide.json": ("eval_study", ["study=guide_rates", "data.max_images=3", "codec=false", "train_root=[{pairs}]"]),
    "correction.json": ("eval_study", ["study=correction", "data.max_images=1", "token_shares=[0.2]", "elastic=[]"]),
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Every job by two processes in `two`, and `FOLDER/few.json`."""
    folder = tmp_path_factory.mktemp("two_processes")
    small_hybrid(nested=True).save_pretrained(folder / "model")
    write_pairs(folder / "pairs")
    write_probe(folder / "probe")
    (folder / "jobs.json").write_text(json.dumps([command_of(folder, report, "two") for report in JOBS]))
    done = subprocess.run(
        [*LAUNCHER, str(TWO_RANKS), str(folder / "jobs.json"), str(folder / "few.json")], env=environment(),
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    (folder / "stdout").write_text(done.stdout)
    return folder


def command_of(folder, report, place):
    name, arguments = JOBS[report]
    filled = [argument.format(pairs=folder / "pairs", probe=folder / "probe") for argument in arguments]
    common = [f"model_name={folder / 'model'}", "data.image_size=32", "batch_size=2", f"output_dir={folder / place}"]
    return name, [*common, *filled]


@pytest.mark.parametrize("report", JOBS)
def test_two_processes_make_the_table_of_one(folder, report):
    name, arguments = command_of(folder, report, "one")
    assert run_command(name, *arguments) is None
    assert without_times(folder / "one" / report) == without_times(folder / "two" / report)
    pictures = {"recon.json": "recon.png", "alignment.json": "alignment.png", "guide.json": "guide_pictures.png"}
    if report in pictures:
        one, two = ((folder / place / pictures[report]).read_bytes() for place in ("one", "two"))
        assert one == two


def test_one_process_reports(folder):
    stdout = (folder / "stdout").read_text()
    assert stdout.count("5 images, 0 skipped") == 1 and stdout.count("recommended: ") == 1


def test_a_process_without_an_image_waits_for_nobody(folder):
    """One image on two processes: codebook statistics, rFID and KID are those of one process."""
    two, one = json.loads((folder / "few.json").read_text()), list(rows_of_few_images())
    for ours, theirs in zip(two, json.loads(json.dumps(one)), strict=True):
        for name in ("rfid", "kid"):
            value, expected = ours["row"].pop(name), theirs["row"].pop(name)
            assert value == (None if expected is None else pytest.approx(expected, rel=1e-9))
        assert ours == theirs and set(ours["row"]["codebooks"]) == {"semantic", "guide"}
    assert two[0]["row"]["n"] == 1 and two[1]["row"]["n"] == 3 and "rfid_note" in two[0]["row"]
