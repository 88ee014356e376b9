import json
import math
import os
import runpy
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.small_models import small_hybrid
from PIL import Image

from hybrid_tokenizer.data.samples import sample_photographs
from hybrid_tokenizer.errors import HybridTokenizerError
from hybrid_tokenizer.evaluation.config import EvalData, EvalReconConfig
from hybrid_tokenizer.evaluation.controls import Identity, LosslessGuide, Unrelated
from hybrid_tokenizer.evaluation.images import EvalImages
from hybrid_tokenizer.evaluation.loop import evaluate, evaluate_rows, provenance
from hybrid_tokenizer.evaluation.rows import rows_by_name
from hybrid_tokenizer.evaluation.summary import Metric, paired_differences
from hybrid_tokenizer.images import fit_square, from_pil
from hybrid_tokenizer.metrics import pixel

METRICS = [
    Metric("psnr", pixel.psnr),
    Metric("ssim", pixel.ssim),
    Metric("ms_ssim", pixel.ms_ssim, least_side=pixel.MS_SSIM_LEAST_SIDE),
    Metric("high_frequency_energy", pixel.high_frequency_energy, geometric=True),
]
ROOT = Path(__file__).resolve().parents[2]
QUIET = {"progress": False}


class Noisy:
    """Stochastic: the image plus noise from the generator, one draw an image."""

    name, native_size = "noisy", None

    def encode(self, images, generator=None):
        return images

    def decode(self, tokens, size, generator=None):
        seeds = [int(image.sum() * 1000) + generator.initial_seed() for image in tokens]
        noise = [torch.randn(image.shape, generator=torch.Generator().manual_seed(s % 2**62)) for s, image in zip(seeds, tokens, strict=True)]  # fmt: skip
        return (tokens + 0.2 * torch.stack(noise)).clamp(-1, 1)

    def num_tokens(self, tokens):
        return torch.full((len(tokens),), 4)

    def bits(self, tokens):
        return torch.full((len(tokens),), 40.0)


class Native(Identity):
    """Wants 24 px, and checks that it gets and is asked for them."""

    name, native_size = "native", 24

    def encode(self, images, generator=None):
        assert tuple(images.shape[-2:]) == (24, 24)
        return images

    def decode(self, tokens, size, generator=None):
        assert size == (24, 24)
        return tokens


class Overflowing(Identity):
    name = "overflowing"

    def decode(self, tokens, size, generator=None):
        return tokens * 127.5 + 127.5


class Counting(Identity):
    name = "counting"

    def codebook_indices(self, tokens):
        return {"book": (torch.zeros(len(tokens), 5, dtype=torch.int64), 10)}


@pytest.fixture(scope="module")
def images():
    return EvalImages.from_samples(32, **QUIET)


@pytest.fixture
def bad_folder(tmp_path):
    """A good image, nested, among four that can not be used."""
    root = tmp_path / "bad"
    (root / "nested").mkdir(parents=True)
    sample_photographs()["coffee"].save(root / "nested" / "good.jpg")
    data = (root / "nested" / "good.jpg").read_bytes()
    (root / "truncated.jpg").write_bytes(data[: len(data) // 2])
    (root / "text.png").write_text("no image")
    Image.new("RGB", (1, 1)).save(root / "one.png")

    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0))
    (root / "huge.png").write_bytes(
        b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"0")) + chunk(b"IEND", b"")
    )
    return root


def test_identity_is_perfect_and_says_why_it_has_no_psnr(images):
    row = evaluate(Identity(), images, METRICS, **QUIET).row
    assert row["psnr"] is None and "infinite" in row["psnr_note"]
    assert row["ms_ssim"] is None and "161" in row["ms_ssim_note"]
    assert row["ssim"] == pytest.approx(1) and row["high_frequency_energy"] == pytest.approx(1)
    assert (row["method"], row["n"], row["num_tokens"], row["bits"]) == ("identity", 7, 1024, 1024 * 24)
    json.dumps(row, allow_nan=False)


