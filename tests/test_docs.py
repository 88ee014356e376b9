"""The pages say what is true: generated parts are current, links lead somewhere, named functions exist."""

import argparse
import ast
import re
import shlex
import subprocess
import sys
import tomllib
from importlib import import_module
from pathlib import Path

import pytest
from helpers.commands import composed
from helpers.pages import PAGES, command_lines, command_of, lines_of
from omegaconf import OmegaConf

from hybrid_tokenizer.commands.cli import COMMANDS, with_paths
from hybrid_tokenizer.commands.config import group_choices

ROOT = Path(__file__).resolve().parents[1]
ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text()


def test_generated_parts_are_up_to_date():
    command = [sys.executable, "tools/update_docs.py", "--check"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page):
    targets = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text())
    local = [target for target in targets if "://" not in target]
    assert [target for target in local if not (page.parent / target).exists()] == []


@pytest.mark.parametrize("name", re.findall(r"^\| .* \| `(hybrid_tokenizer[\w.]+)` \|$", ARCHITECTURE, flags=re.M))
def test_functions_of_the_equations_exist(name):
    parts = name.split(".")
    for depth in range(len(parts), 0, -1):
        try:
            found = import_module(".".join(parts[:depth]))
        except ModuleNotFoundError:
            continue
        for part in parts[depth:]:
            found = getattr(found, part)
        return
    pytest.fail(f"{name} does not exist")


def test_the_table_of_equations_names_each_of_the_papers_ten():
    table = ARCHITECTURE.split("## From the paper to the code")[1].split("##")[0]
    assert {int(number) for number in re.findall(r"eq\. (\d+)", table)} == set(range(1, 11))


SHOWN = [
    (page.name, *shown)
    for page in PAGES
    for shown in map(command_of, command_lines(page))
    if shown is not None and shown[1] and "--help" not in shown[1]
]
EXAMPLES = [("help", name, shlex.split(command.example)) for name, command in COMMANDS.items() if command.example]


class Parsed(Exception):
    """A command line was understood."""


def understand(name, words, monkeypatch):
    """Take a command line as far as its finished configuration, or its parsed options."""
    command = COMMANDS[name]
    if command.config is not None:
        given = with_paths(command, words)
        choices = group_choices(command.config)
        groups = [one for one in given if one.partition("=")[0] in choices or one.startswith("+")]
        options = [one for one in given if one not in groups]
        OmegaConf.to_object(OmegaConf.merge(composed(command.config, *groups), OmegaConf.from_dotlist(options)))
        return
    parse = argparse.ArgumentParser.parse_args

    def parse_only(parser, *arguments):
        parse(parser, *arguments)
        raise Parsed

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_only)
    monkeypatch.setattr(sys, "argv", ["hybrid-tokenizer", *words])
    with pytest.raises(Parsed):
        import_module(f"hybrid_tokenizer.commands.{command.module}").main()


@pytest.mark.parametrize(("page", "name", "words"), [*SHOWN, *EXAMPLES], ids=lambda value: value if isinstance(value, str) else " ".join(value)[:40])  # fmt: skip
def test_every_shown_command_is_understood(page, name, words, monkeypatch):
    understand(name, words, monkeypatch)


def test_the_pages_show_the_commands_of_each_kind():
    assert {"reconstruct", "encode", "decode", "eval", "train-guide", "train-semantic", "convert", "demo"} <= {name for _, name, _ in SHOWN}  # fmt: skip
    assert len(SHOWN) > 40


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_shown_targets_extras_and_tools_exist(page):
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), flags=re.M))
    for line in lines_of(page):
        if target := re.match(r"make ([\w-]+)", line):
            assert target[1] in targets, line
        for listed in re.findall(r"pip install [^#]*?\[([\w,]+)\]", line):
            assert set(listed.split(",")) <= set(extras), line
        for tool in re.findall(r"(?:python |^)(tools/[\w./]+\.(?:py|sh))", line):
            assert (ROOT / tool).exists(), line


def messages_in_the_code():
    """Every text of the package, with an ellipsis for each value that is put into it."""
    for path in (ROOT / "hybrid_tokenizer").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                yield "".join(part.value if isinstance(part, ast.Constant) else "…" for part in node.values)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value


def test_the_messages_of_the_troubleshooting_page_are_those_of_the_code():
    listed = re.findall(r"^### `(.*)`$", (ROOT / "docs/troubleshooting.md").read_text(), flags=re.M)
    assert len(listed) == len(set(listed)) == 20
    assert set(listed) - set(messages_in_the_code()) == set()


def test_the_connection_limits_are_those_of_the_server():
    from hybrid_tokenizer.apps.web.serving import BOUNDS

    page = (ROOT / "docs/user_study.md").read_text()
    assert f"| connections | {BOUNDS.per_address} per address, {BOUNDS.connections} in all;" in page
    assert f"| {BOUNDS.head_seconds:g} s for the head of a request, {BOUNDS.read_seconds:g} s for the client" in page
