"""The paper's values beside measured ones."""

from hybrid_tokenizer.evaluation.published import published_values
from hybrid_tokenizer.evaluation.studies.recon import COLUMNS, recon_markdown
from hybrid_tokenizer.evaluation.tables import cell


def row(method, psnr, ssim):
    return {"method": method, "psnr": psnr, "ssim_paper_compat": ssim, "n": 2}


def test_a_difference_over_ten_percent_is_flagged():
    near, far = row("movq_270m", 26.0, 0.5), row("seed", 9.0, 0.1)
    for entry in (near, far):
        entry.update(published_values(entry))
    assert near["published_psnr"] == 27.57 and near["published_differs"] == []
    assert far["published_differs"] == ["published_ssim"]
    columns = {column.key: column for column in COLUMNS}
    assert cell(near, columns["published_psnr"]) == "27.57" and cell(far, columns["published_ssim"]) == "0.002 ≠"
    assert "PSNR, the paper's" in recon_markdown([near, far])


def test_other_models_and_variants_have_none():
    for name in ("seed2", "hybrid@84", "hybrid_wrong_semantics", "guide_only", "titok_l32"):
        assert published_values(row(name, 20.0, 0.3)) == {}
    assert published_values(row("hybrid", None, None))["published_differs"] == []
