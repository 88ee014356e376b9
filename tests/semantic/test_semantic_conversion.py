import runpy
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from hybrid_tokenizer.checkpoints.keys.blip2 import VISION_LAYERS, join_files, merge_qkv_bias
from hybrid_tokenizer.checkpoints.rename import count_layers, dropped_keys, rename_keys
from hybrid_tokenizer.commands.convert import KINDS, convert
from hybrid_tokenizer.errors import HybridTokenizerError
from hybrid_tokenizer.semantic import ContrastiveHeads, SemanticTokenizer
from hybrid_tokenizer.semantic.conversion import HeadCounts, convert_blip2_lavis, convert_seed1, convert_seed2
from hybrid_tokenizer.verification.parity.compare import read_fixture

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden"
HEADS = HeadCounts(vision=4, qformer=4, decoder=12)

State = dict[str, Tensor]


def fixture(name: str) -> dict[str, State]:
    return read_fixture(GOLDEN / f"{name}.safetensors")[0]


def eva_file(state: State) -> State:
    """The bare tower as `eva_vit_g.pth` has it: no prefix, one block more, final norm and head."""
    bare = {k.removeprefix("visual_encoder."): v for k, v in state.items() if k.startswith("visual_encoder.")}
    block = {
        k.replace("blocks.0.", f"blocks.{VISION_LAYERS}."): v + 1 for k, v in bare.items() if k.startswith("blocks.0.")
    }
    width = bare["cls_token"].shape[-1]
    ends = {"norm.weight": torch.ones(width), "norm.bias": torch.zeros(width), "head.weight": torch.ones(3, width)}
    return bare | block | ends


def seed1_files(state: State) -> list[State]:
    """eva_vit_g.pth, causal_qformer.pth and seed_tokenizer.pth, with the leftovers of stage 1."""
    stage1 = {k: v for k, v in state.items() if k.startswith(("ln_vision.", "Qformer.", "query_tokens"))}
    rest = {k: v for k, v in state.items() if k not in stage1 and not k.startswith("visual_encoder.")}
    leftovers = {
        "temp": torch.tensor(0.05),
        "vision_proj.weight": torch.ones(3, 48),
        "Qformer.cls.predictions.bias": torch.ones(30),
        "Qformer.bert.embeddings.word_embeddings.weight": torch.ones(30, 48),
        "Qformer.bert.encoder.layer.0.intermediate.dense.bias": torch.ones(80),
    }
    return [rest, stage1 | leftovers, eva_file(state)]


def write(folder: Path, states: dict[str, State], wrapped: bool = True) -> list[Path]:
    for name, state in states.items():
        torch.save({"model": state} if wrapped else state, folder / name)
    return [folder / name for name in states]


def test_seed1_files_give_the_references_indices_and_generation_embeds(tmp_path):
    parts = fixture("seed1_quantizer_a")
    lines = convert_seed1(seed1_files(parts["state"]), tmp_path / "semantic", HEADS)
    tokenizer = SemanticTokenizer.from_pretrained(tmp_path / "semantic")
    with torch.no_grad():
        output = tokenizer.reconstruct(tokenizer.causal_qformer(tokenizer.vision(parts["in"]["image"])))
    assert torch.equal(output.quantized.indices, parts["out"]["indices"])
    torch.testing.assert_close(output.generation_embeds, parts["out"]["generation"], rtol=0, atol=1e-4)
    assert tokenizer.config.variant == "seed1"
    assert tokenizer.config.reverse_layers == 4
    assert tokenizer.config.image_size == 42
    assert tokenizer.config.vision_layers == 2  # the last block of the tower is behind what SEED reads
    assert lines[1].startswith("dropped ")


@pytest.mark.parametrize("flavour", ["mlp", "revq"])
def test_seed2_flavours_are_told_apart_by_their_keys(flavour, tmp_path):
    parts = fixture(f"seed2_quantizer_{flavour}_a")
    convert_seed2([parts["state"]], tmp_path / "semantic", HEADS)
    tokenizer = SemanticTokenizer.from_pretrained(tmp_path / "semantic")
    with torch.no_grad():
        output = tokenizer.reconstruct(tokenizer.causal_qformer(tokenizer.vision(parts["in"]["image"])))
    assert tokenizer.config.variant == f"seed2_{flavour}"
    assert torch.equal(output.quantized.indices, parts["out"]["indices"])
    torch.testing.assert_close(output.generation_embeds[:, 0], parts["out"]["generation"], rtol=0, atol=1e-4)
    torch.testing.assert_close(output.cosine_embeds, parts["out"]["recon_causal"], rtol=0, atol=1e-4)


