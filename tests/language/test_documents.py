"""Rows of tokens as documents of a language model."""

import copy
from collections import Counter

import numpy as np
import pytest
import torch
from token_rows import MemoryRows, text_side, token_rows

from hybrid_tokenizer.data.training import build_loader
from hybrid_tokenizer.errors import HybridTokenizerError
from hybrid_tokenizer.language.config import DocumentConfig, TokenLossWeights
from hybrid_tokenizer.language.documents import (
    BOUNDARY,
    CAPTION,
    FIRST_GRID,
    SEMANTIC,
    TEXT,
    DocumentStream,
    JoinedRows,
    compose,
    hold_out_rows,
    kind_names,
    kind_range,
)
from hybrid_tokenizer.language.vocabulary import budgets, document_boundaries, read_sequence
from hybrid_tokenizer.tokens import TokenSource

TOKENIZER, VOCABULARY = text_side()
BOUNDARIES = document_boundaries(TOKENIZER)


def stream(rows=None, seed=0, **options):
    return DocumentStream(rows or token_rows(12), VOCABULARY, TOKENIZER, DocumentConfig(**options), seed)


@pytest.mark.parametrize("image_first", [False, True])
def test_a_document_holds_the_caption_and_the_codes_of_its_row(image_first):
    row = token_rows(3)[2]
    caption_ids = TOKENIZER(row["captions"][0]).input_ids
    for num_grids, guide_length in ((1, 2), (2, 8), (3, 20)):
        document = compose(row, caption_ids, num_grids, image_first, VOCABULARY, BOUNDARIES)
        written = read_sequence(document.ids.tolist(), VOCABULARY)
        image = written.images[0]
        assert image.semantic_indices[0].tolist() == row["semantic"].tolist()
        flat = torch.cat([grid.flatten() for grid in image.guide_indices])
        assert flat.tolist() == row["guide"][:guide_length].tolist()
        assert written.text_ids == [*BOUNDARIES.begin, *caption_ids, BOUNDARIES.end]
        assert (document.ids[1] == VOCABULARY.begin_id) == image_first
        kinds = Counter(document.kinds.tolist())
        text, end = (CAPTION, 1) if image_first else (TEXT, 0)
        assert kinds[text] == len(caption_ids) + end and kinds[SEMANTIC] == 32
        assert [kinds[FIRST_GRID + grid] for grid in range(3)] == [2, 6 * (num_grids > 1), 12 * (num_grids > 2)]
        for token_id, kind in zip(document.ids[1:], document.kinds[1:], strict=True):
            low, high = kind_range(int(kind), VOCABULARY)
            assert low <= token_id < high
    assert kind_names(VOCABULARY)[SEMANTIC] == "semantic" and kind_names(VOCABULARY)[FIRST_GRID] == "guide_1x2"


def test_a_draw_depends_on_its_number_alone():
    one, other = stream(), copy.deepcopy(stream())  # through __getstate__, as a worker process gets it
    for draw in (40, 3, 25):
        assert np.array_equal(one[draw]["documents"].ids, other[draw]["documents"].ids)
    assert any(
        not np.array_equal(one[draw]["documents"].ids, stream(seed=1)[draw]["documents"].ids) for draw in range(5)
    )
    loader = build_loader(stream(), batch_size=4, first=2, num_workers=1)
    batch = next(iter(loader))
    assert batch["skipped"] == []
    for offset, document in enumerate(batch["documents"]):
        assert np.array_equal(document.ids, one[8 + offset]["documents"].ids)


