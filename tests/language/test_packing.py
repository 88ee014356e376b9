"""Packed documents train a model exactly as the same documents one by one do."""

import numpy as np
import pytest
import torch
from language_models import random_llama
from token_rows import text_side, token_rows
from transformers import GPT2Config, GPT2LMHeadModel

from hybrid_tokenizer.errors import HybridTokenizerError
from hybrid_tokenizer.language.config import DocumentConfig, LanguageModelConfig, TokenLossWeights
from hybrid_tokenizer.language.documents import DocumentStream, kind_names
from hybrid_tokenizer.language.model import build_model
from hybrid_tokenizer.language.packing import NOTHING, KindLosses, first_fit, kind_losses, pack

TOKENIZER, VOCABULARY = text_side()
ROWS = 384
NUM_KINDS = len(kind_names(VOCABULARY))


def documents(count=9):
    stream = DocumentStream(token_rows(count), VOCABULARY, TOKENIZER, DocumentConfig(), seed=3)
    return [stream[draw]["documents"] for draw in range(count)]


def gpt2():
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(vocab_size=ROWS, n_positions=256, n_embd=16, n_layer=2, n_head=2)).eval()


def own():
    """The model of `train-lm` without a base, with places and losses in chunks."""
    torch.manual_seed(0)
    config = LanguageModelConfig(width=16, layers=2, heads=2, mlp_width=32, embedding_width=8, row_start="statistics")
    model = build_model(config, TOKENIZER, VOCABULARY, None, torch.Generator().manual_seed(0))
    torch.nn.init.normal_(model.narrow.weight)
    return model


def gradients(model):
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("build", [lambda: random_llama(rows=ROWS, layers=2), gpt2, own], ids=["llama", "gpt2", "own"])
def test_packed_loss_and_gradients_are_those_of_the_documents_one_by_one(build, attention):
    model = build()
    model.set_attn_implementation(attention)
    weights = torch.tensor(TokenLossWeights(text=0.5, semantic=2.0, guide=[1.0, 0.7, 0.3]).by_kind(3))
    batch = documents()
    packed = pack(batch, row_length=120)
    assert len(packed.input_ids) < len(batch), "otherwise nothing is packed"
    together = kind_losses(model, packed, NUM_KINDS)
    total = together.total(weights)
    total.backward()
    of_packed = gradients(model)
    model.zero_grad()
    alone = [kind_losses(model, pack([document], 120), NUM_KINDS) for document in batch]
    summed = KindLosses(sum(one.sums for one in alone), sum(one.counts for one in alone))
    total_alone = summed.total(weights)
    total_alone.backward()
    assert torch.equal(together.counts, summed.counts) and together.counts.min() > 0
    torch.testing.assert_close(together.sums / together.counts, summed.sums / summed.counts, rtol=1e-5, atol=0)
    assert abs(total - total_alone) < 1e-5
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(of_packed[name], gradient, rtol=1e-5, atol=1e-5, msg=name)
        assert gradient.abs().max() > 1e-4, "and they are not all nothing"


def test_every_token_is_packed_once_and_predicts_the_next_of_its_document():
    batch = documents()
    packed = pack(batch, row_length=120)
    for index, document in enumerate(batch):
        own = packed.documents == index
        assert np.array_equal(packed.input_ids[own].numpy(), document.ids)
        assert packed.position_ids[own].tolist() == list(range(len(document.ids)))
        targets = packed.targets[own]
        assert np.array_equal(targets[:-1].numpy(), document.ids[1:]) and targets[-1] == NOTHING
        assert np.array_equal(packed.kinds[own][:-1].numpy(), document.kinds[1:])
    padding = packed.documents == NOTHING
    assert (packed.targets[padding] == NOTHING).all()
    assert packed.input_ids.shape[1] <= 120


def test_first_fit_fills_rows():
    rows = first_fit([30, 70, 50, 20, 10], 100)
    assert rows == [[1, 0], [2, 3, 4]]
    with pytest.raises(HybridTokenizerError, match="a document has 101 tokens, a row holds 100"):
        first_fit([5, 101], 100)
