"""Compare this package with the reference implementations on a folder of fixtures. Exits with 1 on any mismatch."""

import argparse
from pathlib import Path

from hybrid_tokenizer.errors import HybridTokenizerError


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="folder of NAME_a.safetensors and NAME_a.json")
    parser.add_argument("--kinds", help="check only these, separated by commas; a kind is a file name without its _a")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the rows to FILE")
    options = parser.parse_args()
    # here, so that `--help` needs no model library
    from hybrid_tokenizer.checkpoints.files import write_json
    from hybrid_tokenizer.verification.parity import check_folder

    kinds = [kind.strip() for kind in options.kinds.split(",") if kind.strip()] if options.kinds else None
    try:
        report = check_folder(options.folder, kinds)
    except HybridTokenizerError as error:
        raise SystemExit(f"error: {error}") from None
    print(f"{'fixture':24} {'tensor':72} {'difference':>10} {'tolerance':>9}  ok")
    for row in report.rows:
        difference = "-" if row.difference is None else f"{row.difference:.2e}"
        note = f" ({row.note})" if row.note else ""
        status = "yes" if row.status == "ok" else "NO" if row.status == "mismatch" else row.status
        print(f"{row.fixture:24} {row.tensor:72} {difference:>10} {row.tolerance:9.0e}  {status}{note}")
    for fixture in report.not_checked:
        print(f"not checked: {fixture} (no check of its kind)")
    print(
        f"{report.count('ok')} ok, {report.count('mismatch')} mismatches, {report.count('not covered')} not covered, "
        f"{len(report.not_checked)} fixtures not checked"
    )
    if options.json:
        write_json(options.json, report.as_json())
    if not report.ok:
        raise SystemExit(1)
