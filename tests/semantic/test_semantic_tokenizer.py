import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from hybrid_tokenizer.checkpoints.keys.blip2 import merge_qkv_bias
from hybrid_tokenizer.checkpoints.keys.seed import reverse_layers, seed_table
from hybrid_tokenizer.checkpoints.rename import rename_keys
from hybrid_tokenizer.errors import HybridTokenizerError
from hybrid_tokenizer.quantizers import QuantizerConfig
from hybrid_tokenizer.semantic import SemanticConfig, SemanticTokenizer
from hybrid_tokenizer.semantic.modules import QFormer, VisionEncoder, additive_mask

KEYS = Path(__file__).parent / "keys"


def small_config(**changes) -> SemanticConfig:
    """Branch II at 32 px with 6 queries."""
    config = SemanticConfig(
        image_size=32,
        patch_size=16,
        vision_width=24,
        vision_layers=2,
        vision_heads=4,
        vision_mlp_width=32,
        width=16,
        num_queries=6,
        qformer_layers=2,
        qformer_heads=2,
        qformer_mlp_width=24,
        quantizer=QuantizerConfig(kind="vq", codebook_size=50, codebook_dim=8),
        decoder_layers=1,
        decoder_heads=2,
        decoder_mlp_width=24,
        reverse_layers=3,
        num_generation_embeds=7,
        generation_width=12,
    )
    return replace(config, **changes)


def spread_codes(tokenizer: SemanticTokenizer) -> SemanticTokenizer:
    torch.nn.init.normal_(tokenizer.quantizer.embedding.weight, std=0.2)
    return tokenizer.eval()


def loud(qformer: QFormer) -> QFormer:
    """Weights so large that every allowed influence is visible."""
    for parameter in qformer.body.parameters():
        if parameter.ndim == 2:
            torch.nn.init.normal_(parameter, std=0.5)
    return qformer.eval()


@pytest.fixture
def tokenizer() -> SemanticTokenizer:
    return spread_codes(SemanticTokenizer(small_config()))


def test_any_image_size_gives_indices_and_indices_give_generation_embeds(tokenizer):
    indices = tokenizer.encode(torch.rand(3, 3, 40, 70) * 2 - 1)
    assert indices.shape == (3, 6)
    assert tokenizer.decode(indices).shape == (3, 7, 12)
    assert tokenizer.codebook_size == 50
    assert tokenizer.num_queries == 6


def test_decode_is_the_training_path_with_the_same_codes(tokenizer):
    images = torch.rand(2, 3, 32, 48) * 2 - 1
    output = tokenizer(images)
    assert torch.equal(output.quantized.indices, tokenizer.encode(images))
    torch.testing.assert_close(tokenizer.decode(output.quantized.indices), output.generation_embeds)
    assert output.cosine_embeds.shape == output.causal_embeds.shape


@pytest.mark.parametrize("variant", ["seed2_mlp", "seed2_revq"])
def test_seed2_makes_one_embedding(variant):
    tokenizer = spread_codes(
        SemanticTokenizer(small_config(variant=variant, num_generation_embeds=1, mlp_widths=[9, 4]))
    )
    assert tokenizer.decode(tokenizer.encode(torch.rand(2, 3, 32, 32))).shape == (2, 1, 12)


def test_image_is_resized_without_crop_and_normalised_for_clip(tokenizer):
    images = torch.full((1, 3, 20, 60), 0.5)
    pixels = tokenizer.preprocess(images)
    assert pixels.shape == (1, 3, 32, 32)
    torch.testing.assert_close(pixels[0, 0, 5, 9], torch.tensor((0.75 - 0.48145466) / 0.26862954))


