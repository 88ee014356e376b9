"""Under ImageGrammar a model that knows nothing writes whole images only, and its probabilities are its own."""

import pytest
import torch
from language_models import SMALL, random_llama, random_tokens

from hybrid_tokenizer.errors import HybridTokenizerError
from hybrid_tokenizer.language.constrained import ImageGrammar, places_in_image
from hybrid_tokenizer.language.vocabulary import budgets, read_sequence

BUDGETS = budgets(SMALL)


def prompts(count, seed):
    """Left-padded rows: text, an open `<img>`, part of an image, or a whole image and text; and the budget of each."""
    generator = torch.Generator().manual_seed(seed)

    def draw(high):
        return int(torch.randint(high, (1,), generator=generator))

    rows, totals = [], []
    for index in range(count):
        num_grids = 1 + draw(len(BUDGETS))
        image = random_tokens(SMALL, 1, num_grids, seed=seed * 1000 + index).to_token_ids(SMALL)[0].tolist()
        text = [1] + [3 + draw(7) for _ in range(draw(4))]
        kept = 1 + draw(len(image) - 1)
        rows.append([text, text + image[:1], text + image[:kept], image + text][draw(4)])
        totals.append(BUDGETS[num_grids - 1])
    width = max(map(len, rows))
    ids = torch.tensor([[0] * (width - len(row)) + row for row in rows])
    return ids, totals


def generate(model, ids, budget, max_images=2, **options):
    length = ids.shape[1] + 90
    grammar = ImageGrammar(SMALL, budget, max_images=max_images, max_length=length)
    return model.generate(
        input_ids=ids, attention_mask=(ids != 0).long(), max_length=length, logits_processor=[grammar], **options
    )


