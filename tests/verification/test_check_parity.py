import json
import runpy
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from hybrid_tokenizer.errors import HybridTokenizerError
from hybrid_tokenizer.verification.parity import KINDS, check_fixture, check_folder, kind_of, tolerance_of
from hybrid_tokenizer.verification.parity.compare import compare
from hybrid_tokenizer.verification.parity.kinds import FAMILIES
from hybrid_tokenizer.verification.parity.tolerances import may_be_absent

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden"
SEMANTIC = FAMILIES["hybrid_tokenizer.verification.parity.semantic"]


def copy_fixture(name: str, folder: Path, **changes: torch.Tensor) -> Path:
    """A fixture under another folder with some tensors replaced."""
    (folder / f"{name}.json").write_text((GOLDEN / f"{name}.json").read_text())
    save_file(load_file(GOLDEN / f"{name}.safetensors") | changes, folder / f"{name}.safetensors")
    return folder / f"{name}.safetensors"


@pytest.mark.parametrize("kind", SEMANTIC)
def test_every_tensor_of_the_reference_is_reproduced(kind):
    rows = check_fixture(GOLDEN / f"{kind}_a.safetensors")
    expected = {key for key in load_file(GOLDEN / f"{kind}_a.safetensors") if key.startswith("out.")}
    assert {f"out.{row.tensor}" for row in rows} == expected
    assert {row.tensor for row in rows if row.status == "not covered"} <= {"lm_logits"}
    assert [row for row in rows if row.status == "mismatch"] == []


@pytest.mark.parametrize(
    ("name", "tensor"), [("seed1_quantizer_a", "out.generation"), ("seed_stage1_loss_a", "out.grad.temp")]
)
def test_one_number_changed_by_a_hundredth_fails(name, tensor, tmp_path):
    changed = load_file(GOLDEN / f"{name}.safetensors")[tensor].clone()
    changed.view(-1)[-1] += 1e-2
    rows = check_fixture(copy_fixture(name, tmp_path, **{tensor: changed}))
    assert [row.tensor for row in rows if not row.ok] == [tensor.removeprefix("out.")]


def test_one_index_changed_fails(tmp_path):
    changed = load_file(GOLDEN / "seed1_quantizer_a.safetensors")["out.indices"].clone()
    changed[1, 7] = (changed[1, 7] + 1) % 64
    rows = check_fixture(copy_fixture("seed1_quantizer_a", tmp_path, **{"out.indices": changed}))
    assert [(row.tensor, row.tolerance) for row in rows if not row.ok] == [("indices", 0.0)]


def test_one_weight_changed_fails(tmp_path):
    key = "state.ln_vision.bias"
    weight = load_file(GOLDEN / "eva_vit_a.safetensors")[key] + 1e-2
    rows = check_fixture(copy_fixture("eva_vit_a", tmp_path, **{key: weight}))
    assert [row.tensor for row in rows if not row.ok] == ["image_embeds"]


def test_sizes_that_contradict_the_weights_are_mismatches_throughout(tmp_path):
    path = copy_fixture("eva_vit_a", tmp_path)
    description = json.loads(path.with_suffix(".json").read_text())
    description["config"]["depth"] = 2
    path.with_suffix(".json").write_text(json.dumps(description))
    rows = check_fixture(path)
    assert [row.status for row in rows] == ["mismatch"] * 3
    assert "unexpected" in rows[0].note


def test_rows_compare_shape_kind_of_number_and_finiteness():
    def status(expected: torch.Tensor, produced: torch.Tensor | None, tensor: str = "z") -> str:
        return compare("f_a", "movq", tensor, expected, produced).status

    assert status(torch.zeros(2), torch.zeros(2) + 1e-5) == "ok"
    assert status(torch.zeros(2), torch.zeros(2) + 3e-5) == "mismatch"
    assert status(torch.zeros(2), torch.zeros(3)) == "mismatch"
    assert status(torch.zeros(2), torch.tensor([0.0, float("nan")])) == "mismatch"
    assert status(torch.zeros(2, dtype=torch.long), torch.zeros(2)) == "mismatch"
    assert status(torch.full((2,), 1e3), torch.full((2,), 1e3 + 0.05), "grad_image") == "ok"  # relative
    assert status(torch.zeros(2), None) == "mismatch"


