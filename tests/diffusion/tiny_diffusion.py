"""A decoder with Stable Diffusion 1.x's structure at test size: f8, 4 latent channels, 5 condition tokens of width 12."""

import torch

from hybrid_tokenizer.diffusion import DiffusionConfig, DiffusionDecoder

SCALING_FACTOR = 3.6  # brings the latents of this untrained VAE to about unit spread, where a U-Net is well conditioned
UNET = {
    "sample_size": 8,
    "block_out_channels": [8, 8, 16, 16],
    "norm_num_groups": 4,
    "layers_per_block": 1,
    "cross_attention_dim": 12,
    "attention_head_dim": 2,
}
VAE = {
    "block_out_channels": [8] * 4,
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "norm_num_groups": 4,
    "latent_channels": 4,
    "scaling_factor": SCALING_FACTOR,
}


def make_config(**changes) -> DiffusionConfig:
    values = {
        "unet": dict(UNET),
        "vae_class": "AutoencoderKL",
        "vae": dict(VAE),
        "latent_scale": [SCALING_FACTOR],
        "prediction_type": "epsilon",
        "num_condition_tokens": 5,
    }
    return DiffusionConfig(**{**values, **changes})


def make_decoder(**changes) -> DiffusionDecoder:
    torch.manual_seed(0)
    decoder = DiffusionDecoder(make_config(**changes)).eval()
    decoder.set_null_condition(torch.randn(1, 5, decoder.config.cross_attention_dim))
    return decoder
