"""Every command line of README and the pages of docs/ runs here in small, runs in another test, or is listed with the reason."""

import re
import runpy
import shlex
import shutil
import sys
from pathlib import Path

import pytest
from helpers.caption_data import write_pairs
from helpers.commands import ROOT
from helpers.pages import PAGES, command_lines, command_of, made_smaller, visit
from helpers.small_models import small_hybrid

from hybrid_tokenizer.apps.web import serving
from hybrid_tokenizer.commands import cli
from hybrid_tokenizer.data import sample_photographs

sys.path.insert(0, str(ROOT / "tests" / "training"))
from training_runs import reset_accelerate

WALKED = {"reproduce.md": "reproduce/test_reproduce.py", "language.md": "language/test_tutorial.py"}
"""Pages whose commands a test of their own takes from them."""

ELSEWHERE = {
    "python tools/update_docs.py": ("test_docs.py", "tools/update_docs.py"),
    "hybrid-tokenizer --help": ("commands/test_cli.py", '"--help"'),
    "hybrid-tokenizer COMMAND --help": ("commands/test_help.py", "test_help_of_every_command"),
    "hybrid-tokenizer eval --help": ("commands/test_help.py", "test_help_of_every_command"),
    "hybrid-tokenizer parity tests/golden": ("verification/test_check_parity.py", "check_fixture(GOLDEN"),
    "hybrid-tokenizer gpu-check": ("verification/test_gpu_check.py", "run_checks"),
    "hybrid-tokenizer generate": ("language/test_language_commands.py", 'run_command("generate"'),
    "hybrid-tokenizer tokenize": ("corpus/test_ray.py", 'run_command("tokenize_corpus"'),
    "hybrid-tokenizer detokenize": ("corpus/test_inspection.py", 'run_command("detokenize"'),
    "hybrid-tokenizer inspect": ("corpus/test_inspection.py", 'run_command("inspect_tokens"'),
    "hybrid-tokenizer convert seed1": ("reproduce/test_reproduce.py", "convert_checkpoint seed1"),
    "hybrid-tokenizer convert seed2": ("semantic/test_semantic_conversion.py", "convert_seed2("),
    "hybrid-tokenizer convert blip2": ("semantic/test_semantic_conversion.py", "convert_blip2_lavis("),
    "hybrid-tokenizer convert movq": ("commands/test_convert.py", '["convert", "movq"'),
    "accelerate launch -m hybrid_tokenizer.commands.train_guide model=sd15": (
        "reproduce/test_reproduce.py",
        "recipe=sd15_guide",
    ),
    "hybrid-tokenizer eval data.root=photos output_dir=outputs/mine": (
        "commands/test_eval_recon.py",
        "components.guide=",
    ),
    "hybrid-tokenizer eval data.root=IMAGENET/val 'tokenizers=": (
        "reproduce/test_reproduce.py",
        "eval_recon output_dir=outputs/table2",
    ),
    "torchrun --nproc_per_node 2": ("training/test_two_ranks.py", "torchrun --nproc_per_node 2"),
}
"""Start of a line -> the test under tests/ that runs it, and words of that test."""

NOT_RUN = {
    "make ": "installs an environment first; test_docs.py checks that the target exists",
    "pip ": "installs packages; test_docs.py checks that the extras exist",
    "git ": "needs the repository's address or history",
    "python tools/abuse_study.py": "takes minutes; tests/apps/web sends such requests one by one",
    "ray up": "starts machines; corpus/test_scale.py checks the files",
    "accelerate launch --cpu --num_processes 2": "a part of a command, which starts one process",
    "accelerate launch --multi_gpu --num_processes 8": "needs eight GPUs; the same line without the launcher runs here",
    "accelerate launch --multi_gpu --num_machines 2": "needs two machines",
    "accelerate launch --config_file configs/accelerate/gpus_8.yaml": "needs eight GPUs",
    "accelerate launch --config_file configs/accelerate/fsdp2.yaml": "needs eight GPUs",
    "accelerate launch --num_processes 8 scripts/train_lm.py": "needs eight GPUs",
}
"""Start of a line -> why no test runs it."""

TRAINING = [
    "data.image_size=32", "data.val_at_least=1", "training.batch_size=2", "training.max_steps=1", "training.warmup_steps=0",
    "training.num_workers=0", "training.num_threads=1", "training.tracker=none", "training.progress=false",
]  # fmt: skip
FEW = ["model_name=small", "data.image_size=32", "data.max_images=1"]
SMALLER = {
    "reconstruct": [],
    "encode": [],
    "decode": [],
    "demo": [],
    "train-guide": [
        *TRAINING, "guide.image_size=32", "guide.norm_num_groups=4", "guide.encoder_channels=[8,8,8]",
        "guide.decoder_channels=[8,8,8]", "guide.quantizer.codebook_size=32",
    ],
    "train-semantic": [
        *TRAINING, "semantic.image_size=32", "semantic.patch_size=16", "semantic.vision_width=16",
        "semantic.vision_layers=1", "semantic.vision_heads=2", "semantic.vision_mlp_width=16", "semantic.width=16",
        "semantic.qformer_layers=1", "semantic.qformer_heads=2", "semantic.qformer_mlp_width=16",
        "semantic.decoder_layers=1", "semantic.decoder_heads=2", "semantic.decoder_mlp_width=16",
        "semantic.reverse_layers=1", "contrastive.feature_width=8",
    ],
    "eval": [*FEW, "pictures=1"],
    "eval-alignment": [*FEW, "pictures=1"],
    "study": FEW,
    "user-study prepare": ["--sets", "1", "--image-size", "32", "--model", "small"],
    "user-study serve": [],
    "user-study results": [],
}  # fmt: skip
"""Command -> what makes a line of it small. A new line of one of these commands runs here without more ado."""

