"""Pictures and captions that a language model makes, measured: scores against captions, distances, memory of the training."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from hybrid_tokenizer.errors import HybridTokenizerError
from hybrid_tokenizer.hybrid import HybridTokenizer
from hybrid_tokenizer.images import resize_area
from hybrid_tokenizer.language.config import SamplingConfig
from hybrid_tokenizer.language.documents import TokenRows, tokens_of_rows
from hybrid_tokenizer.language.generate import (
    complete,
    describe,
    generation_config,
    image_prompts,
    left_padded,
    seeded,
)
from hybrid_tokenizer.language.model import LanguageModel
from hybrid_tokenizer.language.perplexity import mean_and_interval
from hybrid_tokenizer.language.vocabulary import budgets, read_sequence
from hybrid_tokenizer.metrics.probe import ProbeScore
from hybrid_tokenizer.tokens import HybridTokens

BATCH = 8
PART = 64
"""Images whose codes are looked up, or whose guides are decoded, at once."""
THUMBNAIL = 32
"""Side in pixels at which guides are compared."""

SHORTLIST = 8
"""Training images, the nearest by their code vectors, that are compared with a picture by their pixels."""

Distance = Callable[[Float[Tensor, "b 3 h w"], Float[Tensor, "b 3 h w"]], Float[Tensor, "b"]]


class Drawn(NamedTuple):
    """Results for the report, and pictures to look at."""

    figures: dict[str, Any]
    pictures: dict[str, Float[Tensor, "b 3 h w"]]


def others(captions: Sequence[str]) -> list[str]:
    """Another image's caption for each: the next one's."""
    return [*captions[1:], captions[0]]


def decode_all(hybrid: HybridTokenizer, tokens: HybridTokens) -> Float[Tensor, "b 3 h w"]:
    """Decoded pictures on the CPU, a few at once."""
    return torch.cat([hybrid.decode(tokens[start : start + BATCH]).cpu() for start in range(0, len(tokens), BATCH)])


def in_batches(measure: Callable[..., Tensor], *values: Any) -> Tensor:
    """A measure of equally long lists or batches, a few at once."""
    return torch.cat(
        [measure(*(value[start : start + BATCH] for value in values)) for start in range(0, len(values[0]), BATCH)]
    ).cpu()


def caption_scores(
    score: ProbeScore, images: Float[Tensor, "b 3 h w"], captions: Sequence[str]
) -> dict[str, Float64[np.ndarray, "b"]]:
    """How well each picture fits its own caption, how well another's, and the difference."""
    pictures = in_batches(score.picture_vectors, images)
    own, other = (
        (pictures * score.text.sentence_features(texts)).sum(-1).double().numpy()
        for texts in (list(captions), others(captions))
    )
    return {"own_caption": own, "other_caption": other, "own_minus_other": own - other}


def with_intervals(values: Mapping[str, Float64[np.ndarray, "b"]]) -> dict[str, Any]:
    """The mean of each, with its interval."""
    return {name: mean_and_interval(one) for name, one in values.items()}


def semantic_then_lm(
    hybrid: HybridTokenizer,
    lm: LanguageModel,
    tokens: HybridTokens,
    references: Float[Tensor, "b 3 h w"],
    captions: Sequence[str],
    score: ProbeScore,
    distances: Mapping[str, Distance],
    sampling: SamplingConfig,
    seed: int,
) -> Drawn:
    """From the 32 semantic tokens of held-out photographs alone: a guide drawn by the model, against no guide at all."""

    def from_semantics(semantic: Int[Tensor, "b 32"]) -> Float[Tensor, "b 3 h w"]:
        parts = [hybrid.decode_indices(part, None, tokens.image_size).cpu() for part in semantic.split(BATCH)]
        return torch.cat(parts)

    own = tokens.semantic_indices
    pictures = {
        "hybrid": decode_all(hybrid, tokens),
        "semantic_only": from_semantics(own),
        "semantic_only_wrong_semantics": from_semantics(own.roll(-1, 0)),
        "semantic_then_lm": decode_all(hybrid, complete(lm, tokens, 0, budgets(lm.vocabulary)[-1], sampling, seed)),
    }
    values = {
        name: caption_scores(score, images, captions)
        | {key: in_batches(distance, images, references).double().numpy() for key, distance in distances.items()}
        for name, images in pictures.items()
    }
    compared = ("semantic_only", "semantic_only_wrong_semantics")
    figures = {
        "rows": {name: with_intervals(row) for name, row in values.items()},
        "semantic_then_lm_minus": {
            other: with_intervals({key: one - values[other][key] for key, one in values["semantic_then_lm"].items()})
            for other in compared
        },
    }
    return Drawn(figures, pictures)


