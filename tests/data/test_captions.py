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
    (root / "captions.jsonl").write_bytes("\n".join(rows).encode(encoding, "surrogateescape"))
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


ODD_ROWS = {
    "missing": ({"file": "c.png", "captions": ["c"]}, "c.png is not there; remove the row or restore the image"),
    "escape": ({"file": "../outside.png", "captions": ["c"]}, "'../outside.png' leaves the folder; give a path inside {root}"),
    "absolute": ({"file": "/etc/hostname", "captions": ["c"]}, "'/etc/hostname' leaves the folder; give a path inside {root}"),
    "none": ({"file": "b.png", "captions": []}, "no caption; give at least one"),
    "blank": ({"file": "b.png", "captions": ["", "  "]}, "no caption; give at least one"),
    "null": ({"file": "b.png", "captions": [None]}, "no caption; give at least one"),
    "null_list": ({"file": "b.png", "captions": None}, "lacks 'file' (a string) or 'captions' (a list of strings)"),
    "string": ({"file": "b.png", "captions": "a string"}, "lacks 'file' (a string) or 'captions' (a list of strings)"),
    "number": ({"file": 7, "captions": ["c"]}, "lacks 'file' (a string) or 'captions' (a list of strings)"),
    "no_file": ({"captions": ["c"]}, "lacks 'file' (a string) or 'captions' (a list of strings)"),
    "list": (["b.png", "c"], "lacks 'file' (a string) or 'captions' (a list of strings)"),
    "broken": ('{"file": "b.png", "capt', "not JSON (Unterminated string starting at: line 1 column 19 (char 18)); write one object per line"),
    "surrogate": ('{"file": "b.png", "captions": ["bad \\ud83d half"]}', "its caption holds half a character"),
    "surrogate_file": ('{"file": "\\ud83d.png", "captions": ["c"]}', "'utf-8' codec can't encode character '\\ud83d' in position 0: surrogates not allowed"),
    "nul": ('{"file": "b\\u0000.png", "captions": ["c"]}', "embedded null byte"),
    "long": ({"file": "b" * 5000, "captions": ["c"]}, None),
    "deep": ("[" * 100_000, "not JSON (maximum recursion depth exceeded while decoding a JSON array from a unicode string); write one object per line"),
    "digits": ("1" * 5000, None),
    "latin_1": ({"file": "b.png", "captions": ["\udce9"]}, "not UTF-8 ('utf-8' codec can't decode byte 0xe9 in position 32: invalid continuation byte); save it again as UTF-8"),
}  # fmt: skip


@pytest.mark.parametrize("name", ODD_ROWS)
def test_an_odd_row_is_skipped_and_listed(tmp_path, name):
    line, reason = ODD_ROWS[name]
    root = write(tmp_path / "pairs", {"file": "a.png", "captions": ["a"]}, line, {"file": "b.png", "captions": ["b"]})
    said = []
    assert [row.captions for row in read_captions(root, said.append)] == [("a",), ("b",)]
    (listed,) = said
    start = f"skipped {root / 'captions.jsonl'} line 2: "
    assert listed.startswith(start) and "\n" not in listed and listed.isprintable()
    assert reason is None or listed == start + reason.format(root=root)


def test_an_odd_caption_beside_a_good_one(tmp_path):
    root = write(tmp_path / "pairs", '{"file": "a.png", "captions": ["good", "\\udc00", null]}')
    said = []
    assert [row.captions for row in read_captions(root, said.append)] == [("good",)]
    assert said == [f"skipped {root / 'captions.jsonl'} line 1: 2 of its captions are not text; the others are used"]


def test_many_odd_rows_are_counted(tmp_path):
    root = write(tmp_path / "pairs", {"file": "a.png", "captions": ["a"]}, *["{}"] * 100)
    said = []
    assert len(read_captions(root, said.append)) == 1
    assert len(said) == 21 and said[-1] == "skipped 100 rows in all, 80 more than listed"


def test_files_without_rows(tmp_path):
    with pytest.raises(HybridTokenizerError, match=r"captions\.jsonl does not exist"):
        read_captions(tmp_path)
    with pytest.raises(HybridTokenizerError, match=r"has no usable rows; write one row per image: file, captions$"):
        read_captions(write(tmp_path / "pairs", "", "  "))
    with pytest.raises(HybridTokenizerError, match=r"no usable rows; .*; .*line 1: no caption; give at least one$"):
        read_captions(write(tmp_path / "pairs", {"file": "a.png", "captions": []}))
    with pytest.raises(HybridTokenizerError, match="not UTF-8"):
        read_captions(write(tmp_path / "pairs", {"file": "a.png", "captions": ["é"]}, encoding="latin-1"))