def test_unrelated_is_the_next_image_and_at_chance(images):
    done = evaluate(Unrelated(), images, METRICS, batch_size=3, pictures=7, **QUIET)
    assert 6 < done.row["psnr"] < 13 and done.row["ssim"] < 0.35
    following = torch.stack([images[(i + 1) % 7] for i in range(7)])
    torch.testing.assert_close(done.pictures.float() / 127.5 - 1, following)


def test_unrelated_of_a_single_image_is_another_photograph():
    photographs = sample_photographs()
    alone = EvalImages(["astronaut"], photographs.__getitem__, 32, **QUIET)
    assert evaluate(Unrelated(), alone, METRICS, **QUIET).row["psnr"] < 15
    for other in ("cat", "coffee"):
        alone = EvalImages([other], photographs.__getitem__, 32, **QUIET)
        assert evaluate(Unrelated(), alone, METRICS, **QUIET).row["psnr"] < 15


def test_row_is_the_mean_of_its_images_whatever_the_batch_size(images):
    one, all_at_once = (evaluate(Noisy(), images, METRICS, batch_size=b, **QUIET) for b in (1, 7))
    assert [e["psnr"] for e in one.per_image] == pytest.approx([e["psnr"] for e in all_at_once.per_image])
    assert one.row["psnr"] == pytest.approx(np.mean([entry["psnr"] for entry in one.per_image]))
    assert one.row["ssim"] == pytest.approx(all_at_once.row["ssim"])
    low, high = one.row["intervals"]["psnr"]
    assert low < one.row["psnr"] < high


def test_hybrid_results_do_not_depend_on_the_batch_size(images):
    (hybrid,) = rows_by_name(small_hybrid(), ["hybrid"])
    one, four = (evaluate(hybrid, images, METRICS, batch_size=b, pictures=7, **QUIET) for b in (1, 4))
    assert (one.pictures.int() - four.pictures.int()).abs().max() <= 1
    assert one.row["psnr"] == pytest.approx(four.row["psnr"], abs=1e-3)
    assert one.row["codebooks"] == four.row["codebooks"] and set(one.row["codebooks"]) == {"semantic", "guide"}


def test_seeds_are_averaged_inside_the_row(images):
    three = evaluate(Noisy(), images, METRICS, seeds=(0, 1, 2), **QUIET)
    singles = [evaluate(Noisy(), images, METRICS, seeds=(s,), **QUIET).row["psnr"] for s in (0, 1, 2)]
    assert three.row["psnr"] == pytest.approx(np.mean(singles))
    assert three.row["psnr_std"] == pytest.approx(np.std(singles, ddof=1)) and three.row["psnr_std"] > 0
    assert three.row["seeds"] == [0, 1, 2] and three.row["n"] == 7
    assert len(three.per_image[0]["psnr_of_seeds"]) == 3
    assert evaluate(Noisy(), images, METRICS, **QUIET).row["psnr_std"] is None


def test_deterministic_rows_run_once_and_have_no_spread(images):
    done = evaluate(LosslessGuide(16), images, METRICS, seeds=(0, 1), **QUIET)
    assert done.row["psnr_std"] == 0 and done.row["deterministic"] and len(done.per_image[0]["psnr_of_seeds"]) == 1


def test_another_native_size_is_resized_and_the_row_says_so(images):
    row = evaluate(Native(), images, METRICS, **QUIET).row
    assert "32 -> 24" in row["resized"] and 15 < row["psnr"] < 40
    assert "resized" not in evaluate(Identity(), images, METRICS, **QUIET).row


def test_wrong_range_names_the_row(images):
    with pytest.raises(HybridTokenizerError, match=r"overflowing decoded outside the value range.*\[-1, 1\]"):
        evaluate(Overflowing(), images, METRICS, **QUIET)


def test_codebook_use_over_the_whole_set(images):
    row = evaluate(Counting(), images, METRICS, batch_size=2, **QUIET).row
    assert row["codebooks"]["book"]["codebook_usage"] == pytest.approx(0.1)
    assert row["codebooks"]["book"]["perplexity"] == pytest.approx(1.0)


