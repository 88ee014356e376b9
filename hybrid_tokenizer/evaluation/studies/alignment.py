"""Scores of decoded images against captions (the paper's Table 3): who wins against whom, and the files of the table."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from torch import Tensor

from hybrid_tokenizer.checkpoints.files import read_json, write_json
from hybrid_tokenizer.errors import HybridTokenizerError
from hybrid_tokenizer.evaluation.config import REAL, SCORES
from hybrid_tokenizer.evaluation.images import EvalBatch
from hybrid_tokenizer.evaluation.loop import evaluate_rows
from hybrid_tokenizer.evaluation.pairs import Pairs
from hybrid_tokenizer.evaluation.pictures import picture_grid, write_png
from hybrid_tokenizer.evaluation.published import published_alignment
from hybrid_tokenizer.evaluation.scores import HEADINGS, TextImageScore
from hybrid_tokenizer.evaluation.summary import COST, Evaluation
from hybrid_tokenizer.evaluation.tables import (
    METHOD,
    Column,
    filled,
    report_markdown,
    write_json_lines,
    write_table,
)
from hybrid_tokenizer.metrics.statistics import bootstrap_interval
from hybrid_tokenizer.metrics.win_rates import best_shares, softmax_shares, win_rates
from hybrid_tokenizer.protocol import ImageTokenizer

UNRELATED = "unrelated"
SCORE_COLUMNS = tuple(Column(name, *HEADINGS[name]) for name in SCORES)
COLUMNS = (
    *SCORE_COLUMNS,
    Column("win_rate", "win rate ↑", ".3f"),
    Column("best_share", "best share ↑", ".3f"),
    Column("pickscore_share", "PickScore share ↑", ".3f"),
    Column("published_image_reward", "ImageReward, the paper's", ".2f"),
    Column("published_pickscore_share", "PickScore, the paper's", ".2f"),
    Column("published_hps_v2", "HPSv2, the paper's", ".2f"),
    *COST,
)
COMPARED = tuple(column._replace(spec=".3f") if column.spec == ".2f" else column for column in SCORE_COLUMNS)
"""The columns of paired differences, which are small."""
KEPT = ("seeds", "deterministic", "num_tokens", "bits", "seconds_per_image", "n", "image_size", "resized")


@dataclass(frozen=True)
class CaptionScore:
    """A score as a measure of the loop: each image is scored against the caption at its position."""

    score: TextImageScore
    captions: Sequence[str]
    geometric: bool = False
    least_side: int = 1

    @property
    def name(self) -> str:
        """The score's."""
        return self.score.name

    def __call__(self, output: Float[Tensor, "b 3 r r"], batch: EvalBatch) -> Float[Tensor, "b"]:
        """The values of a batch."""
        return self.score(output, [self.captions[position] for position in batch.positions])


def score_rows(
    tokenizers: Sequence[ImageTokenizer], pairs: Pairs, scores: Sequence[TextImageScore], **options: Any
) -> list[Evaluation]:
    """Every row's images against their captions. Options as for `evaluate_rows`."""
    return evaluate_rows(tokenizers, pairs.images, [CaptionScore(score, pairs.captions) for score in scores], **options)


def ranked_by(available: Sequence[str], rank_by: str | None) -> str:
    """The score that `win_rate` compares. Raises when it, or every score, is missing."""
    if not available:
        raise HybridTokenizerError(
            "no score has weights; give +score_weights.pickscore=FOLDER_OR_HUB_ID, or train the probe with tools/train_probe.py"
        )
    if rank_by is not None and rank_by not in available:
        raise HybridTokenizerError(
            f"rank_by={rank_by!r} has no weights; give +score_weights.{rank_by}, or rank_by=null"
        )
    return rank_by or next(name for name in SCORES if name in available)


def shared_by(methods: Sequence[str], among: Sequence[str] | None) -> list[str]:
    """The rows whose shares add up to 1. Raises on a name that is no row."""
    if unknown := sorted(set(among or ()) - set(methods)):
        raise HybridTokenizerError(f"share_among names {', '.join(unknown)}; the rows are {', '.join(methods)}")
    return [name for name in methods if (name in among if among is not None else name not in (REAL, UNRELATED))]


