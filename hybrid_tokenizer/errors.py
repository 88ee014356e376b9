"""The package's own error type: everything a user can mend by changing an input or an option."""


class HybridTokenizerError(ValueError):
    """Raised with the value, the rule and the remedy in one line. Scripts turn it into ``SystemExit("error: ...")``."""
