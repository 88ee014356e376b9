"""The embedded preset's VAE: a transform code, and networks that add to it."""

import torch

from hybrid_tokenizer.dct import LinearPath
from hybrid_tokenizer.diffusion import DiffusionConfig, DiffusionDecoder
from hybrid_tokenizer.diffusion.linear_vae import AutoencoderTinyLinear


def small_vae(**changes):
    arguments = {"latent_channels": 8, "block_out_channels": [8, 8, 8], "num_encoder_blocks": [1, 1, 1],
                 "decoder_channels": 8, "decoder_layers": 1}  # fmt: skip
    return AutoencoderTinyLinear(**arguments | changes).eval()


def jittered(vae):
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in vae.parameters():
            weight += 0.1 * torch.randn(weight.shape, generator=generator)
    return vae


def test_at_step_0_it_is_the_transform_code():
    images = torch.rand(2, 3, 16, 24, generator=torch.Generator().manual_seed(0)) * 2 - 1
    vae, path = small_vae(), LinearPath(8, 4)
    with torch.no_grad():
        latents = vae.encode(images).latents
        features = path.features(images, (4, 6))
        assert latents.shape == (2, 8, 4, 6) and torch.equal(latents.permute(0, 2, 3, 1), features)
        torch.testing.assert_close(vae.decode(latents).sample, path.images(features), rtol=0, atol=1e-6)


def test_a_block_decoder_starts_at_the_transform_code_and_draws_every_coefficient():
    vae = small_vae(decoder_layers=2).train()
    latents = torch.randn(2, 8, 4, 6, generator=torch.Generator().manual_seed(0))
    path = LinearPath(8, 4)
    torch.testing.assert_close(vae.decode(latents).sample, path.images(latents.permute(0, 2, 3, 1)), rtol=0, atol=1e-6)
    target = vae.decode(latents).sample.detach() + 0.02 * torch.randn(
        2, 3, 16, 24, generator=torch.Generator().manual_seed(1)
    )
    optimizer = torch.optim.Adam(vae.decoder.parameters(), lr=3e-2)
    for _ in range(200):
        loss = (vae.decode(latents).sample - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.2 * 0.02**2, "noise of all frequencies is learnt by heart"


def test_a_block_decoder_reads_latents_at_unit_size():
    """Gains and inverse gains of the first weights cancel."""
    gains = [1.0, 8.0, 7.0, 4.0, 8.0, 13.0, 13.0, 12.0]
    plain, gained = (jittered(small_vae(decoder_gain=g)) for g in (None, gains))
    latents = torch.randn(2, 8, 4, 6, generator=torch.Generator().manual_seed(0))
    gained.load_state_dict(plain.state_dict() | {"decoder.gain": gained.decoder.gain})
    with torch.no_grad():
        assert (gained.decode(latents).sample - plain.decode(latents).sample).abs().max() > 1e-3
        gained.decoder.conv_in.weight /= torch.tensor(gains).view(1, -1, 1, 1)
        torch.testing.assert_close(gained.decode(latents).sample, plain.decode(latents).sample, rtol=0, atol=1e-5)


def test_slicing_changes_nothing_and_every_part_takes_part():
    images = torch.rand(3, 3, 16, 24, generator=torch.Generator().manual_seed(0)) * 2 - 1
    vae = jittered(small_vae())
    with torch.no_grad():
        whole = vae.decode(vae.encode(images).latents).sample
        vae.enable_slicing()
        torch.testing.assert_close(vae.decode(vae.encode(images).latents).sample, whole, rtol=0, atol=1e-5)
    vae.decode(vae.encode(images).latents).sample.square().mean().backward()
    assert all(weight.grad.abs().max() > 0 for weight in vae.parameters())


def test_a_decoder_with_it_is_stored_and_read_back(tmp_path):
    config = DiffusionConfig(
        unet={"sample_size": 8, "in_channels": 8, "out_channels": 8, "down_block_types": ["CrossAttnDownBlock2D"],
              "up_block_types": ["CrossAttnUpBlock2D"], "block_out_channels": [8], "layers_per_block": 1,
              "norm_num_groups": 4, "cross_attention_dim": 8, "attention_head_dim": 2},
        vae={"latent_channels": 8, "block_out_channels": [8, 8, 8], "num_encoder_blocks": [1, 1, 1],
             "decoder_channels": 8, "decoder_layers": 1},
        num_condition_tokens=3,
    )  # fmt: skip
    assert config.vae_factor == 4
    decoder = DiffusionDecoder(config).eval()
    jittered(decoder.vae)
    decoder.save_pretrained(tmp_path)
    again = DiffusionDecoder.from_pretrained(tmp_path)
    assert again.config == config
    images = torch.rand(2, 3, 16, 24, generator=torch.Generator().manual_seed(0)) * 2 - 1
    latents = decoder.encode_latents(images)
    assert torch.equal(again.encode_latents(images), latents)
    assert torch.equal(again.decode_latents(latents), decoder.decode_latents(latents))
