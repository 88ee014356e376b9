"""Every kind of input gives the same bytes under stable names, and the views cut from them are reproducible."""

import io
import json
import os
from dataclasses import replace

import numpy as np
import pytest
from helpers.bad_images import write_bad_folder
from helpers.corpora import SIDE, captions, encoded, fill, picture, write_folder, write_saved, write_table, write_tar
from PIL import Image

from hybrid_tokenizer.corpus.config import ColumnConfig, TokenizeConfig, ViewConfig
from hybrid_tokenizer.corpus.rows import cut_rows, skipped_of
from hybrid_tokenizer.corpus.sources import Entry, Fetched, entries_from_table, entries_to_table, fetch, list_entries
from hybrid_tokenizer.corpus.views import cut_views
from hybrid_tokenizer.data.open import UnreadableImage
from hybrid_tokenizer.errors import HybridTokenizerError
from hybrid_tokenizer.images import fit_square

COLUMNS = ColumnConfig()


def read(inputs, columns=COLUMNS):
    """What a run reads: through the stored list."""
    listed = list(list_entries([str(one) for one in inputs], columns))
    stored = entries_from_table(entries_to_table(listed))
    assert [entry.key for entry in stored] == [entry.key for entry in listed]
    return list(fetch(stored, columns))


def test_a_folder_gives_its_files_and_their_captions(tmp_path):
    found = read([write_folder(tmp_path / "pictures", 7)])
    numbers = [0, 3, 6, 1, 4, 2, 5]
    assert [one.entry.key for one in found] == [f"{n % 3}/{n:04d}.png" for n in numbers]
    assert [one.data for one in found] == [encoded(n) for n in numbers]
    assert [one.captions for one in found] == [[] if n == 3 else captions(n) for n in numbers]


def test_shards_by_folder_and_by_pattern(tmp_path):
    for shard in range(2):
        write_tar(tmp_path / f"part-{shard:03d}.tar", range(3 * shard, 3 * shard + 3))
    found = read([tmp_path / "part-{000..001}.tar"])
    assert [one.entry.key for one in found] == [f"part-{n // 3:03d}.tar/{n:04d}.png" for n in range(6)]
    assert [one.data for one in found] == [encoded(n) for n in range(6)]
    assert [one.captions for one in found] == [captions(n) for n in range(6)]
    assert [one.entry for one in read([tmp_path])] == [one.entry for one in found]


def test_tables_by_folder_and_by_pattern_in_any_part(tmp_path):
    for number in range(2):
        write_table(tmp_path / f"rows-{number}.parquet", range(5 * number, 5 * number + 5))
    found = read([tmp_path / "rows-*.parquet"])
    assert [one.entry.key for one in found] == [f"rows-{n // 5}.parquet/{n % 5}" for n in range(10)]
    assert [one.data for one in found] == [encoded(n) for n in range(10)]
    assert [one.captions for one in found] == [captions(n)[:1] for n in range(10)]
    entries = [one.entry for one in found]
    assert [one.data for one in fetch(entries[2:8], COLUMNS)] == [encoded(n) for n in range(2, 8)]
    assert [one.entry for one in read([tmp_path])] == entries


def test_a_saved_hugging_face_dataset(tmp_path):
    found = read([write_saved(tmp_path / "saved", range(6))])
    assert [one.entry.key for one in found] == ["a/0", "a/1", "a/2", "b/0", "b/1", "b/2"]
    assert [one.data for one in found] == [encoded(n) for n in range(6)]
    assert [one.captions for one in found] == [captions(n)[:1] for n in range(6)]


def test_several_inputs_of_several_kinds_keep_their_names_apart(tmp_path):
    inputs = [write_folder(tmp_path / "a" / "x", 2), write_folder(tmp_path / "b" / "x", 2)]
    inputs.append(write_table(tmp_path / "t" / "rows.parquet", range(2)))
    keys = [one.entry.key for one in read(inputs)]
    assert keys == ["a/x/0/0000.png", "a/x/1/0001.png", "b/x/0/0000.png", "b/x/1/0001.png", "t/rows.parquet/0", "t/rows.parquet/1"]  # fmt: skip


