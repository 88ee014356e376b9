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


def own(*annotations, **fields):
    """COCO's own file of three images, with one field of image 1 changed."""
    images = [{"id": n, "file_name": name} for n, name in enumerate(("b.jpg", "c.jpg", "val2014/a.jpg"))]
    images[1] |= fields
    return {
        "images": images,
        "annotations": [*annotations, *({"image_id": n, "caption": f"text {n}"} for n in range(3))],
    }


ODD = {
    "null_caption": (own({"image_id": 0, "caption": None}), "annotation 0: no caption; give at least one", 3),
    "surrogate": (own({"image_id": 0, "caption": "\ud83d"}), "annotation 0: its caption holds half a character", 3),
    "no_caption": (own({"image_id": 0}), "annotation 0: lacks 'caption'", 3),
    "no_object": (own(7), "annotation 0: 'int' object is not subscriptable", 3),
    "list_for_id": (own({"image_id": [], "caption": "x"}), "annotation 0: unhashable type: 'list'", 3),
    "integer_name": (own(file_name=139), "image 1: its file is 139, expected a name", 2),
    "null_name": (own(file_name=None), "image 1: its file is None, expected a name", 2),
    "absolute_name": (own(file_name="/etc/hostname"), "image 1: '/etc/hostname' leaves the folder; give a path inside {root}", 2),
    "leaving_name": (own(file_name="../c.jpg"), "image 1: '../c.jpg' leaves the folder; give a path inside {root}", 2),
    "surrogate_name": (own(file_name="\ud83d.jpg"), "image 1: 'utf-8' codec can't encode character '\\ud83d' in position 0: surrogates not allowed", 2),
    "list_as_id": (own(id=[]), "image 1: unhashable type: 'list'", 2),
}  # fmt: skip


@pytest.mark.parametrize("name", ODD)
def test_an_odd_row_is_skipped_and_listed(root, name):
    content, reason, count = ODD[name]
    said = []
    file = write(root, content)
    pairs = read_coco(file, root, say=said.append)
    assert len(pairs) == count and pairs[0].captions == ("text 0",)
    assert said == [f"skipped {file} " + reason.format(root=root)]


def test_odd_rows_of_karpathys_file(root):
    good = {"filename": "c.jpg", "split": "test", "sentences": [{"raw": "good"}]}
    odd = [7, {"split": "test"}, good | {"filename": 3}, good | {"sentences": [{"raw": None}]}, good | {"sentences": 5}]
    said = []
    file = write(root, {"images": [*odd, good]})
    assert [pair.captions for pair in read_coco(file, root, say=said.append)] == [("good",)]
    assert [line.split(" ", 2)[2].split(":")[0] for line in said] == [f"image {number}" for number in range(5)]
    assert said[3].endswith("image 3: no caption; give at least one")


def test_deep_json_is_one_line(root):
    (root / "captions.json").write_text("[" * 100_000)
    with pytest.raises(HybridTokenizerError, match="is not valid JSON") as error:
        read_coco(root / "captions.json", root)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "no list 'images'"),
        ({"images": [{"filename": "a.jpg"}]}, r"no usable captions \(.* image 0: lacks 'split'\); download it again"),
        ({"images": [3], "annotations": []}, r"no usable captions \(.* image 0: 'int' object is not subscriptable\)"),
        ({"images": [], "annotations": 7}, "no usable captions; download it again"),
    ],
)
def test_other_json_is_refused(root, content, message):
    with pytest.raises(HybridTokenizerError, match=message):
        read_coco(write(root, content), root)