def test_encode_never_moves_an_ema_codebook():
    tokenizer = SemanticTokenizer(small_config(quantizer=QuantizerConfig(kind="ema", codebook_size=20, codebook_dim=8)))
    tokenizer.train()
    before = {key: value.clone() for key, value in tokenizer.state_dict().items()}
    tokenizer.encode(torch.rand(2, 3, 32, 32))
    for key, value in tokenizer.state_dict().items():
        assert torch.equal(value, before[key]), key


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_altering_query_20_leaves_outputs_0_to_19_bit_identical(attention):
    config = small_config(num_queries=32)
    qformer = loud(QFormer(config, config.vision_width, 32, 4, causal=True))
    qformer.body.set_attn_implementation(attention)
    features = torch.randn(2, 5, config.vision_width)
    queries = torch.randn(1, 32, config.width)
    altered = queries.clone()
    altered[:, 20] = torch.randn(config.width)
    with torch.no_grad():
        before, after = qformer(features, query_embeds=queries), qformer(features, query_embeds=altered)
    assert torch.equal(before[:, :20], after[:, :20])
    assert not torch.isclose(before[:, 20:], after[:, 20:]).all(dim=-1).any()


def test_without_the_causal_flag_every_output_sees_every_query():
    config = small_config(num_queries=32)
    qformer = loud(QFormer(config, config.vision_width, 32, 2, causal=False))
    features, queries = torch.randn(1, 5, config.vision_width), torch.randn(1, 32, config.width)
    altered = queries.clone()
    altered[:, 20] = torch.randn(config.width)
    with torch.no_grad():
        difference = (qformer(features, query_embeds=queries) - qformer(features, query_embeds=altered)).abs()
    assert (difference.amax(dim=(0, 2)) > 0).all()


def test_sdpa_and_eager_attention_agree_under_the_causal_mask():
    qformer = QFormer(small_config(), 24, 6, 2, causal=True).eval()
    torch.nn.init.normal_(qformer.query_embeds)
    features = torch.randn(2, 5, 24)
    with torch.no_grad():
        fused = qformer(features)
        qformer.body.set_attn_implementation("eager")
        torch.testing.assert_close(qformer(features), fused, rtol=1e-5, atol=1e-6)


def test_masked_features_are_not_read():
    qformer = QFormer(small_config(), 24, 6, 2, causal=True).eval()
    features = torch.randn(1, 5, 24)
    mask = torch.tensor([[1, 1, 1, 0, 0]])
    changed = features.clone()
    changed[:, 3:] = 9
    with torch.no_grad():
        assert torch.equal(qformer(features, mask), qformer(changed, mask))
        torch.testing.assert_close(qformer(features, mask), qformer(features[:, :3]))


def test_mask_is_zero_where_allowed_and_lowest_elsewhere():
    mask = additive_mask(torch.tensor([[[True, False]]]), torch.bfloat16)
    assert mask.shape == (1, 1, 1, 2)
    assert mask[0, 0, 0].tolist() == [0.0, torch.finfo(torch.bfloat16).min]


def test_vision_norms_have_lavis_epsilons_and_the_class_token_stays():
    vision = VisionEncoder(small_config())
    assert vision.body.post_layernorm.eps == 1e-5
    assert vision.body.encoder.layers[0].layer_norm1.eps == 1e-6
    assert vision(torch.randn(1, 3, 32, 32)).shape == (1, 5, 24)


def test_gradient_of_the_generation_reaches_the_encoder_through_the_codes_but_not_the_cosine_stack(tokenizer):
    tokenizer(torch.rand(1, 3, 32, 32)).generation_embeds.sum().backward()
    assert tokenizer.encode_task[0].weight.grad.abs().sum() > 0
    assert tokenizer.causal_qformer.query_embeds.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in tokenizer.cosine.parameters())
    assert tokenizer.quantizer.embedding.weight.grad is None


def test_distances_are_taken_in_fp32_whatever_the_dtype(tokenizer):
    tokenizer.to(torch.bfloat16)
    assert tokenizer.quantize(torch.randn(1, 6, 16, dtype=torch.bfloat16)).quantized.dtype == torch.float32
    assert tokenizer.decode(tokenizer.encode(torch.rand(1, 3, 32, 32))).dtype == torch.bfloat16


