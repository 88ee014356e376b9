"""Write each baseline's public files at full size with random weights, load them as a user would, and fill a row.

One baseline at a time in a temporary folder (at most 10 GB, deleted after use), each in a process of its own. Rows that
the output already holds are not made again. It says that the files load, not how good published weights are.
"""

import argparse
import multiprocessing
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from tqdm import tqdm

from hybrid_tokenizer.checkpoints.files import read_json, write_json
from hybrid_tokenizer.errors import HybridTokenizerError
from hybrid_tokenizer.provenance import provenance
from hybrid_tokenizer.verification.layouts.files import make_files, names
from hybrid_tokenizer.verification.layouts.rows import fill_row

ROOT = Path(__file__).resolve().parents[1]
KEYS = [
    *(ROOT / "tests" / "semantic" / "keys").glob("seed1.json"),
    *(ROOT / "tests" / "baselines" / "keys").glob("*.json"),
]
NOT_RUN = "not run at full size; at reduced width through the same loader in tests/baselines"


def in_fresh_process(function: Callable[..., Any], *arguments: object) -> Any:
    """The result of `function`; memory that it took is measured apart and given back."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
        return process.submit(function, *arguments).result()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--names", default=",".join(names()), help="separated by commas; default: all of them")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results" / "full_size_rows.json")
    parser.add_argument("--folder", type=Path, help="where the temporary folder is made; default: the system's place")
    parser.add_argument("--image-size", type=int, default=256)
    options = parser.parse_args()
    stored = {path.stem: {key: tuple(shape) for key, shape in read_json(path).items()} for path in KEYS}
    rows = {row["name"]: row for row in read_json(options.output)["rows"]} if options.output.is_file() else {}
    wanted = [name for name in options.names.split(",") if not rows.get(name, {}).get("ok")]
    for name in tqdm(wanted, unit="row"):
        with tempfile.TemporaryDirectory(dir=options.folder) as temporary:
            try:
                in_fresh_process(make_files, name, Path(temporary), stored)
                rows[name] = in_fresh_process(fill_row, name, Path(temporary), options.image_size)
            except HybridTokenizerError as error:
                raise SystemExit(f"error: {error}") from None
        report = {
            "weights": "random, in the published layout; real public weights were not loaded",
            "rows": [rows[known] for known in names() if known in rows],
            "not_run": dict.fromkeys(("lavit", "seed2"), NOT_RUN),
            "provenance": provenance(),
        }
        write_json(options.output, report)
    failed = [name for name, row in rows.items() if not row["ok"]]
    if failed:
        raise SystemExit(f"error: {', '.join(failed)} gave values that are not finite")


if __name__ == "__main__":
    main()
