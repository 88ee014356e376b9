"""Dataclasses from the values of a JSON file, with every name and every type checked."""

import dataclasses
import pickle
import struct
import types
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from hybrid_tokenizer.errors import HybridTokenizerError, first_line, shorten, shown

Config = TypeVar("Config")
UNREADABLE = (
    RuntimeError,
    pickle.UnpicklingError,
    EOFError,
    OSError,
    ValueError,
    LookupError,
    ArithmeticError,
    AssertionError,
    AttributeError,
    TypeError,
    MemoryError,
    struct.error,
    zipfile.BadZipFile,
)
"""What libraries raise for a file that is cut off, altered, or not of the kind that its name says."""
KINDS = {
    dict: "an object",
    list: "a list",
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
}


def from_json(kind: type[Config], values: Any, source: str, complete: bool = False) -> Config:
    """`kind` from `values`, which may hold further dataclasses as objects. Floats may be written as whole numbers.

    complete: every field has to be there, also one with a default. Raises on an unknown name and on a value of another type.
    """
    if not isinstance(values, dict):
        raise HybridTokenizerError(f"{source} is {shown(values)}, expected an object; write or download it again")
    hints = get_type_hints(kind)
    known = [field.name for field in dataclasses.fields(kind)]
    needed = [
        field.name
        for field in dataclasses.fields(kind)
        if complete or (field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING)
    ]
    parts = {
        "unknown entries": sorted(map(shown, set(values) - set(known))),
        "no": [name for name in needed if name not in values],
    }
    if any(parts.values()):
        listed = " and ".join(f"{what} {shorten(names)}" for what, names in parts.items() if names)
        raise HybridTokenizerError(
            f"{source} has {listed}: it is of another kind or another version of {kind.__name__}; give the right folder"
        )
    checked = {name: typed(value, hints[name], f"{source}: {name}") for name, value in values.items()}
    with one_line(source):
        return kind(**checked)


def typed(value: Any, hint: Any, name: str) -> Any:
    """`value` where it is what `hint` asks for; raises where not."""
    if hint is Any or (dataclasses.is_dataclass(hint) and isinstance(value, hint)):
        return value
    if get_origin(hint) in (Union, types.UnionType):
        options = get_args(hint)
        if value is None and type(None) in options:
            return None
        (hint,) = [option for option in options if option is not type(None)]
    if dataclasses.is_dataclass(hint):
        return from_json(hint, value, name)
    kind, entries = get_origin(hint) or hint, get_args(hint)
    accepted = (int, float) if kind is float else (kind,)
    if not isinstance(value, accepted) or (isinstance(value, bool) and kind is not bool):
        raise HybridTokenizerError(f"{name} is {shown(value)}, expected {KINDS[kind]}; correct it or download it again")
    if kind is list:
        return [typed(entry, entries[0], f"{name}[{i}]") for i, entry in enumerate(value)]
    return float(value) if kind is float else value


@contextmanager
def one_line(source: str) -> Iterator[None]:
    """Turn what libraries raise inside, for sizes that do not fit together, into one line that names the file."""
    try:
        yield
    except HybridTokenizerError:
        raise
    except UNREADABLE as error:
        raise HybridTokenizerError(
            f"{source} describes no model that can be built ({type(error).__name__}: {first_line(error)}); write or download "
            "it again"
        ) from error
