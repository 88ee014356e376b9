"""A small Llama knows where in an image each token stands, in training, with a cache, and in every way of decoding."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from language_models import SMALL, random_tokens

from hybrid_tokenizer.language import llama
from hybrid_tokenizer.language.constrained import ImageGrammar
from hybrid_tokenizer.language.llama import FactorisedLlamaConfig, FactorisedLlamaForCausalLM, places_of
from hybrid_tokenizer.language.places import num_places, place_vectors
from hybrid_tokenizer.language.vocabulary import read_sequence

BEGIN, END = SMALL.begin_id, SMALL.end_id


@pytest.fixture(scope="module")
def model():
    """Its logits depend on the places as much as on the tokens."""
    torch.manual_seed(0)
    config = FactorisedLlamaConfig(
        vocab_size=128, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        embedding_width=8, initializer_range=0.5, pad_token_id=0, bos_token_id=1, eos_token_id=2,
        tie_word_embeddings=True, num_places=num_places(SMALL), image_begin_id=BEGIN, image_end_id=END,
    )  # fmt: skip
    return FactorisedLlamaForCausalLM(config).eval()


def sequences():
    """Two rows: a caption and an image, and an image and a caption."""
    image = random_tokens(SMALL, 2, 3).to_token_ids(SMALL)
    text = torch.randint(3, 10, (2, 6))
    return torch.stack([torch.cat([text[0], image[0]]), torch.cat([image[1], text[1]])])


def test_places_count_from_the_image_and_end_with_it():
    ids = torch.tensor([[1, 5, BEGIN, 20, 21, 40, END, 6, BEGIN, 22], [BEGIN, 20, END, 5, 6, 7, BEGIN, 20, 21, 22]])
    assert places_of(ids, BEGIN, END).tolist() == [[0, 0, 1, 2, 3, 4, 0, 0, 1, 2], [1, 2, 0, 0, 0, 0, 1, 2, 3, 4]]
    longest = places_of(sequences(), BEGIN, END).max()
    assert longest == num_places(SMALL) - 1 == 53


def test_the_place_of_a_token_changes_what_follows(model):
    ids = sequences()
    logits = model(ids).logits
    with torch.no_grad():
        before = model.places.weight.clone()
        model.places.weight[4] += 1
        moved = (model(ids).logits - logits).abs().amax(-1)
        model.places.weight.copy_(before)
    assert moved[0, :9].max() == 0 and moved[0, 9] > 1e-3, "its fourth place is the token 6 + 3"
    assert moved[1, :3].max() == 0 and moved[1, 3] > 1e-3


def test_a_cache_changes_nothing(model):
    ids = sequences()
    expected = model(ids, use_cache=False).logits
    for start in (3, 10, 57):  # within the caption, within the image, after it
        first = model(ids[:, :start], use_cache=True)
        logits, cache = [first.logits], first.past_key_values
        for position in range(start, ids.shape[1]):
            step = model(ids[:, position : position + 1], past_key_values=cache, use_cache=True)
            logits.append(step.logits)
            cache = step.past_key_values
        torch.testing.assert_close(torch.cat(logits, 1), expected, rtol=1e-3, atol=2e-4)


def test_rows_of_a_cache_change_places_with_their_images(model):
    ids = sequences()
    cache = model(ids[:, :-1], use_cache=True).past_key_values
    cache.reorder_cache(torch.tensor([1, 0]))
    swapped = ids.flip(0)
    logits = model(swapped[:, -1:], past_key_values=cache, use_cache=True).logits
    torch.testing.assert_close(logits, model(swapped).logits[:, -1:], rtol=1e-3, atol=2e-4)


@pytest.mark.parametrize("way", ["greedy", "beams", "guided"])
def test_decoding_with_a_cache_writes_what_it_writes_without(model, way):
    begun = random_tokens(SMALL, 2, 1).to_token_ids(SMALL)[:, :29]
    prompt = torch.cat([torch.tensor([[0, 0, 1, 5], [1, 4, 5, 6]]), begun], 1)
    options = {"greedy": {}, "beams": {"num_beams": 3}, "guided": {"guidance_scale": 2.0}}[way]
    if way == "guided":
        options["negative_prompt_ids"] = begun
    with_cache, without = (
        model.generate(
            input_ids=prompt, attention_mask=(prompt != 0).long(), max_new_tokens=7, do_sample=False,
            use_cache=use_cache, logits_processor=[ImageGrammar(SMALL, 34)], **options,
        )
        for use_cache in (True, False)
    )  # fmt: skip
    assert torch.equal(with_cache, without)
    assert all(read_sequence(row[row != 0].tolist(), SMALL).images[0].num_tokens == 34 for row in with_cache)


def test_losses_in_chunks_are_those_of_all_logits_at_once(model, monkeypatch):
    ids, nothing = sequences(), -100
    targets = torch.cat([ids[:, 1:], torch.full((2, 1), nothing)], 1)
    targets[0, :5] = nothing
    positions = torch.arange(ids.shape[1]).expand(2, -1)
    has_target = targets != nothing
    expected = F.cross_entropy(
        model(ids, position_ids=positions, use_cache=False).logits[has_target], targets[has_target], reduction="none"
    )
    weights = torch.rand(len(expected))
    gradients = []
    for chunk in (7, 1000):
        monkeypatch.setattr(llama, "LOSS_CHUNK", chunk)
        losses = model.token_losses(ids, positions, targets, nothing)
        torch.testing.assert_close(losses, expected, rtol=1e-5, atol=1e-5)
        gradients.append(torch.autograd.grad(losses @ weights, list(model.parameters())))
    of_all = torch.autograd.grad(expected @ weights, list(model.parameters()))
    for one in gradients:
        for name_and_value, other in zip(one, of_all, strict=True):
            torch.testing.assert_close(name_and_value, other, rtol=1e-4, atol=1e-5)


def test_places_of_one_cell_and_of_neighbours_start_alike():
    grids = ((2, 2), (4, 4), (8, 8), (16, 16))
    vocabulary = dataclasses.replace(SMALL, grid_shapes=grids)
    vectors = place_vectors(vocabulary, 256, torch.Generator().manual_seed(0))
    assert vectors.shape == (num_places(vocabulary), 256) == (374, 256)
    assert vectors[0].abs().max() == 0 and vectors[1:].std() == pytest.approx(1, abs=0.2)
    distances = torch.cdist(vectors[1:], vectors[1:]).fill_diagonal_(99)
    assert distances.min() > 1, "no two places are the same"
    finest = distances[1 + 32 + 84 :, 1 + 32 + 84 :].unflatten(0, (16, 16)).unflatten(2, (16, 16))
    cell = finest[5, 6]
    beside, far = (cell[5, 7] + cell[6, 6] + cell[5, 5] + cell[4, 6]) / 4, cell[9:, 9:].mean()
    assert beside < far
