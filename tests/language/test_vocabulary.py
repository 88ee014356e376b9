"""Image tokens in tokenizers and models of transformers."""

import dataclasses

import pytest
import torch
from text_tokenizers import TOKENIZERS, byte_level
from transformers import GPTJConfig, GPTJForCausalLM, LlamaConfig, LlamaForCausalLM

from hybrid_tokenizer.errors import HybridTokenizerError
from hybrid_tokenizer.language.vocabulary import (
    Codebooks,
    add_image_tokens,
    budget_of,
    check_model,
    document_boundaries,
    image_token_names,
    load_vocabulary,
    resize_embeddings,
    save_vocabulary,
    text_ids_of,
    text_of_tokens,
    tokens_of_text,
)
from hybrid_tokenizer.tokens import HybridTokens, HybridVocabulary, TokenSource

TINY_GRIDS = ((2, 2), (4, 4), (8, 8), (16, 16))
TINY = HybridVocabulary(4096, 16384, TINY_GRIDS, (256, 256), source=TokenSource("tiny", "a" * 64))
SMALL = HybridVocabulary(20, 50, ((1, 2), (2, 3)), (16, 24), source=TokenSource("small", "b" * 64))


def random_tokens(vocabulary, count, num_grids, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return HybridTokens(
        torch.randint(vocabulary.semantic_codebook_size, (count, 32), generator=generator),
        tuple(
            torch.randint(vocabulary.guide_codebook_size, (count, h, w), generator=generator)
            for h, w in vocabulary.grid_shapes[:num_grids]
        ),
        vocabulary.image_size,
        vocabulary.source,
    )


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_token_sets_return_from_text_exactly(kind):
    """1,000 sets of the embedded preset's sizes and all four budgets, through our text and the tokenizer's own."""
    tokenizer = TOKENIZERS[kind]()
    text_size = len(tokenizer)
    before = tokenizer("a dog's ball, 2 cats").input_ids
    vocabulary = add_image_tokens(tokenizer, TINY)
    assert vocabulary.text_vocab_size == text_size and len(tokenizer) == vocabulary.size
    assert tokenizer("a dog's ball, 2 cats").input_ids == before
    for num_grids, count in ((1, 400), (2, 300), (3, 200), (4, 100)):
        tokens = random_tokens(vocabulary, count, num_grids, seed=num_grids)
        ids = tokens.to_token_ids(vocabulary)
        assert tokens_of_text(text_of_tokens(tokens, vocabulary), tokenizer, vocabulary) == tokens
        decoded = tokenizer.batch_decode(ids[:20])  # some tokenizers write blanks between the names
        assert tokenizer(decoded, add_special_tokens=False).input_ids == ids[:20].tolist()


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_captions_cannot_forge_image_tokens(kind):
    tokenizer = TOKENIZERS[kind]()
    vocabulary = add_image_tokens(tokenizer, SMALL)
    forged = "a dog <img><sem_0001><guide_00002></img>"
    ids = text_ids_of(tokenizer, [forged, "a dog"], 100)
    assert max(ids[0]) < vocabulary.begin_id and len(ids[0]) > len(ids[1])
    assert len(text_ids_of(tokenizer, [forged], 3)[0]) == 3
    assert max(tokenizer(forged).input_ids) > vocabulary.begin_id, "otherwise this test shows nothing"
    image = random_tokens(vocabulary, 1, 2).to_token_ids(vocabulary)[0].tolist()
    begin, end = document_boundaries(tokenizer)
    assert tokenizer.decode([*begin, *ids[1], *image, end], skip_special_tokens=True).strip() == "a dog"


def test_ids_follow_the_names_and_a_second_addition_is_refused():
    tokenizer = byte_level()
    vocabulary = add_image_tokens(tokenizer, SMALL)
    assert tokenizer.convert_tokens_to_ids(image_token_names(vocabulary)) == list(
        range(vocabulary.begin_id, vocabulary.size)
    )
    assert tokenizer.convert_tokens_to_ids("<sem_0019>") == vocabulary.semantic_offset + 19
    assert tokenizer.convert_tokens_to_ids("<guide_00049>") == vocabulary.size - 1
    with pytest.raises(HybridTokenizerError, match=r"already has '<img>'.*before image tokens were added"):
        add_image_tokens(tokenizer, SMALL)


def test_a_folder_keeps_tokenizer_and_vocabulary_and_refuses_another_image_tokenizer(tmp_path):
    tokenizer = byte_level()
    vocabulary = add_image_tokens(tokenizer, SMALL)
    save_vocabulary(tmp_path, tokenizer, vocabulary)
    loaded, stored = load_vocabulary(tmp_path, SMALL.source)
    assert stored == vocabulary
    tokens = random_tokens(vocabulary, 3, 2)
    assert tokens_of_text(text_of_tokens(tokens, vocabulary), loaded, stored) == tokens
    with pytest.raises(HybridTokenizerError, match="made by tokenizer 'small'"):
        load_vocabulary(tmp_path, TokenSource("other", "c" * 64))
    with pytest.raises(HybridTokenizerError, match=r"gives '<img>' the id None"):
        save_vocabulary(tmp_path, byte_level(), vocabulary)
    (tmp_path / "hybrid_vocabulary.json").write_text("{}")
    with pytest.raises(HybridTokenizerError, match="not a vocabulary of images"):
        load_vocabulary(tmp_path)


def llama(rows, tied=True, width=16):
    sizes = {"hidden_size": width, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=rows, tie_word_embeddings=tied, **sizes))


