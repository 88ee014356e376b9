"""Held-out perplexity: against unigrams, of searched tokens against one-pass tokens, and at each budget."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Float64

from hybrid_tokenizer.language.documents import CAPTION, TEXT, Document, TokenRows, compose
from hybrid_tokenizer.language.model import LanguageModel
from hybrid_tokenizer.language.scores import TokenScores, score_documents, summarize_kinds
from hybrid_tokenizer.language.unigrams import code_groups, code_table, text_unigram_loss, unigram_losses
from hybrid_tokenizer.language.vocabulary import budgets, document_boundaries, text_ids_of
from hybrid_tokenizer.metrics.statistics import bootstrap_interval

MAX_CAPTION_TOKENS = 48
Rows = TokenRows | Sequence[Mapping[str, Any]]
"""Of token shards, or in memory."""


def mean_and_interval(values: Float[np.ndarray, "n"]) -> dict[str, Any]:
    """Mean over images with its 95 % bootstrap interval. For differences of pairs the interval is the paired one."""
    interval = bootstrap_interval(values)
    return {"mean": float(values.mean()), "interval": None if interval is None else list(interval), "n": len(values)}


def row_documents(lm: LanguageModel, rows: Rows, image_first: bool) -> list[Document]:
    """Each row with its first caption, at the full budget."""
    boundaries = document_boundaries(lm.tokenizer)
    documents = []
    for index in range(len(rows)):
        texts = list(rows[index]["captions"])[:1]
        caption = text_ids_of(lm.tokenizer, texts, MAX_CAPTION_TOKENS)[0] if texts else []
        num_grids = len(lm.vocabulary.grid_shapes)
        documents.append(compose(rows[index], caption, num_grids, image_first, lm.vocabulary, boundaries))
    return documents


def code_losses(lm: LanguageModel, scores: TokenScores, num_documents: int) -> Float64[np.ndarray, "n c"]:
    """Losses of the image codes, in the order of `code_table`."""
    names = len(code_groups(lm.vocabulary))
    codes = np.isin(scores.kinds, range(3, 3 + names))
    return scores.losses[codes].reshape(num_documents, -1)


def against_unigrams(lm: LanguageModel, training: Rows, held_out: Rows, row_length: int) -> dict[str, Any]:
    """Per kind of token: the model's loss, those of both unigrams, and how far the model is below the per-position one."""
    captioned = row_documents(lm, held_out, image_first=False)
    scores = score_documents(lm.model, captioned, lm.vocabulary, row_length)
    model = code_losses(lm, scores, len(held_out))
    train_codes, held_codes = code_table(training), code_table(held_out)
    result: dict[str, Any] = {}
    for name, columns, size in code_groups(lm.vocabulary):
        unigram = unigram_losses(train_codes[:, columns], held_codes[:, columns], size)
        ours, theirs = model[:, columns], unigram.per_position
        result[name] = {
            "loss": float(ours.mean()),
            "perplexity": math.exp(ours.mean()),
            "unigram_loss": float(unigram.over_all.mean()),
            "per_position_unigram_loss": float(theirs.mean()),
            "below_per_position": 1 - float(ours.mean() / theirs.mean()),
            "difference": mean_and_interval((ours - theirs).mean(1)),
        }
    figures = summarize_kinds(scores, lm.vocabulary)
    result["accuracy"] = {name: figures[name] for name in ("accuracy_semantic", "accuracy_first_semantic")}
    result["text"] = _text_against_unigram(lm, training, captioned, scores, row_length, held_out)
    return result


def _text_against_unigram(
    lm: LanguageModel,
    training: Rows,
    captioned: list[Document],
    scores: TokenScores,
    row_length: int,
    held_out: Rows,
) -> dict[str, Any] | None:
    """Captions before their image, after it, and by frequency; None without captions."""
    before = scores.losses[scores.kinds == TEXT]
    if not len(before):
        return None
    image_first = score_documents(lm.model, row_documents(lm, held_out, True), lm.vocabulary, row_length)
    held = np.concatenate([document.ids[document.kinds == TEXT] for document in captioned])
    captions = [text for index in range(len(training)) for text in training[index]["captions"]]
    ids = text_ids_of(lm.tokenizer, captions, MAX_CAPTION_TOKENS)
    return {
        "loss": float(before.mean()),
        "loss_after_image": float(image_first.losses[image_first.kinds == CAPTION].mean()),
        "unigram_loss": text_unigram_loss(ids, held.tolist(), lm.vocabulary.begin_id),
    }


def at_budgets(lm: LanguageModel, rows: Rows, row_length: int) -> list[dict[str, Any]]:
    """Bits per image and perplexity per token of the first 36, 52, ... tokens. A prefix's losses are those of the whole."""
    scores = score_documents(lm.model, row_documents(lm, rows, False), lm.vocabulary, row_length)
    losses = code_losses(lm, scores, len(rows))
    return [
        {
            "budget": total,
            "perplexity": math.exp(losses[:, :total].mean()),
            "bits_per_image": mean_and_interval(losses[:, :total].sum(1) / math.log(2)),
        }
        for total in budgets(lm.vocabulary)
    ]


def price_of_search(
    lm: LanguageModel,
    one_pass: Sequence[Mapping[str, Any]],
    searched: Sequence[Mapping[str, Any]],
    row_length: int,
) -> dict[str, Any]:
    """Loss per kind of token of the same images' one-pass and searched tokens, and the paired difference."""
    losses = []
    for rows in (one_pass, searched):
        scores = score_documents(lm.model, row_documents(lm, rows, False), lm.vocabulary, row_length)
        losses.append(code_losses(lm, scores, len(rows)))
    groups = [*code_groups(lm.vocabulary), ("all", slice(None), 0)]
    return {
        name: {
            "one_pass_loss": float(losses[0][:, columns].mean()),
            "searched_loss": float(losses[1][:, columns].mean()),
            "difference": mean_and_interval((losses[1] - losses[0])[:, columns].mean(1)),
        }
        for name, columns, _ in groups
    }
