"""Pictures, captions and completions of a model that was trained a little."""

from difflib import SequenceMatcher

import pytest
import torch
from language_models import random_llama, random_tokens
from text_tokenizers import CAPTIONS
from token_rows import text_side, token_rows

from hybrid_tokenizer.errors import HybridTokenizerError
from hybrid_tokenizer.language.config import DocumentConfig, SamplingConfig, TokenLossWeights
from hybrid_tokenizer.language.documents import DocumentStream, kind_names, tokens_of_rows
from hybrid_tokenizer.language.generate import complete, describe, draw, image_prompts
from hybrid_tokenizer.language.model import LanguageModel
from hybrid_tokenizer.language.packing import kind_losses, pack

TOKENIZER, VOCABULARY = text_side()


@pytest.fixture(scope="module")
def trained():
    """Overfitted on 6 captions, each with its own few codes."""
    model = random_llama(rows=384, spread=0.02, layers=2, width=48)
    config = DocumentConfig(caption_dropout=0.1, budget_weights=[1.0, 1.0, 2.0])
    stream = DocumentStream(token_rows(60, captions=1), VOCABULARY, TOKENIZER, config, seed=0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    weights = torch.tensor(TokenLossWeights(text=0.0, caption=2.0).by_kind(3))
    for step in range(80):
        documents = [stream[step * 12 + index]["documents"] for index in range(12)]
        loss = kind_losses(model, pack(documents, 128), len(kind_names(VOCABULARY)))
        loss.total(weights).backward()
        optimizer.step()
        optimizer.zero_grad()
    return LanguageModel(model.eval(), TOKENIZER, VOCABULARY)


def share_of_topic(tokens, topic):
    """How many semantic codes are those of the topic's rows, per image."""
    expected = torch.tensor([(3 * topic + offset) % 20 for offset in range(3)])
    return torch.isin(tokens.semantic_indices, expected).float().mean(1)


def test_a_caption_draws_its_own_picture(trained):
    for budget in (34, 52):
        drawn = draw(trained, CAPTIONS, budget, SamplingConfig(top_p=0.9), seed=1)
        assert drawn.num_tokens == budget and len(drawn) == 6 and drawn.source == VOCABULARY.source
        own = [share_of_topic(drawn, topic)[topic].item() for topic in range(6)]
        other = [share_of_topic(drawn, topic)[(topic + 3) % 6].item() for topic in range(6)]
        assert min(own) > 0.5 > max(other)


@torch.no_grad()
def test_guidance_is_towards_the_caption(trained):
    """The likeliest first code is that of guidance * (with caption - without) + without, among semantic codes."""
    guidance, codes = 4.0, slice(VOCABULARY.semantic_offset, VOCABULARY.guide_offset)
    drawn = draw(trained, CAPTIONS, 34, SamplingConfig(temperature=0.0, guidance=guidance))
    captioned, free = (
        torch.stack([trained.model(torch.tensor([prompt])).logits[0, -1].log_softmax(0) for prompt in prompts])
        for prompts in (image_prompts(trained, CAPTIONS), image_prompts(trained, [None]))
    )
    expected = (guidance * (captioned - free) + free)[:, codes].argmax(1)
    assert torch.equal(drawn.semantic_indices[:, 0], expected)
    assert not torch.equal(expected, captioned[:, codes].argmax(1)), "otherwise guidance shows nothing here"


def test_guidance_without_a_caption_changes_nothing(trained):
    plain, guided = (draw(trained, [None, None], 34, SamplingConfig(guidance=guidance)) for guidance in (1.0, 3.0))
    assert plain == guided


def test_the_seed_decides_and_the_callers_random_state_stays(trained):
    before = torch.random.get_rng_state()
    one, same, other = (draw(trained, CAPTIONS[:2], 52, SamplingConfig(), seed=seed) for seed in (3, 3, 4))
    assert one == same and one != other
    assert torch.equal(torch.random.get_rng_state(), before)
    greedy = SamplingConfig(temperature=0.0)
    assert draw(trained, CAPTIONS[:2], 34, greedy, seed=0) == draw(trained, CAPTIONS[:2], 34, greedy, seed=1)


@pytest.mark.parametrize("keep", [0, 2, 8])
def test_completion_keeps_what_it_is_given(trained, keep):
    whole = random_tokens(VOCABULARY, 3, 3)
    drawn = complete(trained, whole, keep, 52, SamplingConfig(batch_size=2))
    ids, drawn_ids = whole.to_token_ids(VOCABULARY), drawn.to_token_ids(VOCABULARY)
    assert torch.equal(drawn_ids[:, : keep + 33], ids[:, : keep + 33])
    assert not torch.equal(drawn_ids[:, keep + 33 :], ids[:, keep + 33 :])
    with_captions = complete(trained, whole, keep, 52, SamplingConfig(), captions=CAPTIONS[:3])
    assert torch.equal(with_captions.to_token_ids(VOCABULARY)[:, : keep + 33], ids[:, : keep + 33])


def test_a_picture_is_described_by_its_caption(trained):
    rows = token_rows(12, seed=5)
    pictures = tokens_of_rows(rows, VOCABULARY)
    captions = describe(trained, pictures, SamplingConfig(temperature=0.0, batch_size=5))
    likest = [max(CAPTIONS, key=lambda own: SequenceMatcher(None, own, text).ratio()) for text in captions]
    assert sum(text == row["captions"][0] for text, row in zip(likest, rows, strict=True)) >= 10
    sampled = describe(trained, pictures, SamplingConfig(batch_size=4), max_tokens=5)
    assert len(sampled) == 12 and all(sampled) and not any("<" in text for text in sampled)


def test_what_cannot_be_drawn_is_refused(trained):
    tokens = random_tokens(VOCABULARY, 1, 2)
    with pytest.raises(HybridTokenizerError, match=r"budget=33 .* use one of \[34, 40, 52\]"):
        draw(trained, ["a dog"], 33, SamplingConfig())
    with pytest.raises(
        HybridTokenizerError, match=r"keep=3 guide tokens do not end with a grid; keep one of \[0, 2, 8\]"
    ):
        complete(trained, tokens, 3, 52, SamplingConfig())
    with pytest.raises(HybridTokenizerError, match="keep=8 leaves 40 tokens"):
        complete(trained, tokens, 8, 40, SamplingConfig())
    with pytest.raises(HybridTokenizerError, match=r"sampling.temperature=-1"):
        SamplingConfig(temperature=-1.0)
    with pytest.raises(HybridTokenizerError, match=r"sampling.guidance=0.0 must be positive"):
        SamplingConfig(guidance=0.0)
