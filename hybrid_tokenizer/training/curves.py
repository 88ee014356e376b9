"""Draws training curves: a figure of small panels from the rows that runs logged."""

import io
import math
from pathlib import Path
from typing import Any

from hybrid_tokenizer.checkpoints.files import read_json
from hybrid_tokenizer.errors import HybridTokenizerError

Curves = dict[str, list[tuple[int, float]]]
"""Name of a loss or validation figure -> its (step, value) pairs, in the order of training."""

NOT_DRAWN = ("step", "lr", "grad_norm", "waited_for_data")
VALIDATION = "val_"
COLUMNS, WIDTH, HEIGHT = 5, 2.6, 2.0  # panels per row; size of a panel in inches


def read_curves(path: Path) -> Curves:
    """The curves of a file that tools/pack_preset.py wrote, losses first, then validation figures (`val_...`).

    Raises for files of another kind.
    """
    content = read_json(path)
    rows = content.get("curve") if isinstance(content, dict) else None
    if not isinstance(rows, list) or not all(
        isinstance(row, dict) and isinstance(row.get("step"), int) for row in rows
    ):
        raise HybridTokenizerError(f"{path} holds no curve; give a file that tools/pack_preset.py wrote")
    curves: Curves = {}
    for row in rows:
        for name, value in row.items():
            if name not in NOT_DRAWN and _is_number(value):
                curves.setdefault(name, []).append((row["step"], value))
    if not curves:
        raise HybridTokenizerError(f"{path} has an empty curve; the run logged nothing")
    return dict(sorted(curves.items(), key=lambda curve: curve[0].startswith(VALIDATION)))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def draw_curves(runs: dict[str, Curves]) -> bytes:
    """A PNG with a block of panels per run. Losses and validation figures have different colours."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    heights = [math.ceil(len(curves) / COLUMNS) for curves in runs.values()]
    figure = Figure(figsize=(COLUMNS * WIDTH, sum(heights) * HEIGHT + 0.4 * len(runs)), layout="constrained")
    blocks = figure.subfigures(len(runs), 1, height_ratios=heights, squeeze=False)[:, 0]
    for block, height, (run, curves) in zip(blocks, heights, runs.items(), strict=True):
        block.suptitle(run, x=0.01, ha="left", fontweight="bold")
        panels = block.subplots(height, COLUMNS, squeeze=False).ravel()
        for panel, (name, points) in zip(panels[: len(curves)], curves.items(), strict=True):
            of_validation = name.startswith(VALIDATION)
            steps, values = zip(*points, strict=True)
            panel.plot(
                steps, values, color="C1" if of_validation else "C0", marker="." if of_validation else None, linewidth=1
            )
            panel.set_title(name.removeprefix(VALIDATION) + (" (validation)" if of_validation else ""), fontsize=8)
            panel.tick_params(labelsize=7)
            panel.set_xlabel("step", fontsize=7)
        for panel in panels[len(curves) :]:
            panel.set_axis_off()
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer)
    return buffer.getvalue()
