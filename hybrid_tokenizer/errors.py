"""The package's own error type: everything a user can mend by changing an input or an option."""


class HybridTokenizerError(ValueError):
    """Raised with the value, the rule and the remedy in one line. Scripts turn it into ``SystemExit("error: ...")``."""


def first_line(error: BaseException) -> str:
    """A library's message cut to its first line, without the full stop, or the name of its kind where it has none."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].rstrip(".") if lines else type(error).__name__
