import json

import pytest

from hybrid_tokenizer.data import CaptionedImage, read_captions
from hybrid_tokenizer.errors import HybridTokenizerError


def write(root, *lines, encoding="utf-8"):
    root.mkdir(exist_ok=True)
    for name in ("a.png", "b.png"):
        (root / name).write_bytes(b"")
    (root.parent / "outside.png").write_bytes(b"")
    rows = [line if isinstance(line, str) else json.dumps(line, ensure_ascii=False) for line in lines]
    (root / "captions.jsonl").write_bytes("\n".join(rows).encode(encoding))
    return root


def test_rows_in_file_order(tmp_path):
    root = write(
        tmp_path / "pairs",
        {"file": "b.png", "captions": ["  two cats ", "", "deux chats: été\u2028ligne"], "id": 7},
        "",
        {"file": "a.png", "captions": ["a dog"]},
    )
    expected = [
        CaptionedImage(root / "b.png", ("two cats", "deux chats: été\u2028ligne")),
        CaptionedImage(root / "a.png", ("a dog",)),
    ]
    assert read_captions(root) == expected
    assert read_captions(str(root)) == expected


@pytest.mark.parametrize("ending", ["\r\n", "\n"])
def test_files_from_other_systems(tmp_path, ending):
    root = write(tmp_path / "pairs")
    rows = ['{"file": "a.png", "captions": ["é"]}', '{"file": "b.png", "captions": ["b"]}', ""]
    (root / "captions.jsonl").write_bytes(ending.join(rows).encode("utf-8-sig"))
    assert [row.captions for row in read_captions(root)] == [("é",), ("b",)]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ({"file": "c.png", "captions": ["c"]}, ["line 2", "c.png", "not there"]),
        ({"file": "../outside.png", "captions": ["c"]}, ["line 2", "leaves the folder"]),
        ({"file": "/etc/hostname", "captions": ["c"]}, ["line 2", "leaves the folder"]),
        ({"file": "b.png", "captions": []}, ["line 2", "b.png has no caption"]),
        ({"file": "b.png", "captions": ["", "  "]}, ["line 2", "b.png has no caption"]),
        ({"file": "b.png", "captions": "a string"}, ["line 2", "list of strings"]),
        ({"captions": ["c"]}, ["line 2", "'file'"]),
        (["b.png", "c"], ["line 2", "'file'"]),
        ('{"file": "b.png", "capt', ["line 2", "not JSON"]),
    ],
    ids=["missing", "escape", "absolute", "none", "blank", "string", "no_file", "list", "broken"],
)
def test_mistakes_name_the_line(tmp_path, line, words):
    root = write(tmp_path / "pairs", {"file": "a.png", "captions": ["a"]}, line)
    with pytest.raises(HybridTokenizerError) as error:
        read_captions(root)
    assert all(word in str(error.value) for word in [str(root), *words]) and "\n" not in str(error.value)


def test_files_without_rows(tmp_path):
    with pytest.raises(HybridTokenizerError, match=r"captions\.jsonl does not exist"):
        read_captions(tmp_path)
    with pytest.raises(HybridTokenizerError, match="no rows"):
        read_captions(write(tmp_path / "pairs", "", "  "))
    with pytest.raises(HybridTokenizerError, match="not UTF-8"):
        read_captions(write(tmp_path / "pairs", {"file": "a.png", "captions": ["é"]}, encoding="latin-1"))
