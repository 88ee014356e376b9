"""Which way of decoding to recommend: start x strength x steps x guidance over a folder of images.

The choice reads PSNR and `effnet_lite1_distance` only: the decoder was trained on lite0's features, and a setting that pleases
that network may please no other. The measures that judge the preset are kept out of it: three are not
computed here, and the share of high-frequency energy is shown and never read.
"""

import io
import itertools
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from hybrid_tokenizer import perceptual
from hybrid_tokenizer.checkpoints.files import write_atomic, write_json
from hybrid_tokenizer.diffusion import DecodeOptions
from hybrid_tokenizer.errors import HybridTokenizerError
from hybrid_tokenizer.evaluation.images import EvalImages
from hybrid_tokenizer.evaluation.summary import Metric, mean_and_interval
from hybrid_tokenizer.hybrid import HybridTokenizer
from hybrid_tokenizer.images import resize_bicubic
from hybrid_tokenizer.metrics import pixel

DISTANCE = "effnet_lite1_distance"
CHOSEN_BY = ("psnr", DISTANCE)
NEVER_READ = ("effnet_lite2_distance", "haarpsi", "mdsi", "high_frequency_energy")
OPTIONS = ("start", "inversion_condition", "strength", "num_inference_steps", "guidance_scale")


def sweep_metrics(device: torch.device | str) -> list[Metric]:
    """What the table of the sweep shows."""
    lite1 = perceptual.EfficientNetDistance("lite1").to(device)
    return [
        Metric("psnr", pixel.psnr),
        Metric("ssim", pixel.ssim),
        Metric(DISTANCE, lambda x, y: perceptual.efficientnet_distance(lite1, x, y)),
        Metric("high_frequency_energy", pixel.high_frequency_energy, geometric=True),
    ]


@torch.no_grad()
def sweep(
    tokenizer: HybridTokenizer,
    images: EvalImages,
    settings: Sequence[DecodeOptions],
    metrics: Sequence[Metric],
    *,
    seed: int = 0,
    batch_size: int = 8,
    progress: bool = True,
) -> list[dict[str, Any]]:
    """A row for the decoded guide alone, one for strength 0, and one a setting; every image is encoded once."""
    guide_only, round_trip = {"method": "guide_only"}, {"method": "strength 0"}
    rows = [guide_only, round_trip, *({"method": setting_name(s), **options_of(s)} for s in settings)]
    decodings: list[DecodeOptions | None] = [None, DecodeOptions(strength=0.0), *settings]
    values = [{metric.name: np.zeros(len(images)) for metric in metrics} for _ in rows]
    seconds = np.zeros(len(rows))
    with tqdm(total=len(rows) * len(images), desc="sweep", unit="image", disable=not progress) as bar:
        for batch in images.batches(batch_size):
            references = batch.references.to(tokenizer.device)
            # tokens that were searched for under one setting would speak for it
            tokens = tokenizer.encode(references, search_steps=0)
            for i, options in enumerate(decodings):
                start = time.perf_counter()
                if options is None:
                    guide = tokenizer.decode_guide(tokens.guide_indices, tokens.image_size)
                    output = resize_bicubic(guide, tokens.image_size).clamp(-1, 1)
                else:
                    generator = torch.Generator().manual_seed(seed)
                    output = tokenizer.decode(tokens, generator=generator, **options_of(options))
                for metric in metrics:
                    values[i][metric.name][batch.positions] = metric.measure(output, references).cpu().numpy()
                seconds[i] += time.perf_counter() - start
                bar.update(len(references))
    for row, measured, taken in zip(rows, values, seconds, strict=True):
        row["intervals"] = {}
        for metric in metrics:
            of_image = measured[metric.name]
            row[metric.name], row["intervals"][metric.name] = mean_and_interval(of_image[np.isfinite(of_image)], metric)
        row |= {"seconds_per_image": taken / len(images), "n": len(images)}
    return rows


def options_of(options: DecodeOptions) -> dict[str, Any]:
    """The swept options by name."""
    return {name: getattr(options, name) for name in OPTIONS}


def setting_name(options: DecodeOptions) -> str:
    """Short and unique in a sweep."""
    start = start_name(options.start, options.inversion_condition)
    return f"{start} s{options.strength:g} n{options.num_inference_steps} g{options.guidance_scale:g}"


def start_name(start: str, inversion_condition: str) -> str:
    """With the condition of the inversion where it is not the usual one."""
    usual = start != "ddim_inversion" or inversion_condition == "generation"
    return start if usual else f"{start} ({inversion_condition})"