def test_depth_of_the_reverse_qformer_is_read_off_the_keys(tmp_path):
    state = fixture("seed1_quantizer_a")["state"]
    state = {key: value for key, value in state.items() if not key.startswith("Reverse_Qformer.bert.encoder.layer.3.")}
    convert_seed1(seed1_files(state), tmp_path / "semantic", HEADS)
    assert SemanticTokenizer.from_pretrained(tmp_path / "semantic").config.reverse_layers == 3


def test_blip2_of_lavis_gives_an_encoder_and_stage1_heads(tmp_path):
    parts = fixture("seed_stage1_loss_a")
    state, inputs = parts["state"], parts["in"]
    pretrained = {key: value for key, value in state.items() if not key.startswith("visual_encoder.")}
    convert_blip2_lavis([pretrained, eva_file(state)], tmp_path / "semantic", HeadCounts(4, 4, 4))
    tokenizer = SemanticTokenizer.from_pretrained(tmp_path / "semantic")
    heads = ContrastiveHeads.from_pretrained(tmp_path / "semantic" / "heads").eval()
    with torch.no_grad():
        causal_embeds = tokenizer.causal_qformer(tokenizer.vision(inputs["image"]))
        images, text, temperature = heads(
            tokenizer.causal_qformer, causal_embeds, inputs["input_ids"], inputs["text_mask"]
        )
    torch.testing.assert_close(images, parts["out"]["image_feat"], rtol=0, atol=1e-4)
    torch.testing.assert_close(text, parts["out"]["text_feat"], rtol=0, atol=1e-4)
    assert temperature.item() == pytest.approx(state["temp"].item())
    assert tokenizer.cosine is not None
    assert not any("word" in key or key.startswith("heads") for key in tokenizer.state_dict())


def test_blip2_of_transformers_has_the_models_own_features(tmp_path):
    from transformers import Blip2Config, Blip2ForImageTextRetrieval

    vision = {
        "num_hidden_layers": 2, "hidden_size": 32, "intermediate_size": 40, "num_attention_heads": 16, "image_size": 28,
        "initializer_range": 0.2,
    }  # fmt: skip
    qformer = {
        "num_hidden_layers": 2, "hidden_size": 24, "num_attention_heads": 12, "intermediate_size": 30,
        "encoder_hidden_size": 32, "vocab_size": 50, "max_position_embeddings": 20, "use_qformer_text_input": True,
        "initializer_range": 0.2,
    }  # fmt: skip
    model = Blip2ForImageTextRetrieval(
        Blip2Config(vision_config=vision, qformer_config=qformer, image_text_hidden_size=8, num_query_tokens=4)
    ).eval()
    torch.nn.init.normal_(model.query_tokens)
    model.save_pretrained(tmp_path / "blip2")
    lines = convert("blip2-transformers", [tmp_path / "blip2"], tmp_path / "semantic")
    tokenizer = SemanticTokenizer.from_pretrained(tmp_path / "semantic")
    pixels = torch.randn(2, 3, 28, 28)
    with torch.no_grad():
        # transformers keeps 1e-6 where LAVIS's ln_vision, and ours, has 1e-5
        model.vision_model.post_layernorm.eps = 1e-5
        features = model.vision_model(pixels).last_hidden_state
        tokenizer.causal_qformer.causal = False
        expected = model.qformer(model.query_tokens.expand(2, -1, -1), encoder_hidden_states=features).last_hidden_state
        torch.testing.assert_close(tokenizer.causal_qformer(tokenizer.vision(pixels)), expected)
    heads = ContrastiveHeads.from_pretrained(tmp_path / "semantic" / "heads")
    assert torch.equal(heads.vision_projection.weight, model.vision_projection.weight)
    assert heads.temperature.item() == pytest.approx(0.07)
    assert any("itm_head" in line for line in lines)


def test_fresh_parts_of_a_conversion_are_always_the_same(tmp_path):
    parts = fixture("seed_stage1_loss_a")
    for name, seed in (("a", 1), ("b", 2)):
        torch.manual_seed(seed)
        convert_blip2_lavis([parts["state"]], tmp_path / name, HeadCounts(4, 4, 4))
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in "ab"]
    assert weights[0] == weights[1]


