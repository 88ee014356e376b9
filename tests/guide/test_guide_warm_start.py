from pathlib import Path

import pytest
import torch
from diffusers import VQModel
from einops import rearrange
from guide_models import build, images, small_movq

from hybrid_tokenizer.checkpoints.files import load_tensors
from hybrid_tokenizer.errors import HybridTokenizerError
from hybrid_tokenizer.guide import GuideTokenizer
from hybrid_tokenizer.guide.warm_start import read_base, start_from, warm_start
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


@torch.no_grad()
def test_a_deeper_unshuffle_from_a_stored_nested_guide_is_that_guide_on_the_resized_image(tmp_path):
    code = QuantizerConfig(kind="ema", codebook_size=32, codebook_dim=4)
    nested = build(
        small_movq(
            stem="unshuffle", stem_factor=2, image_size=64, quantizer=code, guide_scales=[1, 2], linear_path=True
        )
    )
    nested.quantizer.started.fill_(True)
    nested.save_pretrained(tmp_path)
    single = GuideTokenizer(
        small_movq(stem="unshuffle", stem_factor=4, image_size=64, quantizer=code, linear_path=True)
    ).eval()
    start_from(single, tmp_path)
    batch = images(2, 64, 96)
    expected = nested.features(resize_area(batch, (32, 48)))
    assert (single.features(batch) - expected).abs().max() / expected.abs().max() < 2e-6
    assert not single.quantizer.started  # its codes are no residuals: k-means on its first batch makes them
    with pytest.raises(HybridTokenizerError, match=r"stem='unshuffle' x2.*this tokenizer 'none'"):
        start_from(GuideTokenizer(small_movq(quantizer=code, linear_path=True)), tmp_path)


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


@torch.no_grad()
def test_a_start_from_every_kind_of_file(base, tmp_path):
    batch = images(1, 64, 96)
    expected = base.features(resize_area(batch, (32, 48)))
    base.save_pretrained(tmp_path / "guide")
    state = {key.replace("quantizer.", "quantize."): value for key, value in base.state_dict().items()}
    model = VQModel(
        block_out_channels=[32] * 4, layers_per_block=1, latent_channels=4, num_vq_embeddings=64, norm_type="spatial",
        down_block_types=["DownEncoderBlock2D"] * 3 + ["AttnDownEncoderBlock2D"],
        up_block_types=["AttnUpDecoderBlock2D"] + ["UpDecoderBlock2D"] * 3,
    )  # fmt: skip
    model.load_state_dict(state)
    model.save_pretrained(tmp_path / "movq")
    for source in ("guide", "movq"):
        tokenizer = GuideTokenizer(small_movq(stem="residual_front", stem_factor=2)).eval()
        start_from(tokenizer, tmp_path / source)
        assert torch.equal(tokenizer.features(batch), expected)
    tokenizer.save_pretrained(tmp_path / "front")
    again = GuideTokenizer(tokenizer.config).eval()
    start_from(again, tmp_path / "front")
    assert torch.equal(again.features(batch), expected)
    with pytest.raises(HybridTokenizerError, match=r"front has stem='residual_front' x2 .* start from the same kind"):
        start_from(GuideTokenizer(small_movq(stem="unshuffle", stem_factor=2)), tmp_path / "front")
    (tmp_path / "movq" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(HybridTokenizerError, match=r"diffusion_pytorch_model.safetensors does not exist"):
        start_from(tokenizer, tmp_path / "movq")


@torch.no_grad()
def test_a_start_from_a_checkpoint_file(tmp_path):
    stored = load_tensors(Path(__file__).parents[1] / "golden" / "movq_a.safetensors")
    state = {key.removeprefix("state."): value.float() for key, value in stored.items() if key.startswith("state.")}
    torch.save({"state_dict": state}, tmp_path / "movqgan.ckpt")
    weights, config = read_base(tmp_path / "movqgan.ckpt")
    config.stem, config.stem_factor = "residual_front", 4
    tokenizer = GuideTokenizer(config)
    start_from(tokenizer, tmp_path / "movqgan.ckpt")
    assert torch.equal(tokenizer.state_dict()["encoder.conv_in.weight"], weights["encoder.conv_in.weight"])
    assert tokenizer.downsample_factor == 32
