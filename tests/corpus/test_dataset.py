"""Reading shards back: rows, tokens, ids, and a loader that gives each row once an epoch and resumes exactly."""

import json
import shutil
from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from helpers.corpora import SIDE, captions, fill, picture

from hybrid_tokenizer.corpus.config import TokenizeConfig, ViewConfig
from hybrid_tokenizer.corpus.dataset import TokenDataset, TokenLoader
from hybrid_tokenizer.corpus.views import cut_views
from hybrid_tokenizer.errors import HybridTokenizerError
from hybrid_tokenizer.hybrid import HybridTokenizer
from hybrid_tokenizer.images import fit_square, from_pil
from hybrid_tokenizer.tokens import HybridTokens


def number_of(row_id):
    return int(row_id.split("/")[-1].split(".")[0])


@pytest.fixture(scope="module")
def dataset(tokens):
    return TokenDataset(tokens, cached_groups=3)


@pytest.fixture(scope="module")
def tokenizer(tokenizer_folder):
    return HybridTokenizer.from_pretrained(tokenizer_folder)


def test_rows_equal_what_encode_gives_for_the_same_crops(dataset, tokenizer):
    rows = [dataset[index] for index in range(len(dataset))]
    assert Counter(number_of(row["id"]) for row in rows) == Counter(range(43))
    images = torch.stack([from_pil(fit_square(picture(number_of(row["id"])), SIDE)) for row in rows])
    assert dataset.to_hybrid_tokens(dataset.batch(rows)) == tokenizer.encode(images)
    for row in rows:
        number = number_of(row["id"])
        assert row["captions"] == ([] if number == 3 else captions(number))


def test_random_views_equal_what_encode_gives_for_their_boxes(tmp_path, pictures, tokenizer, tokenizer_folder):
    views = ViewConfig(image_size=SIDE, views=2)
    folder = fill(
        TokenizeConfig(
            input=str(pictures / "1"), output=str(tmp_path / "out"), model_name=str(tokenizer_folder), data=views,
            guide_scales=2, batch_size=3, rows_per_part=6,
        )
    )  # fmt: skip
    dataset = TokenDataset(folder, columns=("id", "crop", "flipped", "width", "height", "source", "captions"))
    assert dataset.grid_shapes == ((1, 1), (2, 2)) and len(dataset) == 2 * 14
    batch = dataset.batch([dataset[index] for index in range(len(dataset))])
    cuts = [view for i in batch["id"][::2] for view in cut_views(picture(number_of(i)), i.split("#")[0], views)]
    assert batch["crop"] == [list(view.box) for view in cuts]
    assert batch["flipped"] == [view.flipped for view in cuts]
    assert batch["id"][:2] == ["0001.png#1", "0001.png#2"] and set(batch["width"]) == {48}
    images = torch.stack([from_pil(view.image) for view in cuts])
    assert dataset.to_hybrid_tokens(batch) == tokenizer.encode(images, guide_scales=2)


def test_tokens_decode_and_become_ids_and_back(dataset, tokenizer):
    batch = dataset.batch([dataset[5], dataset[-1]])
    found = dataset.to_hybrid_tokens(batch)
    assert found.source == tokenizer.source and found.image_size == (SIDE, SIDE)
    assert tokenizer.decode(found).shape == (2, 3, SIDE, SIDE)
    vocabulary = dataset.vocabulary(text_vocab_size=100)
    assert vocabulary == tokenizer.vocabulary(100, (SIDE, SIDE))
    ids = dataset.to_token_ids(batch, vocabulary)
    assert HybridTokens.from_token_ids(ids, vocabulary) == found


def test_other_libraries_read_the_files(dataset, tokens):
    import datasets

    read = datasets.load_dataset("parquet", data_files=str(tokens / "data" / "*.parquet"), split="train", cache_dir=str(tokens / "cache"))  # fmt: skip
    assert read["id"] == [dataset[index]["id"] for index in range(43)]
    assert read[7]["semantic"] == dataset[7]["semantic"].tolist() and read[7]["guide"] == dataset[7]["guide"].tolist()
    assert read[7]["grid_shapes"] == [[1, 1], [2, 2], [4, 4]] and read[7]["image_size"] == [SIDE, SIDE]
    schema = pq.read_schema(next((tokens / "data").iterdir()))
    assert (schema.field("semantic").type, schema.field("guide").type) == (
        pa.list_(pa.uint16(), 32),
        pa.list_(pa.uint16(), 21),
    )


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("drop_last", [False, True])
def test_two_ranks_give_each_row_once_an_epoch(dataset, workers, drop_last):
    loaders = [
        TokenLoader(dataset, 4, rank=rank, world_size=2, num_workers=workers, mixed_groups=2, drop_last=drop_last)
        for rank in range(2)
    ]
    epochs = []
    for _ in range(2):
        lengths = [len(loader) for loader in loaders]  # of this epoch: another deals other row groups to a rank
        batches = [list(loader) for loader in loaders]
        assert [len(one) for one in batches] == lengths
        seen = Counter(i for one in batches for batch in one for i in batch["id"])
        assert set(seen.values()) == {1}
        if drop_last:
            assert {len(batch["id"]) for one in batches for batch in one} == {4} and len(batches[0]) == len(batches[1])
        else:
            assert len(seen) == 43
        epochs.append([batch["id"] for one in batches for batch in one])
    assert epochs[0] != epochs[1]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_resumes_with_the_batch_after_the_last(dataset, workers):
    def loader():
        return TokenLoader(dataset, 5, seed=3, rank=1, world_size=2, num_workers=workers, mixed_groups=2)

    whole = loader()
    expected = [batch["id"] for _ in range(2) for batch in whole]
    begun = loader()
    first = []
    for batch in begun:
        first.append(batch["id"])
        if len(first) == 2:
            break
    state = json.loads(json.dumps(begun.state_dict()))
    assert state["position"] == 2
    resumed = loader()
    resumed.load_state_dict(state)
    rest = [batch["id"] for _ in range(2) for batch in resumed]
    assert first + rest == expected and (resumed.epoch, resumed.position) == (2, 0)


