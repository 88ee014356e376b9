"""Put trained components together as an embedded preset (fp16, files under 15 MB) and keep the stages' curves."""

import argparse
import json
import shutil
from dataclasses import replace
from pathlib import Path

import torch

from hybrid_tokenizer.checkpoints.files import read_json, write_json
from hybrid_tokenizer.diffusion import DiffusionDecoder
from hybrid_tokenizer.diffusion.config import INVERSION_CONDITIONS, STARTS
from hybrid_tokenizer.errors import HybridTokenizerError
from hybrid_tokenizer.guide import GuideTokenizer
from hybrid_tokenizer.hybrid import HybridTokenizer
from hybrid_tokenizer.semantic import SemanticTokenizer

PRESETS = Path(__file__).resolve().parents[1] / "hybrid_tokenizer" / "presets"
SHARD = "14MB"


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--name", required=True, help="name of the preset, e.g. tiny")
    for part in ("guide", "semantic", "diffusion"):
        parser.add_argument(
            f"--{part}", type=Path, required=True, help=f"run folder whose final/ holds the {part} component"
        )
    parser.add_argument(
        "--decoder", type=Path, help="decoder folder to pack in place of the diffusion run's final/ (blend_decoder.py)"
    )
    parser.add_argument("--stages", type=Path, nargs="*", default=[], help="further run folders whose curves are kept")
    parser.add_argument("--data", type=Path, help="folder of the training data; written as $DATA in the results")
    parser.add_argument("--runs", type=Path, help="folder of the runs; written as $RUNS in the results")
    parser.add_argument("--results", type=Path, required=True, help="folder for curves and facts, one JSON a stage")
    parser.add_argument("--start", choices=STARTS, help="recommended decoding: how it starts")
    parser.add_argument("--strength", type=float, help="recommended decoding: share of the schedule")
    parser.add_argument("--steps", type=int, help="recommended decoding: steps of the whole schedule")
    parser.add_argument(
        "--inversion", choices=INVERSION_CONDITIONS, help="recommended decoding: condition of the inversion"
    )
    parser.add_argument("--guidance", type=float, help="recommended decoding: guidance scale")
    parser.add_argument("--search-steps", type=int, default=0, help="recommended encoding (%(default)s)")
    return parser.parse_args()


def keep_curve(run: Path, results: Path, names: dict[str, Path | None]) -> None:
    """metrics.jsonl and final/training.json of a run as one JSON, folders of this machine replaced by `names`."""
    facts = json.dumps(read_json(run / "final" / "training.json"))
    for name, folder in names.items():
        if folder is not None:
            facts = facts.replace(str(folder), name)
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    write_json(results / f"{run.name}.json", {"training": json.loads(facts), "curve": rows})


def main() -> None:
    arguments = read_arguments()
    diffusion = DiffusionDecoder.from_pretrained(arguments.decoder or arguments.diffusion / "final")
    given = {
        "start": arguments.start, "strength": arguments.strength, "num_inference_steps": arguments.steps,
        "guidance_scale": arguments.guidance, "inversion_condition": arguments.inversion,
    }  # fmt: skip
    chosen = {name: value for name, value in given.items() if value is not None}
    diffusion.config = replace(diffusion.config, decode_defaults=replace(diffusion.config.decode_defaults, **chosen))
    tokenizer = HybridTokenizer(
        GuideTokenizer.from_pretrained(arguments.guide / "final"),
        SemanticTokenizer.from_pretrained(arguments.semantic / "final"),
        diffusion,
        name=arguments.name,
        search_steps=arguments.search_steps,
    )
    folder = PRESETS / arguments.name
    card = (folder / "README.md").read_bytes() if (folder / "README.md").exists() else None
    if folder.exists():
        shutil.rmtree(folder)
    tokenizer.save_pretrained(folder, dtype=torch.float16, max_shard_size=SHARD)
    if card is not None:  # written by hand
        (folder / "README.md").write_bytes(card)
    for run in (arguments.guide, arguments.semantic, arguments.diffusion, *arguments.stages):
        keep_curve(run, arguments.results, {"$DATA": arguments.data, "$RUNS": arguments.runs})
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    print(f"{folder}: {size / 1e6:.1f} MB, hash {tokenizer.hash}")


if __name__ == "__main__":
    try:
        main()
    except HybridTokenizerError as error:
        raise SystemExit(f"error: {error}") from None
