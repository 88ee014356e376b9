"""The command lines that README and the pages of docs/ show."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from helpers.commands import ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
CODE = re.compile(r"^```(?:|bash|sh|console)\n(.*?)^```|((?:^    \S.*\n)+)|`([^`\n]+)`", flags=re.M | re.S)
PROGRAMS = re.compile(r"(python|accelerate|torchrun|hybrid-tokenizer|make|pip|git|ray|[A-Z_]+=\S+) ")


def lines_of(page: Path) -> Iterator[str]:
    """Every line of a page's blocks of commands, and the code within its sentences; lines that go on are joined."""
    text = re.sub(r"^```(?:python|json)\n.*?^```", "", page.read_text(), flags=re.M | re.S)
    for block, indented, within in CODE.findall(text):
        for line in (block or indented or within).replace("\\\n", " ").splitlines():
            yield line.strip()


def command_lines(page: Path) -> list[str]:
    """The lines that start a program, each once, without comments."""
    lines = (line for line in lines_of(page) if PROGRAMS.match(line) and "..." not in line)
    return list(dict.fromkeys(" ".join(re.sub(r"(^|\s)#.*", "", line).split()) for line in lines))


def command_of(line: str) -> tuple[str, list[str]] | None:
    """Name in the table of commands and arguments, whatever launches it. None for programs that are not of this package."""
    words = shlex.split(line)
    doors = ("scripts/", "hybrid_tokenizer.commands.")
    door = next((i for i, word in enumerate(words) if word.startswith(doors)), None)
    if door is not None:
        path = words[door] if words[door].endswith(".py") else f"{words[door].replace('.', '/')}.py"
        (name,) = re.findall(r'run\("([\w-]+)"\)', (ROOT / path).read_text())
        return name, words[door + 1 :]
    if words[0] == "hybrid-tokenizer" and len(words) > 1 and not words[1].startswith("-") and words[1] != "COMMAND":
        return words[1], words[2:]
    return None


def made_smaller(words: list[str], changes: list[str]) -> list[str]:
    """The arguments with `changes`: each `key=value` takes the place of the command's own, flags come last."""
    last = {change.split("=")[0]: change for change in changes if "=" in change}
    flags = [change for change in changes if "=" not in change]
    return [*(word for word in words if word.split("=")[0] not in last), *last.values(), *flags]


def visit(app: Any, *_: Any) -> None:
    """Instead of listening: fetch the page over HTTP. Three volunteers place every set of a study as it is shown."""
    from fastapi.testclient import TestClient

    client = TestClient(app, base_url="http://127.0.0.1")
    assert client.get("/").status_code == 200
    if client.get("/api/tokenizer").status_code == 200:  # the demo
        return
    for _volunteer in range(3):
        headers = {"x-participant": client.post("/api/join").json()["code"]}
        sheet = client.get("/api/sheet", headers=headers).json()
        for one in sheet["sets"]:
            places = {name: place for place, name in enumerate(one["candidates"], 1)}
            ballot = {"study": sheet["study"], "set": one["id"], "places": places}
            assert client.post("/api/vote", headers=headers, json=ballot).json()["new"]