def test_a_state_of_other_settings_is_refused(dataset):
    state = TokenLoader(dataset, 5, rank=0, world_size=1).state_dict()
    with pytest.raises(HybridTokenizerError, match="batch_size=5, not 4"):
        TokenLoader(dataset, 4, rank=0, world_size=1).load_state_dict(state)


def test_rows_in_order_without_shuffling(dataset):
    loader = TokenLoader(dataset, 6, shuffle=False, rank=0, world_size=1)
    assert [i for batch in loader for i in batch["id"]] == [dataset[index]["id"] for index in range(43)]


def test_shuffled_rows_are_mixed_across_files(tokens):
    dataset = TokenDataset(tokens)
    order = {dataset[index]["id"]: index for index in range(len(dataset))}
    rows = [order[i] for batch in TokenLoader(dataset, 43, rank=0, world_size=1) for i in batch["id"]]
    steps = np.abs(np.diff(rows))
    assert sorted(rows) == list(range(43)) and steps.mean() > 8


def test_a_folder_that_is_being_filled_is_refused(tokens, tmp_path):
    shutil.copytree(tokens, tmp_path / "half")
    (tmp_path / "half" / "dataset.json").unlink()
    with pytest.raises(HybridTokenizerError, match=r"has no dataset\.json"):
        TokenDataset(tmp_path / "half")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_rows": 44}, " says num_rows 44, and its files do not add up to that; tokenize again"),
        ({"num_rows": "43"}, ": num_rows is '43', expected a whole number; correct it or download it again"),
        ({"files": None}, ": files is None, expected a list; correct it or download it again"),
        ({"files": [3]}, ": files[0] is 3, expected an object; correct it or download it again"),
        ({"grid_shapes": [[2, 2, 2]]}, ": a grid is [2, 2, 2], expected (height, width) in pixels"),
        ({"grid_shapes": [[0, 2]]}, ": a grid is 0, expected a whole number from 1 to 65536 pixels"),
        ({"options": {"data": {"image_size": 1e9}}}, ": data: image_size is 1000000000.0, expected a whole number; correct it or download it again"),
        ({"tokenizer": {"name": "small"}}, ": tokenizer has no hash, semantic_codebook_size, guide_codebook_size: it is of another kind or another version of TokenizerFacts; give the right folder"),
    ],
)  # fmt: skip
def test_a_damaged_listing_is_one_line(tokens, tmp_path, change, message):
    listing = tmp_path / "dataset.json"
    listing.write_text(json.dumps(json.loads((tokens / "dataset.json").read_text()) | change))
    with pytest.raises(HybridTokenizerError) as caught:
        TokenDataset(tmp_path)
    assert str(caught.value).replace("a side of ", "") == f"{listing}{message}"


def test_damaged_rows_are_one_line(tokens, tmp_path):
    shutil.copytree(tokens, tmp_path / "copy")
    (file, *_) = sorted((tmp_path / "copy" / "data").iterdir())
    whole = file.read_bytes()
    for damaged in (b"", whole[: len(whole) // 2], whole[:4] + bytes(len(whole) // 2) + whole[4 + len(whole) // 2 :]):
        file.write_bytes(damaged)
        dataset = TokenDataset(tmp_path / "copy")
        with pytest.raises(HybridTokenizerError) as caught:
            [dataset[index] for index in range(len(dataset))]
        assert str(caught.value).startswith(f"{file} is damaged or incomplete (")
        assert str(caught.value).endswith("); tokenize again") and "\n" not in str(caught.value)


def test_files_that_the_dataset_does_not_name_are_not_read(tokens, tmp_path):
    shutil.copytree(tokens, tmp_path / "copy")
    (tmp_path / "copy" / "data" / "tokens-00009-of-00009.parquet").write_bytes(b"half of a file")
    assert len(list(TokenLoader(TokenDataset(tmp_path / "copy"), 43, rank=0, world_size=1))) == 1
