"""Write the generated parts of README.md: the table of `tiny` from its JSON, and the map of the files from docstrings."""

import argparse
import ast
from pathlib import Path

from hybrid_tokenizer.checkpoints.files import read_json, write_atomic
from hybrid_tokenizer.evaluation.tables import to_markdown

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
RESULTS = ROOT / "benchmarks" / "results" / "tiny" / "recon.json"
COLUMNS = ("method", "psnr", "ssim", "effnet_lite2_distance", "haarpsi", "high_frequency_energy", "num_tokens", "bits")


def between(text: str, name: str, inside: str) -> str:
    """`text` with what stands between the markers of `name` replaced."""
    begin, end = f"<!-- {name}:begin -->\n", f"<!-- {name}:end -->"
    head, rest = text.split(begin)
    return head + begin + inside.rstrip() + "\n" + end + rest.split(end)[1]


def tiny_table() -> str:
    """The rows of the committed evaluation, with where they come from."""
    report = read_json(RESULTS)
    facts = report["provenance"]
    config, machine = facts["config"], facts["machine"]
    source = f"{facts['images']['n']} photographs of `{Path(config['data']['root']).parent.name}/{Path(config['data']['root']).name}`"
    rows = [{name: row.get(name) for name in COLUMNS} for row in report["rows"]]
    return (
        f"{to_markdown(rows)}\n\n{source} at {config['data']['image_size']} px, seeds {facts['seeds']}, "
        f"on {machine['cpu']} ({machine['cores']} cores), revision `{facts['revision'][:12]}`."
    )


def file_map() -> str:
    """One line a file: its path and the first sentence of its docstring."""
    lines = []
    for folder in ("hybrid_tokenizer", "scripts"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            documentation = ast.get_docstring(ast.parse(path.read_text())) or ""
            if documentation:
                lines.append(f"{path.relative_to(ROOT).as_posix():50} {documentation.splitlines()[0]}")
    return "```\n" + "\n".join(lines) + "\n```"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; fail when README.md is not up to date")
    arguments = parser.parse_args()
    current = README.read_text()
    text = between(current, "map", file_map())
    if RESULTS.exists():
        text = between(text, "tiny", tiny_table())
    if arguments.check:
        if text != current:
            raise SystemExit("error: README.md is not up to date; run python tools/update_readme.py")
        return
    write_atomic(README, text.encode())


if __name__ == "__main__":
    main()
