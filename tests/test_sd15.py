"""The full-size preset on the meta device: every shape, no memory. Branch II's keys are checked in tests/semantic."""

import torch

from hybrid_tokenizer.diffusion import DiffusionConfig, DiffusionDecoder
from hybrid_tokenizer.guide import GuideConfig, GuideTokenizer
from hybrid_tokenizer.hybrid import HybridTokenizer
from hybrid_tokenizer.semantic import SemanticConfig, SemanticTokenizer


def parameters(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_sd15_composes_at_full_size():
    with torch.device("meta"):
        hybrid = HybridTokenizer(
            GuideTokenizer(GuideConfig.sd15()),
            SemanticTokenizer(SemanticConfig.seed1()),
            DiffusionDecoder(DiffusionConfig.sd15()),
            name="sd15",
        )
    assert parameters(hybrid.diffusion.unet) == 859_520_964  # Stable Diffusion 1.5's published U-Net
    assert parameters(hybrid.diffusion.vae) == 83_653_863
    assert hybrid.diffusion.null_condition.shape == (1, 77, 768)
    assert hybrid.semantic.config.generation_width == hybrid.diffusion.config.cross_attention_dim
    assert hybrid.guide.guide_scale_sizes((256, 256)) == [(16, 16)]


def test_every_guide_size_of_the_paper_by_configuration():
    grids = {}
    with torch.device("meta"):
        for size in (128, 64, 32, 16):
            for config in (GuideConfig.sd15(size), GuideConfig.tiny(size)):
                guide = GuideTokenizer(config)
                features = guide.features(torch.empty(1, 3, 256, 256))  # the codebook keeps the grid's shape
                assert guide.decode_quantized(features).shape == (1, 3, size, size)
                grids[size] = tuple(features.shape[1:3])
    assert grids == {128: (16, 16), 64: (8, 8), 32: (4, 4), 16: (2, 2)}