def test_only_the_vision_blocks_may_be_cast_down(tokenizer):
    images = torch.rand(1, 3, 32, 32)
    reference = tokenizer.causal_embeds(images)
    tokenizer.vision.body.embeddings.bfloat16()
    tokenizer.vision.body.encoder.bfloat16()
    cast = tokenizer.causal_embeds(images)
    assert cast.dtype == torch.float32
    torch.testing.assert_close(cast, reference, rtol=0.1, atol=0.1)


def test_save_and_load_give_the_same_tokens(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path / "semantic")
    loaded = SemanticTokenizer.from_pretrained(tmp_path / "semantic")
    images = torch.rand(2, 3, 50, 30)
    assert asdict(loaded.config) == asdict(tokenizer.config)
    assert torch.equal(loaded.encode(images), tokenizer.encode(images))
    assert not loaded.training


def test_the_published_tokenizer_has_no_cosine_stack_and_the_same_tokens(tokenizer):
    bare = tokenizer.without_cosine_stack()
    images = torch.rand(1, 3, 32, 32)
    assert not any(key.startswith("cosine.") for key in bare.state_dict())
    assert torch.equal(bare.encode(images), tokenizer.encode(images))
    assert bare(images).cosine_embeds is None
    assert tokenizer.cosine is not None


def test_wrong_folders_and_indices_are_one_clear_line(tokenizer, tmp_path):
    with pytest.raises(HybridTokenizerError, match="does not exist"):
        SemanticTokenizer.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"image_size": 3}')
    with pytest.raises(HybridTokenizerError, match=r"has no variant, .*, and 17 more: .* of SemanticConfig"):
        SemanticTokenizer.from_pretrained(tmp_path)
    with pytest.raises(HybridTokenizerError, match="span 0 to 50, the codebook has 0 to 49"):
        tokenizer.decode(torch.tensor([[0, 1, 2, 3, 4, 50]]))
    with pytest.raises(HybridTokenizerError, match="4 semantic indices per image, this tokenizer has 6"):
        tokenizer.decode(torch.zeros(1, 4, dtype=torch.long))
    with pytest.raises(HybridTokenizerError, match="expected \\[-1, 1\\]"):
        tokenizer.encode(torch.full((1, 3, 32, 32), 255.0))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"variant": "seed3"}, "variant='seed3' is unknown"),
        ({"image_size": 33}, "image_size=33 must be a multiple of patch_size=16; use 32"),
        ({"qformer_heads": 5}, "qformer_heads=5 must divide the width 16"),
        ({"variant": "seed2_mlp"}, "num_generation_embeds=7"),
        ({"dropout": 1.0}, "dropout=1.0 must be in"),
    ],
)
def test_contradictions_can_not_be_built(changes, message):
    with pytest.raises(HybridTokenizerError, match=message):
        small_config(**changes)


@pytest.mark.parametrize(
    ("name", "variant"), [("seed1", "seed1"), ("seed2_default_mlp", "seed2_mlp"), ("seed2_revq", "seed2_revq")]
)
def test_full_size_tokenizers_have_exactly_the_published_keys_and_shapes(name, variant):
    published = json.loads((KEYS / f"{name}.json").read_text())
    with torch.device("meta"):
        state = merge_qkv_bias({key: torch.empty(shape) for key, shape in published.items()})
        depth = reverse_layers(state, variant)
        config = (
            SemanticConfig.seed1() if variant == "seed1" else SemanticConfig.seed2(variant, reverse_layers=depth or 4)
        )
        tokenizer = SemanticTokenizer(config)
    converted = rename_keys(state, seed_table(state, variant), name)
    assert {k: tuple(v.shape) for k, v in converted.items()} == {
        k: tuple(v.shape) for k, v in tokenizer.state_dict().items()
    }


def test_tiny_is_about_eight_million_parameters_and_fits_minilm():
    config = SemanticConfig.tiny()
    with torch.device("meta"):
        tokenizer = SemanticTokenizer(config)
    assert 6e6 < sum(parameter.numel() for parameter in tokenizer.parameters()) < 9e6
    assert (config.num_generation_embeds, config.generation_width) == (77, 384)
