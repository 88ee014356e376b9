"""Help and messages of the commands that take `key=value`."""

import sys
import time
from dataclasses import dataclass, field

import pytest
from commands.test_cli import in_a_fresh_process
from helpers.commands import composed

from hybrid_tokenizer.commands import cli
from hybrid_tokenizer.commands import config as configuration
from hybrid_tokenizer.commands.cli import COMMANDS
from hybrid_tokenizer.commands.config import command, compose
from hybrid_tokenizer.commands.help import field_docs, groups_of
from hybrid_tokenizer.commands.overrides import literal_text, option_types, with_home
from hybrid_tokenizer.errors import HybridTokenizerError


def message_of(monkeypatch, name, *arguments):
    """What `hybrid-tokenizer NAME ARGUMENTS` leaves with."""
    monkeypatch.setattr(sys, "argv", ["hybrid-tokenizer", name, *arguments])
    with pytest.raises(SystemExit) as leaving:
        cli.main()
    return leaving.value.code


def test_help_of_a_command_imports_no_model_library_and_is_quick():
    started = time.perf_counter()
    text, imported = in_a_fresh_process("eval", "--help")
    assert imported == "[]"
    assert time.perf_counter() - started < 10  # 0.8 s on an idle core; the tests may run on a busy one
    assert "example: hybrid-tokenizer eval data.root=PHOTOS" in text
    assert "data.image_size=256       Side of the references" in text
    assert "training" not in text


@pytest.mark.parametrize("name", [name for name, one in COMMANDS.items() if one.config is None])
def test_help_of_the_other_commands_imports_no_model_library(name):
    text, imported = in_a_fresh_process(name, "--help")
    assert imported == "[]" and text.startswith(f"usage: hybrid-tokenizer {name}")


@pytest.mark.parametrize("name", [name for name, one in COMMANDS.items() if one.config])
def test_help_of_every_command_shows_its_options_and_example(name, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["hybrid-tokenizer", name, "--help"])
    cli.main()
    text = capsys.readouterr().out
    assert f"example: hybrid-tokenizer {name} {COMMANDS[name].example}" in text and "shown without" not in text
    schema = configuration.SCHEMAS.get(f"{COMMANDS[name].config}_schema")
    for option, kind in option_types(schema).items():
        if not isinstance(kind, type) or kind in (int, float, str, bool):
            assert f"  {option}=" in text or f"  {option} (required)" in text


def test_the_examples_name_options_that_exist():
    for one in COMMANDS.values():
        if one.config is not None:
            words = [word.strip("'") for word in cli.with_paths(one, one.example.split(" ")) if "=" in word]
            compose(one.config, [word for word in words if word != "prompt=a"])


def test_defaults_are_those_after_the_other_overrides(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["hybrid-tokenizer", "study", "study=decode_sweep", "-h"])
    cli.main()
    assert "  psnr_margin=0.5           dB below the best setting's PSNR." in capsys.readouterr().out


def test_field_docstrings_are_inherited():
    docs = field_docs(configuration.PairData)
    assert docs["split"] == "The split that is read of Karpathy's JSON."
    assert docs["root"].startswith("A folder of images")


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("train-guide", ["training.max_steps=abc"], "training.max_steps=abc is not a whole number"),
        ("train-guide", ["training.max_step=3"], "there is no option 'training.max_step'; did you mean training.max_steps?"),
        ("train-guide", ["trainin.max_steps=3"], "there is no option 'trainin.max_steps'; did you mean training.max_steps?"),
        ("train-guide", ["max_steps=3"], "there is no option 'max_steps'; did you mean training.max_steps?"),
        ("train-guide", ["model=tinny"], "model=tinny is unknown; did you mean model=tiny?"),
        ("train-guide", ["+traning.max_steps=3"], "+traning.max_steps=3: there is no option 'traning.max_steps'; did you mean training.max_steps?"),
        ("eval", ["seeds=[a]"], "seeds=[a]: Value 'a' of type 'str' could not be converted to Integer"),
        ("study", ["data.root=x"], "study has no value; give study=correction|decode_sweep|figures|guide_rates"),
        ("study", ["data.root=x", "study=figure"], "study=figure is unknown; did you mean study=figures?"),
        ("eval", ["tokenizers=hybrid"], "tokenizers=hybrid: tokenizers is a list; give 'tokenizers=[hybrid]'"),
        ("eval", ["baselines.movq_270m=f"], "baselines.movq_270m=f adds an entry to baselines; write +baselines.movq_270m=f"),
        ("eval", ["photos"], "'photos' is no option; options are written as NAME=VALUE"),
    ],
)  # fmt: skip
def test_a_mistake_is_explained(name, arguments, message, monkeypatch):
    see = "" if message.endswith("?") else f"; see hybrid-tokenizer {name} --help"
    assert message_of(monkeypatch, name, *arguments) == f"error: {message}{see}"


