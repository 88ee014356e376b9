"""Rate and distortion of every row of a table in one picture."""

import io
from collections.abc import Sequence
from typing import Any

PANELS = {
    "psnr": "PSNR, dB",
    "ssim": "SSIM",
    "effnet_lite2_distance": "EffNet-lite2 distance, less is better",
    "lpips": "LPIPS",
}
CODEC = "codec"
COSTLESS = ("unrelated",)


def draw_rates(rows: Sequence[dict[str, Any]]) -> bytes:
    """Bits a pixel against each measure that the rows have, a PNG; codecs are a line. Rows that cost nothing are left out."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    costing = [row for row in rows if row.get("bits_per_pixel") and row["method"] not in COSTLESS]
    shown = [key for key in PANELS if any(row.get(key) is not None for row in costing)] or ["psnr"]
    figure = Figure(figsize=(5.2 * len(shown), 4.4), layout="constrained")
    FigureCanvasAgg(figure)
    for panel, key in zip(figure.subplots(1, len(shown), squeeze=False)[0], shown, strict=True):
        points = [row for row in costing if row.get(key) is not None]
        codecs = sorted((row["bits_per_pixel"], row[key]) for row in points if row["method"].startswith(CODEC))
        if codecs:
            panel.plot(*zip(*codecs, strict=True), "k--o", ms=4, lw=1)
        for number, row in enumerate(points):
            if not row["method"].startswith(CODEC):
                panel.plot(row["bits_per_pixel"], row[key], "o", ms=5)
            offset = (4, 4 + 8 * (number % 3))  # methods of one price stand above each other
            panel.annotate(
                row["method"], (row["bits_per_pixel"], row[key]), xytext=offset, textcoords="offset points", fontsize=6
            )
        panel.set_xscale("log")
        panel.set_xlabel("bits a pixel")
        panel.set_ylabel(PANELS[key])
        panel.grid(alpha=0.3)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    return buffer.getvalue()
