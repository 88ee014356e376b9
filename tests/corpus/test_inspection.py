"""What `inspect` says of token shards, and the picture grid of `detokenize`."""

import json
import math

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from helpers.commands import run_command
from PIL import Image

from hybrid_tokenizer.corpus.inspection import code_length


def test_a_code_costs_what_its_counts_say():
    assert code_length(torch.tensor([[4000, 0, 0, 0]])) < 20  # one code alone tells nothing
    uniform = torch.full((1, 4), 1000)
    assert code_length(uniform) == pytest.approx(2 * 4000, rel=0.01)
    skewed = torch.tensor([[3000, 1000, 0, 0]])
    entropy = -(0.75 * math.log2(0.75) + 0.25 * math.log2(0.25))
    assert code_length(skewed) == pytest.approx(entropy * 4000, rel=0.02)


def test_inspect_counts_codes_and_measures_decoding(tokens, tokenizer_folder, tmp_path):
    options = [f"input={tokens}", f"model_name={tokenizer_folder}", "sample=4", f"output_dir={tmp_path / 'out'}"]
    assert run_command("inspect_tokens", *options) is None
    found = json.loads((tmp_path / "out" / "inspect.json").read_text())
    rows = pa.concat_tables([pq.read_table(path) for path in sorted((tokens / "data").glob("*.parquet"))]).to_pylist()
    assert found["rows"] == 43 and found["tokens"] == 53 and found["duplicate_rows"] == 0 and found["sample"] == 4
    kinds = {row["kind"]: row for row in found["kinds"]}
    assert list(kinds) == ["semantic", "guide 1x1", "guide 2x2", "guide 4x4"]
    seen = {"semantic": {code for row in rows for code in row["semantic"]}}
    seen["guide 2x2"] = {code for row in rows for code in row["guide"][1:5]}
    for kind, codes in seen.items():
        assert kinds[kind]["dead_codes"] == kinds[kind]["codebook_size"] - len(codes)
        assert kinds[kind]["codebook_usage"] == pytest.approx(len(codes) / kinds[kind]["codebook_size"])
        assert len(kinds[kind]["entropy_per_position"]) == kinds[kind]["tokens"]
    assert found["uniform_bits"] == pytest.approx(
        sum(math.log2(row["codebook_size"]) * row["tokens"] for row in kinds.values())
    )
    assert all(0 <= row["stable"] <= 1 for row in kinds.values())
    damage = {(row["kind"], row["share"]): row["psnr"] for row in found["damage"]}
    assert len(damage) == 9 and damage["all", 0.2] < damage["all", 0.01]
    with Image.open(tmp_path / "out" / "inspect.png") as plot:
        assert plot.size[0] > plot.size[1] > 300
    assert "43 rows, 0 of which repeat an earlier row" in (tmp_path / "out" / "inspect.md").read_text()


def test_detokenize_draws_the_rows_that_are_asked_for(tokens, tokenizer_folder, tmp_path):
    options = [f"input={tokens}", f"model_name={tokenizer_folder}"]
    for name, rows in (("a", "rows=[0,20]"), ("b", "rows=[20,0]"), ("c", "count=3")):
        assert run_command("detokenize", *options, rows, f"output={tmp_path / name}.png") is None
    first, second, third = (Image.open(tmp_path / f"{name}.png") for name in "abc")
    assert first.size == second.size and first.tobytes() != second.tobytes()
    assert third.size != first.size
    message = run_command("detokenize", *options, f"output={tmp_path / 'a.png'}")
    assert message == f"error: {tmp_path / 'a.png'} exists and is not written over; give another output=FILE"
