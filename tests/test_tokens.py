import json
import re

import jaxtyping
import pytest
import torch
from safetensors.torch import save_file

from hybrid_tokenizer.errors import HybridTokenizerError
from hybrid_tokenizer.tokens import HASH_PREFIX, HybridTokens, HybridVocabulary, TokenSource, check_source

SOURCE = TokenSource("tiny", HASH_PREFIX + "a" * 64)


@pytest.fixture
def users_checks():
    """What a user meets: the package's own checks, without the shape annotations that tests execute."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def tokens_of(batch=2, grids=((3, 2), (6, 4)), size=(48, 32), semantic_size=10, guide_size=7, source=None):
    return HybridTokens(
        semantic_indices=torch.randint(semantic_size, (batch, 32)),
        guide_indices=tuple(torch.randint(guide_size, (batch, h, w)) for h, w in grids),
        image_size=size,
        source=source,
    )


def vocabulary_of(grids=((3, 2), (6, 4)), size=(48, 32), text=1000, source=None, semantic_size=10, guide_size=7):
    return HybridVocabulary(semantic_size, guide_size, grids, size, text_vocab_size=text, source=source)


def test_counts_and_bits():
    tokens = tokens_of()
    assert len(tokens) == 2
    assert tokens.num_guide_tokens == 6 + 24
    assert tokens.num_tokens == 62
    assert tokens.bits(semantic_codebook_size=1024, guide_codebook_size=256) == 32 * 10 + 30 * 8


def test_slices_and_concatenation_are_inverse():
    tokens = tokens_of(batch=3, source=SOURCE)
    assert HybridTokens.cat([tokens[0], tokens[1:]]) == tokens
    assert tokens[-1] == tokens[2:3] == tokens[[2]] == tokens[torch.tensor([2])]
    assert tokens[torch.tensor([True, False, True])] == HybridTokens.cat([tokens[0], tokens[2]])
    assert tokens[0].source == SOURCE
    assert [len(one) for one in tokens] == [1, 1, 1]
    with pytest.raises(IndexError):
        tokens[3]


def test_equality_compares_indices_and_size():
    tokens = tokens_of(batch=1)
    changed = tokens.guide_indices[1].clone()
    changed[0, 5, 3] += 1
    assert tokens != HybridTokens(tokens.semantic_indices, (tokens.guide_indices[0], changed), tokens.image_size)
    assert tokens != HybridTokens(tokens.semantic_indices, tokens.guide_indices, (32, 48))
    assert tokens != HybridTokens(tokens.semantic_indices, tokens.guide_indices[:1], tokens.image_size)
    assert tokens == tokens.to("cpu")
    narrow = HybridTokens(
        tokens.semantic_indices.int(), tuple(grid.int() for grid in tokens.guide_indices), tokens.image_size
    )
    assert narrow == tokens and narrow.semantic_indices.dtype == torch.int64


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"semantic_indices": torch.zeros(2, 31, dtype=torch.long)}, "31 tokens per image, expected 32"),
        ({"semantic_indices": torch.zeros(2, 32)}, "expected integers"),
        ({"semantic_indices": torch.zeros(3, 32, dtype=torch.long)}, "same batch"),
        ({"guide_indices": ()}, "guide_indices is empty"),
        ({"guide_indices": (torch.zeros(2, 16, dtype=torch.long),)}, r"expected integers of shape \(b, h, w\)"),
        (
            {"guide_indices": (torch.zeros(2, 4, 4, dtype=torch.long), torch.zeros(2, 2, 2, dtype=torch.long))},
            "reverse the tuple",
        ),
        ({"semantic_indices": [[0] * 32] * 2}, "semantic_indices is a list, expected a tensor of integers"),
        (
            {"guide_indices": torch.zeros(2, 6, 4, dtype=torch.long)},
            "guide_indices is a Tensor, expected a tuple of grids",
        ),
        ({"guide_indices": (None,)}, r"guide_indices\[0\] is a NoneType"),
        ({"guide_indices": (torch.zeros(2, 0, 4, dtype=torch.long),)}, "expected at least 1 each"),
        ({"image_size": (0, 32)}, "a side of image_size is 0, expected a whole number from 1"),
        ({"image_size": (48.0, 32)}, "a side of image_size is 48.0"),
        ({"image_size": (True, 32)}, "a side of image_size is True"),
        ({"image_size": (10**9, 32)}, "a side of image_size is 1000000000"),
        ({"image_size": 48}, r"image_size is 48, expected \(height, width\)"),
        ({"image_size": "48"}, "image_size is '48'"),
    ],
)
def test_malformed_tokens_are_refused(changes, message, users_checks):
    fields = {
        "semantic_indices": torch.zeros(2, 32, dtype=torch.long),
        "guide_indices": (torch.zeros(2, 6, 4, dtype=torch.long),),
        "image_size": (48, 32),
    }
    with pytest.raises(HybridTokenizerError, match=message) as caught:
        HybridTokens(**(fields | changes))
    assert "\n" not in str(caught.value)


def test_concatenating_different_sizes_is_refused():
    with pytest.raises(HybridTokenizerError, match="image_size"):
        HybridTokens.cat([tokens_of(), tokens_of(size=(96, 64))])


@pytest.mark.parametrize("text", [0, 1, 32000])
def test_token_ids_round_trip_every_code(text):
    semantic_size, guide_size = 70, 50
    vocabulary = vocabulary_of(text=text, semantic_size=semantic_size, guide_size=guide_size)
    batch = 3  # 96 semantic and 72 full-grid places: every code of either codebook is in the batch
    tokens = HybridTokens(
        (torch.arange(batch * 32) % semantic_size).reshape(batch, 32),
        ((torch.arange(batch * 6) % guide_size).reshape(batch, 3, 2), (torch.arange(batch * 24) % guide_size).reshape(-1, 6, 4)),
        (48, 32),
    )  # fmt: skip
    token_ids = tokens.to_token_ids(vocabulary)
    assert token_ids.shape == (batch, 2 + 32 + 6 + 24) and token_ids.shape[1] == vocabulary.sequence_lengths[-1]
    assert HybridTokens.from_token_ids(token_ids, vocabulary) == tokens
    assert token_ids.min() == text and token_ids.max() == vocabulary.size - 1
    assert sorted(token_ids.unique().tolist()) == list(range(text, vocabulary.size))


def test_sequence_order_is_image_semantic_guide_coarse_to_fine():
    vocabulary = vocabulary_of()
    tokens = tokens_of()
    ids = tokens.to_token_ids(vocabulary)
    assert ids[:, 0].unique().item() == 1000 and ids[:, -1].unique().item() == 1001
    assert torch.equal(ids[:, 1:33] - 1002, tokens.semantic_indices)
    assert torch.equal(ids[:, 33:39] - 1012, tokens.guide_indices[0].flatten(1))
    assert torch.equal(ids[:, 39:63] - 1012, tokens.guide_indices[1].flatten(1))


def test_prefix_of_a_nested_guide_is_told_by_its_length():
    vocabulary = vocabulary_of()
    whole = tokens_of()
    prefix = HybridTokens(whole.semantic_indices, whole.guide_indices[:1], whole.image_size)
    ids = prefix.to_token_ids(vocabulary)
    assert ids.shape[1] == vocabulary.sequence_lengths[0] == 40
    assert vocabulary.from_token_ids(ids) == prefix


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda ids: ids[:, :-1], "has 63 ids, expected 40 or 64"),
        (lambda ids: ids.index_fill(1, torch.tensor([0]), 7), "id 7 at position 0 of sequence 0 is not <img>"),
        (lambda ids: ids.index_fill(1, torch.tensor([63]), 1000), "position 63 of sequence 0 is not </img>"),
        (lambda ids: ids.index_fill(1, torch.tensor([5]), 1012), r"position 5 .* not a semantic code .*1002..1011"),
        (lambda ids: ids.index_fill(1, torch.tensor([40]), 1011), r"position 40 .* not a guide code .*1012..1018"),
        (lambda ids: ids.index_fill(1, torch.tensor([40]), 1019), "not a guide code"),
        (lambda ids: ids.index_fill(1, torch.tensor([40]), -1), "not a guide code"),
    ],
)
def test_malformed_sequences_are_refused(spoil, message):
    vocabulary = vocabulary_of()
    ids = tokens_of().to_token_ids(vocabulary)
    with pytest.raises(HybridTokenizerError, match=message) as caught:
        vocabulary.from_token_ids(spoil(ids))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (lambda: tokens_of(grids=((6, 4),)), "guide grids"),
        (lambda: tokens_of(size=(96, 64)), "image_size="),
        (lambda: tokens_of(semantic_size=9000), "semantic_indices spans"),
        (lambda: tokens_of(guide_size=9000), "guide_indices"),
        (lambda: tokens_of(source=TokenSource("other", HASH_PREFIX + "b" * 64)), "'other'.*'tiny'"),
    ],
)
def test_tokens_that_do_not_fit_the_vocabulary_are_refused(tokens, message):
    with pytest.raises(HybridTokenizerError, match=message):
        tokens().to_token_ids(vocabulary_of(source=SOURCE))


def test_ids_bring_the_source_of_their_vocabulary():
    vocabulary = vocabulary_of(source=SOURCE)
    assert vocabulary.from_token_ids(tokens_of().to_token_ids(vocabulary)).source == SOURCE


@pytest.mark.parametrize("source", [None, SOURCE])
def test_file_round_trip(tmp_path, source):
    tokens = tokens_of(source=source)
    tokens.save(tmp_path / "tokens.safetensors")
    loaded = HybridTokens.load(tmp_path / "tokens.safetensors")
    assert loaded == tokens and loaded.source == source
    assert [path.name for path in tmp_path.iterdir()] == ["tokens.safetensors"]


def test_file_names_its_tokenizer(tmp_path):
    path = tmp_path / "tokens.safetensors"
    tokens_of(source=SOURCE).save(path)
    raw = path.read_bytes()
    metadata = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])["__metadata__"]
    assert (metadata["tokenizer"], metadata["tokenizer_hash"], metadata["version"]) == (*SOURCE, "2")


def test_unusable_token_files_are_one_line(tmp_path):
    whole = tmp_path / "whole.safetensors"
    tokens_of().save(whole)
    (tmp_path / "cut.safetensors").write_bytes(whole.read_bytes()[:-20])
    (tmp_path / "text.safetensors").write_text("tokens")
    (tmp_path / "empty.safetensors").write_bytes(b"")
    save_file({"weight": torch.zeros(2)}, tmp_path / "weights.safetensors")
    cases = (("cut", "damaged"), ("text", "damaged"), ("empty", "damaged"), ("weights", "HybridTokens.save"), ("none", "does not exist"))  # fmt: skip
    for name, message in cases:
        with pytest.raises(HybridTokenizerError, match=re.compile(message)) as caught:
            HybridTokens.load(tmp_path / f"{name}.safetensors")
        assert "\n" not in str(caught.value) and f"{name}.safetensors" in str(caught.value)


TENSORS = {
    "semantic_indices": torch.zeros(2, 32, dtype=torch.int32),
    "guide_indices.0": torch.zeros(2, 4, 4, dtype=torch.int32),
}
METADATA = {
    "format": "hybrid_tokens", "version": "2", "image_height": "32", "image_width": "32", "tokenizer": "small",
    "tokenizer_hash": SOURCE.hash,
}  # fmt: skip


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"image_height": "abc"}, "image_height is 'abc', expected a number of pixels"),
        ({"image_height": "-32"}, "image_height is '-32'"),
        ({"image_height": "3.5"}, "image_height is '3.5'"),
        ({"image_height": "٣٢"}, "image_height is"),
        ({"image_height": "9" * 4000}, "image_height is '999"),
        ({"image_width": "0"}, "a side of image_size is 0"),
        ({"image_width": None}, "image_width is None"),
        ({"tokenizer_hash": None}, "tokenizer is 'small' and tokenizer_hash None, expected a name and a sha256"),
        ({"tokenizer": None}, "tokenizer is None"),
        ({"tokenizer_hash": "abc"}, "tokenizer_hash 'abc'"),
        ({"version": "1"}, "tokenizer_hash 'v2:aaa"),
        ({"version": "3"}, "version '3', expected 'hybrid_tokens' '1' or '2'"),
        ({"format": None}, "format None"),
    ],
)
def test_damaged_metadata_is_one_line(tmp_path, metadata, message):
    path = tmp_path / "tokens.safetensors"
    changed = {key: value for key, value in (METADATA | metadata).items() if value is not None}
    save_file(TENSORS, path, metadata=changed)
    with pytest.raises(HybridTokenizerError, match=message) as caught:
        HybridTokens.load(path)
    assert "\n" not in str(caught.value) and "tokens.safetensors" in str(caught.value) and len(str(caught.value)) < 400


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"semantic_indices": None}, "expected semantic_indices, guide_indices.0 and so on"),
        ({"guide_indices.0": None}, "expected semantic_indices, guide_indices.0 and so on"),
        ({"guide_indices.2": torch.zeros(2, 8, 8, dtype=torch.int32)}, "expected semantic_indices, guide_indices.0"),
        ({"semantic_indices": torch.zeros(2, 32)}, "semantic_indices is torch.float32"),
        ({"semantic_indices": torch.zeros(2, 32, dtype=torch.complex64)}, "semantic_indices is torch.complex64"),
        ({"semantic_indices": torch.zeros(2, 31, dtype=torch.int32)}, "31 tokens per image"),
        ({"semantic_indices": torch.zeros(3, 32, dtype=torch.int32)}, "same batch"),
        ({"guide_indices.0": torch.full((2, 4, 4), -1, dtype=torch.int32)}, r"guide_indices\[0\] spans -1 to -1"),
        ({"guide_indices.0": torch.zeros(2, 4, dtype=torch.int32)}, r"expected integers of shape \(b, h, w\)"),
    ],
)
def test_files_of_other_tensors_are_one_line(tmp_path, tensors, message, users_checks):
    path = tmp_path / "tokens.safetensors"
    changed = {key: value for key, value in (TENSORS | tensors).items() if value is not None}
    save_file(changed, path, metadata=METADATA)
    with pytest.raises(HybridTokenizerError, match=message) as caught:
        HybridTokens.load(path)
    assert "\n" not in str(caught.value) and "tokens.safetensors" in str(caught.value)


def test_an_empty_batch_is_kept(tmp_path):
    empty = tokens_of(batch=3, source=SOURCE)[:0]
    empty.save(tmp_path / "empty.safetensors")
    loaded = HybridTokens.load(tmp_path / "empty.safetensors")
    assert len(loaded) == 0 and loaded == empty and loaded.source == SOURCE
    assert repr(loaded).startswith("HybridTokens(0 images of 48x32")
    vocabulary = vocabulary_of()
    assert vocabulary.from_token_ids(loaded.to_token_ids(vocabulary_of(source=SOURCE))) == loaded
    assert HybridTokens.cat([loaded, tokens_of(source=SOURCE)[1:]]).semantic_indices.shape == (1, 32)


def test_version_1_is_kept_through_a_file(tmp_path):
    old = tokens_of(source=TokenSource("tiny", "a" * 64))
    old.save(tmp_path / "one.safetensors")
    loaded = HybridTokens.load(tmp_path / "one.safetensors")
    loaded.save(tmp_path / "two.safetensors")
    assert HybridTokens.load(tmp_path / "two.safetensors").source == loaded.source == old.source


def test_a_hash_of_version_1_is_asked_for_only_where_it_counts():
    old, new = TokenSource("tiny", "b" * 64), SOURCE

    def never():
        raise AssertionError("computed for nothing")

    check_source(new, new, never)
    check_source(None, new, never)
    check_source(old, new, lambda: "b" * 64)
    for asked in (lambda: "c" * 64, None):
        with pytest.raises(HybridTokenizerError, match="'tiny'"):
            check_source(old, new, asked)
    with pytest.raises(HybridTokenizerError, match="made by tokenizer 'tiny'"):
        check_source(TokenSource("tiny", HASH_PREFIX + "b" * 64), new, never)


def test_mixing_takes_semantics_and_guide():
    one, other = tokens_of(source=SOURCE), tokens_of(source=SOURCE)
    mixed = HybridTokens.mix(semantic_of=one, guide_of=other)
    assert mixed == HybridTokens(one.semantic_indices, other.guide_indices, other.image_size) and mixed.source == SOURCE
    with pytest.raises(HybridTokenizerError, match="semantic_of has 1 images and guide_of 2; give equally many"):
        HybridTokens.mix(semantic_of=one[0], guide_of=other)
    with pytest.raises(HybridTokenizerError, match="'other'"):
        HybridTokens.mix(semantic_of=tokens_of(source=TokenSource("other", HASH_PREFIX + "b" * 64)), guide_of=other)


@pytest.mark.parametrize("kind", [list, tuple, torch.tensor, lambda ids: torch.tensor(ids).int().numpy()])
def test_ids_of_every_kind_are_read(kind):
    vocabulary, tokens = vocabulary_of(), tokens_of()
    ids = tokens.to_token_ids(vocabulary).tolist()
    assert vocabulary.from_token_ids(kind(ids)) == tokens
    assert vocabulary.from_token_ids(kind(ids[0])) == tokens[0]


@pytest.mark.parametrize(
    "ids", [[1.5] * 64, [[1, 2], [3]], "text", None, torch.zeros(1, 1, 64).long(), [10**30] * 64, [True] * 64]
)
def test_what_is_no_ids_is_one_line(ids, users_checks):
    with pytest.raises(HybridTokenizerError, match=r"token_ids is .*, expected") as caught:
        vocabulary_of().from_token_ids(ids)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"text": -1}, "text_vocab_size is -1, expected a whole number from 0"),
        ({"text": 1.5}, "text_vocab_size is 1.5"),
        ({"text": True}, "text_vocab_size is True"),
        ({"text": "7"}, "text_vocab_size is '7'"),
        ({"text": 2**31}, "expected at most 2147483648; use fewer text ids"),
        ({"text": 10**30}, "text_vocab_size is 1000"),
        ({"grids": ()}, r"grid_shapes is \(\)"),
        ({"grids": ((0, 2),)}, "a side of a grid of grid_shapes is 0"),
        ({"grids": ((2, 2.0),)}, "a side of a grid of grid_shapes is 2.0"),
        ({"grids": 4}, "grid_shapes is 4"),
        ({"guide_size": 0}, "guide_codebook_size is 0"),
        ({"semantic_size": None}, "semantic_codebook_size is None"),
        ({"size": (48, -32)}, "a side of image_size is -32"),
    ],
)
def test_vocabulary_with_contradictory_numbers_is_refused(changes, message, users_checks):
    with pytest.raises(HybridTokenizerError, match=message) as caught:
        vocabulary_of(**changes)
    assert "\n" not in str(caught.value)
