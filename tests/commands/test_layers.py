"""The layers of the dependencies: the core encodes and decodes alone, and an absent extra is one line that names it."""

import json
import re
import subprocess
import sys
from importlib.metadata import packages_distributions

import pytest
from helpers.commands import ROOT, environment
from helpers.core_only import METADATA, PROJECT, closure
from packaging.utils import canonicalize_name

from hybrid_tokenizer.commands.cli import COMMANDS
from hybrid_tokenizer.data import sample_photographs
from hybrid_tokenizer.errors import HybridTokenizerError, absent, optional

EXTRAS = METADATA["optional-dependencies"]

CODE = """
import json, sys, torch
from hybrid_tokenizer import HybridTokenizer, metrics
from hybrid_tokenizer.commands import cli

said = {}
tokenizer = HybridTokenizer.from_pretrained("tiny")
tokens = tokenizer.encode("cat.png")
images = tokenizer.decode(tokens, seed=0)
said["shape"], said["psnr"] = list(images.shape), metrics.psnr(images, torch.zeros_like(images)).item()
for words in ("reconstruct cat.png output_dir=out", "encode cat.png --output tokens", "decode tokens/cat.safetensors --output decoded"):
    sys.argv = ["hybrid-tokenizer", *words.split()]
    cli.main()
run = ["output_dir=run", "data.root=."]
arguments = {name: run for name in ("eval", "eval-alignment", "train-guide")}
arguments |= {"study": ["study=figures", *run], "user-study": ["serve", "study"], "tokenize": ["input=.", "output=run"]}
arguments |= {"train-semantic": ["stage=contrastive", *run], "pretrain-diffusion": ["stage=vae", *run]}
for name, command in cli.COMMANDS.items():
    if command.extra:
        try:
            cli.run(name, arguments.get(name, []))
        except (SystemExit, ModuleNotFoundError) as leaving:
            said[name] = str(leaving)
for name, action in {"ssim": lambda: metrics.ssim(images, images), "search": lambda: tokenizer.encode("cat.png", search_steps=1)}.items():
    try:
        action()
    except ValueError as error:
        said[name] = str(error)
json.dump({"said": said, "hidden": sorted(hidden)}, open("said.json", "w"))
"""


@pytest.fixture(scope="module")
def core(tmp_path_factory):
    """What a process says in which only the core can be imported, and what it could not import."""
    folder = tmp_path_factory.mktemp("core")
    sample_photographs()["cat"].save(folder / "cat.png")
    command = [sys.executable, str(ROOT / "tests/helpers/core_only.py"), CODE]
    done = subprocess.run(command, cwd=folder, env=environment(), capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    return json.loads((folder / "said.json").read_text()), folder


def test_the_core_loads_encodes_decodes_and_reconstructs(core):
    (result, folder) = core
    assert result["said"]["shape"] == [1, 3, 256, 256]
    assert (folder / "out/cat.side_by_side.png").stat().st_size > 10_000
    assert (folder / "decoded/cat.png").stat().st_size > 10_000
    assert {"torchvision", "wandb", "pytorch_msssim", "piq", "fastapi", "ray", "peft", "scipy", "matplotlib"} <= set(result["hidden"])  # fmt: skip


def test_a_command_without_its_extra_names_it_in_one_line(core):
    said = core[0]["said"]
    for name in (
        "eval",
        "eval-alignment",
        "study",
        "user-study",
        "demo",
        "train-guide",
        "pretrain-diffusion",
        "tokenize",
    ):
        extra = COMMANDS[name].extra
        assert said[name].startswith("error: the package ") and "\n" not in said[name], said[name]
        # the extra of the command, or the one inside it that has the package
        named = re.fullmatch(r".* is not installed; run pip install 'hybrid_tokenizer\[(\w+)\]'", said[name])[1]
        assert named == extra or f"hybrid_tokenizer[{named}]" in EXTRAS[extra]


def test_a_function_without_its_package_names_the_extra(core):
    said = core[0]["said"]
    install = "is not installed; run pip install 'hybrid_tokenizer[eval]'"
    assert said["ssim"] == f"the package pytorch-msssim {install}"
    assert said["search"] == f"the package efficientnet-lite-pytorch {install}"


def test_an_extra_of_ones_own_and_a_package_of_none():
    assert str(absent("sklearn.datasets")).endswith("[eval]'")
    assert str(absent("nosuchpackage")) == "the package nosuchpackage is not installed; run pip install 'nosuchpackage'"
    with pytest.raises(HybridTokenizerError, match=r"run pip install 'hybrid_tokenizer\[web\]'$"), optional("web"):
        import nosuchpackage  # noqa: F401
    with pytest.raises(ModuleNotFoundError), optional():
        import hybrid_tokenizer.nosuchmodule  # noqa: F401


def test_the_extra_all_has_every_package_that_the_package_imports():
    imported = {
        line.split()[1].partition(".")[0]
        for path in (ROOT / "hybrid_tokenizer").rglob("*.py")
        for line in path.read_text().splitlines()
        if line.strip().startswith(("import ", "from ")) and len(line.split()) > 1
    }
    of = packages_distributions()
    needed = {canonicalize_name(of[module][0]) for module in imported if module in of and len(of[module]) == 1}
    everything = closure(["hybrid_tokenizer", "hybrid_tokenizer[all]"])
    assert needed - everything == set()
    assert {"accelerate", "hydra-core", "wandb", "pytorch-msssim"} <= everything  # of the paper's own code


def test_every_extra_of_a_command_exists():
    assert {command.extra for command in COMMANDS.values()} - {None} <= set(EXTRAS)


def test_the_constraints_pin_every_dependency():
    pinned = {canonicalize_name(line.split("==")[0]) for line in (ROOT / "constraints.txt").read_text().splitlines()}
    named = {
        canonicalize_name(requirement.split(">")[0].split("[")[0])
        for requirement in [*METADATA["dependencies"], *(one for extra in EXTRAS.values() for one in extra)]
    }
    assert named - pinned == {PROJECT}