def test_an_epoch_has_every_row_once_and_shares_are_as_asked():
    rows = token_rows(12)
    drawn = stream(rows, image_first=0.25, caption_dropout=0.2, budget_weights=[2.0, 0.0, 1.0])
    keys = {tuple(row["semantic"].tolist()): row["id"] for row in rows}
    seen, captioned, first, totals = [], 0, 0, Counter()
    for draw in range(600):
        document = drawn[draw]["documents"]
        written = read_sequence(document.ids.tolist(), VOCABULARY)
        seen.append(keys[tuple(written.images[0].semantic_indices[0].tolist())])
        captioned += len(written.text_ids) > 2
        first += document.ids[1] == VOCABULARY.begin_id and len(written.text_ids) > 2
        totals[written.images[0].num_tokens] += 1
    assert all(len(set(seen[epoch * 12 : epoch * 12 + 12])) == 12 for epoch in range(50))
    assert 0.75 < captioned / 600 < 0.85 and 0.2 < first / captioned < 0.3
    assert set(totals) == {budgets(VOCABULARY)[0], budgets(VOCABULARY)[2]} and 360 < totals[34] < 440


def test_rows_without_captions_are_images_alone():
    document = stream(token_rows(4, captions=0))[0]["documents"]
    assert read_sequence(document.ids.tolist(), VOCABULARY).text_ids == [*BOUNDARIES.begin, BOUNDARIES.end]
    assert set(document.kinds[1:].tolist()) <= {BOUNDARY, SEMANTIC, *range(FIRST_GRID, FIRST_GRID + 3)}


def test_long_captions_are_cut():
    row = token_rows(1)[0] | {"captions": ["dog " * 300]}
    document = stream(MemoryRows([row]), caption_dropout=0.0, max_caption_tokens=5)[0]["documents"]
    assert len(read_sequence(document.ids.tolist(), VOCABULARY).text_ids) == 1 + 5 + 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"grid_shapes": ((1, 2), (2, 3))}, "tokenize with that image size and all grids"),
        ({"image_size": (32, 32)}, r"of \(32, 32\) images"),
        ({"source": TokenSource("other", "c" * 64)}, "made by tokenizer 'other'"),
    ],
)
def test_rows_of_another_tokenizer_are_refused(change, message):
    rows = token_rows(2)
    vars(rows).update(change)
    with pytest.raises(HybridTokenizerError, match=message):
        stream(rows)
    with pytest.raises(HybridTokenizerError, match="token shards differ in"):
        JoinedRows([token_rows(2), rows])


def test_shards_are_joined_and_part_of_their_images_held_out():
    views = MemoryRows([row | {"id": f"{row['id']}#{view}"} for row in token_rows(40) for view in (1, 2)])
    joined = JoinedRows([token_rows(5), views, token_rows(3)])
    assert len(joined) == 88 and [joined[index]["id"] for index in (4, 5, 85)] == ["4.png", "0.png#1", "0.png"]
    training, held = hold_out_rows(JoinedRows([views]), 0.25)
    names = [{rows[index]["id"] for index in range(len(rows))} for rows in (training, held)]
    assert names[0] | names[1] == {row["id"] for row in views} and not names[0] & names[1]
    images = [{name.split("#")[0] for name in one} for one in names]
    assert not images[0] & images[1] and 4 <= len(images[1]) <= 18
    with pytest.raises(HybridTokenizerError, match=r"data.val_share=0.0 of 80 rows holds out 0"):
        hold_out_rows(JoinedRows([views]), 0.0)


def test_options_that_cannot_be_are_refused():
    with pytest.raises(HybridTokenizerError, match=r"documents.image_first=1.5 is a share"):
        DocumentConfig(image_first=1.5)
    with pytest.raises(HybridTokenizerError, match=r"budget_weights=\[0.0, 0.0\]"):
        DocumentConfig(budget_weights=[0.0, 0.0])
    with pytest.raises(HybridTokenizerError, match="2 numbers for 3 guide grids"):
        stream(budget_weights=[1.0, 1.0])
    with pytest.raises(HybridTokenizerError, match="2 weights for 3 grids"):
        TokenLossWeights(guide=[1.0, 1.0]).by_kind(3)
    with pytest.raises(HybridTokenizerError, match=r"loss\.semantic=-1.0 must be 0 or more"):
        TokenLossWeights(semantic=-1.0)
    with pytest.raises(HybridTokenizerError, match="hold no rows"):
        DocumentStream(MemoryRows([]), VOCABULARY, TOKENIZER, DocumentConfig(), 0)