def text_to_image(
    hybrid: HybridTokenizer,
    lm: LanguageModel,
    captions: Sequence[str],
    tokens: HybridTokens,
    images: Float[Tensor, "b 3 h w"],
    held_out: HybridTokens,
    training: TokenRows,
    score: ProbeScore,
) -> Drawn:
    """Pictures drawn from captions: own caption against another's, and the nearest training image of each.

    Args:
        tokens: what the model drew, and `images` their decoded pictures.
        held_out: tokens of the captions' photographs, for comparison: how near do pictures come that cannot be copies?
    """
    known = code_vectors_of_rows(hybrid, lm, training)
    of_drawn, of_photographs = (nearest(hybrid, lm, one, training, known) for one in (tokens, held_out))
    neighbours = tokens_of_rows([training[index] for index in of_drawn.indices.tolist()], lm.vocabulary)
    figures = with_intervals(caption_scores(score, images, captions)) | {
        "distance_to_nearest_training_image": mean_and_interval(of_drawn.distances.double().numpy()),
        "the_same_of_held_out_photographs": mean_and_interval(of_photographs.distances.double().numpy()),
        "codes_equal_to_nearest": mean_and_interval(equal_codes(tokens, neighbours)),
        "nearest": [training[index]["id"] for index in of_drawn.indices.tolist()],
    }
    return Drawn(figures, {"drawn": images, "nearest training image": decode_all(hybrid, neighbours)})


class Nearest(NamedTuple):
    """Of each query: position of the nearest, and root mean square distance of the pixels, in [0, 2]."""

    indices: Int[Tensor, "n"]
    distances: Float[Tensor, "n"]


def nearest(
    hybrid: HybridTokenizer,
    lm: LanguageModel,
    queries: HybridTokens,
    rows: TokenRows,
    known: Float[Tensor, "m p"],
) -> Nearest:
    """The nearest of the rows, by pixels, among the few that are nearest by code vectors (`known`, of all rows)."""
    distances = torch.cdist(in_parts(partial(code_vectors, hybrid), queries), known)
    chosen = distances.topk(min(SHORTLIST, len(known)), largest=False).indices
    candidates = tokens_of_rows([rows[index] for index in chosen.flatten().tolist()], lm.vocabulary)
    ours, theirs = (in_parts(partial(thumbnails, hybrid), one) for one in (queries, candidates))
    errors = (theirs.unflatten(0, tuple(chosen.shape)) - ours[:, None]).square().mean(-1).sqrt()
    least, best = errors.min(1)
    return Nearest(chosen.gather(1, best[:, None])[:, 0], least)


def in_parts(measure: Callable[[HybridTokens], Tensor], tokens: HybridTokens) -> Tensor:
    """A measure of tokens, some at once."""
    return torch.cat([measure(tokens[start : start + PART]) for start in range(0, len(tokens), PART)])


def thumbnails(hybrid: HybridTokenizer, tokens: HybridTokens) -> Float[Tensor, "b p"]:
    """Guides at 32 px, flattened: enough to find a copy."""
    guides = hybrid.decode_guide(tokens.guide_indices, tokens.image_size).cpu()
    return resize_area(guides, (THUMBNAIL, THUMBNAIL)).flatten(1)


