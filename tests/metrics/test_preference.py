"""Preference scores from files in their published layout: random weights, other libraries' arithmetic."""

import open_clip
import pytest
import torch
import torch.nn.functional as F
from preference_files import (
    TEXT_HEAD,
    VISION_HEAD,
    VOCABULARY,
    image_reward_state,
    save_clip,
    save_hps,
    small_blip,
    small_open_clip,
)
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

from hybrid_tokenizer.checkpoints.keys.open_clip import clip_from_open_clip, open_clip_sizes
from hybrid_tokenizer.errors import HybridTokenizerError
from hybrid_tokenizer.images import from_uint8, normalize_clip, to_uint8
from hybrid_tokenizer.metrics.preference import (
    BertIds,
    CLIPScore,
    FolderTokens,
    HPSv2,
    OpenClipTokens,
    PickScore,
    crop_square,
    load_clip,
    load_image_reward,
    load_open_clip,
    pad_square,
    standardize,
)
from hybrid_tokenizer.text import minilm_folder

CAPTIONS = ["a dog", "Two cats, on a MAT.", "word " * 200]


@pytest.fixture
def images():
    return torch.rand(3, 3, 40, 56) * 2 - 1


@pytest.fixture(scope="module")
def hps_file(tmp_path_factory):
    torch.manual_seed(0)
    model = small_open_clip()
    return save_hps(tmp_path_factory.mktemp("hps") / "HPS_v2_compressed.pt", model), model


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    torch.manual_seed(0)
    return save_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def reward_file(tmp_path_factory):
    torch.manual_seed(0)
    parts = small_blip()
    with torch.no_grad():
        for parameter in parts[2].parameters():
            parameter.mul_(2)  # rewards that differ by more than rounding, so that the tolerance means something
    file = tmp_path_factory.mktemp("reward") / "ImageReward.pt"
    torch.save(image_reward_state(*parts), file)
    return file, parts


@torch.no_grad()
def open_clip_cosines(model, images, captions, fit):
    pixels = normalize_clip(fit(from_uint8(to_uint8(images)), 28))
    texts = open_clip.get_tokenizer("ViT-H-14")(captions)
    return (model.encode_image(pixels, normalize=True) * model.encode_text(texts, normalize=True)).sum(-1).double()


def test_hpsv2_is_open_clips_cosine(images, hps_file):
    file, model = hps_file
    score = HPSv2("hps_v2", load_open_clip(file), OpenClipTokens())
    values = score(images, CAPTIONS)
    assert values.dtype == torch.float64 and values.std() > 1e-3
    expected = open_clip_cosines(model, images, CAPTIONS, pad_square)
    torch.testing.assert_close(values, expected, rtol=0, atol=1e-5)


def test_pickscore_is_open_clips_cosine_times_the_scale(images, hps_file, tmp_path):
    _, model = hps_file
    with torch.no_grad():
        model.logit_scale.fill_(3.0)
    load = load_open_clip(save_hps(tmp_path / "clip.pt", model))
    load.save_pretrained(tmp_path / "PickScore_v1")  # the form that PickScore is published in
    score = PickScore("pickscore", load_clip(tmp_path / "PickScore_v1"), OpenClipTokens())
    expected = 20.085537 * open_clip_cosines(model, images, CAPTIONS, crop_square)
    torch.testing.assert_close(score(images, CAPTIONS), expected, rtol=0, atol=1e-5)


def test_clipscore_is_its_formula(images, clip_folder):
    clip, tokens = load_clip(clip_folder), OpenClipTokens()
    values = CLIPScore("clip_score", clip, tokens)(images, CAPTIONS)
    with torch.no_grad():
        pixels = normalize_clip(crop_square(from_uint8(to_uint8(images)), 28))
        ids = tokens([f"A photo depicts {caption}" for caption in CAPTIONS])
        image, text = clip.get_image_features(pixels).pooler_output, clip.get_text_features(ids).pooler_output
    expected = 2.5 * F.cosine_similarity(image, text).clamp(min=0).double()
    torch.testing.assert_close(values, expected, rtol=0, atol=1e-5)


@torch.no_grad()
def test_image_reward_is_timms_vit_and_bert_and_its_head(images, reward_file):
    file, (vision, text, head) = reward_file
    ids = BertIds(minilm_folder())
    values = load_image_reward(file, ids)(images, CAPTIONS)
    patches = vision.forward_features(normalize_clip(crop_square(from_uint8(to_uint8(images)), 32)))
    tokens, mask = ids(CAPTIONS)
    assert tokens.shape == (3, 35) and tokens[0].tolist()[:4] == [101, 1037, 3899, 102]
    both_ways = (1 - mask[:, None, None].float().expand(-1, 1, 35, -1)) * -1e4
    states = text(input_ids=tokens, attention_mask=both_ways, encoder_hidden_states=patches).last_hidden_state
    expected = (head(states[:, 0])[:, 0] - 0.16717362830052426) / 1.0333394966054072
    assert values.std() > 0.01
    torch.testing.assert_close(values, expected.double(), rtol=0, atol=1e-5)
    torch.testing.assert_close(standardize(torch.tensor([0.16717, 1.20051])), torch.tensor([0.0, 1.0]), rtol=0, atol=1e-4)  # fmt: skip


