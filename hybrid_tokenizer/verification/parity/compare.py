"""Compare every `out.*` tensor of a folder of fixtures with what this package computes."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hybrid_tokenizer.checkpoints.files import load_tensors, read_json
from hybrid_tokenizer.errors import HybridTokenizerError, first_line
from hybrid_tokenizer.verification.parity.kinds import KINDS, produce_function
from hybrid_tokenizer.verification.parity.tolerances import may_be_absent, tolerance_of


@dataclass
class Row:
    """One tensor of one fixture. If `difference` is None, `note` says why."""

    fixture: str
    kind: str
    tensor: str
    difference: float | None
    tolerance: float
    status: str  # ok | mismatch | not covered
    note: str = ""

    @property
    def ok(self) -> bool:
        """False for a mismatch only."""
        return self.status != "mismatch"


@dataclass
class Report:
    """All rows, and the fixtures of kinds that this package does not check."""

    rows: list[Row] = field(default_factory=list)
    not_checked: list[str] = field(default_factory=list)

    def count(self, status: str) -> int:
        """Rows of one status."""
        return sum(row.status == status for row in self.rows)

    @property
    def ok(self) -> bool:
        """Whether nothing differed."""
        return self.count("mismatch") == 0

    def as_json(self) -> dict[str, Any]:
        """For `--json`."""
        rows = [
            {
                "fixture": row.fixture,
                "kind": row.kind,
                "tensor": row.tensor,
                "difference": row.difference,
                "tolerance": row.tolerance,
                "ok": row.ok,
                "status": row.status,
                "note": row.note,
            }
            for row in self.rows
        ]
        counts = {status.replace(" ", "_"): self.count(status) for status in ("ok", "mismatch", "not covered")}
        return {"rows": rows, "counts": counts, "not_checked": self.not_checked, "ok": self.ok}


def kind_of(path: Path) -> str:
    """The file name without an ending like `_a`."""
    return path.stem if path.stem in KINDS else path.stem.rpartition("_")[0] or path.stem


def compare(fixture: str, kind: str, tensor: str, expected: Tensor, produced: Tensor | None) -> Row:
    """One row. Shapes and integers must be equal, and a value that is not finite is a mismatch."""
    integer = not expected.is_floating_point()
    tolerance = tolerance_of(kind, tensor)
    largest = 0.0 if integer else tolerance.largest

    def row(status: str, difference: float | None = None, note: str = "") -> Row:
        return Row(fixture, kind, tensor, difference, largest, status, note)

    if produced is None:
        return row("not covered" if may_be_absent(kind, tensor) else "mismatch", note="not produced")
    if produced.shape != expected.shape:
        return row("mismatch", note=f"shape {tuple(produced.shape)}, expected {tuple(expected.shape)}")
    if integer and produced.is_floating_point():
        return row("mismatch", note=f"{produced.dtype}, expected integers")
    if expected.numel() == 0:
        return row("ok", 0.0)
    difference = (produced.detach().double() - expected.double()).abs().max()
    if not integer and tolerance.relative:
        difference = difference / expected.double().abs().max().clamp_min(torch.finfo(torch.float64).tiny)
    if not difference.isfinite():
        return row("mismatch", note="values are not finite")
    return row("ok" if difference <= largest else "mismatch", difference.item())


def read_fixture(path: Path) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """The tensors of a fixture by part (`state`, `in`, `out`), floats in fp32, and its `config`.

    `size_overrides` that stand beside the reference's own config become part of it.
    """
    parts: dict[str, dict[str, Tensor]] = {"state": {}, "in": {}, "out": {}}
    for key, value in load_tensors(path).items():
        part, _, name = key.partition(".")
        if part not in parts:
            raise HybridTokenizerError(
                f"{path} holds {key!r}; a fixture has state.*, in.* and out.* only: give a fixture folder"
            )
        parts[part][name] = value.float() if value.is_floating_point() else value
    description = read_json(path.with_suffix(".json"))
    if not isinstance(description, dict) or not isinstance(description.get("config"), dict) or not parts["out"]:
        raise HybridTokenizerError(f"{path} is not a fixture: its JSON needs a `config`, its tensors an `out.*`")
    overrides = {key: description[key] for key in ("size_overrides",) if key in description}
    return parts, description["config"] | overrides


def check_fixture(path: Path) -> list[Row]:
    """The rows of one fixture of a known kind. If it cannot be computed, every row is a mismatch."""
    kind = kind_of(path)
    parts, config = read_fixture(path)
    produce = produce_function(kind)
    try:
        produced, failure = produce(parts["state"], parts["in"], config), ""
    except (
        HybridTokenizerError,
        KeyError,
        RuntimeError,
    ) as error:  # weights, sizes or inputs of another shape than said
        produced, failure = {}, f"{type(error).__name__}: {first_line(error)}"
    rows = [
        compare(path.stem, kind, name, expected, produced.get(name)) for name, expected in sorted(parts["out"].items())
    ]
    for row in rows:
        if failure:
            row.status, row.note = "mismatch", failure
    return rows


def check_folder(folder: Path, kinds: Sequence[str] | None = None) -> Report:
    """Check every fixture of a folder, or those of `kinds`. Raises on an unknown kind and when nothing was checked."""
    if not folder.is_dir():
        raise HybridTokenizerError(f"{folder} is not a folder; give the folder that holds the fixtures (*.safetensors)")
    for kind in kinds or ():
        produce_function(kind)
    paths = sorted(path for path in folder.glob("*.safetensors") if not kinds or kind_of(path) in kinds)
    absent = sorted(set(kinds or ()) - {kind_of(path) for path in paths})
    if absent or not paths:
        what = f"of kind {', '.join(absent)} " if absent else ""
        raise HybridTokenizerError(
            f"no fixture {what}in {folder}; give the folder that holds them (NAME_a.safetensors)"
        )
    report = Report()
    for path in paths:
        if kind_of(path) in KINDS:
            report.rows += check_fixture(path)
        else:
            report.not_checked.append(path.stem)
    if not report.rows:
        raise HybridTokenizerError(f"no fixture of a known kind in {folder}; known kinds: {', '.join(sorted(KINDS))}")
    return report