SAMPLED = {"do_sample": True, "top_k": 0}
WAYS = {
    "sampled": SAMPLED,
    "top_k": {"do_sample": True, "top_k": 3},
    "top_p and temperature": {"do_sample": True, "top_k": 0, "top_p": 0.5, "temperature": 2.0},
    "greedy": {"do_sample": False},
    "beams": {"do_sample": False, "num_beams": 3},
    "sampled beams": {"do_sample": True, "top_k": 0, "num_beams": 2, "num_return_sequences": 2},
    "guided": SAMPLED | {"guidance_scale": 3.0},
}  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
def test_whatever_the_model_every_image_is_whole(way):
    """More than 500 sequences in all, budgets and prompts mixed in each batch."""
    model, seed = random_llama(), list(WAYS).index(way)
    ids, totals = prompts(72, seed)
    options = dict(WAYS[way])
    if "guidance_scale" in options:
        options |= {
            "negative_prompt_ids": ids[:, -1:],
            "negative_prompt_attention_mask": torch.ones(len(ids), 1).long(),
        }
    written = generate(model, ids, totals, **options)
    each = len(written) // len(ids)
    assert len(written) * len(WAYS) >= 500
    sizes, begun = set(), 0
    for row, ids_written in enumerate(written.tolist()):
        images = read_sequence(ids_written, SMALL).images
        prompt = ids[row // each].tolist()
        assert ids_written[: len(prompt)] == prompt and len(images) <= 2
        done = prompt.count(SMALL.end_id)  # whole images of the prompt keep their own size
        assert all(image.num_tokens == totals[row // each] for image in images[done:])
        sizes |= {image.num_tokens for image in images[done:]}
        begun += len(images) - prompt.count(SMALL.begin_id)
    assert sizes == set(BUDGETS) and (begun > 0 or "sampled" not in way)


def test_allowed_logits_are_untouched_and_probabilities_renormalised():
    ids, totals = prompts(200, seed=11)
    scores = torch.randn(200, 128) * 4
    masked = ImageGrammar(SMALL, totals)(ids, scores)
    allowed = masked.isfinite()
    assert torch.equal(masked[allowed], scores[allowed]) and (masked[~allowed] == -torch.inf).all()
    original = scores.double().softmax(-1) * allowed
    expected = original / original.sum(-1, keepdim=True)
    assert (masked.double().softmax(-1) - expected).abs().max() < 1e-6
    places = places_in_image(ids, SMALL).tolist()
    for place, total, row, prompt in zip(places, totals, allowed, ids.tolist(), strict=True):
        text = range(SMALL.text_vocab_size + (SMALL.begin_id not in prompt))  # max_images=1
        semantic, guide = range(SMALL.semantic_offset, SMALL.guide_offset), range(SMALL.guide_offset, SMALL.size)
        expected = text if place < 0 else semantic if place < 32 else guide if place < total else [SMALL.end_id]
        assert row.nonzero().flatten().tolist() == list(expected)
    assert {place < 0 for place in places} == {True, False} and SMALL.size < 128, "padding rows are masked too"


def test_without_the_grammar_the_same_model_writes_no_whole_image():
    ids = torch.tensor([[1, SMALL.begin_id]] * 50)
    torch.manual_seed(0)
    written = random_llama().generate(input_ids=ids, max_new_tokens=90, do_sample=True, top_k=0)
    whole = 0
    for row in written.tolist():
        try:
            whole += bool(read_sequence(row, SMALL).images)
        except HybridTokenizerError:
            continue
    assert whole == 0


def test_no_image_begins_that_could_not_end():
    scores = torch.zeros(1, 128)
    ids = torch.tensor([[1, 3, 4]])
    assert ImageGrammar(SMALL, 34, max_length=39)(ids, scores)[0, SMALL.begin_id] == 0
    assert ImageGrammar(SMALL, 34, max_length=38)(ids, scores)[0, SMALL.begin_id] == -torch.inf
    assert ImageGrammar(SMALL, 34, max_images=0)(ids, scores)[0, SMALL.begin_id] == -torch.inf


def test_prompts_and_budgets_that_cannot_be_are_refused():
    scores = torch.zeros(1, 128)
    begin, sem, guide = SMALL.begin_id, SMALL.semantic_offset, SMALL.guide_offset
    with pytest.raises(HybridTokenizerError, match=r"budget=35 .* use one of \[34, 40, 52\]"):
        ImageGrammar(SMALL, 35)
    with pytest.raises(HybridTokenizerError, match="prompt 0 has id 32 as its token 1, expected a semantic id"):
        ImageGrammar(SMALL, 34)(torch.tensor([[1, begin, sem, guide]]), scores)
    with pytest.raises(HybridTokenizerError, match="has id 3 as its token 32, expected a guide id"):
        ImageGrammar(SMALL, 34)(torch.tensor([[1, begin, *[sem] * 32, 3]]), scores)
    with pytest.raises(HybridTokenizerError, match="expected at most the 34 ids of its budget"):
        ImageGrammar(SMALL, 34)(torch.tensor([[1, begin, *[sem] * 32, *[guide] * 3]]), scores)
    with pytest.raises(HybridTokenizerError, match="2 budgets for 3 sequences"):
        ImageGrammar(SMALL, [34, 40])(torch.ones(3, 4).long(), torch.zeros(3, 128))


def test_read_sequence_names_what_is_not_an_image():
    image = random_tokens(SMALL, 1, 2).to_token_ids(SMALL)[0].tolist()
    written = read_sequence([1, 5, *image, 6, 2], SMALL)
    assert written.text_ids == [1, 5, 6, 2] and written.images[0] == random_tokens(SMALL, 1, 2)
    with pytest.raises(HybridTokenizerError, match="position 1 has no </img>"):
        read_sequence([1, *image[:-1]], SMALL)
    with pytest.raises(HybridTokenizerError, match="outside of <img>"):
        read_sequence([1, image[3]], SMALL)
    with pytest.raises(HybridTokenizerError, match="a sequence has 41 ids"):
        read_sequence([*image[:20], *image[21:]], SMALL)
