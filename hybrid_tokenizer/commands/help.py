"""Help of the commands that take `key=value`: every option with its meaning and default, from the dataclasses' docstrings.

Only configurations are imported, so that help needs no model library.
"""

import ast
import dataclasses
import functools
import inspect
import itertools
import textwrap
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from omegaconf import OmegaConf

from hybrid_tokenizer.commands.config import compose, group_choices
from hybrid_tokenizer.errors import HybridTokenizerError

WIDTH = 110
INDENT = 28
COMMON = {
    "output_dir": "Where results are written.",
    "model_name": "A preset, a folder or a hub id.",
    "batch_size": "Images at once.",
    "seed": "Seed of the noise.",
    "seeds": "Sampling seeds.",
    "device": "cpu or cuda. null is the GPU if there is one.",
    "image_size": "Side in pixels.",
    "components": "What replaces parts of the model.",
}
"""Of options whose name says what they are, and whose dataclass therefore says nothing."""


class Option(NamedTuple):
    """A line of the help."""

    name: str
    default: str
    text: str


class Group(NamedTuple):
    """Options under one heading."""

    name: str
    text: str
    options: list[Option]


@functools.cache
def field_docs(kind: type) -> dict[str, str]:
    """The docstring below each field of a dataclass and of those that it extends."""
    docs: dict[str, str] = {}
    for one in reversed(kind.__mro__):
        if not dataclasses.is_dataclass(one):
            continue
        body = ast.parse(textwrap.dedent(inspect.getsource(one))).body[0].body
        for statement, following in itertools.pairwise(body):
            is_text = isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant)
            if isinstance(statement, ast.AnnAssign) and is_text and isinstance(following.value.value, str):
                docs[statement.target.id] = " ".join(following.value.value.split())
    return docs


def groups_of(config: Any, name: str = "") -> Iterator[Group]:
    """The options of a composed configuration, those at the top first, then each section and its own sections."""
    kind = OmegaConf.get_type(config)
    typed = dataclasses.is_dataclass(kind)
    docs = field_docs(kind) if typed else {}
    options, sections = [], []
    for key in config:
        path = f"{name}.{key}" if name else str(key)
        value = None if OmegaConf.is_missing(config, key) else config._get_node(key)
        if OmegaConf.is_dict(value) and dataclasses.is_dataclass(OmegaConf.get_type(value)):
            sections.append((path, value))
        elif key != "model" or key in docs:
            options.append(Option(path, shown_default(config, key), docs.get(str(key)) or COMMON.get(str(key), "")))
    yield Group(name, " ".join((kind.__doc__ or "").split()) if typed and name else "", options)
    for path, section in sections:
        yield from groups_of(section, path)


def shown_default(config: Any, key: Any) -> str:
    """A value as the command line takes it, or that it must be given."""
    if OmegaConf.is_missing(config, key):
        return "required"
    value = config[key]
    if OmegaConf.is_config(value):
        value = OmegaConf.to_container(value)
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list):
        return f"[{','.join(map(str, value))}]"
    return str(value)


def option_lines(option: Option) -> str:
    """`name = default` and the meaning beside it, or below it where the name is long."""
    head = f"  {option.name}" + (" (required)" if option.default == "required" else f"={option.default}")
    first, rest = (head, []) if len(head) < INDENT - 1 and option.text else (None, [head])
    lines = textwrap.wrap(option.text, WIDTH - INDENT)
    if first is not None:
        lines[0] = f"{first:{INDENT}}{lines[0]}"
        return "\n".join([lines[0], *(" " * INDENT + line for line in lines[1:])])
    return "\n".join([*rest, *(" " * INDENT + line for line in lines)])


def help_text(
    program: str, purpose: str, example: str, config_name: str, path: str | None, given: Sequence[str]
) -> str:
    """The help of a command.

    Args:
        path: the option that a path alone sets.
        given: overrides on the command line beside `--help`; defaults are those after them.
    """
    usage = f"usage: {program}{' [PATH]' if path else ''} [OPTION=VALUE ...]"
    parts = [usage, f"{purpose[0].upper()}{purpose[1:]}.", f"example: {program} {example}"]
    if path:
        parts.append(f"A PATH alone means {path}=PATH.")
    try:
        config = compose(config_name, given)
    except HybridTokenizerError as error:  # help is shown whatever stands beside it
        parts.append(f"(shown without {' '.join(given)}: {error})")
        config = compose(config_name, [])
    if choices := group_choices(config_name):
        lines = [f"  {name}={'|'.join(values)}" for name, values in choices.items()]
        parts.append("\n".join(["whole groups of values:", *lines]))
    for group in groups_of(config):
        if group.options:
            heading = f"{group.name}: {group.text}" if group.text else f"{group.name}:"
            title = "options:" if not group.name else "\n".join(textwrap.wrap(heading, WIDTH))
            parts.append("\n".join([title, *map(option_lines, group.options)]))
    parts.append("--cfg job prints the whole configuration, --hydra-help the flags of Hydra.")
    return "\n\n".join(parts)