def recommend(rows: Sequence[dict[str, Any]], psnr_margin: float) -> dict[str, Any]:
    """The setting with the smallest distance among those within `psnr_margin` dB of the best PSNR.

    Between equal distances the smaller share of U-Net steps. Rows that take no step are references, not candidates.
    """
    candidates = [row for row in rows if "start" in row and all(row[name] is not None for name in CHOSEN_BY)]
    if not candidates:
        raise HybridTokenizerError("no setting of the sweep has a finite PSNR and distance; sweep at least one")
    best = max(row["psnr"] for row in candidates)
    close = [row for row in candidates if row["psnr"] >= best - psnr_margin]
    return min(close, key=lambda row: (row[DISTANCE], row["num_inference_steps"] * row["strength"]))


def rule(psnr_margin: float) -> str:
    """`recommend` in words, for the record."""
    return (
        f"among the settings with at least one step whose mean PSNR is within {psnr_margin:g} dB of the best setting's, the "
        f"one with the smallest mean {DISTANCE}; ties go to fewer U-Net steps"
    )


def write_sweep(
    folder: Path, rows: Sequence[dict[str, Any]], psnr_margin: float, provenance: dict[str, Any]
) -> dict[str, Any]:
    """eval_decode.json, eval_decode.md and eval_decode.png. Returns the recommended options."""
    chosen = recommend(rows, psnr_margin)
    recommended = {name: chosen[name] for name in OPTIONS}
    report = {
        "rows": list(rows),
        "recommended": recommended,
        "rule": rule(psnr_margin),
        "chosen_by": list(CHOSEN_BY),
        "never_read_by_the_choice": list(NEVER_READ),
        "provenance": provenance,
    }
    write_atomic(folder / "eval_decode.md", to_markdown(rows, chosen, psnr_margin).encode())
    write_atomic(folder / "eval_decode.png", plot(rows, chosen))
    write_json(folder / "eval_decode.json", report)
    return recommended


def to_markdown(rows: Sequence[dict[str, Any]], chosen: dict[str, Any], psnr_margin: float) -> str:
    """The table, best PSNR first below the references, the recommended row in bold."""
    columns = ("psnr", "ssim", DISTANCE, "high_frequency_energy", "seconds_per_image")
    headings = ("PSNR ↑", "SSIM ↑", "EffNet-lite1 ↓", "HF energy, 1 is right", "s/image")
    lines = ["| setting | " + " | ".join(headings) + " |", "|---|" + "---:|" * len(columns)]
    references = [row for row in rows if "start" not in row]
    ranked = sorted((row for row in rows if "start" in row), key=lambda row: -(row["psnr"] or 0))
    for row in (*references, *ranked):
        name = f"**{row['method']}**" if row is chosen else row["method"]
        cells = ["–" if row[key] is None else f"{row[key]:.3f}" for key in columns]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    lines += [
        "",
        f"Recommended: {chosen['method']}. Rule: {rule(psnr_margin)}.",
        f"{chosen['n']} images. s: strength, n: steps of the whole schedule, g: guidance scale. "
        "High-frequency energy is shown and not read by the choice.",
    ]
    return "\n".join(lines) + "\n"


def plot(rows: Sequence[dict[str, Any]], chosen: dict[str, Any]) -> bytes:
    """Distortion against feature distance and against sharpness, a PNG. The recommended setting is ringed."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, 2)
    name_of = {id(row): start_name(row["start"], row["inversion_condition"]) for row in rows if "start" in row}
    starts = list(dict.fromkeys(name_of.values()))
    guidances = sorted({row["guidance_scale"] for row in rows if "start" in row})
    for panel, (key, label) in zip(
        panels, ((DISTANCE, "EffNet-lite1 distance"), ("high_frequency_energy", "high-frequency energy, 1 is right")), strict=True
    ):  # fmt: skip
        for start, guidance in itertools.product(starts, guidances):
            line = [row for row in rows if name_of.get(id(row)) == start and row["guidance_scale"] == guidance]
            for steps in sorted({row["num_inference_steps"] for row in line}):
                points = sorted((r for r in line if r["num_inference_steps"] == steps), key=lambda row: row["strength"])
                panel.plot(
                    [row["psnr"] for row in points], [row[key] for row in points],
                    marker="osD^"[starts.index(start) % 4], ms=4, lw=1, label=f"{start}, n{steps}, g{guidance:g}",
                )  # fmt: skip
                for row in points:
                    panel.annotate(f"{row['strength']:g}", (row["psnr"], row[key]), fontsize=6, xytext=(3, 3), textcoords="offset points")  # fmt: skip
        for i, row in enumerate(row for row in rows if "start" not in row):
            panel.plot(row["psnr"], row[key], "*x+"[i % 3], color="black", ms=8, label=row["method"])
        panel.plot(chosen["psnr"], chosen[key], "o", ms=13, mfc="none", mec="black", label="recommended")
        panel.set_xlabel("PSNR, dB")
        panel.set_ylabel(label)
        panel.grid(alpha=0.3)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right upper", fontsize=7)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    return buffer.getvalue()
