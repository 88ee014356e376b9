import dataclasses
import json

import pytest

from hybrid_tokenizer.errors import HybridTokenizerError
from hybrid_tokenizer.guide import GuideConfig
from hybrid_tokenizer.quantizers import QuantizerConfig


@pytest.mark.parametrize(("guide_size", "tokens"), [(128, 256), (64, 64), (32, 16), (16, 4)])
@pytest.mark.parametrize("preset", [GuideConfig.tiny, GuideConfig.sd15])
def test_the_papers_four_sizes(preset, guide_size, tokens):
    config = preset(guide_size)
    assert (config.guide_size, config.num_tokens, config.upsample_factor) == (guide_size, tokens, 8)
    assert config.downsample_factor == 8 * 256 // guide_size


def test_nested_counts():
    config = GuideConfig.tiny(nested=True)
    assert config.scale_sizes((16, 16)) == [(2, 2), (4, 4), (8, 8), (16, 16)]
    assert config.num_tokens == 340
    assert config.bits == 340 * 14
    assert config.scale_sizes((5, 3)) == [(1, 1), (1, 1), (2, 2), (5, 3)]


def test_sizes_that_do_not_fit_name_the_nearest():
    config = GuideConfig.tiny()
    assert config.grid_size((480, 352)) == (30, 22)
    with pytest.raises(HybridTokenizerError, match=r"480x360 .* multiples of 16; resize to 480x352"):
        config.grid_size((480, 360))
    with pytest.raises(HybridTokenizerError, match="resize to 16x32"):
        config.grid_size((3, 30))


def test_json_round_trip():
    config = GuideConfig.tiny(64, nested=True)
    assert GuideConfig.from_dict(json.loads(json.dumps(dataclasses.asdict(config)))) == config
    with pytest.raises(HybridTokenizerError, match="has unknown entries 'ch_mult'"):
        GuideConfig.from_dict({"ch_mult": [1]})


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"norm_type": "batch"}, "norm_type='batch' is unknown"),
        ({"stem": "patch"}, "stem='patch' is unknown"),
        ({"stem": "unshuffle", "stem_factor": 3}, "power of 2"),
        ({"stem": "unshuffle"}, "contradictory"),
        ({"stem_factor": 2}, "contradictory"),
        ({"image_size": 100}, "multiple of 8, e.g. 96"),
        ({"z_channels": 8}, "must equal codebook_dim=4 under spatial norms"),
        ({"decoder_channels": [48]}, "multiples of norm_num_groups=32"),
        ({"norm_num_groups": 16}, "spatial norms have 32 groups"),
        ({"encoder_attention": [4]}, r"must lie in 0\.\.3"),
        ({"encoder_layers": 0}, "at least one level and layer"),
        ({"guide_scales": [4, 2]}, "positive and increasing"),
        ({"guide_scales": [2, 4], "quantizer": QuantizerConfig(kind="cosine")}, "guide_scales need a quantizer kind"),
        ({"prefix_dropout": 1.5}, "must be a probability"),
        ({"scale_interpolation": "nearest"}, "use one of bicubic, bilinear, cosine"),
    ],
)
def test_contradictions_can_not_be_built(changes, text):
    with pytest.raises(HybridTokenizerError, match=text) as caught:
        GuideConfig(**changes)
    assert "\n" not in str(caught.value)


def test_unknown_presets():
    with pytest.raises(HybridTokenizerError, match="guide_size=100 must be a multiple of 8"):
        GuideConfig.tiny(100)
    with pytest.raises(HybridTokenizerError, match="size '1B' is unknown"):
        GuideConfig.movqgan("1B")
