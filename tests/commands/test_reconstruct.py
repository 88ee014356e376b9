"""scripts/reconstruct.py as a user runs it."""

from helpers.bad_images import write_bad_folder
from helpers.commands import run_command
from helpers.small_models import small_hybrid
from PIL import Image


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
