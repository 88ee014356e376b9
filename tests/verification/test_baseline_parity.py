import re
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from hybrid_tokenizer.verification.parity import check_fixture
from hybrid_tokenizer.verification.parity.kinds import FAMILIES
from hybrid_tokenizer.verification.parity.tolerances import TRAINING_TENSORS

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.mark.parametrize("kind", FAMILIES["hybrid_tokenizer.verification.parity.baselines"])
def test_all_but_training_is_reproduced(kind):
    rows = check_fixture(GOLDEN / f"{kind}_a.safetensors")
    expected = {key for key in load_file(GOLDEN / f"{kind}_a.safetensors") if key.startswith("out.")}
    assert {f"out.{row.tensor}" for row in rows} == expected
    assert [(row.tensor, row.difference, row.note) for row in rows if row.status == "mismatch"] == []
    assert all(re.fullmatch(TRAINING_TENSORS, row.tensor) for row in rows if row.status == "not covered")


@pytest.mark.parametrize(
    ("kind", "key", "wrong"),
    [
        ("var_vqvae", "quantize.quant_resi.qresi_ls.0.bias", {"f_hat", "rec"}),
        ("magvit2_lfq", "decoder.adaptive.2.gamma.bias", {"rec", "rec_from_indices"}),
        ("titok_legacy", "pixel_decoder.conv_out.bias", {"rec", "rec_from_indices"}),
    ],
)
def test_one_weight_changed_fails(kind, key, wrong, tmp_path):
    tensors = load_file(GOLDEN / f"{kind}_a.safetensors")
    tensors[f"state.{key}"] = tensors[f"state.{key}"] + 1e-2
    save_file(tensors, tmp_path / f"{kind}_a.safetensors")
    (tmp_path / f"{kind}_a.json").write_text((GOLDEN / f"{kind}_a.json").read_text())
    rows = check_fixture(tmp_path / f"{kind}_a.safetensors")
    assert wrong <= {row.tensor for row in rows if row.status == "mismatch"}
