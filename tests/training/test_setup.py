import json

import pytest
import torch
from helpers.small_models import small_hybrid
from PIL import Image
from training_runs import picture, write_pictures

from hybrid_tokenizer.commands import encode
from hybrid_tokenizer.commands.loading import load_tokenizer
from hybrid_tokenizer.data.config import DataConfig
from hybrid_tokenizer.data.items import item_captions, item_path
from hybrid_tokenizer.errors import HybridTokenizerError
from hybrid_tokenizer.evaluation.config import EvalData, EvalReconConfig, ReconstructConfig
from hybrid_tokenizer.training.config import TrainingConfig
from hybrid_tokenizer.training.setup import build_data, say_training_size, split_items


def names(items):
    return sorted(item_path(item).name for item in items)


def test_roots_are_split_each_and_repeated(tmp_path):
    one, two, other = (write_pictures(tmp_path / name, count) for name, count in (("one", 6), ("two", 4), ("other", 3)))
    training, validation = split_items(DataConfig(root=[str(one), str(two)], repeats=[1, 3], val_at_least=2), False)
    assert len(validation) == 4 and len(training) == 4 + 3 * 2
    assert not {item_path(item) for item in training} & {item_path(item) for item in validation}
    training, validation = split_items(DataConfig(root=str(one), val_root=str(other)), False)
    assert len(training) == 6 and names(validation) == ["00.png", "01.png", "02.png"]


def test_rows_that_share_an_image_stay_together(tmp_path):
    rows = []
    for index in range(8):
        picture(index).save(tmp_path / f"{index}.png")
        rows += [{"file": f"{index}.png", "captions": [f"{word} {index}"]} for word in ("first", "second")]
    (tmp_path / "captions.jsonl").write_text("\n".join(map(json.dumps, rows)))
    training, validation = split_items(DataConfig(root=str(tmp_path), val_at_least=3), captions=True)
    assert len(training) == 10 and len(validation) == 6
    assert not set(names(training)) & set(names(validation))
    assert len({item_captions(item) for item in training + validation}) == 16


def test_validation_is_spread_over_the_set_and_whole(tmp_path, capsys):
    folder = write_pictures(tmp_path / "val", 9)
    (folder / "n1" / "04.png").write_bytes(b"no image")
    config = TrainingConfig(batch_size=2, max_val_images=5)
    data = DataConfig(root=str(folder), val_root=str(folder), image_size=16, val_image_size=24)
    stream, batches = build_data(data, config)
    assert [tuple(batch["images"].shape) for batch in batches] == [(2, 3, 24, 24), (2, 3, 24, 24)]
    assert stream[0]["images"].shape == (3, 16, 16)
    assert capsys.readouterr().out.startswith(f"skipped {folder / 'n1' / '04.png'}: ")


def test_coco_annotations_are_training_captions(tmp_path, capsys):
    """Null captions and captions without text, integer, absolute and missing file names are skipped, counted and listed."""
    for index in range(6):
        picture(index).save(tmp_path / f"{index}.png")
    names = [
        *(f"{index}.png" for index in range(6)),
        7,
        str(tmp_path.parent / "0.png"),
        "../0.png",
        "missing.png",
        "uncaptioned.png",
    ]
    images = [{"id": number, "file_name": name} for number, name in enumerate(names)]
    annotations = [{"image_id": number, "caption": f" number {number} "} for number in range(10)]
    annotations += [
        {"image_id": 0, "caption": "again"},
        {"image_id": 1, "caption": None},
        {"image_id": 2, "caption": " "},
        {},
    ]
    listing = tmp_path / "captions_train.json"
    listing.write_text(json.dumps({"images": images, "annotations": annotations}))
    data = DataConfig(root=str(tmp_path), captions=str(listing), val_root=str(tmp_path), val_captions=str(listing))
    training, validation = split_items(data, captions=True)
    assert training == validation
    assert {item.path.name: item.captions for item in training} == {
        "0.png": ("number 0", "again"), **{f"{index}.png": (f"number {index}",) for index in range(1, 6)},
    }  # fmt: skip
    said = capsys.readouterr().out
    for words in (
        "annotation 11: no caption", "annotation 12: no caption", "annotation 13: lacks 'image_id'", "image 6: its file is 7",
        "image 7: ", "image 8: ", f"{tmp_path / 'missing.png'}: the file is not there",
    ):  # fmt: skip
        assert said.count(words) == 2, (words, said)
    assert said.count("skipped ") == 2 * 7 and "uncaptioned" not in said
    assert len(split_items(data, captions=False)[0]) == 6, "stages without captions read the folder"


