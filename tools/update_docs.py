"""Write the generated parts of the pages: tables from committed JSON, Figure 1, the map of the files from docstrings."""

import argparse
import ast
from pathlib import Path

from hybrid_tokenizer.checkpoints.configs import from_json
from hybrid_tokenizer.checkpoints.files import read_json, write_atomic
from hybrid_tokenizer.diffusion import DiffusionConfig
from hybrid_tokenizer.evaluation.architecture import architecture_svg
from hybrid_tokenizer.evaluation.studies.kinds import kinds_markdown
from hybrid_tokenizer.evaluation.studies.recon import recon_markdown
from hybrid_tokenizer.guide import GuideConfig
from hybrid_tokenizer.semantic import SemanticConfig

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
ARCHITECTURE = ROOT / "docs" / "architecture.md"
EVALUATION = ROOT / "docs" / "evaluation.md"
BENCHMARKS = ROOT / "benchmarks"
PRESET = ROOT / "hybrid_tokenizer" / "presets" / "tiny"
RESULTS = ROOT / "benchmarks" / "results" / "tiny" / "recon.json"
COLUMNS = (
    "method",
    "psnr",
    "ssim",
    "effnet_lite2_distance",
    "squeezenet_distance",
    "haarpsi",
    "high_frequency_energy",
    "num_tokens",
    "bits",
)


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
        f"{recon_markdown(rows)}\n\n{source} at {config['data']['image_size']} px, seeds {facts['seeds']}, "
        f"on {machine['cpu']} ({machine['cores']} cores), revision `{facts['revision'][:12]}`."
    )


def file_map() -> str:
    """One line per file: its path and the first line of its docstring."""
    lines = []
    for folder in ("hybrid_tokenizer", "scripts", "tools"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            documentation = ast.get_docstring(ast.parse(path.read_text())) or ""
            if documentation:
                lines.append(f"{path.relative_to(ROOT).as_posix():50} {documentation.splitlines()[0]}")
    return "```\n" + "\n".join(lines) + "\n```"


def table_1() -> str:
    """Kinds of tokenizers, from the registry and the committed evaluations."""
    stored = [
        RESULTS,
        RESULTS.parent / "alignment" / "alignment.json",
        RESULTS.parent / "correction" / "correction.json",
    ]
    return kinds_markdown(*(read_json(path)["rows"] for path in stored))


def figure_1() -> dict[Path, str]:
    """The paper's sizes, and those of `tiny`, each a picture."""
    kinds = {"guide": GuideConfig, "semantic": SemanticConfig, "diffusion": DiffusionConfig}
    tiny = [from_json(kind, read_json(PRESET / part / "config.json"), part) for part, kind in kinds.items()]
    paper = [GuideConfig.sd15(), SemanticConfig.seed1(), DiffusionConfig.sd15()]
    return {
        ROOT / "docs" / f"figure1_{name}.svg": architecture_svg(name, *configs)
        for name, configs in (("sd15", paper), ("tiny", tiny))
    }


def harness_profile() -> str:
    """What each measure of the harness takes, before and now."""
    reports = (read_json(BENCHMARKS / "results" / f"{name}.json") for name in ("harness_before", "benchmark"))
    rows = [next(row for row in report["rows"] if row["name"] == "harness") for report in reports]
    before, now = (row["profile_ms_per_image"] for row in rows)
    lines = ["| milliseconds per image | before | now |", "| --- | ---: | ---: |"]
    lines += [f"| {name} | {before[name]:.1f} | {now[name]:.1f} |" for name in now]
    lines.append(f"| sum | {sum(before.values()):.1f} | {sum(now.values()):.1f} |")
    lines.append(f"| ratio of the row `harness` | {rows[0]['ratio']:.2f} | {rows[1]['ratio']:.2f} |")
    return "\n".join(lines)


def pages() -> dict[Path, str]:
    """Each page with its generated parts made anew."""
    readme = README.read_text()
    if RESULTS.exists():
        readme = between(readme, "tiny", tiny_table())
    return {
        README: readme,
        ARCHITECTURE: between(ARCHITECTURE.read_text(), "map", file_map()),
        EVALUATION: between(EVALUATION.read_text(), "table1", table_1()),
        BENCHMARKS / "README.md": between((BENCHMARKS / "README.md").read_text(), "harness", harness_profile()),
        **figure_1(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; fail when a page is not up to date")
    arguments = parser.parse_args()
    stale = {page: text for page, text in pages().items() if not page.is_file() or text != page.read_text()}
    if arguments.check and stale:
        names = ", ".join(page.relative_to(ROOT).as_posix() for page in stale)
        raise SystemExit(f"error: {names} not up to date; run python tools/update_docs.py")
    for page, text in stale.items():
        write_atomic(page, text.encode())


if __name__ == "__main__":
    main()