def test_a_name_that_is_not_utf8_is_read_under_a_printable_key(tmp_path):
    (tmp_path / os.fsdecode(b"caf\xe9.png")).write_bytes(encoded(1))
    (found,) = read([tmp_path])
    assert (found.entry.key, found.data) == ("caf\\xe9.png", encoded(1))


def test_what_is_missing_is_a_reason_and_not_an_error(tmp_path):
    folder = write_folder(tmp_path / "pictures", 3)
    entries = list(list_entries([str(folder)], COLUMNS))
    (folder / "1" / "0001.png").unlink()
    tar = write_tar(tmp_path / "cut.tar", range(2))
    entries += list(list_entries([str(tar)], COLUMNS))
    tar.write_bytes(tar.read_bytes()[: entries[-1].position + 20])
    found = list(fetch(entries_from_table(entries_to_table(entries)), COLUMNS))
    assert [type(one.data) for one in found] == [bytes, UnreadableImage, bytes, bytes, UnreadableImage]
    assert "No such file" in found[1].data.reason and "ends inside" in found[4].data.reason


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("absent", "no folder, .tar or .parquet"),
        ("absent.parquet", "does not exist"),
        ("absent.tar", "are not there"),
        ("cut.parquet", "no complete Parquet file"),
        ("empty", "no images"),
        ("s3://bucket/x", "is not a path"),
    ],
)
def test_inputs_that_cannot_be_read_are_refused_in_one_line(tmp_path, name, words):
    (tmp_path / "empty").mkdir()
    (tmp_path / "cut.parquet").write_bytes(write_table(tmp_path / "t.parquet", range(2)).read_bytes()[:-9])
    path = name if "://" in name else str(tmp_path / name)
    with pytest.raises(HybridTokenizerError, match=words) as error:
        list(list_entries([path], COLUMNS))
    assert "\n" not in str(error.value)