@torch.no_grad()
def code_vectors(hybrid: HybridTokenizer, tokens: HybridTokens) -> Float[Tensor, "b p"]:
    """What the guide's decoder reads, flattened. It costs no network, so that all training images can be looked at."""
    grids = tuple(grid.to(hybrid.device) for grid in tokens.guide_indices)
    return hybrid.guide.code_sum(grids, hybrid.guide.config.grid_size(tokens.image_size)).float().cpu().flatten(1)


def code_vectors_of_rows(hybrid: HybridTokenizer, lm: LanguageModel, rows: TokenRows) -> Float[Tensor, "n p"]:
    """Those of token shards."""
    parts = []
    for start in range(0, len(rows), PART):
        chosen = [rows[index] for index in range(start, min(start + PART, len(rows)))]
        parts.append(code_vectors(hybrid, tokens_of_rows(chosen, lm.vocabulary)))
    return torch.cat(parts)


def equal_codes(tokens: HybridTokens, other: HybridTokens) -> Float64[np.ndarray, "n"]:
    """Share of equal codes at equal places, image by image."""
    pairs = [(tokens.semantic_indices, other.semantic_indices)]
    pairs += [
        (ours.flatten(1), theirs.flatten(1))
        for ours, theirs in zip(tokens.guide_indices, other.guide_indices, strict=True)
    ]
    same = torch.cat([ours == theirs for ours, theirs in pairs], dim=1)
    return same.double().mean(1).numpy()


def captions_of_photographs(
    lm: LanguageModel,
    tokens: HybridTokens,
    references: Float[Tensor, "b 3 h w"],
    captions: Sequence[Sequence[str]],
    score: ProbeScore,
    sampling: SamplingConfig,
    seed: int,
) -> dict[str, Any]:
    """Does a written caption find its photograph among all, and does it share words with the people's captions?

    BLEU-4 is of the set; its control pairs each photograph with the next one's written caption.
    """
    from torchmetrics.functional.text import bleu_score

    written = describe(lm, tokens, sampling, seed)
    pictures = in_batches(score.picture_vectors, references)
    table = (score.text.sentence_features(written) @ pictures.T).double().numpy()  # caption x photograph
    ranks = (table > np.diagonal(table)[:, None]).sum(1)
    folded, references_folded = ([text.lower() for text in written], [[t.lower() for t in texts] for texts in captions])
    return {
        "own_photograph": mean_and_interval(np.diagonal(table).copy()),
        "own_minus_other_photograph": mean_and_interval(np.diagonal(table) - np.roll(table, -1, axis=1).diagonal()),
        "recall_at_1": float((ranks < 1).mean()),
        "recall_at_10": float((ranks < 10).mean()),
        "median_rank": float(np.median(ranks) + 1),
        "num_photographs": len(written),
        "bleu_4": float(bleu_score(folded, references_folded)),
        "bleu_4_of_another": float(bleu_score(others(folded), references_folded)),
        "written": written,
    }


@torch.no_grad()
def share_of_whole_images(
    lm: LanguageModel, captions: Sequence[str], sampling: SamplingConfig, seed: int
) -> dict[str, float]:
    """How often the model writes a whole image after `<img>` without constrained decoding."""
    config = generation_config(lm, sampling, max_new_tokens=budgets(lm.vocabulary)[-1] + 1)
    count = 0
    with seeded(seed, lm.model.device):
        for start in range(0, len(captions), sampling.batch_size):
            ids, mask = left_padded(image_prompts(lm, captions[start : start + sampling.batch_size]), lm)
            output = lm.model.generate(input_ids=ids, attention_mask=mask, generation_config=config)
            count += sum(_begins_with_an_image(row[ids.shape[1] - 1 :], lm) for row in output.tolist())
    return {"unconstrained": count / len(captions)}


def _begins_with_an_image(token_ids: list[int], lm: LanguageModel) -> bool:
    if lm.vocabulary.end_id not in token_ids:
        return False
    try:
        return len(read_sequence(token_ids[: token_ids.index(lm.vocabulary.end_id) + 1], lm.vocabulary).images) == 1
    except HybridTokenizerError:
        return False
