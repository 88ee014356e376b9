"""Text for Branch II's stages: captions to tokens, CLIP targets, and both forms of stage 1."""

import pytest
import torch
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from hybrid_tokenizer.commands.config import TrainSemantic
from hybrid_tokenizer.errors import HybridTokenizerError
from hybrid_tokenizer.quantizers import QuantizerConfig
from hybrid_tokenizer.semantic import SemanticConfig, SemanticTokenizer
from hybrid_tokenizer.text import BertTokens, CachedText, CLIPText, CutNotice, MiniLMText, build_text, clean_caption
from hybrid_tokenizer.training.config import ContrastiveOptions, QuantizeOptions
from hybrid_tokenizer.training.objective import Objective
from hybrid_tokenizer.training.semantic import QuantizeObjective, build_contrastive

LENGTH, WIDTH = 9, 12


def small_semantic() -> SemanticTokenizer:
    return SemanticTokenizer(
        SemanticConfig(
            image_size=32, patch_size=16, vision_width=16, vision_layers=1, vision_heads=2, vision_mlp_width=16, width=16,
            num_queries=4, qformer_layers=2, qformer_heads=2, qformer_mlp_width=16, decoder_layers=1, decoder_heads=2,
            decoder_mlp_width=16, reverse_layers=1, num_generation_embeds=LENGTH, generation_width=WIDTH,
            quantizer=QuantizerConfig(kind="vq", codebook_size=20, codebook_dim=4),
        )
    )  # fmt: skip


@pytest.fixture(scope="module")
def stable_diffusion(tmp_path_factory):
    """tokenizer/ and text_encoder/ of a folder in diffusers' form."""
    folder = tmp_path_factory.mktemp("stable-diffusion")
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{letter}</w>" for letter in letters)]
    vocabulary = {word: number for number, word in enumerate(words)}
    CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=LENGTH).save_pretrained(folder / "tokenizer")
    config = CLIPTextConfig(
        vocab_size=len(words), hidden_size=WIDTH, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=LENGTH, bos_token_id=0, eos_token_id=1,
    )  # fmt: skip
    CLIPTextModel(config).save_pretrained(folder / "text_encoder")
    return folder


@pytest.fixture(scope="module")
def tokens():
    return BertTokens()


def pairs(count: int = 3) -> dict:
    images = torch.rand(count, 3, 40, 48) * 2 - 1
    return {"images": images, "captions": ["A dog runs.", "Two red cars", "a lake"][:count]}


def qformer_stage(init=None, model=None):
    options = ContrastiveOptions(text="qformer", train_vision=False, distillation=0.0, feature_width=8)
    return build_contrastive(model or small_semantic(), options, init)


def changed(objective: Objective, batch: dict) -> set[str]:
    """Names of parameters that one step of gradient descent moves."""
    before = {name: p.detach().clone() for name, p in objective.named_parameters()}
    objective.train()
    objective(batch, 0)["total"].backward()
    torch.optim.SGD([p for p in objective.parameters() if p.requires_grad], lr=1.0).step()
    return {name for name, p in objective.named_parameters() if not torch.equal(p, before[name])}


@pytest.mark.parametrize(
    ("caption", "cleaned"),
    [
        ('A dog, "Rex", runs!! (fast)', "a dog, rex , runs fast"),
        ("one:two;three~four*five#six.", "one two three four five six"),
        ("  line\nbreak\t tab ", "line break tab"),
        (" ".join(str(number) for number in range(60)), " ".join(str(number) for number in range(50))),
        ("...", ""),
    ],
)
def test_captions_are_cleaned_as_blip2_does(caption, cleaned):
    assert clean_caption(caption) == cleaned


def test_bert_ids_are_those_of_bert_base_uncased_padded_to_32(tokens, capsys):
    ids, mask = tokens(["A dog!", "word " * 45])
    assert ids.shape == mask.shape == (2, 32)
    assert ids[0, :5].tolist() == [101, 1037, 3899, 102, 0], "[CLS] a dog [SEP] [PAD] in bert-base-uncased's numbering"
    assert mask.sum(1).tolist() == [4, 32]
    assert "cut 1 caption(s) so far at 32 tokens, the latest: 'word word" in capsys.readouterr().out


def test_cuts_are_told_at_powers_of_ten(capsys):
    notice = CutNotice("77 tokens")
    for _ in range(120):
        notice.add("long")
    assert [line.split()[1] for line in capsys.readouterr().out.splitlines()] == ["1", "10", "100"]


def test_clip_targets_are_the_text_encoders_last_hidden_states(stable_diffusion, capsys):
    tower = CLIPText(stable_diffusion)
    captions = ["a b c", "abcdefghijkl", ""]
    expected = CLIPTextModel.from_pretrained(stable_diffusion / "text_encoder")
    tokenizer = CLIPTokenizer.from_pretrained(stable_diffusion / "tokenizer")
    ids = tokenizer(captions, padding="max_length", truncation=True, max_length=LENGTH, return_tensors="pt").input_ids
    with torch.no_grad():
        torch.testing.assert_close(tower.token_features(captions), expected(ids).last_hidden_state)
    assert f"cut 1 caption(s) so far at {LENGTH} tokens, the latest: 'abcdefghijkl'" in capsys.readouterr().out


def test_what_a_caption_gives_does_not_depend_on_its_neighbours(stable_diffusion):
    tower = CLIPText(stable_diffusion)
    captions = [chr(97 + number) for number in range(20)]
    together = tower.token_features(captions)
    assert all(torch.equal(tower.token_features([c])[0], row) for c, row in zip(captions, together, strict=True))