def built(name, hps_file, clip_folder, reward_file):
    if name == "image_reward":
        return load_image_reward(reward_file[0], BertIds(minilm_folder()))
    if name == "hps_v2":
        return HPSv2(name, load_open_clip(hps_file[0]), OpenClipTokens())
    return PickScore(name, load_clip(clip_folder), OpenClipTokens())


@pytest.mark.parametrize("name", ["image_reward", "hps_v2", "pickscore"])
def test_batch_size_and_bf16_leave_the_scores(images, name, hps_file, clip_folder, reward_file):
    score = built(name, hps_file, clip_folder, reward_file)
    values = score(images, CAPTIONS)
    alone = torch.cat([score(images[i : i + 1], CAPTIONS[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(values, alone, rtol=0, atol=1e-5)
    half = score.to(torch.bfloat16)
    if name == "image_reward":
        assert half.head[0].weight.dtype == torch.float32 and half.vision.dtype == torch.bfloat16
    rounded = half(images, CAPTIONS)
    assert rounded.dtype == torch.float64 and (rounded - values).abs().max() < 0.05 * values.abs().max() + 0.02


def test_another_value_range_is_refused(images, clip_folder):
    score = PickScore("pickscore", load_clip(clip_folder), OpenClipTokens())
    with pytest.raises(HybridTokenizerError, match="expected"):
        score(images * 127.5, CAPTIONS)


def test_squares_are_cropped_or_padded():
    wide = torch.linspace(-1, 1, 80).expand(1, 3, 40, 80)
    crop, padded = crop_square(wide, 20), pad_square(wide, 20)
    assert crop.shape == padded.shape == (1, 3, 20, 20)
    assert crop.abs().max() < 0.6 and padded[..., 5:15, :].amax() > 0.9
    assert (padded[..., :5, :] == -1).all() and (padded[..., 15:, :] == -1).all()


def test_a_tokenizer_of_transformers_gives_the_same_ids(tmp_path):
    ours = OpenClipTokens()
    merges = [" ".join(pair) for pair in ours.tokenizer.bpe_ranks]
    vocabulary = {
        token.replace("<start_of_text>", "<|startoftext|>").replace("<end_of_text>", "<|endoftext|>"): i
        for token, i in ours.tokenizer.encoder.items()
    }
    CLIPTokenizer(vocab=vocabulary, merges=[tuple(m.split(" ")) for m in merges]).save_pretrained(tmp_path)
    ids, theirs = ours(CAPTIONS), FolderTokens(tmp_path)(CAPTIONS)
    for mine, other in zip(ids, theirs, strict=True):
        end = mine.argmax() + 1
        assert torch.equal(mine[:end], other[:end])
    with pytest.raises(HybridTokenizerError, match="nowhere does not exist; give the folder of CLIP's tokenizer"):
        FolderTokens(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(HybridTokenizerError, match="no tokenizer can be read"):
        FolderTokens(tmp_path / "empty")


def test_wrong_files_are_refused_with_the_keys(tmp_path, hps_file, clip_folder, reward_file):
    state = dict(hps_file[1].state_dict())
    torch.save({"state_dict": {k: v for k, v in state.items() if k != "ln_final.bias"}}, tmp_path / "less.pt")
    with pytest.raises(HybridTokenizerError, match=r"1 missing: text_model.final_layer_norm.bias"):
        load_open_clip(tmp_path / "less.pt")
    torch.save({"state_dict": state | {"score_predictor.weight": torch.zeros(1)}}, tmp_path / "more.pt")
    with pytest.raises(HybridTokenizerError, match=r"no rule for 1 keys: score_predictor.weight"):
        load_open_clip(tmp_path / "more.pt")
    with pytest.raises(HybridTokenizerError, match=r"lacks visual.conv1.weight"):
        load_open_clip(reward_file[0])
    with pytest.raises(HybridTokenizerError, match=r"give ImageReward.pt"):
        load_image_reward(tmp_path / "more.pt", BertIds(minilm_folder()))
    reward = torch.load(reward_file[0], weights_only=True)
    del reward["mlp.layers.7.bias"], reward["blip.text_encoder.encoder.layer.1.crossattention.self.key.bias"]
    torch.save(reward, tmp_path / "reward.pt")
    with pytest.raises(HybridTokenizerError, match=r"2 missing: head.7.bias, text.encoder.layer.1.crossattention"):
        load_image_reward(tmp_path / "reward.pt", BertIds(minilm_folder()))
    clip = CLIPModel.from_pretrained(clip_folder)
    del clip.visual_projection
    clip.save_pretrained(tmp_path / "cut")
    with pytest.raises(HybridTokenizerError, match=r"1 missing keys: visual_projection.weight"):
        load_clip(tmp_path / "cut")
    with pytest.raises(HybridTokenizerError, match="cannot be loaded"):
        load_clip(tmp_path)


def test_the_map_of_vit_h_14_is_total():
    with torch.device("meta"):
        theirs = open_clip.create_model("ViT-H-14", pretrained=None, load_weights=False, device="meta").state_dict()
        config = CLIPConfig(**open_clip_sizes(theirs, "ViT-H-14", VISION_HEAD, TEXT_HEAD))
        ours = CLIPModel(config).state_dict()
    assert (config.text_config.vocab_size, config.vision_config.num_attention_heads) == (VOCABULARY, 16)
    mapped = clip_from_open_clip(theirs, "ViT-H-14")
    assert {key: value.shape for key, value in mapped.items()} == {key: value.shape for key, value in ours.items()}
