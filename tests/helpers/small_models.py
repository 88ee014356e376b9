"""A HybridTokenizer of real branches with random weights, small enough for tests: 32 px, guides of 16 px."""

import torch

from hybrid_tokenizer.diffusion import DecodeOptions, DiffusionConfig, DiffusionDecoder
from hybrid_tokenizer.guide import GuideConfig, GuideTokenizer
from hybrid_tokenizer.hybrid import HybridTokenizer
from hybrid_tokenizer.quantizers import QuantizerConfig
from hybrid_tokenizer.semantic import SemanticConfig, SemanticTokenizer


def small_hybrid(
    seed: int = 0, name: str = "small", nested: bool = False, start: str = "add_noise", **guide_options
) -> HybridTokenizer:
    """Images with sides that are multiples of 8; 4 x 4 guide tokens at 32 px (nested: 1 + 4 + 16)."""
    torch.manual_seed(seed)
    guide = GuideTokenizer(
        GuideConfig(
            **{
                "image_size": 32, "encoder_channels": [8, 8, 8], "decoder_channels": [8, 8, 8], "encoder_layers": 1,
                "decoder_layers": 1, "encoder_attention": [], "decoder_attention": [], "norm_type": "group",
                "norm_num_groups": 4, "stem": "unshuffle", "stem_factor": 2, "guide_scales": [1, 2, 4] if nested else None,
                "quantizer": QuantizerConfig(kind="vq", codebook_size=50, codebook_dim=4),
            }
            | guide_options
        )
    )  # fmt: skip
    semantic = SemanticTokenizer(
        SemanticConfig(
            image_size=32, patch_size=16, vision_width=16, vision_layers=1, vision_heads=2, vision_mlp_width=16, width=16,
            qformer_layers=1, qformer_heads=2, qformer_mlp_width=16, decoder_layers=1, decoder_heads=2,
            decoder_mlp_width=16, reverse_layers=1, num_generation_embeds=5, generation_width=12, cosine_stack=False,
            quantizer=QuantizerConfig(kind="vq", codebook_size=20, codebook_dim=4),
        )
    )  # fmt: skip
    unet = {
        "sample_size": 4, "in_channels": 4, "out_channels": 4, "block_out_channels": [8, 16], "layers_per_block": 1,
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"], "norm_num_groups": 4,
        "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"], "cross_attention_dim": 12, "attention_head_dim": 2,
    }  # fmt: skip
    vae = {"encoder_block_out_channels": [8] * 4, "decoder_block_out_channels": [8] * 4, "latent_channels": 4}
    diffusion = DiffusionDecoder(
        DiffusionConfig(
            unet=unet, vae_class="AutoencoderTiny", vae=vae, num_condition_tokens=5,
            decode_defaults=DecodeOptions(start=start, strength=0.4, num_inference_steps=10),
        )
    )  # fmt: skip
    with torch.no_grad():  # spread the codes over the features, or every image gets the same few
        for branch in (guide, semantic):
            branch.quantizer.embedding.weight.normal_(0, 0.3)
        for key, weight in semantic.named_parameters():
            if weight.ndim > 1 and not key.startswith("quantizer."):
                weight.mul_(5)
        diffusion.null_condition.normal_()
    return HybridTokenizer(guide, semantic, diffusion, name=name)


def noise_images(batch: int, height: int = 32, width: int = 48, seed: int = 1) -> torch.Tensor:
    """Images that differ from one another."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(batch, 3, 4, 6, generator=generator) * 2 - 1
    return torch.nn.functional.interpolate(coarse, size=(height, width), mode="bilinear")
