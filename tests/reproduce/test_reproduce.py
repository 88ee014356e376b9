"""docs/reproduce.md, walked: its commands are taken from the page and run in order on small files in the published layouts."""

import json
import os
import re
import shlex
import sys
from pathlib import Path

import pytest
from helpers.commands import ROOT, run_command
from helpers.pages import made_smaller, visit

from hybrid_tokenizer.apps.web import serving
from hybrid_tokenizer.commands import cli
from hybrid_tokenizer.hybrid import HybridTokenizer
from hybrid_tokenizer.verification.layouts.standins import make_standins, read_layout

PAGE = ROOT / "docs" / "reproduce.md"
LAUNCHERS = {"accelerate launch --multi_gpu --num_processes 8 ": "python ", "torchrun --nproc_per_node 8 ": "python "}
"""One process here stands for the eight of the page."""
NARROW_GUIDE = [
    "guide.encoder_channels=[32,32,32,32]", "guide.decoder_channels=[32,32,32,32]", "guide.encoder_layers=1",
    "guide.decoder_layers=1", "guide.stem_channels=32",
]  # fmt: skip
FEW = ["data.max_images=2", "data.image_size=64", "batch_size=2", "dtype=float32"]
SMALLER: dict[str, list[str]] = {
    "convert_checkpoint seed1": [],
    "train_guide recipe=sd15_guide": [
        *NARROW_GUIDE, "training.max_steps=1", "training.batch_size=2", "training.num_workers=0", "training.warmup_steps=0",
        "training.max_val_images=2", "training.tracker=none", "training.num_threads=1",
    ],
    "assemble --output runs/hybrid": [],
    "eval_study study=decode_sweep": [*FEW, "strengths=[0.6]", "steps=[10]", "guidance_scales=[1.0]"],
    "assemble --output runs/tuned": [],
    "eval_recon output_dir=outputs/table2": [*FEW, "data.num_workers=2", "pictures=1"],
    "eval_alignment output_dir=outputs/table3": [*FEW, "pictures=1"],
    "user_study prepare": ["--sets", "2", "--image-size", "64"],
    "user_study serve": [],
    "user_study results": [],
    "eval_study study=figures": [*FEW, "data.max_images=1", "figure=3"],
    "eval_study study=guide_rates": [*FEW, "pictures=1"],
    "eval_study study=correction": [*FEW, "data.max_images=1", "token_shares=[0.1]", "elastic=[]", "rotations=[]", "pictures=1"],
}  # fmt: skip
"""The page's commands in order, each by a few of its words, and what this test makes smaller in it."""


def commands_of(page: str) -> list[list[str]]:
    """The words of each command in the page's blocks, launchers taken off. `export` lines only name variables."""
    blocks = "\n".join(re.findall(r"```bash\n(.*?)```", page, flags=re.S)).replace("\\\n", " ")
    lines = [line.strip() for line in blocks.splitlines() if line.strip() and not line.startswith("export ")]
    for launcher, plain in LAUNCHERS.items():
        lines = [line.replace(launcher, plain) for line in lines]
    return [shlex.split(os.path.expandvars(line)) for line in lines]


def words_of(command: list[str]) -> list[str]:
    """Without `python scripts/`: the command's own name first."""
    if command[0] == "python":
        return [Path(command[1]).stem, *command[2:]]
    assert command[0] == "hybrid-tokenizer", command
    return command[1:]


def is_named(command: list[str], name: str) -> bool:
    """Whether the command is the one that `name` of SMALLER means."""
    first, *others = name.split(" ", 1)
    return command[0] == first and others[0] in " ".join(command[1:])


def test_a_command_that_is_new_on_the_page_has_to_be_named_here():
    found = [words_of(command) for command in commands_of(PAGE.read_text())]
    assert len(found) == len(SMALLER)
    assert all(is_named(command, name) for command, name in zip(found, SMALLER, strict=True))
    added = commands_of(PAGE.read_text() + "\n```bash\npython scripts/eval_recon.py model_name=runs/new\n```\n")
    assert len(added) == len(SMALLER) + 1


