"""The plot of an inspection, as PNG."""

import io
from collections.abc import Sequence
from typing import Any


def draw_use(kinds: Sequence[dict[str, Any]]) -> bytes:
    """Entropy at each position beside the bits of a uniform code, and the bits of each kind under both codes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4), layout="constrained")
    FigureCanvasAgg(figure)
    entropies, bits = figure.subplots(1, 2, width_ratios=[3, 2])
    first = 0
    for kind in kinds:
        positions = range(first, first + kind["tokens"])
        entropies.plot(positions, kind["entropy_per_position"], ".-", ms=3, lw=0.7, label=kind["kind"])
        entropies.hlines(
            kind["uniform_bits"] / kind["tokens"], positions[0], positions[-1] + 1, color="gray", lw=1, ls=":"
        )
        first += kind["tokens"]
    entropies.set_xlabel("position in the row")
    entropies.set_ylabel("entropy, bits (dotted: uniform)")
    entropies.set_ylim(bottom=0)
    entropies.legend(fontsize=7)
    names = [kind["kind"] for kind in kinds]
    places = range(len(names))
    bits.bar(
        [place - 0.2 for place in places],
        [kind["uniform_bits"] for kind in kinds],
        0.4,
        label="uniform",
        color="lightgray",
    )
    bits.bar([place + 0.2 for place in places], [kind["coded_bits"] for kind in kinds], 0.4, label="adaptive code")
    bits.set_xticks(list(places), names, fontsize=8)
    bits.set_ylabel("bits per image")
    bits.legend(fontsize=8)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    return buffer.getvalue()
