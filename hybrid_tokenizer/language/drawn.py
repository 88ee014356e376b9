"""Pictures and captions that a language model makes, measured: scores against captions, distances, memory of the training."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor
from transformers import GenerationConfig

from hybrid_tokenizer.errors import HybridTokenizerError
from hybrid_tokenizer.hybrid import HybridTokenizer
from hybrid_tokenizer.images import resize_area
from hybrid_tokenizer.language.config import SamplingConfig
from hybrid_tokenizer.language.documents import TokenRows, tokens_of_rows
from hybrid_tokenizer.language.generate import (
    complete,
    describe,
    draw,
    generation_config,
    image_prompts,
    left_padded,
    seeded,
)
from hybrid_tokenizer.language.model import LanguageModel
from hybrid_tokenizer.language.perplexity import mean_and_interval
from hybrid_tokenizer.language.vocabulary import budgets, read_sequence
from hybrid_tokenizer.tokens import HybridTokens

BATCH = 8
THUMBNAIL = 32
"""Side in pixels at which guides are compared."""

CaptionScore = Callable[[Float[Tensor, "b 3 h w"], Sequence[str]], Float64[Tensor, "b"]]
Distance = Callable[[Float[Tensor, "b 3 h w"], Float[Tensor, "b 3 h w"]], Float[Tensor, "b"]]


class Drawn(NamedTuple):
    """Results for the report, and pictures to look at."""

    figures: dict[str, Any]
    pictures: dict[str, Float[Tensor, "b 3 h w"]]


def others(captions: Sequence[str]) -> list[str]:
    """Another image's caption for each: the next one's."""
    if len(captions) < 2:
        raise HybridTokenizerError(f"{len(captions)} image(s) have no other image's caption; give at least 2")
    return [*captions[1:], captions[0]]


def decode_all(hybrid: HybridTokenizer, tokens: HybridTokens) -> Float[Tensor, "b 3 h w"]:
    """Decoded pictures on the CPU, a few at once."""
    return torch.cat([hybrid.decode(tokens[start : start + BATCH]).cpu() for start in range(0, len(tokens), BATCH)])


def in_batches(measure: Callable[..., Tensor], *values: Any) -> Float64[np.ndarray, "n"]:
    """A measure of two equally long lists or batches, a few at once."""
    parts = [measure(*(value[start : start + BATCH] for value in values)) for start in range(0, len(values[0]), BATCH)]
    return torch.cat(parts).double().cpu().numpy()


def semantic_then_lm(
    hybrid: HybridTokenizer,
    lm: LanguageModel,
    tokens: HybridTokens,
    references: Float[Tensor, "b 3 h w"],
    captions: Sequence[str],
    score: CaptionScore,
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
        name: {
            "own_caption": in_batches(score, images, captions),
            "other_caption": in_batches(score, images, others(captions)),
            **{key: in_batches(distance, images, references) for key, distance in distances.items()},
        }
        for name, images in pictures.items()
    }
    for row in values.values():
        row["own_minus_other"] = row["own_caption"] - row["other_caption"]
    compared = ("semantic_only", "semantic_only_wrong_semantics")
    figures = {
        "rows": {name: {key: mean_and_interval(one) for key, one in row.items()} for name, row in values.items()},
        "semantic_then_lm_minus": {
            other: {key: mean_and_interval(one - values[other][key]) for key, one in values["semantic_then_lm"].items()}
            for other in compared
        },
    }
    return Drawn(figures, pictures)


def text_to_image(
    hybrid: HybridTokenizer,
    lm: LanguageModel,
    captions: Sequence[str],
    held_out: HybridTokens,
    training: TokenRows,
    score: CaptionScore,
    sampling: SamplingConfig,
    seed: int,
) -> Drawn:
    """Pictures of held-out captions: own caption against another's, and the nearest training image of each."""
    tokens = draw(lm, list(captions), budgets(lm.vocabulary)[-1], sampling, seed)
    images = decode_all(hybrid, tokens)
    own, other = in_batches(score, images, captions), in_batches(score, images, others(captions))
    known = thumbnails_of_rows(hybrid, lm, training)
    of_drawn, of_photographs = (
        nearest(thumbnails(hybrid, one), known) for one in (tokens, held_out[: min(len(held_out), len(captions))])
    )
    neighbours = tokens_of_rows([training[index] for index in of_drawn.indices.tolist()], lm.vocabulary)
    figures = {
        "own_caption": mean_and_interval(own),
        "other_caption": mean_and_interval(other),
        "own_minus_other": mean_and_interval(own - other),
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


def thumbnails(hybrid: HybridTokenizer, tokens: HybridTokens) -> Float[Tensor, "b p"]:
    """Guides at 32 px, flattened: quick to decode, and enough to find a copy."""
    parts = []
    for start in range(0, len(tokens), 8 * BATCH):
        part = tokens[start : start + 8 * BATCH]
        guides = hybrid.decode_guide(part.guide_indices, part.image_size).cpu()
        parts.append(resize_area(guides, (THUMBNAIL, THUMBNAIL)).flatten(1))
    return torch.cat(parts)


def thumbnails_of_rows(hybrid: HybridTokenizer, lm: LanguageModel, rows: TokenRows) -> Float[Tensor, "n p"]:
    """Thumbnails of token shards."""
    parts = []
    for start in range(0, len(rows), 8 * BATCH):
        chosen = [rows[index] for index in range(start, min(start + 8 * BATCH, len(rows)))]
        parts.append(thumbnails(hybrid, tokens_of_rows(chosen, lm.vocabulary)))
    return torch.cat(parts)


def nearest(queries: Float[Tensor, "n p"], known: Float[Tensor, "m p"]) -> Nearest:
    """The nearest known thumbnail of each query."""
    distances, indices = torch.cdist(queries, known).min(1)
    return Nearest(indices, distances / known.shape[1] ** 0.5)


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
    score: CaptionScore,
    sampling: SamplingConfig,
    seed: int,
) -> dict[str, Any]:
    """Does a written caption find its photograph among all, and does it share words with the people's captions?

    BLEU-4 is of the set; its control pairs each photograph with the next one's written caption.
    """
    from torchmetrics.functional.text import bleu_score

    written = describe(lm, tokens, sampling, seed)
    table = np.stack(
        [in_batches(score, references, [text] * len(references)) for text in written]
    )  # caption x photograph
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
    """How often the model writes a whole image after `<img>`, with constrained decoding and without."""
    whole = budgets(lm.vocabulary)[-1]
    draw(lm, list(captions), whole, sampling, seed)  # raises unless every image is whole
    config: GenerationConfig = generation_config(lm, sampling, max_new_tokens=whole + 1)
    count = 0
    with seeded(seed, lm.model.device):
        for start in range(0, len(captions), sampling.batch_size):
            ids, mask = left_padded(image_prompts(lm, captions[start : start + sampling.batch_size]), lm)
            output = lm.model.generate(input_ids=ids, attention_mask=mask, generation_config=config)
            count += sum(_begins_with_an_image(row[ids.shape[1] - 1 :], lm) for row in output.tolist())
    return {"constrained": 1.0, "unconstrained": count / len(captions)}


def _begins_with_an_image(token_ids: list[int], lm: LanguageModel) -> bool:
    if lm.vocabulary.end_id not in token_ids:
        return False
    try:
        return len(read_sequence(token_ids[: token_ids.index(lm.vocabulary.end_id) + 1], lm.vocabulary).images) == 1
    except HybridTokenizerError:
        return False


def scores_at_budgets(
    hybrid: HybridTokenizer,
    lm: LanguageModel,
    captions: Sequence[str],
    score: CaptionScore,
    sampling: SamplingConfig,
    seed: int,
) -> list[dict[str, Any]]:
    """Own caption against another's of pictures drawn with 36, 52, ... tokens."""
    rows = []
    for budget in budgets(lm.vocabulary):
        images = decode_all(hybrid, draw(lm, list(captions), budget, sampling, seed))
        own, other = in_batches(score, images, captions), in_batches(score, images, others(captions))
        rows.append(
            {"budget": budget, "own_caption": mean_and_interval(own), "own_minus_other": mean_and_interval(own - other)}
        )
    return rows