FEWER_ROWS = {
    "hybrid-tokenizer eval data.root=FOLDER output_dir=outputs/mine": ["model_name=tiny", "tokenizers=[hybrid]"],
    "hybrid-tokenizer eval model_name=any": ["model_name=any", "tokenizers=[hybrid]"],
    "hybrid-tokenizer user-study prepare STUDY --images FOLDER --tokenizers hybrid,seed,lavit": ["--tokenizers", "hybrid,guide_only"],
}  # fmt: skip
"""Start of a line -> further changes to it. SEED and LaVIT have no small files here."""

WEIGHTS = {"guide": "runs/guide/final", "semantic": "weights/seed1", "diffusion": "STABLE_DIFFUSION_FOLDER"}
"""Branch -> the folder of its weights on weights.md."""


def named(line, table):
    """The entry of a table of starts of lines that means this line: the longest one."""
    return max((start for start in table if f"{line} ".startswith(start)), key=len, default=None)


def shown(page):
    """Lines of a page that say more than the bare name of a command."""
    names = {"accelerate launch", *(f"hybrid-tokenizer {name}" for name in cli.COMMANDS)}
    return [line for line in command_lines(page) if line not in names]


def kind_of(line):
    """The entry of SMALLER that means this line, or None."""
    if (command := command_of(line)) is None:
        return None
    name, words = command
    return next((kind for kind in SMALLER if kind == " ".join([name, *words[:1]]) or kind == name), None)


def run_here(page):
    """The lines that this test runs."""
    if page.name in WALKED:
        return []
    return [line for line in shown(page) if not named(line, ELSEWHERE) and not named(line, NOT_RUN)]


LINES = [line for page in PAGES for line in shown(page)]


def test_every_line_runs_or_is_listed_with_the_reason():
    assert [line for page in PAGES for line in run_here(page) if kind_of(line) is None and not runs_python(line)] == []


def test_the_tables_list_what_is_shown_and_what_is_tested():
    for table in (ELSEWHERE, NOT_RUN, FEWER_ROWS):
        assert [start for start in table if not any(f"{line} ".startswith(start) for line in LINES)] == []
    for test, words in [*ELSEWHERE.values(), *((test, page) for page, test in WALKED.items())]:
        assert words in (ROOT / "tests" / test).read_text(), (test, words)


def runs_python(line):
    """Whether it is a line of Python, or a tool that needs no model."""
    return line.startswith(("python -c ", "python tools/"))


@pytest.fixture(scope="module")
def standins(tmp_path_factory):
    """Photographs with captions, a picture, and weights of random numbers, at the paths that the pages give."""
    folder = tmp_path_factory.mktemp("standins")
    for name in ("FOLDER", "photos", "IMAGENET/val"):
        write_pairs(folder / name)
    sample_photographs()["cat"].save(folder / "cat.jpg")
    model = small_hybrid()
    model.save_pretrained(folder / "small")
    for part, name in WEIGHTS.items():
        getattr(model, part).save_pretrained(folder / name)
    return folder


def run(line):
    """Run a line in this process, made smaller, and look for the files that it names as its output."""
    if runs_python(line):
        words = shlex.split(line)
        if words[1] == "-c":
            exec(words[2], {})
        else:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(sys, "argv", [str(ROOT / words[1]), *words[2:]])
                runpy.run_path(sys.argv[0], run_name="__main__")
        return
    name, words = command_of(line)
    words = made_smaller(words, SMALLER[kind_of(line)] + FEWER_ROWS.get(named(line, FEWER_ROWS), []))
    reset_accelerate()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [])
        patch.setattr(serving, "serve", visit)
        try:
            cli.run(name, words)
        except SystemExit as leaving:
            pytest.fail(f"{line}\n{leaving.code}")
        finally:
            reset_accelerate()
    for option, output in re.findall(r"(output_dir=|--output )(\S+)", " ".join(words)):
        assert any(Path(output).iterdir()), (option, output)


@pytest.mark.parametrize("page", [page for page in PAGES if run_here(page)], ids=lambda page: page.name)
def test_the_lines_of_a_page_run_in_order(page, standins, tmp_path, monkeypatch):
    lines = run_here(page)
    shutil.copytree(standins, tmp_path, dirs_exist_ok=True)
    for name in WEIGHTS.values():
        if any(f"output_dir={Path(name).parent} " in line for line in lines):
            shutil.rmtree(tmp_path / name)  # the page makes it itself
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
    for line in lines:
        run(line)
