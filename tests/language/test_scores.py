"""Held-out losses: each token's is what the model says, and both unigrams are the best that tables of counts can do."""

import math

import numpy as np
import pytest
import torch
from language_models import random_llama
from token_rows import MemoryRows, text_side, token_rows

from hybrid_tokenizer.language.documents import SEMANTIC, kind_names, kind_range
from hybrid_tokenizer.language.model import LanguageModel
from hybrid_tokenizer.language.perplexity import against_unigrams, at_budgets, price_of_search, row_documents
from hybrid_tokenizer.language.scores import FIRST_SEMANTIC, first_semantic, score_documents, summarize_kinds
from hybrid_tokenizer.language.unigrams import code_groups, code_table, unigram_losses

TOKENIZER, VOCABULARY = text_side()


@pytest.fixture(scope="module")
def lm():
    return LanguageModel(random_llama(rows=384, spread=0.3, layers=2), TOKENIZER, VOCABULARY)


def test_each_loss_is_among_the_ids_that_decoding_allows(lm):
    rows = token_rows(5)
    documents = row_documents(lm, rows, image_first=False) + row_documents(lm, rows, image_first=True)
    scores = score_documents(lm.model, documents, VOCABULARY, row_length=200, batch_size=4)
    assert len(scores.losses) == sum(len(document.ids) - 1 for document in documents)
    entry = 0
    for index, document in enumerate(documents):
        logits = lm.model(torch.from_numpy(document.ids)[None]).logits[0].double()
        for place in range(1, len(document.ids)):
            low, high = kind_range(int(document.kinds[place]), VOCABULARY)
            shares = logits[place - 1, low:high].softmax(0)
            own = document.ids[place] - low
            assert scores.losses[entry] == pytest.approx(-shares[own].log().item(), abs=1e-4)
            assert scores.hits[entry] == (shares.argmax() == own)
            assert (scores.documents[entry], scores.places[entry]) == (index, place)
            assert scores.kinds[entry] == document.kinds[place]
            entry += 1
    first = first_semantic(scores)
    assert first.sum() == FIRST_SEMANTIC * len(documents) and (scores.kinds[first] == SEMANTIC).all()
    figures = summarize_kinds(scores, VOCABULARY)
    for kind, name in enumerate(kind_names(VOCABULARY)):
        loss = scores.losses[scores.kinds == kind].mean()
        assert figures[f"loss_{name}"] == pytest.approx(loss)
        assert figures[f"perplexity_{name}"] == pytest.approx(math.exp(loss))
    assert figures["accuracy_first_semantic"] == pytest.approx(scores.hits[first].mean())


def test_unigrams_are_frequencies():
    rng = np.random.default_rng(0)
    shares = np.array([0.5, 0.3, 0.15, 0.05])
    training, held_out = (rng.choice(4, (count, 6), p=shares) for count in (2000, 500))
    losses = unigram_losses(training, held_out, 4)
    entropy = -(shares * np.log(shares)).sum()
    assert losses.over_all.mean() == pytest.approx(entropy, abs=0.03)
    assert losses.per_position.mean() == pytest.approx(entropy, abs=0.03), "backed off, it does not overfit"
    assert losses.over_all[held_out == 0] == pytest.approx(-math.log(0.5), abs=0.03)

    placed = np.tile(np.arange(6), (300, 1))  # each position has a code of its own
    losses = unigram_losses(placed, placed[:50], 6)
    assert losses.over_all.mean() == pytest.approx(math.log(6), abs=0.01) and losses.per_position.mean() < 0.02

    unseen = unigram_losses(np.zeros((10, 2), int), np.full((3, 2), 3), 4)
    assert np.isfinite(unseen.over_all).all() and np.isfinite(unseen.per_position).all()


def test_a_random_model_is_no_better_than_counting(lm):
    training, held_out = token_rows(60), token_rows(12, seed=9)
    figures = against_unigrams(lm, training, held_out, row_length=200)
    names = [name for name, _, _ in code_groups(VOCABULARY)]
    assert names == ["semantic", "guide_1x2", "guide_2x3", "guide_3x4"]
    table = code_table(held_out)
    assert table.shape == (12, 52) and table[3, :32].tolist() == held_out[3]["semantic"].tolist()
    for name in names:
        entry = figures[name]
        low, high = entry["difference"]["interval"]
        assert low > 0 and entry["below_per_position"] < 0, "the loss is above that of the counts"
        assert entry["difference"]["mean"] == pytest.approx(entry["loss"] - entry["per_position_unigram_loss"])
        assert high > low and entry["difference"]["n"] == 12
    assert figures["text"]["unigram_loss"] < figures["text"]["loss"]
    assert 0 <= figures["accuracy"]["accuracy_first_semantic"] <= 1


def test_budgets_add_up_their_tokens(lm):
    rows = token_rows(4)
    scores = score_documents(lm.model, row_documents(lm, rows, False), VOCABULARY, 200)
    budgets = at_budgets(lm, rows, 200)
    assert [row["budget"] for row in budgets] == [34, 40, 52]
    codes = scores.losses[scores.kinds >= SEMANTIC].reshape(4, 52)
    for row in budgets:
        assert row["bits_per_image"]["mean"] == pytest.approx(codes[:, : row["budget"]].sum() / 4 / math.log(2))
        assert row["perplexity"] == pytest.approx(math.exp(codes[:, : row["budget"]].mean()))


def test_the_price_of_other_tokens_is_paired_by_image(lm):
    rows = token_rows(8)
    same = price_of_search(lm, rows, rows, 200)
    assert all(entry["difference"]["mean"] == 0 for entry in same.values())
    finest = VOCABULARY.grid_shapes[2][0] * VOCABULARY.grid_shapes[2][1]
    changed = MemoryRows(
        [row | {"guide": torch.cat([row["guide"][:-finest], (row["guide"][-finest:] + 25) % 50])} for row in rows]
    )
    other = price_of_search(lm, rows, changed, 200)
    assert other["semantic"]["difference"]["mean"] == 0 and other["guide_2x3"]["difference"]["mean"] == 0
    assert other["guide_3x4"]["difference"]["mean"] != 0
    assert other["all"]["difference"]["mean"] == pytest.approx(other["guide_3x4"]["difference"]["mean"] * 12 / 52)
