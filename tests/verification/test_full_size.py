"""Files in the published layout at reduced width: written, loaded through the registry, measured, refused when incomplete."""

import math

import pytest

from hybrid_tokenizer.baselines.registry import BASELINES
from hybrid_tokenizer.errors import HybridTokenizerError
from hybrid_tokenizer.verification.layouts import files, layouts
from hybrid_tokenizer.verification.layouts.rows import fill_row

F16 = [32] * 5
REDUCED = {
    "llamagen_ds16": layouts.llamagen(F16, 1, 8, 8, 16384) | {"quantize.codebook_used": (7,)},
    "ibq_1024": layouts.with_averages(layouts.taming(F16, 1, 8, 8, 1024, [4])),
    "titok_bl64": layouts.titok(16, 16, 64, (64, 1), (64, 1), 8192, 12),
}


@pytest.mark.parametrize("name", REDUCED)
def test_files_become_a_row(name, tmp_path, monkeypatch):
    monkeypatch.setitem(files.PUBLISHED, name, REDUCED[name])
    files.make_files(name, tmp_path, {})
    row = fill_row(name, tmp_path, 64)
    assert row["ok"] and row["n"] == 2 and row["image_size"] == 64
    assert row["num_tokens"] == (64 if name == "titok_bl64" else 16)
    assert row["bits"] == row["num_tokens"] * math.log2(BASELINES[name].codebook_size)
    assert row["bytes"] > 4 * row["parameters"]


def test_files_that_lack_a_key_make_no_row(tmp_path, monkeypatch):
    layout = {key: shape for key, shape in REDUCED["llamagen_ds16"].items() if key != "decoder.conv_out.bias"}
    monkeypatch.setitem(files.PUBLISHED, "llamagen_ds16", layout)
    files.make_files("llamagen_ds16", tmp_path, {})
    with pytest.raises(HybridTokenizerError, match=r"1 missing: \S*conv_out\.bias"):
        fill_row("llamagen_ds16", tmp_path, 64)


def test_which_files_can_be_made(tmp_path):
    assert set(BASELINES) - set(files.names()) == {"lavit", "seed2"}
    with pytest.raises(
        HybridTokenizerError, match="full-size files of 'seed2' cannot be made here; use one of movq_67m"
    ):
        files.make_files("seed2", tmp_path, {})
