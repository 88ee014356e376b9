"""train_guide.py as a user runs it: one line for each mistake, and its help."""

import pytest
from training_runs import SMALL_GUIDE, said


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (["model=none_such"], "none_such"),
        (["training.max_step=3"], "training.max_step"),
        (["guide.stem=unshufle"], "unshufle"),
        (["training.learning_rate=fast"], "learning_rate"),
        (["training.num_threads=0"], "training.num_threads"),
        (["data.root={empty}"], "holds no images"),
        (["data.root={empty}/absent"], "is not a folder"),
        (["data.image_size=100"], "100x100"),
        (["data.val_root={empty}"], "holds no images"),
        (["guide.init={empty}"], "{empty}"),
        (["output_dir={empty}/file/run"], "output_dir"),
        (["~data.root"], "data.root"),
        (["data.root=???"], "data.root"),
        (["output_dir=???"], "output_dir"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_mistakes_are_one_line(script, pictures, tmp_path, changes, words):
    empty = tmp_path / "empty"
    empty.mkdir()
    (tmp_path / "file").write_bytes(b"")
    given = [f"data.root={pictures}", f"output_dir={tmp_path / 'out'}"]
    changes = [change.format(empty=empty).replace("empty/file", "file") for change in changes]
    given = [option for option in given if option.split("=")[0] not in {c.lstrip("~").split("=")[0] for c in changes}]
    if changes[0].startswith("~"):
        changes = []
    error, stdout, stderr = script("train_guide.py", *SMALL_GUIDE, *given, *changes)
    assert error.startswith("error: ") and "\n" not in error and "Traceback" not in error + stderr
    assert words.format(empty=empty) in error
    assert not [line for line in said(stdout) if line != "starting from step 0"]


def test_a_folder_of_broken_images_is_one_line(script, pictures, tmp_path):
    """Found by a worker process, whose traceback is left out."""
    for index in range(3):
        (tmp_path / f"{index}.png").write_bytes(b"no image")
    options = (f"data.root={tmp_path}", f"data.val_root={pictures}", f"output_dir={tmp_path / 'out'}")
    error, stdout, _ = script("train_guide.py", *SMALL_GUIDE, *options, "training.num_workers=1")
    assert error.startswith("error: 100 images in a row are unreadable") and "\n" not in error
    error, stdout, _ = script("train_guide.py", *SMALL_GUIDE, f"data.root={tmp_path}", f"output_dir={tmp_path / 'two'}")
    assert error.startswith("error: no validation image can be read")
    assert any(line.startswith(f"skipped {tmp_path}") for line in stdout.splitlines())


def test_help_shows_the_options(script):
    error, stdout, _ = script("train_guide.py", "--help")
    assert error in (None, 0)
    for option in ("max_steps", "codebook_size", "val_fraction", "perceptual"):
        assert option in stdout
