"""The package's own error type, for everything a user can mend by changing an input or an option, and checks that raise it."""

import os
from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any

MOST_SIDE = 2**16


class HybridTokenizerError(ValueError):
    """Raised with the value, the rule and the remedy in one line. Scripts turn it into ``SystemExit("error: ...")``."""

    def __str__(self) -> str:
        return "\n".join(printable(line) for line in super().__str__().split("\n"))


def printable(name: str | os.PathLike[str]) -> str:
    """A name as every terminal, log and UTF-8 file takes it.

    Control and formatting characters become escapes such as `\\x1b`, and so do bytes of a file name that are not UTF-8,
    which Python keeps as lone surrogates. Hashes take `os.fsencode(name)` instead, which keeps two names apart.
    """
    text = os.fspath(name)
    if text.isprintable():
        return text
    return "".join(character if character.isprintable() else _escaped(character) for character in text)


def _escaped(character: str) -> str:
    if "\udc80" <= character <= "\udcff":  # a byte that is not UTF-8
        return f"\\x{ord(character) - 0xDC00:02x}"
    return character.encode("unicode_escape").decode()


def first_line(error: BaseException) -> str:
    """A library's message cut to its first line, without the full stop, or the name of its kind where it has none."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].rstrip(".") if lines else type(error).__name__


def shown(value: Any, most: int = 60) -> str:
    """A value for an error message, cut to one short line."""
    try:
        text = repr(value)
    except ValueError:  # an integer of thousands of digits
        text = f"a number of {value.bit_length()} bits"
    return text if len(text) <= most else text[: most - 3] + "..."


def shorten(keys: list[str], most: int = 6) -> str:
    """The first few keys and how many more there are."""
    return ", ".join(keys[:most]) + (f", and {len(keys) - most} more" if len(keys) > most else "")


def check_whole(name: str, value: Any, least: int, most: int, remedy: str = "") -> int:
    """`value` where it is a whole number from `least` to `most`; raises where not. True and 2.0 are none."""
    if not isinstance(value, Integral) or isinstance(value, bool) or not least <= value <= most:
        raise HybridTokenizerError(f"{name} is {shown(value)}, expected a whole number from {least} to {most}{remedy}")
    return int(value)


def check_number(name: str, value: Any, least: float | int, most: float | int, remedy: str = "") -> float:
    """`value` where it is a number from `least` to `most`; raises where not. True, NaN and infinities are none."""
    if not isinstance(value, Real) or isinstance(value, bool) or not least <= value <= most:
        raise HybridTokenizerError(f"{name} is {shown(value)}, expected a number from {least:g} to {most:g}{remedy}")
    return float(value)


def check_size(name: str, value: Any) -> tuple[int, int]:
    """`value` where it is (height, width) in pixels; raises where not."""
    if not isinstance(value, Sequence) or isinstance(value, str) or len(value) != 2:
        raise HybridTokenizerError(f"{name} is {shown(value)}, expected (height, width) in pixels")
    height, width = (check_whole(f"a side of {name}", side, 1, MOST_SIDE, " pixels") for side in value)
    return height, width
