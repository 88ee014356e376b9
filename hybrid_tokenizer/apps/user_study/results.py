"""The results of a study: user_study.json, user_study.md, and user_study.png and .pdf."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hybrid_tokenizer.apps.user_study.scores import agreement, points_of, position_scores, score_rows, win_rates
from hybrid_tokenizer.apps.user_study.study import STUDY_NAME, VOTES_NAME, Study, read_study
from hybrid_tokenizer.apps.user_study.votes import Vote, Votes
from hybrid_tokenizer.checkpoints.files import read_json, write_atomic, write_json
from hybrid_tokenizer.errors import HybridTokenizerError
from hybrid_tokenizer.evaluation.pictures import write_figure
from hybrid_tokenizer.evaluation.tables import METHOD, MISSING, Column, to_markdown
from hybrid_tokenizer.provenance import provenance

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SCORE_COLUMNS = [
    METHOD,
    Column("score", "average score ↑", ".2f"),
    Column("sets", "95 % over images", ""),
    Column("participants", "95 % over participants", ""),
    Column("first", "first", ".0%"),
    Column("published_score", "the paper's score", ".2f"),
]


def write_results(folder: Path, output: Path, complete_only: bool = False) -> str:
    """Write the results of a study and return the Markdown. `complete_only` uses only participants who voted on every set."""
    study = read_study(folder)
    if not (folder / VOTES_NAME).is_file():
        raise HybridTokenizerError(f"{folder / VOTES_NAME} does not exist; serve the study first and collect votes")
    stored = Votes(folder / VOTES_NAME, study.id)
    try:
        votes = stored.all()
    finally:
        stored.close()
    report = results(study, votes, complete_only)
    report["provenance"] = provenance() | {"study": read_json(folder / STUDY_NAME)["provenance"]}
    table = report_markdown(report)
    write_json(output / "user_study.json", report)
    write_atomic(output / "user_study.md", table.encode())
    write_figure(output / "user_study", draw(report))
    return table


def results(study: Study, votes: Sequence[Vote], complete_only: bool = False) -> dict[str, Any]:
    """Rows, pairs, agreement and counts. Raises if there is no vote."""
    counts = Counter(vote.code for vote in votes)
    complete = {code for code, count in counts.items() if count == len(study.sets)}
    if complete_only:
        votes = [vote for vote in votes if vote.code in complete]
    if not votes:
        what = "complete sheet" if complete_only else "vote"
        raise HybridTokenizerError(f"study {study.id} has no {what} yet; collect at least one first")
    points = points_of(study, votes)
    return {
        "rows": score_rows(study.methods, points),
        "pairs": win_rates(study.methods, points),
        "agreement": agreement(points),
        "position_scores": position_scores(votes),
        "votes": len(votes),
        "participants": len(points),
        "complete": len(complete),
        "sets": len(study.sets),
        "complete_only": complete_only,
    }


def report_markdown(report: dict[str, Any]) -> str:
    """Tables of the scores, with the paper's, and of the win rates, and notes on how to read them."""
    rows = [
        row | {"sets": _span(row["interval_over_sets"]), "participants": _span(row["interval_over_participants"])}
        for row in report["rows"]
    ]
    methods = [row["method"] for row in rows]
    rates = [
        {"method": method}
        | {_rate_key(pair["other"]): _rate(pair) for pair in report["pairs"] if pair["method"] == method}
        for method in methods
    ]
    alpha = report["agreement"]["alpha"]
    positions = " / ".join(f"{score:.2f}" for score in report["position_scores"])
    notes = [
        f"{report['votes']} votes by {report['participants']} participants on {report['sets']} sets; {report['complete']} "
        f"participants voted on all sets. First place is {len(methods)} points, last place 1. Ties share a place.",
        f"Krippendorff's alpha ({report['agreement']['scale']}): {MISSING if alpha is None else f'{alpha:.3f}'}. "
        f"Average score by position on the page, from the left: {positions}.",
    ]
    if any(row["published_score"] is not None for row in rows):
        notes.append(
            "The paper's scores are those of SEED, LaVIT and its own model, ranked by 15 volunteers on 25 sets of "
            "ImageNet; a score depends on the methods it was ranked against."
        )
    return (
        to_markdown(rows, SCORE_COLUMNS)
        + "\nShare of votes that rank the row's method before the column's, with ties as half:\n\n"
        + to_markdown(rates, [METHOD, *(Column(_rate_key(method), method, "") for method in methods)])
        + "\n"
        + "\n".join(notes)
        + "\n"
    )


def draw(report: dict[str, Any]) -> "Figure":
    """A bar chart of the scores with intervals over images and the paper's scores, beside a table of win rates."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows, methods = report["rows"], [row["method"] for row in report["rows"]]
    figure = Figure(figsize=(8.4, 1.6 + 0.5 * len(rows)), layout="constrained")
    FigureCanvasAgg(figure)
    scores, rates = figure.subplots(1, 2, width_ratios=[1.3, 1])
    heights = range(len(rows))
    scores.barh(heights, [row["score"] for row in rows], height=0.6, color="#7aa6c2")
    for height, row in zip(heights, rows, strict=True):
        if row["interval_over_sets"] is not None:
            scores.plot(row["interval_over_sets"], [height, height], color="black", lw=1.5, label="95 %, images")
        if row["published_score"] is not None:
            scores.plot(row["published_score"], height, "D", color="#c0392b", ms=6, label="the paper's")
    scores.set_yticks(heights, methods)
    scores.invert_yaxis()
    scores.set_xlim(0, len(rows) + 0.15)
    scores.set_xlabel("average score")
    entries = dict(zip(*reversed(scores.get_legend_handles_labels()), strict=True))
    if entries:
        scores.legend(
            entries.values(),
            entries.keys(),
            fontsize=7,
            loc="lower left",
            bbox_to_anchor=(0, 1),
            ncols=2,
            frameon=False,
        )
    table = np.full((len(rows), len(rows)), np.nan)
    for pair in report["pairs"]:
        table[methods.index(pair["method"]), methods.index(pair["other"])] = pair["win_rate"]
    rates.imshow(table, vmin=0, vmax=1, cmap="RdBu")
    for (y, x), value in np.ndenumerate(table):
        if np.isfinite(value):
            rates.text(
                x, y, f"{value:.0%}", ha="center", va="center", color="white" if abs(value - 0.5) > 0.3 else "black"
            )
    rates.set_xticks(heights, methods, rotation=20, ha="right")
    rates.set_yticks(heights, methods)
    rates.set_title("row before column", fontsize=9)
    return figure


def _span(interval: list[float] | None) -> str | None:
    return None if interval is None else f"{interval[0]:.2f} to {interval[1]:.2f}"


def _rate(pair: dict[str, Any]) -> str:
    interval = pair["interval_over_sets"]
    bounds = "" if interval is None else f" [{interval[0]:.0%}, {interval[1]:.0%}]"
    return f"{pair['win_rate']:.0%}{bounds}"


def _rate_key(method: str) -> str:
    return f"before {method}"
