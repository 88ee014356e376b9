"""What the plots draw: their lines, read from matplotlib before they become pictures."""

import pytest

from hybrid_tokenizer.evaluation import plots


@pytest.fixture
def drawn(monkeypatch):
    """The figures that were drawn."""
    figures = []
    real = plots._png
    monkeypatch.setattr(plots, "_png", lambda figure: (figures.append(figure), real(figure))[1])
    return figures


def test_codecs_are_a_line_and_rows_without_cost_are_left_out(drawn):
    rows = [
        {"method": name, "bits_per_pixel": bits, "psnr": 20.0 + bits, "ssim": ssim}
        for name, bits, ssim in (("hybrid", 0.05, None), ("codec", 0.06, 0.5), ("codec@2", 0.02, 0.4), ("unrelated", 0.0, 0.1))
    ]  # fmt: skip
    assert plots.draw_rates(rows).startswith(b"\x89PNG")
    psnr, ssim = drawn[0].axes
    assert [list(line.get_xdata()) for line in psnr.lines] == [[0.02, 0.06], [0.05]]
    assert [list(line.get_xdata()) for line in ssim.lines] == [[0.02, 0.06]], "the hybrid has no SSIM"
    assert "unrelated" not in [text.get_text() for text in psnr.texts]
    assert plots.draw_rates([]).startswith(b"\x89PNG")


def test_a_sweep_has_a_line_per_family_over_the_strengths(drawn):
    def row(name, psnr, family=None, strength=0.0):
        setting = {} if family is None else {"family": family, "strength": strength, "start": family.split(",")[0]}
        return {"method": name, "psnr": psnr, "effnet_lite1_distance": 5.0, "high_frequency_energy": 0.1} | setting

    rows = [row("guide_only", 22.0), row("b", 20.0, "add_noise, n10", 0.8), row("a", 21.0, "add_noise, n10", 0.2)]
    rows.append(row("c", 19.0, "ddim_inversion, n10", 0.2))
    plots.draw_sweep(rows, rows[2])
    lines = {line.get_label(): list(line.get_xdata()) for line in drawn[0].axes[0].lines}
    assert lines == {
        "add_noise, n10": [21.0, 20.0], "ddim_inversion, n10": [19.0], "guide_only": [22.0], "recommended": [21.0],
    }  # fmt: skip


def test_guide_rates_have_a_line_per_family_and_ceilings(drawn):
    rows = [
        {"method": f"nested@{n}", "kind": "guide", "family": "nested", "bits": 14 * n, "psnr": 20.0 + n, "ssim": 0.5,
         "psnr_at_guide_size": 21.0}
        for n in (4, 20)
    ]  # fmt: skip
    rows.append({"method": "lossless 16px", "kind": "lossless", "family": "x", "bits": None, "psnr": 30.0, "ssim": 0.9})
    rows.append(
        {"method": "codec 7 B", "kind": "codec", "family": "WebP or AVIF", "bits": 56, "psnr": 15.0, "ssim": 0.4}
    )
    plots.draw_guide_rates(rows)
    full, _, at_guide_size = drawn[0].axes
    lines = {line.get_label(): list(line.get_ydata()) for line in full.lines if not line.get_label().startswith("_")}
    assert lines == {"nested, nested": [24.0, 40.0], "WebP or AVIF": [15.0]}
    assert [30.0, 30.0] in [list(line.get_ydata()) for line in full.lines]
    assert [list(line.get_ydata()) for line in at_guide_size.lines] == [[21.0, 21.0]]
