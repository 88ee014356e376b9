"""The real `salesforce-lavis` 1.0.2 against Branch II, on tiny random weights.

The package is installed with --no-deps. Its __init__ imports everything, and its Q-Former names functions that transformers
has since removed; the fixture registers empty packages and those names while LAVIS's two files are imported.
"""

import importlib
import importlib.util
import os
import sys
import types
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

from hybrid_tokenizer.checkpoints.files import load_strict
from hybrid_tokenizer.checkpoints.keys import blip2
from hybrid_tokenizer.semantic import ContrastiveConfig, ContrastiveHeads, SemanticConfig
from hybrid_tokenizer.semantic.modules import QFormer, VisionEncoder

INSTALL = "salesforce-lavis is not installed; run `pip install --no-deps salesforce-lavis==1.0.2` (make test does)"


def stub(monkeypatch: pytest.MonkeyPatch, name: str, path: Path | None = None, **names: object) -> None:
    module = types.ModuleType(name)
    if path is not None:
        module.__path__ = [str(path)]
    for key, value in names.items():
        setattr(module, key, value)
    monkeypatch.setitem(sys.modules, name, module)


def import_lavis(root: Path) -> types.SimpleNamespace:
    """LAVIS's `eva_vit` and `Qformer` modules. The stand-ins are gone when this returns."""
    from transformers import modeling_utils
    from transformers.pytorch_utils import apply_chunking_to_forward

    names = ("lavis.models.eva_vit", "lavis.models.blip2_models.Qformer")
    with pytest.MonkeyPatch.context() as patch:
        for package in ("lavis", "lavis.common", "lavis.models", "lavis.models.blip2_models"):
            stub(patch, package, root.joinpath(*package.split(".")[1:]))
        stub(patch, "lavis.common.dist_utils", download_cached_file=None)
        stub(patch, "timm", root)
        stub(patch, "timm.models", root)
        stub(patch, "timm.models.registry", register_model=lambda function: function)
        layers = {"drop_path": None, "to_2tuple": lambda value: (value, value), "trunc_normal_": nn.init.trunc_normal_}
        stub(patch, "timm.models.layers", **layers)
        patch.setattr(modeling_utils, "apply_chunking_to_forward", apply_chunking_to_forward, raising=False)
        for removed in ("find_pruneable_heads_and_indices", "prune_linear_layer"):  # pruning is never called
            patch.setattr(modeling_utils, removed, None, raising=False)
        eva_vit, qformer = (importlib.import_module(name) for name in names)
    for name in names:
        sys.modules.pop(name, None)
    base = qformer.BertPreTrainedModel
    base.init_weights = lambda self: None
    base.get_head_mask = lambda self, mask, layers: [None] * layers
    base.invert_attention_mask = lambda self, mask: (1.0 - mask[:, None, None]) * -1e4
    return types.SimpleNamespace(eva_vit=eva_vit, qformer=qformer)


@pytest.fixture(scope="module")
def lavis() -> types.SimpleNamespace:
    spec = importlib.util.find_spec("lavis")
    if spec is None:
        if os.environ.get("CI"):
            pytest.fail(INSTALL)
        pytest.skip(INSTALL)
    return import_lavis(Path(spec.origin).parent)


def randomise(module: nn.Module) -> nn.Module:
    """Every parameter different, none zero: LAVIS starts biases and class token at 0."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.normal_(0, 0.2)
            if "norm" in name.lower() and name.endswith("weight"):
                parameter.add_(1)
    return module.eval()


def test_eva_vit_and_ln_vision(lavis):
    tower = randomise(
        lavis.eva_vit.VisionTransformer(
            img_size=42,
            patch_size=14,
            use_mean_pooling=False,
            embed_dim=32,
            depth=3,
            num_heads=4,
            mlp_ratio=4.3637,
            qkv_bias=True,
            norm_layer=partial(nn.LayerNorm, eps=1e-6),
        )
    )
    ln_vision = randomise(nn.LayerNorm(32))
    state = {f"visual_encoder.{key}": value for key, value in tower.state_dict().items()}
    state |= {f"ln_vision.{key}": value for key, value in ln_vision.state_dict().items()}
    config = SemanticConfig(
        image_size=42, vision_width=32, vision_layers=3, vision_heads=4, vision_mlp_width=int(32 * 4.3637)
    )
    ours = VisionEncoder(config).eval()
    converted = blip2.convert_lavis(state)
    load_strict(ours, {key.removeprefix("vision."): value for key, value in converted.items()}, "LAVIS")
    images = torch.randn(2, 3, 42, 42)
    with torch.no_grad():
        raw = tower.forward_features(images)
        torch.testing.assert_close(ours.raw(images), raw, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(ours(images), ln_vision(raw), rtol=1e-4, atol=1e-4)


def test_qformer_queries_text_and_both(lavis):
    from transformers import BertConfig

    width, layers, queries, words, encoder_width = 32, 4, 6, 7, 20
    bert_config = BertConfig(
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        intermediate_size=40,
        vocab_size=50,
        max_position_embeddings=16,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    for name, value in {
        "encoder_width": encoder_width,
        "add_cross_attention": True,
        "cross_attention_freq": 2,
        "query_length": queries,
    }.items():
        setattr(bert_config, name, value)
    bert = randomise(lavis.qformer.BertModel(bert_config))
    query_tokens = torch.randn(1, queries, width)
    state = {f"Qformer.bert.{key}": value for key, value in bert.state_dict().items()} | {"query_tokens": query_tokens}
    converted = blip2.convert_lavis(state)

    config = SemanticConfig(
        width=width,
        num_queries=queries,
        qformer_layers=layers,
        qformer_heads=4,
        qformer_mlp_width=40,
        decoder_heads=4,
    )
    ours = QFormer(config, encoder_width, queries, layers, causal=False).eval()
    heads = ContrastiveHeads(ContrastiveConfig.matching(config, 50, 16)).eval()
    for module, prefix in ((ours, "causal_qformer."), (heads.text, "heads.text.")):
        part = {key.removeprefix(prefix): value for key, value in converted.items() if key.startswith(prefix)}
        load_strict(module, part, "LAVIS")

    features = torch.randn(2, 5, encoder_width)
    ids = torch.randint(50, (2, words))
    mask = torch.tensor([[1] * words, [1] * 4 + [0] * (words - 4)])
    both = torch.cat([torch.ones(2, queries, dtype=torch.long), mask], dim=1)
    tokens = query_tokens.expand(2, -1, -1)
    with torch.no_grad():
        expected = bert(query_embeds=tokens, encoder_hidden_states=features, return_dict=True).last_hidden_state
        torch.testing.assert_close(ours(features), expected, rtol=1e-4, atol=1e-4)
        expected = bert(ids, attention_mask=mask.float(), return_dict=True).last_hidden_state
        torch.testing.assert_close(heads.text(ours, ids, mask), expected, rtol=1e-4, atol=1e-4)
        expected = bert(
            ids, query_embeds=tokens, attention_mask=both.float(), encoder_hidden_states=features, return_dict=True
        ).last_hidden_state
        torch.testing.assert_close(heads.text.joint(ours, features, ids, mask), expected, rtol=1e-4, atol=1e-4)
