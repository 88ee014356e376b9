"""The transform code that Branch I's networks are added to."""

import pytest
import torch
from einops import rearrange
from guide_models import build, images, small_config

from hybrid_tokenizer.dct import CosineScale, LinearPath, dct_basis
from hybrid_tokenizer.errors import HybridTokenizerError
from hybrid_tokenizer.guide import GuideTokenizer
from hybrid_tokenizer.images import resize_area


def test_the_basis_is_orthonormal_and_starts_with_the_mean():
    basis = dct_basis(3 * 4 * 4, 4).flatten(1)
    torch.testing.assert_close(basis @ basis.T, torch.eye(48), rtol=0, atol=1e-5)
    assert basis[0].std() < 1e-6, "a grey block"
    # luminance leads: colour differences come after both first cosines, and before anything else of higher frequency
    assert all(vector.reshape(3, -1).std(0).max() < 1e-6 for vector in basis[:3])
    assert basis[3].reshape(3, -1).std(1).max() < 1e-6 and abs(basis[3].sum()) < 1e-5


def test_all_coefficients_give_the_image_back():
    x = images(height=16, width=24)
    path = LinearPath(dims=3 * 4 * 4, block=4)
    features = path.features(x, (4, 6))
    assert features.shape == (2, 4, 6, 48)
    blocks = rearrange(x, "b c (h i) (w j) -> b h w c i j", i=4, j=4)
    torch.testing.assert_close(features[..., 0], blocks.sum((-3, -2, -1)) / 48**0.5 / 4)
    torch.testing.assert_close(path.images(features), x, rtol=0, atol=1e-5)


@pytest.mark.parametrize("factor", [2, 4])
def test_wide_blocks_come_back_from_the_coefficients_of_the_blocks_inside_them(factor):
    """At so few coefficients of so wide blocks little lies outside what the fine blocks' own coefficients span."""
    coarse = torch.randn(2, 3, 2, 8, generator=torch.Generator().manual_seed(0))
    scale = CosineScale(8, 8, factor)
    fine = scale.up(coarse, (3 * factor, 2 * factor))
    pictures, expected = LinearPath(8, 8).images(fine), LinearPath(8, 8 * factor).images(coarse)
    assert (pictures - expected).square().mean() < 0.002 * expected.square().mean()
    assert (scale.down(fine, (3, 2)) - coarse).abs().max() < 0.02
    assert scale.up(coarse, (3 * factor + 1, 2 * factor - 1)).shape == (2, 3 * factor + 1, 2 * factor - 1, 8)


def test_a_coarse_scale_on_the_linear_path_is_the_transform_code_of_wide_blocks():
    """With as many codes as there are features, the first scale says what coefficients of 8 x 8 blocks say."""
    config = small_config(linear_path=True, guide_scales=[1, 2], scale_interpolation="cosine")
    tokenizer = GuideTokenizer(config).eval()
    x = images(height=16, width=24)
    with torch.no_grad():
        (coarse, _), _ = tokenizer._residual_scales(tokenizer.features(x))
    expected = LinearPath(4, 8).features(x, (2, 3))
    assert (coarse - expected).square().mean() < 0.01 * expected.square().mean()
    with pytest.raises(HybridTokenizerError, match="scale_interpolation='cosine' with linear_path=False"):
        small_config(guide_scales=[1, 2], scale_interpolation="cosine")


def test_at_step_0_the_networks_add_nothing():
    """Resized to half by the stem, 4 x 4 blocks: features and guide are the transform code of the resized image."""
    tokenizer = GuideTokenizer(small_config(stem="unshuffle", stem_factor=2, linear_path=True)).eval()
    x = images(height=32, width=64)
    path = LinearPath(dims=4, block=4)
    expected = path.features(x, (4, 8))
    with torch.no_grad():
        features = tokenizer.features(x)
        assert torch.equal(features, expected)
        assert torch.equal(tokenizer.decode_quantized(features), path.images(expected))
    # the projection on so many vectors: what is lost is orthogonal to what is kept
    resized = resize_area(x, (16, 32))
    kept = path.images(expected)
    assert ((resized - kept) * kept).mean().abs() < 1e-6


def test_the_networks_train_and_the_path_stays():
    tokenizer = GuideTokenizer(small_config(linear_path=True)).train()
    optimizer = torch.optim.SGD(tokenizer.parameters(), lr=0.1)
    x = images()
    before = {name: weight.clone() for name, weight in tokenizer.named_parameters()}
    basis = tokenizer.linear_path.basis.clone()
    for _ in range(3):  # the last layers first: the others' gradients pass through their zeros
        output = tokenizer(x)
        loss = (output.guide_images - x).square().mean() + output.quantized.codebook_loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    moved = {name for name, weight in tokenizer.named_parameters() if not torch.equal(weight, before[name])}
    assert {name for name in before if not name.endswith("to_k.bias")} <= moved, "a softmax does not see its keys' bias"
    assert torch.equal(tokenizer.linear_path.basis, basis)


def test_it_is_stored_and_read_back(tmp_path):
    tokenizer = build(small_config(linear_path=True, guide_scales=[1, 2, 4]))
    tokenizer.save_pretrained(tmp_path)
    x = images()
    assert torch.equal(
        GuideTokenizer.from_pretrained(tmp_path).decode(tokenizer.encode(x, guide_scales=2)),
        tokenizer.decode(tokenizer.encode(x, guide_scales=2)),
    )


def test_the_refiner_starts_as_nothing_and_works_on_the_picture():
    config = small_config(linear_path=True, refiner_blocks=1, refiner_channels=16)
    torch.manual_seed(0)
    tokenizer = GuideTokenizer(config).eval()
    x = images()
    features = tokenizer.linear_path.features(x, (8, 12))
    with torch.no_grad():
        plain = tokenizer.decode_quantized(features)
        torch.testing.assert_close(plain, tokenizer.linear_path.images(features), rtol=0, atol=0)
        tokenizer.refiner.last.bias.fill_(0.25)
        assert torch.equal(tokenizer.decode_quantized(features), plain + 0.25)
    with pytest.raises(HybridTokenizerError, match="refiner_blocks=-1"):
        small_config(refiner_blocks=-1)
