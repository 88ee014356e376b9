"""Parity with the reference implementations, on fixtures: which kinds there are, how near is near enough, and the rows.

A fixture is `NAME_a.safetensors` (`state.*` the reference's weights, `in.*`, `out.*`) beside `NAME_a.json` (its sizes).
"""

from hybrid_tokenizer.verification.parity.compare import Report, Row, check_fixture, check_folder, kind_of
from hybrid_tokenizer.verification.parity.kinds import KINDS, produce_function
from hybrid_tokenizer.verification.parity.tolerances import Tolerance, tolerance_of

__all__ = [
    "KINDS",
    "Report",
    "Row",
    "Tolerance",
    "check_fixture",
    "check_folder",
    "kind_of",
    "produce_function",
    "tolerance_of",
]