def test_karpathys_json_has_its_own_splits(tmp_path):
    rows = []
    for index, split in enumerate(("train", "val", "train", "test")):
        picture(index).save(tmp_path / f"{index}.png")
        rows.append({"filename": f"{index}.png", "split": split, "sentences": [{"raw": f"number {index}"}]})
    listing = tmp_path / "dataset_coco.json"
    listing.write_text(json.dumps({"images": rows}))
    data = DataConfig(root=str(tmp_path), captions=str(listing), val_root=str(tmp_path), val_captions=str(listing))
    assert [names(items) for items in split_items(data, captions=True)] == [["0.png", "2.png"], ["1.png"]]


def test_captions_that_fit_no_root_are_refused():
    for options in ({"captions": "a.json"}, {"captions": ["a.json"]}, {"captions": [1, None]}):
        with pytest.raises(HybridTokenizerError, match="needs one file or null for each of the 2 roots"):
            DataConfig(root=["one", "two"], **options)
    with pytest.raises(HybridTokenizerError, match=r"give that, too$"):
        DataConfig(root="one", val_captions="b.json")
    assert DataConfig(root=["one", "two"], captions=["a.json", None]).captions_of_roots == ["a.json", None]


def test_crops_of_another_size_than_the_guides_are_said(capsys, monkeypatch):
    guide = small_hybrid(nested=True).guide
    say_training_size(32, guide)
    assert capsys.readouterr().out == ""
    say_training_size(64, guide)
    assert capsys.readouterr().out == (
        "data.image_size=64, but the guide was made for 32 px: a crop's finest grid has 64 tokens instead of 16\n"
    )
    monkeypatch.setenv("RANK", "1")
    say_training_size(64, guide)
    assert capsys.readouterr().out == "", "the first process has said it"


def test_crops_of_another_size_than_the_semantic_branchs_are_said(capsys):
    semantic = small_hybrid().semantic
    own = semantic.config.image_size
    for side, change in ((own, None), (2 * own, "shrinks"), (own // 2, "enlarges")):
        say_training_size(side, semantic)
        said = (
            f"data.image_size={side}, but the semantic branch was made for {own} px: its encoder {change} every crop\n"
        )
        assert capsys.readouterr().out == ("" if change is None else said)


def test_the_token_count_of_another_size_is_said_by_encode(tmp_path, capsys, monkeypatch):
    small_hybrid().save_pretrained(tmp_path / "model")
    Image.new("RGB", (80, 64), (200, 40, 90)).save(tmp_path / "cat.png")
    words = ["encode", str(tmp_path / "cat.png"), "--model", str(tmp_path / "model"), "--search-steps", "0"]
    for side, said in (
        (32, ""),
        (64, "--image-size=64, but the guide was made for 32 px: an image has 64 guide tokens instead of 16\n"),
    ):
        monkeypatch.setattr("sys.argv", [*words, "--image-size", str(side), "--output", str(tmp_path / str(side))])
        encode.main()
        assert capsys.readouterr().out.startswith(f"{said}1 image(s) of "), side


def test_an_evaluation_at_another_size_is_said(tmp_path, capsys):
    small_hybrid().save_pretrained(tmp_path)
    resized = "but the guide was made for 32 px: images are resized for the hybrid, and its images back\n"
    for config, said in (
        (ReconstructConfig(model_name=str(tmp_path), image_size=32), ""),
        (ReconstructConfig(model_name=str(tmp_path), image_size=64), f"image_size=64, {resized}"),
        (EvalReconConfig(model_name=str(tmp_path), data=EvalData(image_size=64)), f"data.image_size=64, {resized}"),
    ):
        load_tokenizer(config, torch.device("cpu"))
        assert capsys.readouterr().out == said
