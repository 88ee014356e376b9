import math

import numpy as np
import piq
import pytest
import skimage.metrics
import torch
from torchmetrics.functional.image import (
    multiscale_structural_similarity_index_measure,
    peak_signal_noise_ratio,
    structural_similarity_index_measure,
)

from hybrid_tokenizer.data.samples import sample_photographs
from hybrid_tokenizer.errors import HybridTokenizerError
from hybrid_tokenizer.images import fit_square, from_pil, from_uint8, resize_bicubic, to_uint8
from hybrid_tokenizer.metrics import pixel

MEASURES = [pixel.psnr, pixel.ssim, pixel.ms_ssim, pixel.ssim_paper_compat, pixel.high_frequency_energy]


@pytest.fixture(scope="module")
def photographs():
    """Four photographs, not square: 3 x 192 x 176."""
    images = [from_pil(fit_square(image, 192)) for image in list(sample_photographs().values())[:4]]
    return torch.stack(images)[..., 8:184]


@pytest.fixture(scope="module")
def damaged(photographs):
    noise = torch.randn(photographs.shape, generator=torch.Generator().manual_seed(0))
    blurred = resize_bicubic(resize_bicubic(photographs, (48, 44)), (192, 176))
    return (blurred + 0.05 * noise).clamp(-1, 1)


def test_identity(photographs):
    assert pixel.psnr(photographs, photographs).isposinf().all()
    for measure in MEASURES[1:]:
        torch.testing.assert_close(
            measure(photographs, photographs), torch.ones(4, dtype=torch.float64), rtol=0, atol=1e-6
        )


def test_constant_offset_has_closed_form_psnr():
    reference = from_uint8(torch.randint(0, 200, (2, 3, 20, 24)).to(torch.uint8))
    offset = from_uint8(to_uint8(reference) + 10)
    expected = torch.full((2,), 20 * math.log10(255 / 10), dtype=torch.float64)
    torch.testing.assert_close(pixel.psnr(offset, reference), expected)


def test_unrelated_pair_is_in_the_chance_band(photographs):
    unrelated = photographs.roll(1, 0)
    assert 6 < pixel.psnr(unrelated, photographs).mean() < 13
    assert 0 < pixel.ssim(unrelated, photographs).mean() < 0.35


def test_values_are_rounded_to_8_bits_first(photographs):
    within_a_level = photographs + 0.4 / 127.5
    assert pixel.psnr(within_a_level.clamp(-1, 1), photographs).isposinf().all()


@pytest.mark.parametrize("measure", MEASURES, ids=lambda measure: measure.__name__)
def test_wrong_range_raises(measure, photographs):
    with pytest.raises(HybridTokenizerError, match=r"expected \[-1, 1\]"):
        measure(photographs * 127.5 + 127.5, photographs)
    with pytest.raises(HybridTokenizerError, match=r"expected \[-1, 1\]"):
        measure(photographs, photographs * torch.nan)


@pytest.mark.parametrize("measure", MEASURES, ids=lambda measure: measure.__name__)
def test_batch_size_does_not_matter(measure, photographs, damaged):
    alone = torch.cat([measure(x[None], y[None]) for x, y in zip(damaged, photographs, strict=True)])
    torch.testing.assert_close(measure(damaged, photographs), alone, rtol=0, atol=1e-6)


def test_agrees_with_scikit_image(photographs, damaged):
    for x, y, psnr, ssim in zip(
        to_uint8(damaged).permute(0, 2, 3, 1).numpy(),
        to_uint8(photographs).permute(0, 2, 3, 1).numpy(),
        pixel.psnr(damaged, photographs),
        pixel.ssim(damaged, photographs),
        strict=True,
    ):
        assert skimage.metrics.peak_signal_noise_ratio(y, x, data_range=255) == pytest.approx(psnr.item(), abs=1e-4)
        _, full = skimage.metrics.structural_similarity(
            y / 255, x / 255, data_range=1, channel_axis=2, full=True,
            gaussian_weights=True, sigma=1.5, truncate=5 / 1.5, use_sample_covariance=False,
        )  # fmt: skip
        # scikit-image filters past the border before it averages; the windows that lie inside are the same ones
        assert np.mean(full[5:-5, 5:-5]) == pytest.approx(ssim.item(), abs=1e-4)


def test_agrees_with_torchmetrics(photographs, damaged):
    x, y = to_uint8(damaged).double() / 255, to_uint8(photographs).double() / 255
    theirs = peak_signal_noise_ratio(x, y, data_range=1.0, dim=(1, 2, 3), reduction="none")
    torch.testing.assert_close(pixel.psnr(damaged, photographs), theirs, rtol=0, atol=1e-4)
    inside = structural_similarity_index_measure(x, y, data_range=1.0, return_full_image=True, reduction="none")[1]
    torch.testing.assert_close(
        pixel.ssim(damaged, photographs), inside[..., 5:-5, 5:-5].mean((1, 2, 3)).double(), rtol=0, atol=1e-4
    )


def test_ms_ssim_agrees_with_torchmetrics_and_piq(photographs, damaged):
    x, y = to_uint8(damaged).double() / 255, to_uint8(photographs).double() / 255
    ours = pixel.ms_ssim(damaged, photographs)
    theirs = multiscale_structural_similarity_index_measure(x, y, data_range=1.0, reduction="none")
    torch.testing.assert_close(ours, theirs.double(), rtol=0, atol=1e-4)
    torch.testing.assert_close(ours, piq.multi_scale_ssim(x, y, data_range=1.0, reduction="none"), rtol=0, atol=1e-5)


def test_paper_compat_is_stricter_than_ssim(photographs, damaged):
    assert (pixel.ssim_paper_compat(damaged, photographs) < pixel.ssim(damaged, photographs)).all()


def test_paper_compat_of_almost_flat_pictures_stays_in_its_range():
    flat = torch.full((4, 3, 32, 32), 184 / 127.5 - 1)
    almost = flat + 0.001 * torch.randn(flat.shape, generator=torch.Generator().manual_seed(0))
    assert pixel._ssim("ssim", almost, flat + 0.1, 1).max() > 1.5
    assert pixel.ssim_paper_compat(almost, flat + 0.1).max() == 1


def test_high_frequency_energy_tells_smooth_from_noisy(photographs):
    smooth = resize_bicubic(resize_bicubic(photographs, (48, 44)), (192, 176)).clamp(-1, 1)
    noisy = (photographs + 0.2 * torch.randn_like(photographs)).clamp(-1, 1)
    assert (pixel.high_frequency_energy(smooth, photographs) < 0.3).all()
    assert (pixel.high_frequency_energy(noisy, photographs) > 1.5).all()


def test_high_frequency_energy_of_a_scaled_grating_is_the_squared_gain():
    columns = torch.arange(64)
    grating = torch.cos(2 * math.pi * 0.375 * columns).expand(1, 3, 48, 64)
    ratio = pixel.high_frequency_energy(0.4 * grating, 0.8 * grating)
    torch.testing.assert_close(ratio, torch.tensor([0.25], dtype=torch.float64), rtol=0.01, atol=0)


def test_high_frequency_energy_of_a_flat_reference_is_undefined(photographs):
    flat = torch.full_like(photographs, 0.1)
    assert pixel.high_frequency_energy(photographs, flat).isnan().all()
    assert (pixel.high_frequency_energy(flat, photographs) == pixel.ENERGY_RATIO_FLOOR).all()
