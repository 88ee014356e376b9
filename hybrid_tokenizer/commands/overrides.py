"""What users type as `key=value`: text is taken as it was typed, and a mistake is explained with its cause and a remedy."""

import dataclasses
import difflib
import os
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

KINDS = {int: "a whole number", float: "a number", bool: "true or false"}
QUOTES = "\"'"
KEPT = 40
LONG_NAME = re.compile(rf"[^\s/'\"=,\[\]]{{{3 * KEPT},}}")
MERGING = re.compile(r"Error merging override (.+)", re.DOTALL)


def option_types(schema: type | None, prefix: str = "") -> dict[str, Any]:
    """The type of every option by its dotted name, sections included."""
    types: dict[str, Any] = {}
    for name, kind in ({} if schema is None else get_type_hints(schema)).items():
        types[prefix + name] = kind
        if dataclasses.is_dataclass(kind):
            types |= option_types(kind, f"{prefix}{name}.")
    return types


def type_of(key: str, types: Mapping[str, Any]) -> Any:
    """The type of an option, or of an entry of an option that maps names to values. None where it is unknown."""
    if key in types:
        return types[key]
    above = types.get(key.rpartition(".")[0])
    return get_args(above)[1] if get_origin(above) is dict else None


def takes_text(kind: Any) -> bool:
    """Whether an option is `str`, or `str | None`."""
    return kind is str or (str in get_args(kind) and get_origin(kind) not in (list, dict, tuple))


def split(override: str) -> tuple[str, str]:
    """Name and value of an override, without the name's `+` or `++`."""
    key, _, value = override.partition("=")
    return key.lstrip("+"), value


def literal_text(arguments: Sequence[str], types: Mapping[str, Any]) -> list[str]:
    """The arguments with text in quotes, so that `output_dir=2024_11_27` is no number and `prompt=a, b` is no list.

    What is quoted or escaped already is left as it is, and so are the lists of a multirun. An option of any type takes
    numbers and lists as such, unless a file of that name exists.
    """
    if {"-m", "--multirun"} & set(arguments):
        return list(arguments)
    return [quoted(one, types) for one in arguments]


def quoted(argument: str, types: Mapping[str, Any]) -> str:
    """One argument of `literal_text`."""
    key, value = split(argument)
    kind = type_of(key, types)
    listed = value.isdecimal() or value[:1] in ("[", "{")
    text = takes_text(kind) or (kind is Any and (not listed or os.path.exists(value)))
    is_quoted = len(value) > 1 and value[0] == value[-1] and value[0] in QUOTES
    if not text or is_quoted or value in ("", "null") or "\\" in value:
        return argument
    return argument.partition("=")[0] + "='" + value.replace("'", "\\'") + "'"


def how_to_quote(override: str) -> str:
    """The override as a shell takes it, its value, or each entry of a list, in quotes of Hydra's."""
    key, _, value = override.partition("=")
    listed = value[:1] == "[" and value[-1:] == "]"
    texts = [text.strip().strip(QUOTES).replace('"', '\\"') for text in (value[1:-1].split(",") if listed else [value])]
    quoted_texts = ",".join(f'"{text}"' for text in texts)
    return shlex.quote(f"{key}=[{quoted_texts}]" if listed else f"{key}={quoted_texts}")


def shorten_names(text: str) -> str:
    """A message in which no name is longer than a line: its middle is left out."""
    return LONG_NAME.sub(lambda name: f"{name[0][:KEPT]}...{name[0][-KEPT:]}", text)


def with_home(value: Any) -> Any:
    """Plain values, in which a path that begins with `~/` begins with the home folder."""
    if isinstance(value, dict):
        return {key: with_home(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [with_home(entry) for entry in value]
    return str(Path(value).expanduser()) if isinstance(value, str) and value.startswith("~/") else value


def nearest(key: str, names: Sequence[str]) -> str | None:
    """The name that was most likely meant: by the whole name, or by its last part."""
    close = difflib.get_close_matches(key, names, n=1, cutoff=0.75)
    if close:
        return close[0]
    last_parts = {name.rpartition(".")[2]: name for name in reversed(names)}
    close = difflib.get_close_matches(key.rpartition(".")[2], last_parts, n=1, cutoff=0.75)
    return last_parts[close[0]] if close else None


def explain_unknown(
    arguments: Sequence[str], types: Mapping[str, Any], groups: Mapping[str, Sequence[str]]
) -> str | None:
    """What is wrong with the first argument that names no option, or a group's value that does not exist."""
    for argument in arguments:
        key, value = split(argument)
        if argument[:1] in "-~+" or key.startswith("hydra"):
            continue
        if key in groups and key not in types and value not in (*groups[key], "null"):
            meant = nearest(value, groups[key])
            return f"{argument} is unknown; " + (
                f"did you mean {key}={meant}?" if meant else f"use {', '.join(groups[key])}"
            )
        if "=" not in argument:
            return f"{argument!r} is no option; options are written as NAME=VALUE"
        if key not in groups and key not in types:
            if type_of(key, types) is not None:
                return f"{argument} adds an entry to {key.rpartition('.')[0]}; write +{argument}"
            meant = nearest(key, [*types, *groups])
            return f"there is no option {key!r}" + (f"; did you mean {meant}?" if meant else "")
    return None


def unknown_addition(
    arguments: Sequence[str], types: Mapping[str, Any], groups: Mapping[str, Sequence[str]]
) -> str | None:
    """What is wrong with the first `+key=value` whose key no option, no mapping and no group takes."""
    for argument in arguments:
        key, _ = split(argument)
        open_parts = [
            name for name, kind in types.items() if key.startswith(f"{name}.") and not dataclasses.is_dataclass(kind)
        ]
        if argument.startswith("+") and not (key.startswith("hydra") or key in types or key in groups or open_parts):
            meant = nearest(key, [*types, *groups])
            return f"{argument}: there is no option {key!r}" + (f"; did you mean {meant}?" if meant else "")
    return None


def explain_value(message: str, cause: str, types: Mapping[str, Any]) -> str | None:
    """What is wrong with the value of an option, from Hydra's message and its cause."""
    found = MERGING.search(message)
    if found is None:
        return None
    override = found[1].strip()
    key, value = split(override)
    kind = type_of(key, types)
    kinds = (kind, *get_args(kind))
    if any(get_origin(one) is list for one in kinds):
        return f"{override}: " + (cause if value.startswith("[") else f"{key} is a list; give '{key}=[{value}]'")
    accepted = [one for one in kinds if one in KINDS]
    return f"{override} is not {KINDS[accepted[0]]}" if accepted else f"{override}: {cause}"
