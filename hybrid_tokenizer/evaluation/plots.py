"""The plots of tables and studies, as PNG."""

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

RATE_PANELS = {
    "psnr": "PSNR, dB",
    "ssim": "SSIM",
    "effnet_lite2_distance": "EffNet-lite2 distance, less is better",
    "squeezenet_distance": "SqueezeNet distance, less is better",
    "lpips_alex": "LPIPS-Alex, less is better",
}
CODEC = "codec"
COSTLESS = ("unrelated",)
SWEEP_PANELS = {
    "effnet_lite1_distance": "EffNet-lite1 distance, less is better",
    "high_frequency_energy": "high-frequency energy, 1 is right",
}
GUIDE_PANELS = {
    "psnr": "PSNR at full size, dB",
    "ssim": "SSIM at full size",
    "psnr_at_guide_size": "PSNR at guide size, dB",
}


def draw_rates(rows: Sequence[dict[str, Any]]) -> bytes:
    """Bits per pixel against each measure that the rows have. Codecs are a line; rows without a cost are left out."""
    costing = [row for row in rows if row.get("bits_per_pixel") and row["method"] not in COSTLESS]
    shown = [key for key in RATE_PANELS if any(row.get(key) is not None for row in costing)] or ["psnr"]
    figure, panels = _panels(len(shown), width=5.2)
    for panel, key in zip(panels, shown, strict=True):
        points = [row for row in costing if row.get(key) is not None]
        codecs = sorted((row["bits_per_pixel"], row[key]) for row in points if row["method"].startswith(CODEC))
        if codecs:
            panel.plot(*zip(*codecs, strict=True), "k--o", ms=4, lw=1)
        for number, row in enumerate(points):
            place = (row["bits_per_pixel"], row[key])
            if not row["method"].startswith(CODEC):
                panel.plot(*place, "o", ms=5)
            offset = (4, 4 + 8 * (number % 3))  # methods at one rate would otherwise overlap
            panel.annotate(row["method"], place, xytext=offset, textcoords="offset points", fontsize=6)
        panel.set_xscale("log")
        _label(panel, "bits per pixel", RATE_PANELS[key])
    return _png(figure)


def draw_sweep(rows: Sequence[dict[str, Any]], chosen: dict[str, Any]) -> bytes:
    """PSNR against feature distance and against sharpness; settings of one `family` are a line over the strengths.

    Rows without a start are references. The recommended setting is ringed.
    """
    figure, panels = _panels(len(SWEEP_PANELS), width=5.5)
    settings = sorted((row for row in rows if "start" in row), key=lambda row: row["strength"])
    references = [row for row in rows if "start" not in row]
    starts = sorted({row["start"] for row in settings})
    for panel, (key, label) in zip(panels, SWEEP_PANELS.items(), strict=True):
        for family in sorted({row["family"] for row in settings}):
            points = [row for row in settings if row["family"] == family]
            _line(panel, points, "psnr", key, "osD"[starts.index(points[0]["start"])] + "-", family)
            for row in points:
                place = (row["psnr"], row[key])
                panel.annotate(f"{row['strength']:g}", place, fontsize=6, xytext=(3, 3), textcoords="offset points")
        for i, row in enumerate(references):
            panel.plot(row["psnr"], row[key], "*x+"[i % 3], color="black", ms=8, label=row["method"])
        panel.plot(chosen["psnr"], chosen[key], "o", ms=13, mfc="none", mec="black", label="recommended")
        _label(panel, "PSNR, dB", label)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right upper", fontsize=7)
    return _png(figure)


def draw_guide_rates(rows: Sequence[dict[str, Any]]) -> bytes:
    """Bits per image against PSNR and SSIM. Rows of one `family` are a line; those of kind "lossless" are ceilings."""
    figure, panels = _panels(len(GUIDE_PANELS), width=4.0)
    styles = {"guide": "o-", "movq": "s-", "codec": "k--"}
    for panel, (key, label) in zip(panels, GUIDE_PANELS.items(), strict=True):
        measured = [row for row in rows if row.get(key) is not None]
        for kind, family in dict.fromkeys((row["kind"], row["family"]) for row in measured if row["kind"] in styles):
            points = [row for row in measured if (row["kind"], row["family"]) == (kind, family)]
            name = f"{family}, nested" if kind == "guide" and len(points) > 1 else family
            _line(panel, points, "bits", key, styles[kind], name)
        for row in measured:
            if row["kind"] == "lossless":
                panel.axhline(row[key], color="gray", lw=0.7, ls=":")
                place = (0, row[key])
                panel.annotate(row["method"], place, xycoords=("axes fraction", "data"), fontsize=6, va="bottom")
        panel.set_xscale("log", base=2)
        _label(panel, "bits per image", label)
    panels[0].legend(fontsize=7)
    return _png(figure)


def _panels(count: int, width: float) -> "tuple[Figure, list[Axes]]":
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width * count, 4.4), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, list(figure.subplots(1, count, squeeze=False)[0])


def _line(panel: "Axes", points: Sequence[dict[str, Any]], x: str, y: str, style: str, label: str) -> None:
    panel.plot([row[x] for row in points], [row[y] for row in points], style, ms=4, lw=1, label=label)


def _label(panel: "Axes", x: str, y: str) -> None:
    panel.set_xlabel(x)
    panel.set_ylabel(y)
    panel.grid(alpha=0.3)


def _png(figure: "Figure") -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    return buffer.getvalue()
