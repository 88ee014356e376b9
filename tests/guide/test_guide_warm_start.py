import pytest
import torch
from einops import rearrange
from guide_models import build, images, small_movq

from hybrid_tokenizer.errors import HybridTokenizerError
from hybrid_tokenizer.guide import GuideTokenizer
from hybrid_tokenizer.guide.warm_start import warm_start
from hybrid_tokenizer.images import resize_area
from hybrid_tokenizer.quantizers import QuantizerConfig


@pytest.fixture
def base():
    return build(small_movq())


def started(base, stem, factor, **changes):
    tokenizer = GuideTokenizer(small_movq(stem=stem, stem_factor=factor, image_size=128, **changes)).eval()
    warm_start(tokenizer, base.state_dict())
    return tokenizer


@pytest.mark.parametrize("factor", [2, 4, 8])
@torch.no_grad()
def test_residual_front_is_the_base_on_the_resized_image(base, factor):
    batch = images(2, 128, 192)
    tokenizer = started(base, "residual_front", factor)
    resized = resize_area(batch, (128 // factor, 192 // factor))
    assert (tokenizer.features(batch) - base.features(resized)).abs().max() == 0.0
    assert (tokenizer(batch).guide_images - base(resized).guide_images).abs().max() == 0.0


def test_gradients_reach_the_fronts_zero_convolution(base):
    tokenizer = started(base, "residual_front", 2)
    tokenizer(images(1, 64, 96)).guide_images.square().mean().backward()
    assert tokenizer.stem.body.conv_out.weight.grad.abs().max() > 0
    tokenizer.stem.body.conv_out.weight.data += tokenizer.stem.body.conv_out.weight.grad
    tokenizer.zero_grad()
    tokenizer(images(1, 64, 96)).guide_images.square().mean().backward()
    assert tokenizer.stem.body.conv_in.weight.grad.abs().max() > 0  # one step later all of the front learns


@pytest.mark.parametrize("factor", [2, 4])
@torch.no_grad()
def test_unshuffle_is_the_base_on_the_resized_image_to_rounding(base, factor):
    batch = images(2, 64, 96)
    tokenizer = started(base, "unshuffle", factor)
    expected = base.features(resize_area(batch, (64 // factor, 96 // factor)))
    # 2e-6 on features of order 1; these random ones are larger
    difference = (tokenizer.features(batch) - expected).abs().max() / expected.abs().max()
    assert difference < 2e-6


@pytest.mark.parametrize("factor", [2, 4])
@torch.no_grad()
def test_appended_levels_pool_the_trunk(base, factor):
    batch = images(2, 128, 192)
    tokenizer = started(base, "appended", factor)
    trunk = base.encoder.conv_in(batch)
    for block in base.encoder.down_blocks:
        trunk = block(trunk)
    pooled = torch.nn.functional.avg_pool2d(trunk, factor)
    encoder = base.encoder
    out = encoder.conv_out(encoder.conv_act(encoder.conv_norm_out(encoder.mid_block(pooled))))
    expected = rearrange(base.quant_conv(out), "b d h w -> b h w d")
    assert tokenizer.features(batch).shape == expected.shape == (2, 16 // factor, 24 // factor, 4)
    assert (tokenizer.features(batch) - expected).abs().max() / expected.abs().max() < 2e-6


def test_gradients_reach_every_appended_level(base):
    tokenizer = started(base, "appended", 4)
    tokenizer(images(1, 64, 96)).guide_images.square().mean().backward()
    for level in (4, 5):
        for resnet in tokenizer.encoder.down_blocks[level].resnets:
            assert resnet.conv2.weight.grad.abs().max() > 0


@torch.no_grad()
def test_a_running_mean_codebook_starts_at_the_bases_codes(base):
    tokenizer = started(
        base, "residual_front", 2, quantizer=QuantizerConfig(kind="ema", codebook_size=64, codebook_dim=4)
    )
    batch = images(1, 64, 96)
    assert torch.equal(tokenizer.encode(batch)[0], base.encode(resize_area(batch, (32, 48)))[0])
    tokenizer.train()
    tokenizer(batch)  # no k-means: the codes stay near where they were
    assert (tokenizer.quantizer.codebook - base.quantizer.embedding.weight).abs().mean() < 0.1


def test_a_base_of_other_sizes_is_refused(base):
    other = GuideTokenizer(small_movq(stem="unshuffle", stem_factor=2, encoder_channels=[32, 32, 32, 64]))
    with pytest.raises(HybridTokenizerError, match=r"base checkpoint does not fit this GuideTokenizer: .* missing"):
        warm_start(other, base.state_dict())