def test_columns_are_found_or_named(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = tmp_path / "two.parquet"
    pq.write_table(pa.table({"thumb": [b"x"], "jpg": [encoded(0)], "alt": ["a cat"], "text": ["b"]}), path)
    with pytest.raises(HybridTokenizerError, match=r"\['thumb', 'jpg'\].*name the one with images"):
        read([path])
    found = read([path], ColumnConfig(image_column="jpg", caption_column="alt"))
    assert found[0].data == encoded(0) and found[0].captions == ["a cat"]
    with pytest.raises(HybridTokenizerError, match="no column 'title'"):
        read([path], ColumnConfig(image_column="jpg", caption_column="title"))


def test_broken_lines_of_captions_are_counted_and_their_images_used(tmp_path, capsys):
    folder = write_folder(tmp_path / "pictures", 2)
    rows = [{"file": "0/0000.png", "captions": ["a", "\ud800", " "]}, {"file": "1/0001.png", "captions": []}]
    (folder / "captions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + "nonsense\n")
    assert [one.captions for one in read([folder])] == [["a"], []]
    assert "3 rows without a caption" in capsys.readouterr().out


def test_the_centre_view_is_the_projects_rule_and_random_views_are_their_box():
    image = picture(1, (90, 70))
    (centre,) = cut_views(image, "k", ViewConfig(image_size=32))
    assert np.array_equal(centre.image, fit_square(image, 32))
    assert centre.box == (10, 0, 80, 70) and centre.number == 0 and not centre.flipped
    config = ViewConfig(image_size=32, views=20)
    views = cut_views(image, "k", config)
    assert [view.number for view in views] == list(range(1, 21))
    assert {view.flipped for view in views} == {True, False}
    for view in views:
        again = image.resize((32, 32), Image.Resampling.BICUBIC, box=view.box)
        again = again.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if view.flipped else again
        assert np.array_equal(view.image, again)
    assert [view.box for view in cut_views(image, "k", replace(config, views=3))] == [view.box for view in views[:3]]
    other_key, other_seed = cut_views(image, "l", config), cut_views(image, "k", replace(config, seed=1))
    assert len({view.box for view in views + other_key + other_seed}) == 60


def test_rows_hold_every_view_and_the_rest_is_listed(tmp_path):
    folder = write_folder(tmp_path / "pictures", 3)
    (folder / "0" / "text.png").write_text("no image")
    (folder / "0" / "empty.png").write_bytes(b"")
    Image.new("RGB", (1, 1)).save(folder / "0" / "one.png")
    Image.new("RGB", (50, 20)).save(folder / "0" / "strip.png")
    config = ViewConfig(image_size=32, views=2, smallest_side=24)
    facts, pixels = cut_rows(read([folder]), config)
    ids = [f"{n}/{n:04d}.png#{view}" for n in range(3) for view in (1, 2)]
    assert facts["id"].to_pylist() == ids and pixels.shape == (6, 32, 32, 3)
    assert facts["captions"].to_pylist() == [captions(n) for n in range(3) for _ in range(2)]
    assert facts["width"].to_pylist() == [48] * 6 and facts["height"].to_pylist() == [40] * 6
    for row, key in enumerate(ids):
        view = cut_views(picture(row // 2), key.split("#")[0], config)[row % 2]
        assert np.array_equal(pixels[row], view.image) and facts["crop"][row].as_py() == list(view.box)
    reasons = dict(skipped_of(facts.schema))
    assert set(reasons) == {"0/text.png", "0/empty.png", "0/one.png", "0/strip.png"}
    assert "50x20 px: its shorter side is under 24" in reasons["0/strip.png"]


def test_a_corpus_with_damaged_images_lists_each(tmp_path, tokenizer_folder):
    folder = write_folder(tmp_path / "pictures", 95)
    write_bad_folder(folder / "bad")
    (folder / "bad" / "empty.png").write_bytes(b"")
    output = fill(TokenizeConfig(input=str(folder), output=str(tmp_path / "tokens"), model_name=str(tokenizer_folder),
                                 data=ViewConfig(image_size=SIDE), batch_size=32, rows_per_part=32))  # fmt: skip
    held = json.loads((output / "dataset.json").read_text())
    reasons = {one["key"]: one["reason"] for one in held["skipped"]}
    assert reasons.keys() == {
        f"bad/{name}" for name in ("empty.png", "huge.png", "one.png", "text.png", "truncated.jpg")
    }
    assert all(reasons.values()) and held["num_rows"] == 96 and held["num_skipped"] == 5


@pytest.mark.parametrize("views", [0, 3])
def test_a_draft_of_a_large_jpeg_is_near_its_full_decode(views):
    buffer = io.BytesIO()
    turned = Image.Exif()
    turned[0x0112] = 6  # a quarter turn
    picture(5, (641, 512)).save(buffer, "jpeg", quality=95, exif=turned)
    one = Fetched(Entry("k", "file", "k", 0, 0, [], []), buffer.getvalue(), [])
    whole, draft = (cut_rows([one], ViewConfig(image_size=32, views=views, jpeg_draft=flag)) for flag in (False, True))
    assert set(whole[0]["width"].to_pylist()) == {512} and set(whole[0]["height"].to_pylist()) == {641}
    assert draft[0].equals(whole[0])
    difference = np.abs(whole[1].astype(int) - draft[1].astype(int))
    assert 0 < difference.mean() < 3  # an eighth of an odd size is rounded, which shifts edges by part of a pixel


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"workers": [2, 1]}, "least <= most"),
        ({"workers": "many"}, "workers="),
        ({"dtype": "int8"}, "dtype='int8'"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"shard_mb": 0.0}, "shard_mb=0"),
        ({"input": []}, "must be a path"),
    ],
)
def test_options_are_checked(options, words):
    with pytest.raises(HybridTokenizerError, match=words):
        TokenizeConfig(**({"input": "a", "output": "b"} | options))


def test_a_part_is_whole_batches_of_rows():
    sizes = [
        TokenizeConfig(input="a", output="b", batch_size=64, data=ViewConfig(image_size=256)).images_per_part,
        TokenizeConfig(input="a", output="b", batch_size=128, data=ViewConfig(image_size=512)).images_per_part,
        TokenizeConfig(input="a", output="b", batch_size=64, data=ViewConfig(image_size=256, views=4)).images_per_part,
        TokenizeConfig(input="a", output="b", rows_per_part=10, data=ViewConfig(views=20)).images_per_part,
    ]
    assert sizes == [512, 128, 128, 1]
