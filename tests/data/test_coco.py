"""COCO's captions in both of their files."""

import json

import pytest
from PIL import Image

from hybrid_tokenizer.data.coco import read_coco
from hybrid_tokenizer.errors import HybridTokenizerError


@pytest.fixture
def root(tmp_path):
    (tmp_path / "val2014").mkdir()
    for name in ("val2014/a.jpg", "b.jpg", "c.jpg"):
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    return tmp_path


def write(root, content):
    (root / "captions.json").write_text(json.dumps(content))
    return root / "captions.json"


def test_cocos_own_file(root):
    content = {
        "images": [{"id": 7, "file_name": "b.jpg"}, {"id": 3, "file_name": "c.jpg"}, {"id": 4, "file_name": "d.jpg"}],
        "annotations": [
            {"image_id": 3, "id": 1, "caption": "third"},
            {"image_id": 7, "id": 2, "caption": " seventh \n"},
            {"image_id": 3, "id": 3, "caption": "another"},
        ],
    }
    pairs = read_coco(write(root, content), root)
    assert [(pair.path.name, pair.captions) for pair in pairs] == [
        ("b.jpg", ("seventh",)),
        ("c.jpg", ("third", "another")),
    ]


def test_karpathys_file_and_its_splits(root):
    def image(folder, name, split, *captions):
        entry = {"filename": name, "split": split, "sentences": [{"raw": text, "tokens": []} for text in captions]}
        return entry | ({"filepath": folder} if folder else {})

    content = {
        "images": [
            image("val2014", "a.jpg", "test", "one", "two"),
            image("val2014", "b.jpg", "test", "flat folder"),
            image(None, "c.jpg", "val", "elsewhere"),
            image("val2014", "gone.jpg", "test", "not there"),
        ]
    }
    file = write(root, content)
    pairs = read_coco(file, root)
    assert [pair.path.relative_to(root).as_posix() for pair in pairs] == ["val2014/a.jpg", "b.jpg", "val2014/gone.jpg"]
    assert pairs[0].captions == ("one", "two")
    assert [pair.path.name for pair in read_coco(file, root, "val")] == ["c.jpg"]
    with pytest.raises(HybridTokenizerError, match=r"no captions of split 'train'; it has test, val"):
        read_coco(file, root, "train")
    with pytest.raises(HybridTokenizerError, match=r"none of the 3 images of .* the first would be .*a.jpg"):
        read_coco(file, root / "elsewhere")


@pytest.mark.parametrize(
    ("content", "message"),
    [([], "no list 'images'"), ({"images": [{"filename": "a.jpg"}]}, "KeyError"), ({"images": [3], "annotations": []}, "TypeError")],
)  # fmt: skip
def test_other_json_is_refused(root, content, message):
    with pytest.raises(HybridTokenizerError, match=message):
        read_coco(write(root, content), root)
