"""scripts/eval_recon.py as a user runs it: its files and its mistakes."""

import json
import subprocess
import sys

import pytest
from helpers.bad_images import write_bad_folder
from helpers.commands import command_line, environment, run_command
from helpers.small_models import small_hybrid
from PIL import Image

from hybrid_tokenizer.data.folders import RUN_MARK


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "small"
    small_hybrid().save_pretrained(folder)
    return folder


def test_it_writes_the_table_the_images_and_what_they_come_from(capfd, saved, tmp_path):
    bad_folder = write_bad_folder(tmp_path / "bad")
    error = run_command(
        "eval_recon", f"model_name={saved}", f"data.root={bad_folder}", "data.image_size=32",
        f"output_dir={tmp_path / 'out'}", f"components.guide={saved / 'guide'}", "tokenizers=[identity,unrelated]", 'extra_rows=["hybrid@s0.2"]',
    )  # fmt: skip
    stdout = capfd.readouterr().out
    assert error is None
    assert sum(line.startswith("skipped ") for line in stdout.splitlines()) == 4
    assert "| hybrid@s0.2 " in stdout
    written = json.loads((tmp_path / "out" / "recon.json").read_text())
    assert [row["method"] for row in written["rows"]] == ["identity", "unrelated", "hybrid@s0.2"]
    facts = written["provenance"]
    assert set(facts["unavailable_metrics"]) == {"lpips_alex", "lpips_vgg", "clip_i", "dino_distance", "rfid", "kid"}
    assert facts["config"]["data"]["image_size"] == 32 and len(facts["skipped"]) == 4 and facts["weights_sha256"]
    lines = (tmp_path / "out" / "per_image.jsonl").read_text().splitlines()
    assert len(lines) == 3 and json.loads(lines[2])["image"] == "nested/good.jpg"
    assert Image.open(tmp_path / "out" / "recon.png").width > 600
    assert (tmp_path / "out" / "recon.md").read_text().startswith("| method")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["model=none_such"], "none_such"),
        (["data.imagesize=32"], "data.imagesize"),
        (["data.image_size=33"], "use 32"),
        (["tokenizers=[none_such]"], "hybrid_wrong_semantics"),
        (["data.root={folder}"], "holds no images"),
        (["components.guide={folder}"], "does not exist"),
    ],
    ids=["preset", "override", "size", "row", "empty", "component"],
)
def test_mistakes_are_one_line(saved, tmp_path, arguments, message):
    (tmp_path / "folder").mkdir()
    arguments = [argument.format(folder=tmp_path / "folder") for argument in arguments]
    model = [] if arguments[0].startswith("model=") else [f"model_name={saved}"]
    error = run_command("eval_recon", *model, *arguments, f"output_dir={tmp_path / 'out'}")
    assert error.startswith("error: ") and message in error and "\n" not in error
    assert {path.name for path in (tmp_path / "out").glob("*")} <= {RUN_MARK}  # no result is written


def test_a_mistake_leaves_the_process_with_one_line_and_no_traceback(tmp_path):
    command = [sys.executable, *command_line("eval_recon", "data.imagesize=32", f"output_dir={tmp_path / 'out'}")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), timeout=300)
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.startswith("error: ") and len(done.stderr.strip().splitlines()) == 1
