"""Runs damaged inputs through the package's doors, and holds each to one promise: refused in one line, or read right.

A door is a function that reads one damaged input. Whoever adds one appends it to `DOORS` of `fuzz_doors.py`.
"""

import random
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from hybrid_tokenizer.data.open import MAX_PIXELS

MOST_SECONDS = 5.0
"""Of the processor, since a case must not be judged by what else the machine does; who watches the run ends one that waits."""
MOST_BYTES = 16 * MAX_PIXELS
"""Of memory that one input may take while it is read."""


class Attempt(NamedTuple):
    """What became of one damaged input."""

    damage: str
    """Its kind, a row of the table."""
    refused: bool
    """In one line, by an error of the package's own."""
    wrong: float = 0.0
    """Share of the result that differs from what the undamaged input gives."""
    promised: float = 1.0
    """The largest such share that the package states for this kind of damage; 1 where it states none."""


@dataclass(frozen=True)
class Door:
    """`prepare` makes undamaged inputs once; `attempt` damages one of them, gives it to the door, and says what happened.

    An exception that leaves `attempt` is a fault: it catches the refusals itself.
    """

    name: str
    prepare: Callable[[Path], Any]
    attempt: Callable[[Any, random.Random, Path], Attempt]
    share: float = 1.0
    """Of the cases asked for, at least one: fewer where an input takes long, more where it takes little."""

    def count(self, cases: int) -> int:
        """How many inputs this door gets."""
        return max(1, round(self.share * cases))


@dataclass
class Report:
    """Counts by door and damage, and every fault with what is needed to see it again."""

    rows: dict[tuple[str, str], dict[str, float]] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)
    inputs: int = 0

    def add(self, door: str, attempt: Attempt, seconds: float, memory: int) -> None:
        row = self.rows.setdefault(
            (door, attempt.damage),
            {"inputs": 0, "refused": 0, "right": 0, "worst_share": 0.0, "seconds": 0.0, "peak_mb": 0.0},
        )
        row["inputs"] += 1
        row["refused"] += attempt.refused
        row["right"] += not attempt.refused and attempt.wrong == 0
        row["worst_share"] = max(row["worst_share"], 0.0 if attempt.refused else attempt.wrong)
        row["seconds"] = max(row["seconds"], seconds)
        row["peak_mb"] = max(row["peak_mb"], memory / 1e6)

    def table(self) -> str:
        """Markdown, one row per door and kind of damage."""
        lines = ["| door | damage | inputs | refused | read right | largest wrong share | longest | most memory |", "|---|---|--:|--:|--:|--:|--:|--:|"]  # fmt: skip
        for (door, damage), row in sorted(self.rows.items()):
            lines.append(
                f"| {door} | {damage} | {row['inputs']:.0f} | {row['refused']:.0f} | {row['right']:.0f} | "
                f"{row['worst_share']:.3f} | {row['seconds']:.2f} s | {row['peak_mb']:.0f} MB |"
            )
        return "\n".join(lines)

    def facts(self) -> dict[str, Any]:
        """The same for JSON."""
        rows = [{"door": door, "damage": damage, **row} for (door, damage), row in sorted(self.rows.items())]
        return {"inputs": self.inputs, "faults": self.faults, "rows": rows}


def run(
    doors: Sequence[Door], cases: int, seed: int, folder: Path, tell: Callable[[str], None] | None = None
) -> Report:
    """`cases` inputs for each door, times the door's share. Case n of a door is the same whatever the others do.

    tell: hears of each case before it starts, so that whoever watches knows which one hangs.
    """
    report = Report()
    for door in doors:
        scratch = folder / door.name
        scratch.mkdir(parents=True, exist_ok=True)
        state = door.prepare(scratch)
        for number in range(door.count(cases)):
            name = f"{door.name}, seed {seed}, case {number}"
            report.inputs += 1
            if tell is not None:
                tell(name)
            draw = random.Random(f"{door.name}/{seed}/{number}")
            restart_measuring()
            try:
                attempt = door.attempt(state, draw, scratch)
            except Exception:  # noqa: BLE001  whatever it is, it is what this looks for
                report.faults.append(f"{name}: {traceback.format_exc(limit=-3)}")
                continue
            seconds, memory = _measured()
            report.add(door.name, attempt, seconds, memory)
            if seconds > MOST_SECONDS:
                report.faults.append(f"{name}: {attempt.damage} took {seconds:.1f} s")
            if memory > MOST_BYTES:
                report.faults.append(f"{name}: {attempt.damage} took {memory / 1e6:.0f} MB")
            if not attempt.refused and attempt.wrong > attempt.promised:
                report.faults.append(
                    f"{name}: {attempt.damage} was read with {attempt.wrong:.3f} of it wrong, over {attempt.promised}"
                )
    return report


_start = {"seconds": 0.0, "bytes": 0}


def restart_measuring() -> None:
    """Time and memory count from here: called for each case, and by an attempt once its input is made."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
        _start["bytes"] = _status("VmRSS")
    except OSError:  # not Linux: memory is not measured
        pass
    _start["seconds"] = time.process_time()


def _measured() -> tuple[float, int]:
    """Seconds and bytes since `restart_measuring`."""
    seconds = time.process_time() - _start["seconds"]
    try:
        return seconds, _status("VmHWM") - _start["bytes"]
    except OSError:
        return seconds, 0


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1]) * 1024