def test_a_missing_picture_is_named_by_its_option(monkeypatch):
    expected = "error: input=/nofile.png does not exist; give an image or a folder of images"
    assert message_of(monkeypatch, "reconstruct", "input=/nofile.png") == expected
    assert message_of(monkeypatch, "reconstruct", "/nofile.png") == expected
    expected = "error: --images /no does not exist; give a folder of images"
    assert message_of(monkeypatch, "user-study", "prepare", "study", "--images", "/no") == expected


@dataclass
class Probe:
    """A command's options."""

    output_dir: str = "out"
    root: str | None = None
    names: dict[str, str] = field(default_factory=dict)
    count: int = 1


def test_text_is_taken_as_it_was_typed():
    typed = ["output_dir=2024_11_27", "root=null", "+names.a=1e5", "count=1_000", "root='1'", "output_dir=it's, (x)"]
    given = literal_text(typed, option_types(Probe))
    assert given == [
        "output_dir='2024_11_27'", "root=null", "+names.a='1e5'", "count=1_000", "root='1'", "output_dir='it\\'s, (x)'",
    ]  # fmt: skip
    typed = ["data.root=2024_11", "data.root=[a,b]"]
    assert literal_text(typed, option_types(configuration.TrainGuide)) == ["data.root='2024_11'", "data.root=[a,b]"]
    typed = ['output_dir="x', "output_dir='", "data.root=7", 'output_dir="x y"']
    given = ["output_dir='\"x'", "output_dir='\\''", "data.root=7", 'output_dir="x y"']
    assert literal_text(typed, option_types(configuration.TrainGuide)) == given
    assert literal_text(["-m", "output_dir=a,b"], option_types(Probe)) == ["-m", "output_dir=a,b"]


def test_composing_keeps_text_as_it_was_typed():
    config = compose("eval_recon", ["output_dir=2024_11_27", "data.root=it's a folder, (old)", "batch_size=1_0"])
    assert (config.output_dir, config.data.root, config.batch_size) == ("2024_11_27", "it's a folder, (old)", 10)
    assert compose("eval_recon", ["+baselines.movq_270m=FILE"]).baselines == {"movq_270m": "FILE"}
    with pytest.raises(HybridTokenizerError, match=r"there is no option 'output_dirr'; did you mean output_dir\?"):
        compose("eval_recon", ["output_dirr=x"])


@pytest.mark.parametrize("name", ["a,b", "a=b", "(a)", "[a]", "{a}", "a#b", "a&b", "a;b", "it's", "2024_11_27", "a: b"])
def test_a_folders_name_may_hold_any_sign(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).mkdir()
    config = compose("train_guide", [f"output_dir={name}", f"data.root={name}"])
    assert (config.output_dir, config.data.root) == (name, name)


@pytest.mark.parametrize(
    ("typed", "hint"),
    [
        ("data.root={a}", "'data.root=\"{a}\"'"),
        ("data.root=[2024] trip", "'data.root=\"[2024] trip\"'"),
        ("data.root=[a(1),b;c]", '\'data.root=["a(1)","b;c"]\''),
    ],
)
def test_what_cannot_be_read_is_shown_in_quotes(typed, hint):
    with pytest.raises(HybridTokenizerError) as error:
        compose("train_guide", [typed])
    assert str(error.value).startswith(f"{typed} cannot be read (")
    assert str(error.value).endswith(f"; put the value in quotes: {hint}")


def test_long_names_are_shortened(monkeypatch):
    name = "a" * 300 + ".d"
    expected = f"output_dir='out/{'a' * 40}...{'a' * 38}.d' cannot be written (File name too long); give another"
    assert message_of(monkeypatch, "train-guide", "data.root=/none", f"output_dir=out/{name}") == f"error: {expected}"


def test_a_home_folder_is_expanded(monkeypatch):
    monkeypatch.setenv("HOME", "/home/someone")
    assert with_home({"a": "~/x", "b": ["~/y", "~", 1], "c": "x~/"}) == {
        "a": "/home/someone/x", "b": ["/home/someone/y", "~", 1], "c": "x~/",
    }  # fmt: skip
    seen = []
    monkeypatch.setattr(sys, "argv", ["eval", "data.root=~/photos", "+baselines.movq_67m=~/movq.ckpt"])
    command("eval_recon")(seen.append)()
    assert seen[0].data.root == "/home/someone/photos" and seen[0].baselines == {"movq_67m": "/home/someone/movq.ckpt"}


@pytest.mark.parametrize("name", [name for name, command in COMMANDS.items() if command.config])
def test_every_option_has_a_meaning(name):
    studies = ["figures", "decode_sweep", "guide_rates", "correction"] if name == "study" else [None]
    for study in studies:
        groups = groups_of(composed(COMMANDS[name].config, *([f"study={study}"] if study else [])))
        assert [option.name for group in groups for option in group.options if not option.text] == []
