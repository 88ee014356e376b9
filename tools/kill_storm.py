"""Kill training runs with SIGKILL again and again, and check that each ends as an undisturbed one.

    python tools/kill_storm.py --kills 50 --seed 0 --work /tmp/storm --output benchmarks/results/kill_storm.json

The kills are shared out over the scripts: the guide, both stages of the semantic branch (the second with a cache of text
features), the VAE and the U-Net. A storm is one run that is killed at random moments and started again with the same command,
until it finishes; a stage's storms go on until its kills are spent. A storm passes when the final weights, the validation rows
and the validation pictures equal those of the undisturbed run byte for byte, the log is equal but for waiting times, and
nothing half-written is left. Each start is the script itself, in a process forked from one that has imported the libraries.
"""

import argparse
import json
import os
import random
import runpy
import signal
import sys
import time
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from hybrid_tokenizer.checkpoints.files import file_hash, write_json
from hybrid_tokenizer.evaluation.tables import Column, to_markdown
from hybrid_tokenizer.provenance import provenance

ROOT = Path(__file__).resolve().parents[1]
STEPS = 12
CHECKS = ("same_weights", "whole_validation", "same_log", "clean")
MOST_STARTS = 60
"""Of one storm; more is a run that makes no progress."""
LOOP = (
    f"training.max_steps={STEPS}", "training.save_every=2", "training.validate_every=2", "training.log_every=1",
    "training.batch_size=2", "training.warmup_steps=0", "training.learning_rate=0.01", "training.num_threads=1",
    "training.num_workers=1", "training.max_val_images=4", "training.tracker=tensorboard", "training.progress=false",
    "data.image_size=32", "data.val_at_least=4",
)  # fmt: skip
GUIDE = (
    "guide.image_size=32", "guide.norm_num_groups=4", "guide.encoder_channels=[8,8,8]", "guide.decoder_channels=[8,8,8]",
    "guide.quantizer.codebook_size=32",
)  # fmt: skip
SEMANTIC = (
    "semantic.image_size=32", "semantic.patch_size=16", "semantic.vision_width=16", "semantic.vision_layers=1",
    "semantic.vision_heads=2", "semantic.vision_mlp_width=16", "semantic.width=16", "semantic.num_queries=4",
    "semantic.qformer_layers=1", "semantic.qformer_heads=2", "semantic.qformer_mlp_width=16",
    "semantic.decoder_layers=1", "semantic.decoder_heads=2", "semantic.decoder_mlp_width=16",
    "semantic.reverse_layers=1", "semantic.generation_width=384", "semantic.quantizer.codebook_size=16",
    "semantic.quantizer.codebook_dim=4", "contrastive.feature_width=8", "contrastive.distillation=0",
)  # fmt: skip
DIFFUSION = (
    "diffusion.unet.block_out_channels=[32,32,32]", "diffusion.vae.block_out_channels=[8,8,8,8]",
    "diffusion.vae.decoder_channels=8", "vae_loss.perceptual=0",
)  # fmt: skip


class Stage(NamedTuple):
    """A script, its options, and the undisturbed runs that it starts from, by the option that names each."""

    script: str
    options: tuple[str, ...]
    needs: dict[str, str]


STAGES = {
    "guide": Stage("train_guide.py", GUIDE, {}),
    "contrastive": Stage("train_semantic.py", ("stage=contrastive", *SEMANTIC), {}),
    "quantize": Stage(
        "train_semantic.py", ("stage=quantize", "quantize.text_cache_mb=1", *SEMANTIC), {"semantic.init": "contrastive"}
    ),
    "vae": Stage("pretrain_diffusion.py", ("stage=vae", *DIFFUSION), {}),
    "unet": Stage(
        "pretrain_diffusion.py", ("stage=unet", *DIFFUSION),
        {"diffusion.init": "vae", "semantic_folder": "quantize", "guide_folder": "guide"},
    ),
}  # fmt: skip
COLUMNS = (
    Column("stage", "script"), Column("kills", "kills"), Column("storms", "storms"), Column("starts", "starts"),
    Column("resumed", "starts that resumed"), Column("same_weights", "same weights"),
    Column("whole_validation", "whole validation"), Column("same_log", "same log"), Column("clean", "nothing left over"),
)  # fmt: skip


def preload() -> None:
    """Import what the scripts import, so that a start takes no seconds for it."""
    torch.set_num_threads(1)  # a fork must find no other threads
    for command in ("train_guide", "train_semantic", "pretrain_diffusion"):
        import_module(f"hybrid_tokenizer.commands.{command}")
    for library in (
        "transformers",
        "diffusers",
        "efficientnet_lite_pytorch",
        "tensorboard.summary.writer.record_writer",
    ):
        import_module(library)


