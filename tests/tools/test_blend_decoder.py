"""Between two states of a decoder, tools/blend_decoder.py."""

import pytest
import torch
from helpers.commands import run_tool
from helpers.small_models import small_hybrid

from hybrid_tokenizer.diffusion import DiffusionConfig, DiffusionDecoder

UNET = {
    "sample_size": 8, "in_channels": 8, "out_channels": 8, "down_block_types": ["CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D"], "block_out_channels": [8], "layers_per_block": 1, "norm_num_groups": 4,
    "cross_attention_dim": 8, "attention_head_dim": 2,
}  # fmt: skip
VAE = {"latent_channels": 8, "block_out_channels": [8, 8, 8], "num_encoder_blocks": [1, 1, 1], "decoder_channels": 8}


@pytest.fixture
def states(tmp_path):
    """Two decoders of other weights, in folders."""
    for seed, name in enumerate(("start", "end")):
        torch.manual_seed(seed)
        decoder = DiffusionDecoder(DiffusionConfig(unet=dict(UNET), vae=dict(VAE), num_condition_tokens=3))
        torch.nn.init.normal_(decoder.vae.decoder.conv_out.weight)
        decoder.save_pretrained(tmp_path / name)
    return tmp_path


def blended(folder, *options):
    assert run_tool("blend_decoder.py", *(folder / name for name in ("start", "end", "blend")), *options) is None
    return [DiffusionDecoder.from_pretrained(folder / name) for name in ("start", "end", "blend")]


def test_weights_lie_between_and_the_network_draws_less(states):
    start, end, blend = blended(states, "--unet", "0.25", "--drawn", "0.5")
    for name, weight in blend.unet.state_dict().items():
        expected = 0.75 * start.unet.state_dict()[name] + 0.25 * end.unet.state_dict()[name]
        torch.testing.assert_close(weight, expected)
    latents = torch.randn(1, 8, 4, 4)
    linear = end.vae.linear_path.images(latents.permute(0, 2, 3, 1))
    with torch.no_grad():
        ours, theirs = (decoder.vae.decode(latents).sample - linear for decoder in (blend, end))
    assert theirs.abs().max() > 0.01
    torch.testing.assert_close(ours, 0.5 * theirs, rtol=1e-4, atol=1e-6)
    assert all(
        torch.equal(value, end.vae.encoder.state_dict()[name]) for name, value in blend.vae.encoder.state_dict().items()
    )


@pytest.mark.parametrize(
    ("options", "words"), [(["--unet", "1.5"], "--unet is 1.5"), (["--drawn", "0.5"], "AutoencoderTinyLinear")]
)
def test_what_does_not_fit_is_one_line(options, words, tmp_path):
    for name in ("start", "end"):
        small_hybrid().diffusion.save_pretrained(tmp_path / name)
    error = run_tool("blend_decoder.py", *(tmp_path / name for name in ("start", "end", "blend")), *options)
    assert error.startswith("error: ") and words in error and "\n" not in error
    assert not (tmp_path / "blend").exists()
