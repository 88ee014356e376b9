"""scripts/reconstruct.py as a user runs it."""

import pytest
from helpers.bad_images import write_bad_folder
from helpers.commands import run_command
from helpers.small_models import small_hybrid
from PIL import Image

from hybrid_tokenizer.commands.picture_files import check_outputs
from hybrid_tokenizer.data.folders import mark_output
from hybrid_tokenizer.errors import HybridTokenizerError


def test_it_writes_every_image_alone_and_beside_its_original(capfd, tmp_path):
    small_hybrid().save_pretrained(saved := tmp_path / "small")
    bad_folder = write_bad_folder(tmp_path / "bad")
    error = run_command(
        "reconstruct",
        f"model_name={saved}",
        f"input={bad_folder}",
        "image_size=32",
        f"output_dir={tmp_path / 'out'}",
    )
    stdout = capfd.readouterr().out
    assert error is None
    assert Image.open(tmp_path / "out" / "nested" / "good.png").size == (32, 32)
    assert Image.open(tmp_path / "out" / "nested" / "good.side_by_side.png").height == 32
    assert stdout.count("skipped /") == 4 and "48 tokens" in stdout
    error = run_command("reconstruct", f"model_name={saved}", f"input={bad_folder / 'nested' / 'good.jpg'}", "image_size=32", f"output_dir={tmp_path / 'one'}")  # fmt: skip
    again = (tmp_path / "one" / "good.png").read_bytes()
    assert error is None and again == (tmp_path / "out" / "nested" / "good.png").read_bytes()
    original = Image.open(tmp_path / "one" / "good.png").copy()
    original.save(tmp_path / "cat.png")
    before = (tmp_path / "cat.png").read_bytes()
    error = run_command("reconstruct", f"model_name={saved}", f"input={tmp_path / 'cat.png'}", "image_size=32", f"output_dir={tmp_path}")  # fmt: skip
    assert error == f"error: output_dir='{tmp_path}' is the folder of the data; give a folder of its own"
    assert (tmp_path / "cat.png").read_bytes() == before and not (tmp_path / "cat.side_by_side.png").exists()


def test_no_result_replaces_an_input_another_result_or_a_users_file(tmp_path):
    def refused(names, inputs=()):
        with pytest.raises(HybridTokenizerError) as caught:
            check_outputs(tmp_path, names, inputs)
        return str(caught.value)

    twice = ["a.png", "a.side_by_side.png", "a.side_by_side.png", "a.side_by_side.side_by_side.png"]
    assert refused(twice) == ("two results would both be written to a.side_by_side.png; rename one of the images")
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "cat.png").write_bytes(b"")
    exists = f"{tmp_path}/deep/cat.png exists, and no run wrote it; give another output_dir"
    mark_output(tmp_path)  # holds a picture of the user's, so it gets no mark
    assert refused(["deep/cat.png"]) == exists
    check_outputs(tmp_path, ["deep/dog.png"])
    mark_output(tmp_path / "run")
    (tmp_path / "run" / "cat.png").write_bytes(b"")
    check_outputs(tmp_path / "run", ["cat.png"])  # by the same run, once more
    tmp_path = tmp_path / "run"
    assert refused(["cat.png"], [tmp_path / "cat.png"]) == exists.replace("/deep/", "/run/")
