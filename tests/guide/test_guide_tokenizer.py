import pytest
import torch
from guide_models import build, images, small_config, small_movq
from torch import nn

from hybrid_tokenizer.errors import HybridTokenizerError
from hybrid_tokenizer.guide import GuideConfig, GuideTokenizer
from hybrid_tokenizer.quantizers import QuantizerConfig, vq_loss

STEMS = [("none", 1), ("unshuffle", 2), ("residual_front", 2), ("appended", 4)]


@pytest.mark.parametrize("config", [small_config, small_movq])
@pytest.mark.parametrize(("stem", "factor"), STEMS)
def test_indices_alone_give_what_forward_gave(config, stem, factor):
    tokenizer = build(config(stem=stem, stem_factor=factor, image_size=64))
    batch = images(2, 64, 96)
    with torch.no_grad():
        output = tokenizer(batch)
    (grid,) = tokenizer.encode(batch)
    height, width = 64 // tokenizer.downsample_factor, 96 // tokenizer.downsample_factor
    assert grid.shape == (2, height, width)
    assert torch.equal(grid, output.indices[0])
    decoded = tokenizer.decode((grid,))
    assert decoded.shape == (2, 3, height * tokenizer.upsample_factor, width * tokenizer.upsample_factor)
    torch.testing.assert_close(decoded, output.guide_images, rtol=0, atol=2e-5)
    assert tokenizer.num_tokens((grid,)) == height * width
    assert tokenizer.guide_scale_sizes((64, 96)) == [(height, width)]


@pytest.mark.parametrize(
    "quantizer",
    [
        QuantizerConfig(kind="ema", codebook_size=32, codebook_dim=4),
        QuantizerConfig(kind="cosine", codebook_size=32, codebook_dim=4),
        QuantizerConfig(kind="simvq", codebook_size=32, codebook_dim=4),
        QuantizerConfig(kind="fsq", codebook_size=240, codebook_dim=3, fsq_levels=[8, 6, 5]),
        QuantizerConfig(kind="lfq", codebook_size=16, codebook_dim=4),
    ],
    ids=lambda q: q.kind,
)
def test_every_quantizer_trains_and_round_trips(quantizer):
    tokenizer = build(small_config(quantizer=quantizer)).train()
    batch = images()
    output = tokenizer(batch)
    (output.guide_images.square().mean() + vq_loss(output.quantized, quantizer)).backward()
    assert tokenizer.encoder.conv_in.weight.grad.abs().sum() > 0
    tokenizer.eval()
    with torch.no_grad():
        output = tokenizer(batch)
    grids = tokenizer.encode(batch)
    assert torch.equal(grids[0], output.indices[0])
    assert grids[0].unique().numel() > 1
    torch.testing.assert_close(tokenizer.decode(grids), output.guide_images, rtol=0, atol=2e-5)


def test_codes_may_be_narrower_than_features_under_group_norm():
    tokenizer = build(small_config(z_channels=6, quantizer=QuantizerConfig(codebook_size=64, codebook_dim=3)))
    batch = images()
    with torch.no_grad():
        output = tokenizer(batch)
    assert output.quantized.quantized.shape == (2, 8, 12, 3)
    torch.testing.assert_close(tokenizer.decode(tokenizer.encode(batch)), output.guide_images, rtol=0, atol=2e-5)


def test_the_batch_does_not_change_an_images_tokens():
    tokenizer = build(small_movq())
    batch = images(3)
    together = tokenizer.encode(batch)[0]
    alone = torch.cat([tokenizer.encode(image[None])[0] for image in batch])
    assert torch.equal(together, alone)


def test_encoding_in_training_mode_changes_no_state():
    tokenizer = build(small_config(quantizer=QuantizerConfig(kind="ema", codebook_size=32, codebook_dim=4))).train()
    before = {key: value.clone() for key, value in tokenizer.state_dict().items()}
    tokenizer.decode(tokenizer.encode(images()))
    assert all(torch.equal(value, before[key]) for key, value in tokenizer.state_dict().items())


def test_save_and_load(tmp_path):
    tokenizer = build(small_config(quantizer=QuantizerConfig(kind="ema", codebook_size=32, codebook_dim=4)))
    tokenizer.save_pretrained(tmp_path / "guide")
    loaded = GuideTokenizer.from_pretrained(tmp_path / "guide")
    assert loaded.config == tokenizer.config
    assert not loaded.training
    assert torch.equal(loaded.encode(images())[0], tokenizer.encode(images())[0])


def test_wrong_inputs_say_what_to_do():
    tokenizer = build(small_config())
    with pytest.raises(HybridTokenizerError, match=r"30x48 .* resize to 32x48"):
        tokenizer.encode(images(1, 30, 48))
    with pytest.raises(HybridTokenizerError, match=r"codebook has 0\.\.63"):
        tokenizer.decode((torch.full((1, 2, 3), 64),))
    with pytest.raises(HybridTokenizerError, match="2 guide grids were given"):
        tokenizer.decode((torch.zeros(1, 2, 3, dtype=torch.long),) * 2)
    with pytest.raises(HybridTokenizerError, match="guide_scales=2 must lie in 1"):
        tokenizer.encode(images(), guide_scales=2)


def test_spatial_norms_see_the_codes_before_post_quant_conv():
    tokenizer = build(small_movq())
    codes = torch.randn(1, 4, 6, 4)
    before = tokenizer.decode_quantized(codes)
    nn.init.zeros_(tokenizer.post_quant_conv.weight)  # the decoder's input no longer depends on the codes, its norms do
    assert not torch.allclose(tokenizer.decode_quantized(codes), tokenizer.decode_quantized(torch.randn(1, 4, 6, 4)))
    assert not torch.allclose(tokenizer.decode_quantized(codes), before)


def test_the_tiny_preset_is_tiny():
    with torch.device("meta"):
        sizes = {
            name: sum(w.numel() for w in GuideTokenizer(config).parameters())
            for name, config in {"tiny": GuideConfig.tiny(), "sd15": GuideConfig.movqgan("270M")}.items()
        }
    assert 5e6 < sizes["tiny"] < 7e6
    assert sizes["sd15"] == pytest.approx(270.7e6, rel=0.001)


@pytest.mark.parametrize(("size", "millions"), [("67M", 67.8), ("102M", 101.6)])
def test_movqgan_parameter_counts(size, millions):
    with torch.device("meta"):
        count = sum(w.numel() for w in GuideTokenizer(GuideConfig.movqgan(size)).parameters())
    assert count == pytest.approx(millions * 1e6, rel=0.001)
