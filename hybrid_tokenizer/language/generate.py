"""Pictures from captions, captions of pictures, and pictures whose finer tokens the language model supplies."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import GenerationConfig

from hybrid_tokenizer.errors import HybridTokenizerError
from hybrid_tokenizer.language.config import SamplingConfig
from hybrid_tokenizer.language.constrained import ImageGrammar
from hybrid_tokenizer.language.model import LanguageModel
from hybrid_tokenizer.language.vocabulary import budgets, document_boundaries, text_ids_of
from hybrid_tokenizer.tokens import NUM_SEMANTIC_TOKENS, HybridTokens

MAX_PROMPT_TOKENS = 128


def draw(
    lm: LanguageModel, captions: Sequence[str | None], budget: int, sampling: SamplingConfig, seed: int = 0
) -> HybridTokens:
    """One picture of `budget` tokens per caption; None draws without a caption."""
    return write_images(lm, image_prompts(lm, captions), budget, sampling, seed)


def image_prompts(lm: LanguageModel, captions: Sequence[str | None]) -> list[list[int]]:
    """Each caption and `<img>`."""
    return [[*_before_image(lm, caption), lm.vocabulary.begin_id] for caption in captions]


def complete(
    lm: LanguageModel,
    tokens: HybridTokens,
    keep: int,
    budget: int,
    sampling: SamplingConfig,
    seed: int = 0,
    captions: Sequence[str | None] | None = None,
) -> HybridTokens:
    """Keep the semantic tokens and the first `keep` guide tokens of each picture, and draw the others."""
    whole = [total - NUM_SEMANTIC_TOKENS for total in (NUM_SEMANTIC_TOKENS, *budgets(lm.vocabulary)[:-1])]
    if keep not in whole:
        raise HybridTokenizerError(f"keep={keep} guide tokens do not end with a grid; keep one of {whole}")
    kept = NUM_SEMANTIC_TOKENS + keep
    if kept >= budget or kept > tokens.num_tokens:
        raise HybridTokenizerError(
            f"keep={keep} leaves {kept} tokens, of images of {tokens.num_tokens} that are drawn up to budget={budget}; keep "
            "fewer"
        )
    opened = tokens.to_token_ids(lm.vocabulary)[:, : 1 + kept].tolist()
    prompts = [
        [*_before_image(lm, caption), *ids]
        for caption, ids in zip(captions or [None] * len(tokens), opened, strict=True)
    ]
    return write_images(lm, prompts, budget, sampling, seed)


def _before_image(lm: LanguageModel, caption: str | None) -> list[int]:
    text = [] if caption is None else text_ids_of(lm.tokenizer, [caption], MAX_PROMPT_TOKENS)[0]
    return document_boundaries(lm.tokenizer).begin + text


@torch.no_grad()
def write_images(
    lm: LanguageModel, prompts: Sequence[list[int]], budget: int, sampling: SamplingConfig, seed: int = 0
) -> HybridTokens:
    """End the image that each prompt begins. All prompts hold equally many ids after `<img>`."""
    opened = [prompt[prompt.index(lm.vocabulary.begin_id) :] for prompt in prompts]
    begin = document_boundaries(lm.tokenizer).begin
    written = []
    with seeded(seed, lm.model.device):
        for start in range(0, len(prompts), sampling.batch_size):
            part = slice(start, start + sampling.batch_size)
            ids, mask = left_padded(prompts[part], lm)
            guided = {}
            without = [begin + image for image in opened[part]]  # the same beginnings of images, without a caption
            chosen = sampling
            if prompts[part] == without:  # there is no caption to be guided to
                chosen = replace(sampling, guidance=1.0)
            elif sampling.guidance != 1:
                free = left_padded(without, lm)
                guided = dict(zip(("negative_prompt_ids", "negative_prompt_attention_mask"), free, strict=True))
            output = lm.model.generate(
                input_ids=ids,
                attention_mask=mask,
                generation_config=generation_config(lm, chosen, max_new_tokens=budget + 2 - len(opened[0])),
                logits_processor=[ImageGrammar(lm.vocabulary, budget)],
                **guided,
            )
            written.append(output[:, -(budget + 2) :].cpu())
    return HybridTokens.from_token_ids(torch.cat(written), lm.vocabulary)


@torch.no_grad()
def describe(
    lm: LanguageModel, tokens: HybridTokens, sampling: SamplingConfig, seed: int = 0, max_tokens: int = 48
) -> list[str]:
    """A caption of each picture."""
    begin = document_boundaries(lm.tokenizer).begin
    grammar = ImageGrammar(lm.vocabulary, tokens.num_tokens, max_images=0)
    captions: list[str] = []
    with seeded(seed, lm.model.device):
        for part in tokens.to_token_ids(lm.vocabulary).split(sampling.batch_size):
            ids, mask = left_padded([begin + row for row in part.tolist()], lm)
            output = lm.model.generate(
                input_ids=ids,
                attention_mask=mask,
                generation_config=generation_config(lm, sampling, max_new_tokens=max_tokens, min_new_tokens=1),
                logits_processor=[grammar],
            )
            texts = lm.tokenizer.batch_decode(output[:, ids.shape[1] :], skip_special_tokens=True)
            captions += [text.strip() for text in texts]
    return captions


def generation_config(lm: LanguageModel, sampling: SamplingConfig, **lengths: int) -> GenerationConfig:
    """All that decides what is sampled: nothing is left to the model's own generation_config."""
    end, pad = document_boundaries(lm.tokenizer).end, lm.tokenizer.pad_token_id
    drawn = {"temperature": sampling.temperature, "top_k": sampling.top_k, "top_p": sampling.top_p}
    return GenerationConfig(
        do_sample=sampling.temperature > 0,
        **(drawn if sampling.temperature > 0 else {}),
        guidance_scale=sampling.guidance,
        repetition_penalty=1.0,
        num_beams=1,
        eos_token_id=end,
        pad_token_id=end if pad is None else pad,
        **lengths,
    )


def left_padded(rows: Sequence[list[int]], lm: LanguageModel) -> tuple[Int[Tensor, "b n"], Int[Tensor, "b n"]]:
    """Ids and attention mask; the model writes on at the right."""
    pad = lm.tokenizer.pad_token_id or 0
    width = max(map(len, rows))
    ids = [[pad] * (width - len(row)) + row for row in rows]
    mask = [[0] * (width - len(row)) + [1] * len(row) for row in rows]
    return torch.tensor(ids, device=lm.model.device), torch.tensor(mask, device=lm.model.device)


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Sampling in transformers draws from torch's global state: seed it, and give it back as it was."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield
