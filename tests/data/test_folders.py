import os

import numpy as np
import pytest

from hybrid_tokenizer.data import find_images, hold_out, mark_output, sample_photographs
from hybrid_tokenizer.errors import HybridTokenizerError


def test_folders_nested_flat_sorted_and_hidden(tmp_path):
    names = ["b.JPG", "a.png", "n01/z.jpeg", "n01/deep/er/y.webp", "n02.gif", "c d/é.bmp"]
    left_out = [".hidden.png", ".cache/x.png", "n01/.thumbs/x.jpg", "notes.txt", "captions.jsonl", "n01/README"]
    for name in names + left_out:
        path = tmp_path / ".dataset" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    root = tmp_path / ".dataset"  # a hidden root is the user's choice
    (root / "folder.png").mkdir()
    found = [path.relative_to(root).as_posix() for path in find_images(root)]
    assert found == sorted(names)
    assert find_images(str(root)) == find_images(root)


@pytest.mark.parametrize(("name", "words"), [("absent", "not a folder"), ("file.png", "not a folder"), ("empty", "no images")])  # fmt: skip
def test_folders_without_images_are_refused(tmp_path, name, words):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file.png").write_bytes(b"")
    with pytest.raises(HybridTokenizerError, match=words) as error:
        find_images(tmp_path / name)
    assert str(tmp_path / name) in str(error.value) and "\n" not in str(error.value)


def find(root):
    said = []
    return [path.relative_to(root).as_posix() for path in find_images(root, said.append)], said


def test_what_a_run_wrote_is_left_out_and_said(tmp_path):
    (tmp_path / "n01").mkdir()
    (tmp_path / "n01" / "photo.png").write_bytes(b"")
    names, said = find(tmp_path)
    assert names == ["n01/photo.png"] and said == []
    for number in range(7):
        mark_output(tmp_path / "runs" / f"{number}")
        (tmp_path / "runs" / f"{number}" / "validation").mkdir()
        (tmp_path / "runs" / f"{number}" / "validation" / "step.png").write_bytes(b"")
    names, said = find(tmp_path)
    assert names == ["n01/photo.png"]
    assert said == [f"left out of {tmp_path}: 7 folder(s) that a run wrote: runs/0, runs/1, runs/2, runs/3, runs/4, and 2 more"]  # fmt: skip
    names, said = find(tmp_path / "runs" / "3")
    assert names == ["validation/step.png"] and said == [], "its own pictures are read where they are asked for"


def test_a_run_inside_the_data_does_not_move_the_hold_out(tmp_path):
    for number in range(40):
        (tmp_path / f"{number}.png").write_bytes(b"")
    before = hold_out(find_images(tmp_path), tmp_path)
    mark_output(tmp_path / "run", [tmp_path])
    (tmp_path / "run" / "recon.png").write_bytes(b"")
    assert hold_out(find_images(tmp_path), tmp_path) == before


def test_a_folder_with_the_users_pictures_is_not_marked(tmp_path):
    (tmp_path / "2024" / "deep").mkdir(parents=True)
    (tmp_path / "2024" / "cat.png").write_bytes(b"")
    mark_output(tmp_path / "2024")
    assert find(tmp_path) == (["2024/cat.png"], [])
    mark_output(tmp_path / "run")
    (tmp_path / "run" / "recon.png").write_bytes(b"")
    mark_output(tmp_path / "run")  # again, by the run that goes on
    assert find(tmp_path)[0] == ["2024/cat.png"]


def test_outputs_do_not_go_into_the_folder_of_the_data(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path)
    message = f"output_dir='{tmp_path}' is the folder of the data; give a folder of its own"
    with pytest.raises(HybridTokenizerError) as error:
        mark_output(tmp_path, [None, tmp_path / "link"])
    assert str(error.value) == message
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "link.png").symlink_to(tmp_path / "file")
    for folder, source in ((tmp_path, "file"), (tmp_path, "run/link.png"), (tmp_path / "run", "run/link.png")):
        with pytest.raises(HybridTokenizerError) as error:
            mark_output(folder, [tmp_path / source])
        assert str(error.value) == message.replace(str(tmp_path), str(folder))
    with pytest.raises(HybridTokenizerError) as error:
        mark_output(tmp_path / "file" / "run")
    assert str(error.value) == f"output_dir='{tmp_path}/file/run' cannot be written (Not a directory); give another"


def test_links_are_said(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "far.png").write_bytes(b"")
    (tmp_path / "data" / "near.png").symlink_to(tmp_path / "elsewhere" / "far.png")
    (tmp_path / "data" / "lost.png").symlink_to(tmp_path / "nowhere")
    (tmp_path / "data" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "data" / "circle").symlink_to(tmp_path / "data")
    names, said = find(tmp_path / "data")
    assert names == ["near.png"]
    assert sorted(said) == [
        f"left out of {tmp_path}/data: 1 link(s) that lead nowhere: lost.png",
        f"left out of {tmp_path}/data: 2 linked folder(s), give them as further roots: circle, linked",
    ]


def test_folders_that_cannot_be_read_are_said(tmp_path, monkeypatch):
    for name in ("open", "shut"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.png").write_bytes(b"")
    scandir = os.scandir

    def guarded(path):
        if str(path).endswith("shut"):  # root may read everything, whatever the permissions say
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", guarded)
    names, said = find(tmp_path)
    assert names == ["open/a.png"]
    assert said == [f"left out of {tmp_path}: 1 folder(s) that cannot be read (Permission denied): shut"]


def test_hold_out_depends_on_relative_paths_alone(tmp_path):
    def paths(root, count):
        return [root / f"n{index % 7:02d}" / f"{index:04d}.png" for index in range(count)]

    kept, held = hold_out(paths(tmp_path, 1000), tmp_path)
    assert len(held) == 20 and sorted(kept + held) == sorted(paths(tmp_path, 1000))
    assert kept == [path for path in paths(tmp_path, 1000) if path in set(kept)], "order is kept"
    moved = hold_out(paths(tmp_path / "elsewhere", 1000)[::-1], tmp_path / "elsewhere")[1]
    relative = {path.relative_to(tmp_path) for path in held}
    assert {path.relative_to(tmp_path / "elsewhere") for path in moved} == relative
    grown = hold_out(paths(tmp_path, 1100), tmp_path)[1]
    assert len(set(grown) - set(held)) <= 6, "100 further files change the held-out part by their own share"


@pytest.mark.parametrize(("count", "held"), [(2, 1), (3, 1), (15, 7), (16, 8), (399, 8), (1000, 20)])
def test_hold_out_sizes(tmp_path, count, held):
    parts = hold_out([tmp_path / f"{index}.png" for index in range(count)], tmp_path)
    assert (len(parts[0]), len(parts[1])) == (count - held, held)


def test_one_image_can_not_be_split(tmp_path):
    with pytest.raises(HybridTokenizerError, match="at least 2"):
        hold_out([tmp_path / "a.png"], tmp_path)


def test_sample_photographs():
    samples = sample_photographs()
    assert len(samples) >= 7 and list(samples) == sorted(samples)
    for image in samples.values():
        assert image.mode == "RGB" and min(image.size) >= 256
        assert np.ptp(np.asarray(image).astype(int), axis=2).mean() > 5, "in colour"
