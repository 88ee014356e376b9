"""The GPU check writes what its sections measure, and how each ended."""

import json

import pytest
import torch

from hybrid_tokenizer.errors import HybridTokenizerError
from hybrid_tokenizer.tokens import HybridTokens
from hybrid_tokenizer.verification.gpu.config import GpuCheckConfig
from hybrid_tokenizer.verification.gpu.rows import at_most, differing_codes
from hybrid_tokenizer.verification.gpu.run import run_checks


def reduced(folder, *sections):
    return GpuCheckConfig(None, str(folder / "out"), device="cpu", reduced=True, sections=sections)


def test_a_section_runs_in_its_own_process_and_its_rows_are_written(tmp_path):
    said = []
    rows = run_checks(reduced(tmp_path, "versions"), said.append)
    values = {row["check"]: row["value"] for row in rows}
    assert values["torch"] == torch.__version__.partition("+")[0] and values["device"] == "cpu"
    assert rows[-1]["check"] == "status" and rows[-1]["ok"] and said == ["versions: finished, 0 wrong"]
    assert json.loads((tmp_path / "out" / "gpu_check.json").read_text())["rows"] == rows
    assert "| versions" in (tmp_path / "out" / "gpu_check.md").read_text()
    with pytest.raises(HybridTokenizerError, match="give another --output"):
        run_checks(reduced(tmp_path, "versions"), said.append)


def test_what_cannot_be_run_is_refused(tmp_path):
    with pytest.raises(
        HybridTokenizerError, match=r"sections \['version'\] are unknown; use some of versions, devices"
    ):
        run_checks(reduced(tmp_path, "version"), print)
    with pytest.raises(HybridTokenizerError, match="is no folder; give a folder of pictures"):
        GpuCheckConfig(str(tmp_path / "absent"), str(tmp_path))


def test_codes_are_compared_part_by_part():
    def tokens(coarse):
        grids = (torch.tensor([[[coarse]]]), torch.zeros(1, 2, 2, dtype=torch.long))
        return HybridTokens(torch.zeros(1, 32, dtype=torch.long), grids, (32, 32))

    assert differing_codes(tokens(1), tokens(2)) == {"semantic": 0, "guide 1x1": 1, "guide 2x2": 0}
    assert at_most("x", 0.5, 0.5, "share").ok and not at_most("x", 0.6, 0.5, "share").ok