def test_only_lm_logits_and_training_tensors_of_baselines_may_be_absent():
    assert may_be_absent("lavis_qformer", "lm_logits")
    assert may_be_absent("var_vqvae", "train_rec")
    assert may_be_absent("ibq", "grad_codebook")
    assert not may_be_absent("movq", "vq_loss")
    assert not may_be_absent("taming_vqgan", "total")
    assert not may_be_absent("seed_stage1_loss", "grad_full.temp")
    assert not may_be_absent("ibq", "indices")


@pytest.mark.parametrize(
    ("kind", "tensor", "largest", "relative"),
    [
        ("seed1_quantizer", "z", 1e-4, False),
        ("seed_stage2_loss", "grad.pos_embed", 1e-4, False),
        ("movq", "z", 2e-5, False),
        ("movq", "rec", 1e-4, False),
        ("movq", "rec_from_indices", 1e-4, False),
        ("movq", "grad_codebook", 1e-4, True),
        ("lavit_tokenizer", "anything", 1e-4, False),
    ],
)
def test_tolerances_are_the_specifications(kind, tensor, largest, relative):
    assert tolerance_of(kind, tensor) == (largest, relative)


def test_the_kind_is_the_name_without_its_ending():
    assert kind_of(Path("seed2_quantizer_mlp_b.safetensors")) == "seed2_quantizer_mlp"
    assert kind_of(Path("eva_vit.safetensors")) == "eva_vit"


def test_folders_without_what_was_asked_for_raise(tmp_path):
    with pytest.raises(HybridTokenizerError, match="is not a folder"):
        check_folder(tmp_path / "nowhere")
    with pytest.raises(HybridTokenizerError, match="no fixture in"):
        check_folder(tmp_path)
    with pytest.raises(HybridTokenizerError, match="unknown kind 'nonsense'"):
        check_folder(GOLDEN, ["eva_vit", "nonsense"])
    copy_fixture("eva_vit_a", tmp_path)
    with pytest.raises(HybridTokenizerError, match="no fixture of kind seed1_quantizer"):
        check_folder(tmp_path, ["eva_vit", "seed1_quantizer"])
    (tmp_path / "eva_vit_a.json").unlink()
    with pytest.raises(HybridTokenizerError, match="does not exist"):
        check_folder(tmp_path)


def test_fixtures_of_kinds_without_a_check_are_counted(tmp_path):
    copy_fixture("eva_vit_a", tmp_path)
    (tmp_path / "unheard_a.safetensors").write_bytes(b"")
    report = check_folder(tmp_path)
    assert report.ok
    assert report.not_checked == ["unheard_a"]


def test_every_kind_in_the_table_has_a_function():
    from hybrid_tokenizer.verification.parity import produce_function

    assert all(callable(produce_function(kind)) for kind in KINDS)


def run_script(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int | str | None:
    """The code or the line that the script exits with."""
    monkeypatch.setattr(sys, "argv", ["check_parity.py", *arguments])
    try:
        runpy.run_path(str(ROOT / "scripts" / "check_parity.py"), run_name="__main__")
    except SystemExit as leaving:
        return leaving.code
    return 0


def test_the_script_writes_rows_and_exits_by_the_result(tmp_path, monkeypatch, capsys):
    kinds = "eva_vit,lavis_qformer"
    assert run_script(monkeypatch, str(GOLDEN), "--kinds", kinds, "--json", str(tmp_path / "rows.json")) == 0
    assert "7 ok, 0 mismatches, 1 not covered" in capsys.readouterr().out
    report = json.loads((tmp_path / "rows.json").read_text())
    assert report["ok"] and report["counts"] == {"ok": 7, "mismatch": 0, "not_covered": 1}
    assert {"tensor", "difference", "tolerance", "ok"} <= set(report["rows"][0])

    copy_fixture("eva_vit_a", tmp_path, **{"out.vit": torch.zeros(2, 10, 48)})
    assert run_script(monkeypatch, str(tmp_path)) == 1
    line = run_script(monkeypatch, str(GOLDEN), "--kinds", "nonsense")
    assert line.startswith("error: unknown kind 'nonsense'") and "\n" not in line
