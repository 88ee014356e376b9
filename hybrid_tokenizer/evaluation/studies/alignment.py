"""Rows x pairs x scores: the scores of every row, then who wins against whom."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from hybrid_tokenizer.devices import rank_and_world_size, sum_over_ranks
from hybrid_tokenizer.errors import HybridTokenizerError
from hybrid_tokenizer.evaluation.config import REAL, SCORES
from hybrid_tokenizer.evaluation.loop import RowStore, reconstruct, resize_to
from hybrid_tokenizer.evaluation.pairs import Pairs
from hybrid_tokenizer.evaluation.published import published_alignment
from hybrid_tokenizer.evaluation.scores import TextImageScore
from hybrid_tokenizer.evaluation.summary import Evaluation
from hybrid_tokenizer.images import to_uint8
from hybrid_tokenizer.metrics.statistics import bootstrap_interval
from hybrid_tokenizer.metrics.win_rates import best_shares, softmax_shares, win_rates
from hybrid_tokenizer.protocol import ImageTokenizer

UNRELATED = "unrelated"
FACTS = ("num_tokens", "bits", "seconds")


@torch.no_grad()
def score_row(
    tokenizer: ImageTokenizer,
    pairs: Pairs,
    scores: Sequence[TextImageScore],
    *,
    seeds: Sequence[int] = (0,),
    batch_size: int = 8,
    device: torch.device | str = "cpu",
    pictures: int = 0,
    progress: bool = True,
) -> Evaluation:
    """Every image reconstructed under every seed and scored against its caption; seeds are averaged image by image.

    As `evaluation.evaluate`: one seed for a row that says it is deterministic, a fresh generator a batch, batches shared
    between the processes of a distributed run.
    """
    deterministic = bool(getattr(tokenizer, "deterministic", False))
    run_seeds = list(seeds)[:1] if deterministic else list(seeds)
    images = pairs.images
    values = {name: np.zeros((len(run_seeds), len(images))) for name in (*(s.name for s in scores), *FACTS)}
    kept: dict[int, Tensor] = {}
    rank, world_size = rank_and_world_size()
    total = len(images) * len(run_seeds)
    with tqdm(total=total, desc=tokenizer.name, unit="image", disable=not progress, leave=False) as bar:
        for batch in images.batches(batch_size):
            start, stop = batch.positions.start, batch.positions.stop
            if start // batch_size % world_size != rank:
                continue
            batch = batch._replace(references=batch.references.to(device), next_images=batch.next_images.to(device))
            for i, seed in enumerate(run_seeds):
                output, tokens, seconds = reconstruct(tokenizer, batch, torch.Generator().manual_seed(seed))
                output = output.to(device)
                if i == 0 and start < pictures:
                    kept[start] = to_uint8(output[: pictures - start]).cpu()
                for score in scores:
                    values[score.name][i, start:stop] = score(output, pairs.captions[start:stop]).cpu().numpy()
                values["num_tokens"][i, start:stop] = tokenizer.num_tokens(tokens).cpu().numpy()
                values["bits"][i, start:stop] = tokenizer.bits(tokens).cpu().numpy()
                values["seconds"][i, start:stop] = seconds / len(batch.positions)
                bar.update(len(batch.positions))
    if world_size > 1:
        for table in values.values():  # zero where another process had the batch
            table += sum_over_ranks(torch.from_numpy(table).to(device)).cpu().numpy() - table
        gathered: list[dict[int, Tensor]] = [{} for _ in range(world_size)]
        dist.all_gather_object(gathered, kept)
        kept = {place: shown for of_rank in gathered for place, shown in of_rank.items()}
    means = {name: table.mean(0) for name, table in values.items()}
    row: dict[str, Any] = {"method": tokenizer.name, "seeds": list(seeds), "deterministic": deterministic}
    row |= {"num_tokens": float(means["num_tokens"].mean()), "bits": float(means["bits"].mean())}
    row |= {"seconds_per_image": float(means["seconds"].mean()), "n": len(images), "image_size": images.size}
    if (side := resize_to(tokenizer, images.size)) is not None:
        row["resized"] = f"crop resized {images.size} -> {side} for the tokenizer and its output back, bicubic"
    per_image = [
        {"method": tokenizer.name, "image": name, "caption": caption}
        | {score.name: float(means[score.name][i]) for score in scores}
        for i, (name, caption) in enumerate(zip(images.names, pairs.captions, strict=True))
    ]
    empty = torch.zeros(0, 3, images.size, images.size, dtype=torch.uint8)
    return Evaluation(row, per_image, torch.cat([empty, *(kept[place] for place in sorted(kept))]))


def score_rows(
    tokenizers: Sequence[ImageTokenizer],
    pairs: Pairs,
    scores: Sequence[TextImageScore],
    *,
    store: RowStore | None = None,
    **options: Any,
) -> list[Evaluation]:
    """`score_row` for each tokenizer. Rows that `store` already has are taken from it, the others are kept there."""
    done = []
    for tokenizer in tqdm(tokenizers, desc="rows", unit="row", disable=not options.get("progress", True)):
        row = None if store is None else store.read(tokenizer.name)
        if row is None:
            row = score_row(tokenizer, pairs, scores, **options)
            if store is not None and rank_and_world_size()[0] == 0:
                store.write(tokenizer.name, row)
        done.append(row)
    return done


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
    """The rows of the table from the scores of every image.

    A row gets `scores` (means over images) with `intervals`; `win_rates` by score and `win_rate`, that of `rank_by`: over
    all images and all other rows, the share of comparisons on one and the same image and caption that the row wins, a tie
    counting half (0.5 on average over the rows); `shares`, which add up to 1 over `share_among`: `best` is the share of
    images on which the row has the highest value of `rank_by`, `pickscore` the mean of PickScore's own preference
    probabilities; `differences` to the row `compare_to`, paired; and the paper's values.
    """
    methods = [row.row["method"] for row in done]
    names = [name for name in SCORES if name in done[0].per_image[0]]
    values = {name: np.array([[entry[name] for entry in row.per_image] for row in done]) for name in names}
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
        row = {"method": methods[i], "scores": {name: float(of_row[name].mean()) for name in names}}
        row |= {"win_rate": mean(wins[rank_by][i]), "win_rate_by": rank_by}
        row["win_rates"] = {name: mean(table[i]) for name, table in wins.items()}
        row["shares"] = {kind: float(table[sharing.index(i)].mean()) for kind, table in shares.items() if i in sharing}
        row["intervals"] = {name: interval(table) for name, table in counted.items()}
        row |= published_alignment(methods[i])
        if compare_to in methods and methods[i] != compare_to:
            other = methods.index(compare_to)
            row["difference_to"] = compare_to
            row["differences"] = {name: difference(table[i] - table[other]) for name, table in values.items()}
        rows.append(row | {key: value for key, value in evaluation.row.items() if key != "method"})
    return rows


def mean(values: Float[np.ndarray, "n"]) -> float | None:
    """None for NaN: JSON has none."""
    return None if np.isnan(values).any() else float(values.mean())


def interval(values: Float[np.ndarray, "n"]) -> list[float] | None:
    """95 % bootstrap interval of the mean over images; None under two images or without values."""
    found = None if np.isnan(values).any() else bootstrap_interval(values)
    return None if found is None else list(found)


def difference(values: Float[np.ndarray, "n"]) -> dict[str, Any]:
    """Mean and interval of paired differences."""
    return {"mean": float(values.mean()), "interval": interval(values), "n": len(values)}