def finish_rows(
    done: Sequence[Evaluation], rank_by: str, share_among: Sequence[str] | None = None, compare_to: str = "hybrid"
) -> list[dict[str, Any]]:
    """The rows of the table from the scores per image.

    A row has
    - `scores`: means over images, with `intervals`;
    - `win_rates` by score: over all images and all other rows, the share of comparisons on the same image and caption that
      the row wins, where a tie counts half (the mean over rows is 0.5). `win_rate` is that of `rank_by`;
    - `shares`, which add up to 1 over `share_among`: `best` is the share of images on which the row has the highest value
      of `rank_by`, `pickscore` the mean of PickScore's own preference probabilities;
    - paired `differences` to the row `compare_to`, and the published values.
    """
    methods = [row.row["method"] for row in done]
    names = [name for name in SCORES if name in done[0].per_image[0]]
    values = {name: np.array([[entry[name] for entry in row.per_image] for row in done], dtype=float) for name in names}
    wins = {name: win_rates(table) for name, table in values.items()}
    sharing = [methods.index(name) for name in shared_by(methods, share_among)]
    shares = {"best": best_shares(values[rank_by][sharing])} if sharing else {}
    if sharing and "pickscore" in names:
        shares["pickscore"] = softmax_shares(values["pickscore"][sharing])
    rows = []
    for i, evaluation in enumerate(done):
        of_row = {name: table[i] for name, table in values.items()}
        counted = of_row | {"win_rate": wins[rank_by][i]}
        if i in sharing:
            counted |= {f"{kind}_share": table[sharing.index(i)] for kind, table in shares.items()}
        row = {"method": methods[i], "scores": {name: mean(of_row[name]) for name in names}}
        row |= {"win_rate": mean(wins[rank_by][i]), "win_rate_by": rank_by}
        row["win_rates"] = {name: mean(table[i]) for name, table in wins.items()}
        row["shares"] = {kind: float(table[sharing.index(i)].mean()) for kind, table in shares.items() if i in sharing}
        row["intervals"] = {name: interval(table) for name, table in counted.items()}
        row |= published_alignment(methods[i])
        if compare_to in methods and methods[i] != compare_to:
            other = methods.index(compare_to)
            row["difference_to"] = compare_to
            row["differences"] = {name: difference(table[i] - table[other]) for name, table in values.items()}
        rows.append(row | {key: evaluation.row[key] for key in KEPT if key in evaluation.row})
    return rows


def mean(values: Float[np.ndarray, "n"]) -> float | None:
    """None for NaN, which JSON does not have."""
    return None if np.isnan(values).any() else float(values.mean())


def interval(values: Float[np.ndarray, "n"]) -> list[float] | None:
    """95 % bootstrap interval of the mean over images. None for fewer than two images, or without values."""
    found = None if np.isnan(values).any() else bootstrap_interval(values)
    return None if found is None else list(found)


def difference(values: Float[np.ndarray, "n"]) -> dict[str, Any]:
    """Mean and interval of paired differences."""
    return {"mean": float(values.mean()), "interval": interval(values), "n": len(values)}


def write_alignment(
    folder: Path,
    rows: Sequence[dict[str, Any]],
    done: Sequence[Evaluation],
    captions: Sequence[str],
    provenance: dict[str, Any],
) -> str:
    """alignment.json, per_image.jsonl, alignment.png if there are pictures, and the tables. Returns the Markdown.

    rows: `finish_rows` of `done`.
    """
    entries = [
        {"method": entry["method"], "image": entry["image"], "caption": caption} | entry
        for evaluation in done
        for entry, caption in zip(evaluation.per_image, captions, strict=True)
    ]
    write_json_lines(folder / "per_image.jsonl", entries)
    shown = len(done[0].pictures)
    if shown:
        columns = [(evaluation.row["method"], evaluation.pictures) for evaluation in done]
        write_png(folder / "alignment.png", picture_grid(columns, captions[:shown]))
    write_json(folder / "alignment.json", {"rows": list(rows), "provenance": provenance})
    return write_tables(folder)


def write_tables(folder: Path) -> str:
    """alignment.md, alignment.tex and alignment.csv from alignment.json alone. Returns the Markdown."""
    report = read_json(folder / "alignment.json")
    rows = [flat_row(row) for row in report["rows"]]
    columns = [METHOD, *filled(rows, COLUMNS)]
    markdown = report_markdown(rows, columns, COMPARED) + "\n" + "".join(f"- {line}\n" for line in notes(report))
    return write_table(folder / "alignment", rows, columns, markdown)


def flat_row(row: dict[str, Any]) -> dict[str, Any]:
    """A row whose scores and shares are columns of their own."""
    columns = row["scores"] | {f"{kind}_share": share for kind, share in row["shares"].items()}
    return {key: value for key, value in row.items() if key not in ("scores", "shares", "win_rates")} | columns


def notes(report: dict[str, Any]) -> list[str]:
    """What the columns mean, and the scores that are unavailable."""
    by = report["rows"][0]["win_rate_by"]
    lines = [f"win rate: the share of comparisons with the other rows, on the same image and caption, won by `{by}`"]
    sharing = [row["method"] for row in report["rows"] if row["shares"]]
    if sharing:
        lines.append(f"shares add up to 1 over {', '.join(sharing)}; best: images on which `{by}` is the highest")
    return lines + [
        f"{name} is unavailable: {reason}" for name, reason in report["provenance"]["unavailable_scores"].items()
    ]