def test_paired_differences(images):
    guide, noisy = (evaluate(t, images, METRICS, **QUIET) for t in (LosslessGuide(16), Noisy()))
    difference = paired_differences(guide, noisy, METRICS)["psnr"]
    assert difference["mean"] == pytest.approx(guide.row["psnr"] - noisy.row["psnr"])
    assert difference["n"] == 7 and difference["interval"][0] < difference["mean"] < difference["interval"][1]
    rows = [done.row for done in evaluate_rows([Identity(), Noisy()], images, METRICS, "noisy", **QUIET)]
    assert "ssim" in rows[0]["differences"] and "psnr" not in rows[0]["differences"] and "differences" not in rows[1]
    noisy = Noisy()
    noisy.compare_to = "identity"
    same, other = (done.row for done in evaluate_rows([Identity(), noisy], images, METRICS, "noisy", **QUIET))
    assert same["difference_to"] == "noisy" and other["difference_to"] == "identity"  # its own comes first


def test_references_are_the_centre_squares_and_survive_a_full_cache(monkeypatch, images):
    photographs = sample_photographs()
    torch.testing.assert_close(images[0], from_pil(fit_square(photographs["astronaut"], 32)))
    monkeypatch.setattr("hybrid_tokenizer.evaluation.images.CACHE_BYTES", 3 * 32 * 32 * 2)
    uncached = EvalImages.from_samples(32, **QUIET)
    assert uncached.pixels_hash == images.pixels_hash and uncached.names_hash == images.names_hash
    for i in range(7):
        torch.testing.assert_close(uncached[i], images[i])


def test_unusable_files_are_announced_and_listed(bad_folder):
    said = []
    images = EvalImages.from_folder(bad_folder, 32, say=said.append, **QUIET)
    assert images.names == ["nested/good.jpg"]
    assert [Path(entry["path"]).name for entry in images.skipped] == [
        "huge.png",
        "one.png",
        "text.png",
        "truncated.jpg",
    ]
    assert said == [f"skipped {entry['path']}: {entry['reason']}" for entry in images.skipped]
    assert all("\n" not in line for line in said)
    assert provenance(images, "cpu", 0.0)["skipped"] == images.skipped


def test_small_images_are_skipped_under_a_quarter_of_the_size(tmp_path):
    for side in (7, 8):
        Image.new("RGB", (40, side), (9, 99, 199)).save(tmp_path / f"{side}.png")
    images = EvalImages.from_folder(tmp_path, 32, say=lambda line: None, **QUIET)
    assert images.names == ["8.png"] and "40x7" in images.skipped[0]["reason"]


def test_folders_without_a_usable_image(tmp_path, bad_folder):
    (tmp_path / "empty").mkdir()
    with pytest.raises(HybridTokenizerError, match="holds no images"):
        EvalImages.open(tmp_path / "empty", 32)
    with pytest.raises(HybridTokenizerError, match="none of the 5 image"):
        EvalImages.from_folder(bad_folder, 2048, say=lambda line: None, **QUIET)


def test_max_images_takes_the_first_usable_ones():
    images = EvalImages.from_samples(32, max_images=2, **QUIET)
    assert images.names == ["astronaut", "cat"]


def test_configuration_rules():
    with pytest.raises(HybridTokenizerError, match="use 104"):
        EvalData(image_size=101)
    with pytest.raises(HybridTokenizerError, match="at least 32"):
        EvalData(image_size=8)
    with pytest.raises(HybridTokenizerError, match="seeds"):
        EvalReconConfig(seeds=[1, 1])
    with pytest.raises(HybridTokenizerError, match="batch_size=0"):
        EvalReconConfig(batch_size=0)


def test_undefined_values_leave_the_mean_and_are_noted(images):
    sometimes = Metric("odd", lambda x, y: torch.tensor([math.nan, *[2.0] * (len(x) - 1)], dtype=torch.float64))
    row = evaluate(Identity(), images, [sometimes], batch_size=7, **QUIET).row
    assert row["odd"] == 2.0 and "undefined for 1 of 7" in row["odd_note"]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "small"
    small_hybrid().save_pretrained(folder)
    return folder


