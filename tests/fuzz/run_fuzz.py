"""Long runs: `python tests/fuzz/run_fuzz.py --cases 2000`. Exit 1 on any fault; a case that hangs is killed and named.

Decoders of other projects write their complaints about damaged files to stderr; `2>/dev/null` hides them.
"""

import argparse
import multiprocessing
import sys
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # of `helpers`, as for the tests

from fuzz_doors import DOORS
from fuzz_driver import MOST_SECONDS, Report, run

from hybrid_tokenizer.checkpoints.files import write_json
from hybrid_tokenizer.provenance import provenance

PATIENCE = 12 * MOST_SECONDS
"""Seconds that a case may say nothing before its process is killed."""
START = 600
"""The same for the start: libraries are imported, and models are made."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=2000, help="damaged inputs for each door, times its share")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--doors", nargs="*", default=[door.name for door in DOORS], help="names; all when left out")
    parser.add_argument("--json", type=Path, help="where the table goes as JSON")
    options = parser.parse_args()
    unknown = set(options.doors) - {door.name for door in DOORS}
    if unknown:
        raise SystemExit(
            f"error: {', '.join(unknown)} is no door; use some of {', '.join(door.name for door in DOORS)}"
        )
    whole, start = Report(), time.perf_counter()
    for name in options.doors:
        started = time.perf_counter()
        report = run_watched(name, options.cases, options.seed)
        whole.rows |= report.rows
        whole.faults += report.faults
        whole.inputs += report.inputs
        print(f"{name}: {report.inputs} inputs, {len(report.faults)} faults, {time.perf_counter() - started:.0f} s", flush=True)  # fmt: skip
        for fault in report.faults:
            print(fault, flush=True)
    print(whole.table())
    if options.json is not None:
        made = {"seed": options.seed, "cases": options.cases, "seconds": time.perf_counter() - start}
        write_json(options.json, made | whole.facts() | {"provenance": provenance()})
    sys.exit(bool(whole.faults))


def run_watched(name: str, cases: int, seed: int) -> Report:
    """One door in a process of its own."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_work, args=(name, cases, seed, theirs))
    process.start()
    theirs.close()
    case = "its start"
    try:
        patience: float = START
        while ours.poll(patience):
            message = ours.recv()
            if isinstance(message, Report):
                return message
            case, patience = message, PATIENCE
        fault = f"{case}: no end after {patience:.0f} s"
    except EOFError:
        fault = f"{case}: the process died"
    finally:
        process.kill()
        process.join()
    return Report(faults=[fault])


def _work(name: str, cases: int, seed: int, connection: Connection) -> None:
    doors = [door for door in DOORS if door.name == name]
    with tempfile.TemporaryDirectory() as folder:
        connection.send(run(doors, cases, seed, Path(folder), connection.send))


if __name__ == "__main__":
    main()