@pytest.fixture(scope="module")
def walked(tmp_path_factory):
    """The folder in which all commands of the page have run, one after the other."""
    folder = tmp_path_factory.mktemp("walk")
    make_standins(folder / "standins", read_layout(ROOT / "tests" / "semantic" / "keys" / "seed1.json"))
    places = {"WEIGHTS": "standins/weights", "IMAGENET": "standins/imagenet", "COCO": "standins/coco"}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(serving, "serve", visit)
        for name, place in places.items():
            patch.setenv(name, place)
        found = [words_of(command) for command in commands_of(PAGE.read_text())]
        for command, changes in zip(found, SMALLER.values(), strict=True):
            name, *arguments = made_smaller(command, changes)
            if name == "assemble":
                patch.setattr(sys, "argv", ["hybrid-tokenizer", name, *arguments])
                cli.main()
            else:
                assert run_command(name, *arguments) is None, command
    return folder


def read(path):
    return json.loads(path.read_text())


def test_the_branches_become_one_tokenizer_with_the_recommended_options(walked):
    tuned = HybridTokenizer.from_pretrained(walked / "runs" / "tuned")
    recommended = read(walked / "outputs" / "decode" / "eval_decode.json")["recommended"]
    assert recommended["strength"] == 0.6 and recommended["num_inference_steps"] == 10
    options = vars(tuned.diffusion.config.decode_defaults)
    assert {name: options[name] for name in recommended} == recommended
    assert tuned.guide.config.guide_size == 128 and tuned.guide.config.stem == "residual_front"
    assert tuned.semantic.config.num_queries == 32 and tuned.semantic.config.num_generation_embeds == 77


def test_table_2_has_the_papers_rows_at_one_render_size(walked):
    rows = {row["method"]: row for row in read(walked / "outputs" / "table2" / "recon.json")["rows"]}
    assert {"hybrid", "hybrid@paper", "hybrid@balanced", "movq_270m", "vqgan_f8", "var_vae", "seed"} <= set(rows)
    assert rows["hybrid"]["num_tokens"] == 32 + 256 and rows["seed"]["num_tokens"] == 32
    assert {rows[name]["render_size"] for name in ("hybrid", "hybrid@paper", "semantic_only", "seed")} == {128}
    assert all(row["n"] == 2 and row["image_size"] == 64 for row in rows.values())
    assert rows["movq_270m"]["compression_rate"] == "8*8" and rows["hybrid"]["published_psnr"] == 23.23
    markdown = (walked / "outputs" / "table2" / "recon.md").read_text()
    assert "drawn at, px" in markdown and "SqueezeNet" in markdown


def test_table_3_scores_captions_by_pickscore(walked):
    rows = {row["method"]: row for row in read(walked / "outputs" / "table3" / "alignment.json")["rows"]}
    assert {"identity", "hybrid", "seed"} <= set(rows) and all("pickscore" in row["scores"] for row in rows.values())
    assert rows["seed"]["published_image_reward"] == 27.32


def test_table_4_has_three_volunteers_votes(walked):
    report = read(walked / "outputs" / "study" / "results" / "user_study.json")
    assert (report["votes"], report["participants"]) == (6, 3)
    assert {row["method"] for row in report["rows"]} == {"hybrid", "seed"}


def test_figures_and_studies_are_written(walked):
    outputs = walked / "outputs"
    for path in ("figures/figure3.png", "guide_rates/guide.png", "correction/correction.png", "decode/eval_decode.png"):
        assert (outputs / path).stat().st_size > 1000
    rates = read(outputs / "guide_rates" / "guide.json")
    assert any(row["kind"] == "movq" for row in rates["rows"]) and rates["unavailable"] == {}