def test_wrong_kinds_and_missing_files_are_one_clear_line(tmp_path):
    seed1, seed2 = fixture("seed1_quantizer_a")["state"], fixture("seed2_quantizer_mlp_a")["state"]

    def fails(message: str, kind: str, *states: State) -> None:
        folder = tmp_path / "in"
        folder.mkdir(exist_ok=True)
        paths = write(folder, {f"{i}.pth": state for i, state in enumerate(states)})
        with pytest.raises(HybridTokenizerError, match=message) as caught:
            convert(kind, paths, tmp_path / "out")
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "out").exists()

    fails("these are seed2 weights.*convert them as kind seed2", "seed1", seed2)
    fails("these are seed1 weights.*convert them as kind seed1", "seed2", seed1)
    rest, stage1, eva = seed1_files(seed1)
    fails("add eva_vit_g.pth", "seed1", rest, stage1)
    fails("no SEED de-tokenizer", "seed1", eva, stage1)
    fails("no query tokens among the files", "seed1", eva, rest)
    fails("no vision encoder among the files", "blip2", stage1)
    fails("no rule for 1 keys: surprise", "seed1", rest | {"surprise": torch.ones(1)}, stage1, eva)
    fails("unknown kind 'seed3'", "seed3", seed1)
    fails("neither image_down nor Reverse_Qformer", "seed2", {k: v for k, v in seed2.items() if "image_down" not in k})


def test_a_half_downloaded_file_is_one_clear_line(tmp_path):
    (path,) = write(tmp_path, {"seed_quantizer.pt": fixture("seed2_quantizer_mlp_a")["state"]}, wrapped=False)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(HybridTokenizerError, match="cannot be read safely"):
        convert("seed2", [path], tmp_path / "out")


def test_a_missing_tensor_of_a_whole_file_raises(tmp_path):
    state = fixture("seed2_quantizer_mlp_a")["state"]
    del state["blocks_image.1.mlp.fc2.bias"]
    with pytest.raises(HybridTokenizerError, match=r"1 missing: generation.stack.body.layers.1.mlp.fc2.bias"):
        convert_seed2([state], tmp_path / "out", HEADS)


def test_later_files_win_and_the_tower_is_recognised_anywhere():
    tower = {"cls_token": torch.zeros(1, 1, 4), "patch_embed.proj.weight": torch.zeros(4, 3, 2, 2)}
    joined = join_files([{"a": torch.ones(1)}, tower, {"a": torch.zeros(1)}])
    assert joined["a"] == 0
    assert set(joined) == {"visual_encoder.cls_token", "visual_encoder.patch_embed.proj.weight", "a"}


def test_key_bias_of_eva_is_zero_and_a_lone_query_bias_raises():
    merged = merge_qkv_bias({"attn.q_bias": torch.ones(2), "attn.v_bias": torch.full((2,), 3.0)})
    assert merged["attn.qkv.bias"].tolist() == [1, 1, 0, 0, 3, 3]
    with pytest.raises(HybridTokenizerError, match="no v_bias"):
        merge_qkv_bias({"attn.q_bias": torch.ones(2)})


def test_rename_takes_the_longest_rule_and_exact_names_fit_themselves_only():
    one = torch.ones(1)
    table = {"a.": "x.", "a.b.": "y.", "a.c": None, "pos": "z"}
    assert set(rename_keys({"a.q": one, "a.b.q": one, "a.c": one, "pos": one}, table, "test")) == {"x.q", "y.q", "z"}
    assert dropped_keys({"a.c": one, "a.q": one}, table) == ["a.c"]
    with pytest.raises(HybridTokenizerError, match="test: no rule for 1 keys: pos_more"):
        rename_keys({"pos_more": one}, table, "test")
    assert count_layers({"l.0.w": one, "l.11.w": one, "l.w": one}, "l.") == 12


def test_the_script_names_every_kind_and_fails_in_one_line(tmp_path, monkeypatch, capsys):
    def leave(*arguments: str) -> int | str | None:
        monkeypatch.setattr(sys, "argv", ["convert_checkpoint.py", *arguments])
        with pytest.raises(SystemExit) as leaving:
            runpy.run_path(str(ROOT / "scripts" / "convert_checkpoint.py"), run_name="__main__")
        return leaving.value.code

    assert leave("--help") == 0
    help_text = capsys.readouterr().out
    assert all(kind in help_text for kind in KINDS)
    line = leave("seed1", str(tmp_path / "no.pth"), "--output", str(tmp_path / "out"))
    assert line.startswith("error: checkpoint ") and "\n" not in line
