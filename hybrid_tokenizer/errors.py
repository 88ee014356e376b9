"""The package's own error type, for everything a user can mend by changing an input or an option, and checks that raise it.

An optional package that is not installed is such an error too: its line names the extra to install.
"""

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, requires
from numbers import Integral, Real
from typing import Any

MOST_SIDE = 2**16
MOST_CHARACTERS, MOST_IN_LIST = 400, 200
"""Of a library's message, and of a name in a list: a damaged file can make either as long as itself."""
PROJECT = "hybrid_tokenizer"
PACKAGE_OF = {"skimage": "scikit-image", "sklearn": "scikit-learn", "open_clip": "open-clip-torch"}
"""Modules whose package has another name."""
EXTRA = re.compile(r"([\w.-]+).*;.*extra == ['\"](\w+)['\"]")


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
    """A library's message cut to its first line of bounded length, without the full stop, or the name of its kind where it has
    none."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return cut(lines[0].rstrip("."), MOST_CHARACTERS) if lines else type(error).__name__


def cut(text: str, most: int) -> str:
    """The text, or its beginning."""
    return text if len(text) <= most else text[: most - 3] + "..."


def shown(value: Any, most: int = 60) -> str:
    """A value for an error message, cut to one short line."""
    try:
        text = repr(value)
    except ValueError:  # an integer of thousands of digits
        text = f"a number of {value.bit_length()} bits"
    return cut(text, most)


def shorten(keys: list[str], most: int = 6) -> str:
    """The first few keys and how many more there are."""
    return ", ".join(cut(printable(key), MOST_IN_LIST) for key in keys[:most]) + (
        f", and {len(keys) - most} more" if len(keys) > most else ""
    )


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


def package_of(module: str) -> str:
    """The normalised name of the package that a module belongs to."""
    top = module.partition(".")[0]
    return PACKAGE_OF.get(top, top).replace("_", "-").lower()


def extra_of(module: str) -> str | None:
    """The first extra of pyproject.toml that installs a module's package. None where no extra does."""
    try:
        listed = requires(PROJECT) or []
    except PackageNotFoundError:  # a checkout that is not installed
        return None
    found = [EXTRA.match(one) for one in listed]
    extras = [match[2] for match in found if match and match[1].replace("_", "-").lower() == package_of(module)]
    return extras[0] if extras else None


def absent(module: str, extra: str | None = None) -> HybridTokenizerError:
    """The error of a package that is not installed.

    Args:
        module: what could not be imported.
        extra: the extra to name; the first that has the package where None.
    """
    extra = extra or extra_of(module)
    install = f"{PROJECT}[{extra}]" if extra else package_of(module)
    return HybridTokenizerError(f"the package {package_of(module)} is not installed; run pip install '{install}'")


@contextmanager
def optional(extra: str | None = None) -> Iterator[None]:
    """Turn the failed import of an optional package into one line. Modules of this package stay what they are."""
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] == PROJECT:
            raise
        raise absent(error.name, extra) from None