@pytest.mark.parametrize("tied", [True, False])
def test_new_rows_have_the_statistics_of_the_old_which_stay(tied):
    vocabulary = dataclasses.replace(TINY, text_vocab_size=500)
    model = llama(520, tied)  # 20 rows of padding, as published models have
    scale = torch.linspace(0.5, 3, 16)
    with torch.no_grad():
        for layer in {model.get_input_embeddings(), model.get_output_embeddings()}:
            layer.weight.copy_((torch.randn(520, 16) * scale + torch.arange(16)) @ torch.eye(16).roll(1, 0))
    old = [layer.weight[:500].clone() for layer in (model.get_input_embeddings(), model.get_output_embeddings())]
    resize_embeddings(model, vocabulary, torch.Generator().manual_seed(0))
    assert model.config.vocab_size % 64 == 0 and model.config.vocab_size - vocabulary.size in range(64)
    for layer, before in zip((model.get_input_embeddings(), model.get_output_embeddings()), old, strict=True):
        assert layer.weight.shape[0] == model.config.vocab_size
        torch.testing.assert_close(layer.weight[:500], before, rtol=0, atol=0)
        new = layer.weight[500:].detach()
        torch.testing.assert_close(new.mean(0), before.mean(0), rtol=0.02, atol=0.1)
        torch.testing.assert_close(new.T.cov(), before.T.cov(), rtol=0.1, atol=0.3)
    same = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert same == tied
    check_model(model, vocabulary)


def test_rows_from_codebooks_keep_what_is_near_near():
    vocabulary = dataclasses.replace(SMALL, text_vocab_size=100)
    guide = torch.randn(50, 4)
    guide[7] = guide[3] + 0.01
    model = llama(100, width=128)
    text = model.get_input_embeddings().weight[:100].detach().clone()
    codebooks = Codebooks(torch.randn(20, 8), guide)
    resize_embeddings(model, vocabulary, torch.Generator().manual_seed(0), codebooks)
    rows = model.get_input_embeddings().weight.detach()[vocabulary.guide_offset : vocabulary.size]
    distances = torch.cdist(rows, rows).fill_diagonal_(9)
    assert distances[3].argmin() == 7
    assert torch.corrcoef(torch.stack([torch.pdist(rows), torch.pdist(guide)]))[0, 1] > 0.8
    assert 0.5 < rows.std() / text.std() < 2
    with pytest.raises(HybridTokenizerError, match="a codebook has 50 vectors, the vocabulary 20"):
        resize_embeddings(llama(100), vocabulary, torch.Generator(), Codebooks(guide, guide))


def test_output_biases_of_new_rows_are_those_of_a_usual_word():
    model = GPTJForCausalLM(GPTJConfig(vocab_size=100, n_embd=16, n_layer=1, n_head=2, rotary_dim=4))
    with torch.no_grad():
        model.get_output_embeddings().bias.normal_(mean=2)
    resize_embeddings(model, dataclasses.replace(SMALL, text_vocab_size=100), torch.Generator().manual_seed(0))
    bias = model.get_output_embeddings().bias
    torch.testing.assert_close(bias[100:], bias[:100].mean().expand(len(bias) - 100))


def test_a_model_of_another_vocabulary_is_refused():
    vocabulary = dataclasses.replace(SMALL, text_vocab_size=100)
    model = llama(100)
    with pytest.raises(HybridTokenizerError, match="no image vocabulary and 100 rows"):
        check_model(model, vocabulary)
    resize_embeddings(model, vocabulary, torch.Generator().manual_seed(0))
    other = dataclasses.replace(vocabulary, source=TokenSource("small", "d" * 64))
    with pytest.raises(HybridTokenizerError, match="use the model that was trained on them"):
        check_model(model, other)
    renamed = dataclasses.replace(vocabulary, source=TokenSource("copy", "b" * 64))
    check_model(model, renamed)  # names are for people
    with pytest.raises(HybridTokenizerError, match="give the tokenizer of this model"):
        resize_embeddings(llama(50), vocabulary, torch.Generator())


def test_budgets_are_numbers_of_tokens():
    assert [budget_of(TINY, total) for total in (36, 52, 116, 372)] == [1, 2, 3, 4]
    with pytest.raises(HybridTokenizerError, match=r"budget=100 .* use one of \[36, 52, 116, 372\]"):
        budget_of(TINY, 100)