@pytest.fixture
def script(monkeypatch, capfd):
    """Run a script as `python scripts/NAME ARGUMENTS` would, in this process; gives its error (or None), stdout, stderr."""

    def run(name, *arguments):
        path = str(ROOT / "scripts" / name)
        monkeypatch.setattr(sys, "argv", [path, *map(str, arguments)])
        monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
        error = None
        try:
            runpy.run_path(path, run_name="__main__")
        except SystemExit as exit:
            error = exit.code
        return error, *capfd.readouterr()

    return run


def test_eval_recon_script(script, saved, bad_folder, tmp_path):
    error, stdout, _ = script(
        "eval_recon.py", f"model_name={saved}", f"data.root={bad_folder}", "data.image_size=32",
        f"output_dir={tmp_path / 'out'}", f"components.guide={saved / 'guide'}", "tokenizers=[identity,unrelated,hybrid]",
    )  # fmt: skip
    assert error is None
    assert sum(line.startswith("skipped ") for line in stdout.splitlines()) == 4
    assert "| hybrid " in stdout
    written = json.loads((tmp_path / "out" / "recon.json").read_text())
    assert [row["method"] for row in written["rows"]] == ["identity", "unrelated", "hybrid"]
    facts = written["provenance"]
    assert facts["config"]["data"]["image_size"] == 32 and len(facts["skipped"]) == 4 and facts["weights_sha256"]
    lines = (tmp_path / "out" / "per_image.jsonl").read_text().splitlines()
    assert len(lines) == 3 and json.loads(lines[2])["image"] == "nested/good.jpg"
    assert Image.open(tmp_path / "out" / "recon.png").width > 600
    assert (tmp_path / "out" / "recon.md").read_text().startswith("| method")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["model=none_such"], "none_such"),
        (["data.imagesize=32"], "data.imagesize"),
        (["data.image_size=33"], "use 32"),
        (["tokenizers=[none_such]"], "hybrid_wrong_semantics"),
        (["data.root={folder}"], "holds no images"),
        (["components.guide={folder}"], "does not exist"),
    ],
    ids=["preset", "override", "size", "row", "empty", "component"],
)
def test_mistakes_are_one_line(script, saved, tmp_path, arguments, message):
    (tmp_path / "folder").mkdir()
    arguments = [argument.format(folder=tmp_path / "folder") for argument in arguments]
    model = [] if arguments[0].startswith("model=") else [f"model_name={saved}"]
    error, _, _ = script("eval_recon.py", *model, *arguments, f"output_dir={tmp_path / 'out'}")
    assert error.startswith("error: ") and message in error and "\n" not in error
    assert not (tmp_path / "out").exists()


def test_reconstruct_script(script, saved, bad_folder, tmp_path):
    error, stdout, _ = script(
        "reconstruct.py",
        f"model_name={saved}",
        f"input={bad_folder}",
        "image_size=32",
        f"output_dir={tmp_path / 'out'}",
    )
    assert error is None
    assert Image.open(tmp_path / "out" / "nested" / "good.png").size == (32, 32)
    assert Image.open(tmp_path / "out" / "nested" / "good.side_by_side.png").height == 32
    assert stdout.count("skipped /") == 4 and "48 tokens" in stdout
    error, _, _ = script("reconstruct.py", f"model_name={saved}", f"input={bad_folder / 'nested' / 'good.jpg'}", "image_size=32", f"output_dir={tmp_path / 'one'}")  # fmt: skip
    again = (tmp_path / "one" / "good.png").read_bytes()
    assert error is None and again == (tmp_path / "out" / "nested" / "good.png").read_bytes()


def test_a_mistake_leaves_the_process_with_one_line_and_no_traceback(tmp_path):
    command = [
        sys.executable,
        str(ROOT / "scripts" / "eval_recon.py"),
        "data.imagesize=32",
        f"output_dir={tmp_path / 'out'}",
    ]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.startswith("error: ") and len(done.stderr.strip().splitlines()) == 1
