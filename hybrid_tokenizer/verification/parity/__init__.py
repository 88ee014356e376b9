"""Parity with the reference implementations on fixtures: the kinds of fixtures, their tolerances, and the comparison.

A fixture is `NAME_a.safetensors`, which holds the reference's weights (`state.*`), inputs (`in.*`) and outputs (`out.*`), and
`NAME_a.json` with its sizes.
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