def test_cached_features_equal_the_towers_and_stay_within_their_room(stable_diffusion):
    tower = CLIPText(stable_diffusion)
    calls = []
    plain = tower.token_features
    tower.token_features = lambda captions: calls.append(list(captions)) or plain(captions)
    cached = CachedText(tower, megabytes=1)
    cached.room = 2 * LENGTH * WIDTH * 4
    captions = ["a", "b", "a", "c"]
    for _ in range(2):
        assert torch.equal(cached.token_features(captions), plain(captions))
    assert calls == [["a", "b", "c"], ["c"]], "two captions have room, the third is computed again"


def test_a_cold_cache_gives_the_same_features_as_a_warm_one():
    """A resumed run starts without a cache. In a batch MiniLM's features depend, by rounding, on the other captions."""
    warm, cold = CachedText(MiniLMText(), megabytes=1), CachedText(MiniLMText(), megabytes=1)
    captions = ["a dog", "a brown dog runs along the sea at night", "two red cars"]
    warm.token_features(captions[1:])
    assert torch.equal(warm.token_features(captions), cold.token_features(captions[:1] + captions[:0:-1])[[0, 2, 1]])


def test_stage_2_trains_on_the_features_of_a_stable_diffusion_folder(stable_diffusion):
    objective = QuantizeObjective(small_semantic(), QuantizeOptions(), build_text(str(stable_diffusion), 1))
    moved = changed(objective, pairs())
    assert any(name.startswith("model.generation.") for name in moved)
    assert not any(name.startswith(("model.vision.", "model.causal_qformer.", "frozen.")) for name in moved)


def test_wrong_text_encoders_are_one_line(stable_diffusion, tmp_path):
    def fails(match, name, model=None):
        with pytest.raises(HybridTokenizerError, match=match) as error:
            QuantizeObjective(model or small_semantic(), QuantizeOptions(), build_text(name, 0))
        assert "\n" not in str(error.value)

    fails("quantize.text is not set", None)
    fails("has no text_encoder/; give the folder of the Stable Diffusion", str(tmp_path))
    fails("the text encoder gives 77 x 384 per caption, this tokenizer 9 x 12", "minilm")
    for part in ("text_encoder", "tokenizer"):
        (tmp_path / part).mkdir()
        for file in (stable_diffusion / part).iterdir():
            (tmp_path / part / file.name).write_bytes(file.read_bytes())
    weights = tmp_path / "text_encoder" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])
    fails("cannot be loaded.*download the folder again", str(tmp_path))
    with pytest.raises(HybridTokenizerError, match="is not a folder; give a BERT tokenizer's"):
        BertTokens(tmp_path / "nowhere")


def test_qformer_stage_trains_the_qformer_its_text_path_and_ln_vision_only():
    objective = qformer_stage()
    moved = changed(objective, pairs())
    vision = {name for name in moved if name.startswith("model.vision.")}
    assert vision == {"model.vision.body.post_layernorm.weight", "model.vision.body.post_layernorm.bias"}
    assert any(name.startswith("model.causal_qformer.body.encoder.layer.1.attention.") for name in moved)
    assert {"heads.temperature", "heads.text.word_embeds.weight", "heads.vision_projection.weight"} <= moved
    assert not any(name.startswith(("model.generation.", "model.encode_task.", "frozen.")) for name in moved)
    assert not objective.model.vision.training and objective.model.causal_qformer.training


@pytest.mark.parametrize("text", ["qformer", "sentence"])
def test_every_trained_parameter_takes_part(text):
    """Distributed training waits for the gradient of each."""
    options = ContrastiveOptions(text=text, train_vision=text == "sentence", distillation=0.0, feature_width=8)
    objective = build_contrastive(small_semantic(), options, None)
    objective.train()
    objective(pairs(), 0)["total"].backward()
    assert [name for name, p in objective.named_parameters() if p.requires_grad and p.grad is None] == []


def test_a_temperature_below_its_floor_can_rise_again():
    objective = qformer_stage()
    with torch.no_grad():
        objective.heads.temperature.fill_(0.001)
    losses = objective(pairs(), 0)
    assert losses["temperature"].item() == pytest.approx(0.01)
    losses["total"].backward()
    assert objective.heads.temperature.grad.item() != 0


def test_heads_travel_beside_the_tokenizer_and_go_on_from_there(tmp_path, capsys):
    objective = qformer_stage().eval()
    assert "stage-1 heads start from random weights" in capsys.readouterr().out
    objective.export(tmp_path, [])
    again = qformer_stage(str(tmp_path), SemanticTokenizer.from_pretrained(tmp_path)).eval()
    assert capsys.readouterr().out == ""
    batch = pairs()
    for name, value in objective(batch, 0).items():
        assert torch.equal(value, again(batch, 0)[name]), name
    assert objective.validate([batch]).figures == again.validate([batch]).figures


def test_a_vocabulary_larger_than_the_heads_is_one_line(tmp_path):
    objective = qformer_stage()
    objective.heads.config.vocab_size = 100
    objective.heads.text.word_embeds = torch.nn.Embedding(100, 16)
    objective.export(tmp_path, [])
    with pytest.raises(HybridTokenizerError, match="30522 words, the stage-1 heads 100"):
        qformer_stage(str(tmp_path))


def test_each_preset_has_its_own_stages():
    assert ContrastiveOptions.tiny().text == "sentence" and TrainSemantic().contrastive == ContrastiveOptions.tiny()
    seed = ContrastiveOptions.sd15()
    assert (seed.text, seed.train_vision, seed.distillation) == ("qformer", False, 0.0)
    assert QuantizeOptions.sd15().text is None
    with pytest.raises(HybridTokenizerError, match=r"contrastive\.distillation=1\.0 teaches"):
        ContrastiveOptions(text="qformer")
    with pytest.raises(HybridTokenizerError, match=r"contrastive\.text='bert' is unknown"):
        ContrastiveOptions(text="bert")
