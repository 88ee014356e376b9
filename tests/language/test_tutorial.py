"""The commands of docs/language.md run as they stand there, at small size."""

import re
import shlex
import shutil
from pathlib import Path

import pytest
from helpers.corpora import fill, write_folder, write_tokenizer
from lm_runs import SMALL_LM, reset_accelerate
from omegaconf import OmegaConf

from hybrid_tokenizer.commands.cli import COMMANDS, run
from hybrid_tokenizer.corpus.config import TokenizeConfig

PAGE = (Path(__file__).parents[2] / "docs" / "language.md").read_text()
BLOCKS = re.findall(r"<!-- run -->\n```bash\n(.*?)```", PAGE, flags=re.S)
LINES = [line for block in BLOCKS for line in block.splitlines()]
SMALLER = {
    "tokenize": ["data.image_size=32", "batch_size=10", "rows_per_part=10", "rows_per_group=8"],
    "train-lm": [*SMALL_LM, "training.max_steps=2"],
    "generate": ["samples=1"],
    "complete": ["samples=1", "keep=5"],
    "caption": [],
    "eval-lm": [
        "data.image_size=32",
        "data.max_images=2",
        "row_length=128",
        "pictures=2",
        "parts=[unigrams,text_to_image]",
    ],
}
"""Options after those of the page; the small image tokenizer has other grids."""


def test_the_page_shows_every_command_of_language_models():
    shown = {shlex.split(line)[1] for line in LINES}
    assert shown == set(SMALLER) <= set(COMMANDS)
    assert all(shlex.split(line)[0] == "hybrid-tokenizer" for line in LINES)


def test_the_commands_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_tokenizer(tmp_path / "small")
    write_folder(tmp_path / "photos", 12)
    write_folder(tmp_path / "held_out", 6)
    shutil.copy(tmp_path / "photos" / "1" / "0001.png", "photo.jpg")
    for line in LINES:
        _, name, *options = shlex.split(line)
        smaller = ["model_name=small", *SMALLER[name]]
        if name == "tokenize":  # its own tests start Ray
            given = OmegaConf.merge(OmegaConf.structured(TokenizeConfig), OmegaConf.from_dotlist(options + smaller))
            fill(OmegaConf.to_object(given))
            continue
        options = [option.replace("budget=116", "budget=37") for option in options]
        reset_accelerate()
        try:
            run(name, [*options, *smaller])
        except SystemExit as leaving:
            pytest.fail(f"{line}: {leaving.code}")
        reset_accelerate()
    captions = [line for line in capsys.readouterr().out.splitlines() if line.startswith("photo.jpg: ")]
    assert len(captions) == 1
    for written in (
        "runs/lm/final/config.json", "runs/lm/final/hybrid_vocabulary.json", "out/dog/grid.png", "out/small/ids.json",
        "out/guide_drawn/tokens.safetensors", "out/completed/0.png", "out/eval_lm/eval_lm.md", "out/eval_lm/eval_lm.json",
    ):  # fmt: skip
        assert (tmp_path / written).stat().st_size > 0