def write_pairs(folder: Path, count: int = 16) -> None:
    """Pictures with captions of different lengths."""
    folder.mkdir(parents=True)
    rows = []
    for number in range(count):
        coarse = np.random.default_rng(number).integers(0, 256, (4, 5, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((40, 36), Image.Resampling.BICUBIC).save(folder / f"{number:02d}.png")
        captions = [f"picture {number}" + " of many coloured squares" * (number % 4), f"number {number}"]
        rows.append(json.dumps({"file": f"{number:02d}.png", "captions": captions}))
    (folder / "captions.jsonl").write_text("\n".join(rows))


def start(stage: Stage, work: Path, output: Path) -> int:
    """Fork a process that runs the script and writes its lines to `output`.log. Returns its id."""
    init = [f"{option}={work / 'undisturbed' / name / 'final'}" for option, name in stage.needs.items()]
    arguments = [*LOOP, *stage.options, *init, f"data.root={work / 'pairs'}", f"output_dir={output}"]
    sys.stdout.flush()
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        log = os.open(output.with_suffix(".log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(log, 1)
        os.dup2(log, 2)
        sys.argv = [str(ROOT / "scripts" / stage.script), *arguments]
        runpy.run_path(sys.argv[0], run_name="__main__")
        code = 0
    except SystemExit as leaving:
        print(leaving.code, file=sys.stderr)
    finally:
        sys.stdout.flush()
        os._exit(code)


def wait(child: int) -> None:
    """Until a run ends by itself; raises where it failed."""
    _, status = os.waitpid(child, 0)
    if os.waitstatus_to_exitcode(status):
        raise SystemExit(f"error: a run ended with {os.waitstatus_to_exitcode(status)}; see the logs in --work")


def kill_after(child: int, seconds: float) -> bool:
    """SIGKILL a run after some seconds. False where it ended before."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            if os.waitstatus_to_exitcode(status):
                raise SystemExit(f"error: a run ended with {os.waitstatus_to_exitcode(status)}; see the logs in --work")
            return False
        time.sleep(0.005)
    os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


def contents(output: Path) -> dict[str, Any]:
    """What a finished run has written, without times."""
    rows = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    rows = [{name: value for name, value in row.items() if name != "waited_for_data"} for row in rows]
    weights = sorted((output / "final").rglob("*.safetensors"))
    return {
        "weights": {str(path.relative_to(output)): file_hash(path) for path in weights},
        "validation": [row for row in rows if any(name.startswith("val_") for name in row)],
        "pictures": {path.name: file_hash(path) for path in sorted((output / "validation").glob("*"))},
        "log": rows,
        "files": sorted(str(path.relative_to(output)) for path in output.rglob("*") if "tfevents" not in path.name),
    }


def storms(stage: Stage, work: Path, name: str, kills: int, seconds: float, rng: random.Random) -> list[dict[str, Any]]:
    """Runs of one stage with `kills` kills among them, each compared with the undisturbed run.

    Args:
        seconds: an undisturbed run's; kills fall at any moment of it.
    """
    expected = contents(work / "undisturbed" / name)
    done: list[dict[str, Any]] = []
    while sum(len(storm["kills"]) for storm in done) < kills:
        left = kills - sum(len(storm["kills"]) for storm in done)
        output = work / "storms" / f"{name}-{len(done):02d}"
        output.parent.mkdir(parents=True, exist_ok=True)
        moments: list[float] = []
        for _ in range(MOST_STARTS):
            child = start(stage, work, output)
            if len(moments) == left:
                wait(child)
                break
            moment = rng.uniform(0, seconds)
            if not kill_after(child, moment):
                break
            moments.append(moment)
        found, said = contents(output), output.with_suffix(".log").read_text()
        done.append(
            {
                "kills": [round(moment, 3) for moment in moments],
                "resumed_from": [int(line.split()[-1]) for line in said.splitlines() if line.startswith("resumed from step")],
                "same_weights": found["weights"] == expected["weights"],
                "whole_validation": all(found[what] == expected[what] for what in ("validation", "pictures")),
                "same_log": found["log"] == expected["log"],
                "clean": found["files"] == expected["files"],
            }
        )  # fmt: skip
        print(name, json.dumps(done[-1]), flush=True)
    return done


def summary(name: str, done: list[dict[str, Any]]) -> dict[str, Any]:
    """A stage's row of the table."""
    kills = sum(len(storm["kills"]) for storm in done)
    row: dict[str, Any] = {
        "stage": name,
        "kills": kills,
        "storms": len(done),
        "starts": kills + len(done),
        "resumed": sum(len(storm["resumed_from"]) for storm in done),
    }
    return row | {what: f"{sum(storm[what] for storm in done)} of {len(done)}" for what in CHECKS}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=50, help="over all stages")
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, required=True, help="a new folder for pictures and runs")
    parser.add_argument("--output", type=Path, required=True, help="the results, as JSON")
    options = parser.parse_args()
    preload()
    write_pairs(options.work / "pairs")
    (options.work / "undisturbed").mkdir()
    began = time.monotonic()
    results, rows = {}, []
    for number, name in enumerate(options.stages):
        started = time.monotonic()
        wait(start(STAGES[name], options.work, options.work / "undisturbed" / name))
        seconds = time.monotonic() - started
        share = (options.kills * (number + 1)) // len(options.stages) - (options.kills * number) // len(options.stages)
        done = storms(STAGES[name], options.work, name, share, seconds, random.Random(f"{options.seed} {name}"))
        results[name] = {"undisturbed_seconds": round(seconds, 2), "storms": done}
        rows.append(summary(name, done))
    facts = {"kills": options.kills, "seed": options.seed, "steps": STEPS, "seconds": round(time.monotonic() - began)}
    write_json(options.output, {**facts, "rows": rows, "stages": results, "provenance": provenance()})
    print(to_markdown(rows, COLUMNS))
    failed = [
        name for name, one in results.items() if not all(storm[what] for storm in one["storms"] for what in CHECKS)
    ]
    if failed:
        raise SystemExit(f"error: {', '.join(failed)} did not end as undisturbed")


if __name__ == "__main__":
    main()
