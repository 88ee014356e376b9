import hashlib
import json
import math
import os
from dataclasses import replace

import jaxtyping
import pytest
import torch
from diffusers import StableDiffusionPipeline
from helpers.small_models import noise_images, small_hybrid
from peft import LoraConfig, get_peft_model_state_dict
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from hybrid_tokenizer.checkpoints.files import file_hash, read_json, state_hash, write_json
from hybrid_tokenizer.diffusion import DecodeOptions
from hybrid_tokenizer.diffusion.scheduler import Schedule
from hybrid_tokenizer.errors import HybridTokenizerError
from hybrid_tokenizer.hybrid import HybridTokenizer, decoded_losses, image_generators
from hybrid_tokenizer.perceptual import EfficientNetDistance
from hybrid_tokenizer.presets import INDEX_NAME, PRESETS
from hybrid_tokenizer.protocol import ImageTokenizer
from hybrid_tokenizer.semantic import SemanticTokenizer
from hybrid_tokenizer.tokens import HybridTokens, TokenSource


@pytest.fixture(scope="module")
def hybrid():
    return small_hybrid()


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def test_is_an_image_tokenizer(hybrid):
    assert isinstance(hybrid, ImageTokenizer)
    assert hybrid.native_size == 32


def test_shapes_counts_and_bits(hybrid):
    tokens = hybrid.encode(noise_images(2, 32, 48))
    assert tokens.semantic_indices.shape == (2, 32)
    assert tokens.grid_shapes == ((4, 6),) and tokens.image_size == (32, 48)
    assert hybrid.num_tokens(tokens).tolist() == [56, 56]
    torch.testing.assert_close(hybrid.bits(tokens), torch.full((2,), 32 * math.log2(20) + 24 * math.log2(50)))
    images = hybrid.decode(tokens)
    assert images.shape == (2, 3, 32, 48) and images.abs().max() <= 1
    assert hybrid.decode(tokens, size=(64, 40)).shape == (2, 3, 64, 40)


def test_other_images_get_other_tokens(hybrid):
    tokens = hybrid.encode(noise_images(2))
    assert not torch.equal(tokens.guide_indices[0][0], tokens.guide_indices[0][1])


def test_reloaded_tokens_decode_bit_identically(hybrid, tmp_path):
    tokens = hybrid.encode(noise_images(2))
    tokens.save(tmp_path / "tokens.safetensors")
    reloaded = HybridTokens.load(tmp_path / "tokens.safetensors")
    assert torch.equal(hybrid.decode(reloaded, generator=seeded()), hybrid.decode(tokens, generator=seeded()))
    assert torch.equal(hybrid.decode(reloaded), hybrid.decode(tokens))


def test_reconstruct_is_decode_of_encode(hybrid):
    images = noise_images(2)
    direct = hybrid.decode(hybrid.encode(images), generator=seeded(3), strength=0.6)
    assert torch.equal(hybrid.reconstruct(images, seeded(3), strength=0.6), direct)


def test_compiled_branches_give_the_same():
    images, hybrid = noise_images(2), small_hybrid()
    tokens = hybrid.encode(images)
    decoded = hybrid.decode(tokens, generator=seeded())
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)  # torch 2.11 cannot trace the checks, which only tests run
    try:
        assert hybrid.compile(backend="eager").encode(images) == tokens
        torch.testing.assert_close(hybrid.decode(tokens, generator=seeded()), decoded, rtol=1e-5, atol=1e-5)
    finally:
        jaxtyping.config.update("jaxtyping_disable", before)


def test_seeds_change_the_noise_and_nothing_else_does(hybrid):
    tokens = hybrid.encode(noise_images(1))
    torch.manual_seed(5)
    first = hybrid.decode(tokens, generator=seeded(0))
    torch.manual_seed(6)
    assert torch.equal(hybrid.decode(tokens, generator=seeded(0)), first)
    assert not torch.equal(hybrid.decode(tokens, generator=seeded(1)), first)


def test_results_do_not_depend_on_the_batch(hybrid):
    images = noise_images(3)
    whole = hybrid.encode(images)
    alone = [hybrid.encode(image[None]) for image in images]
    assert HybridTokens.cat(alone) == whole
    together = hybrid.decode(whole, generator=seeded())
    for i in range(3):
        torch.testing.assert_close(hybrid.decode(whole[i], generator=seeded())[0], together[i], rtol=1e-4, atol=1e-4)
    reordered = hybrid.decode(whole[[2, 0, 1]], generator=seeded())
    torch.testing.assert_close(reordered, together[[2, 0, 1]], rtol=1e-4, atol=1e-4)


def test_noise_is_of_the_seed_and_the_images_own_tokens():
    indices = torch.randint(9, (3, 32))

    def draws(rows, seed):
        return [torch.randn(4, generator=one).tolist() for one in image_generators([rows], seeded(seed))]

    whole = draws(indices, 0)
    assert draws(indices[1:], 0) == whole[1:]
    assert whole[0] != whole[1] and draws(indices, 1) != whole
    generator = seeded()
    image_generators([indices], generator)
    after = generator.get_state()
    generator = seeded()
    image_generators([indices[:1]], generator)
    assert torch.equal(generator.get_state(), after)  # one draw, however many images


def searching():
    hybrid = small_hybrid(start="ddim_inversion", nested=True)
    with torch.no_grad():  # random weights as they come hardly look at the guide
        for weight in hybrid.diffusion.vae.parameters():
            weight.mul_(1.7)
    return hybrid


def decoded_loss(hybrid, tokens, images):
    distance, embeds = EfficientNetDistance("lite0"), hybrid.semantic.decode(tokens.semantic_indices)
    with torch.no_grad():
        return decoded_losses(hybrid.diffusion, distance, images, embeds)(hybrid.guide.decode(tokens.guide_indices))


def test_the_search_finds_guide_codes_that_decode_nearer():
    hybrid, images = searching(), noise_images(3, 32, 32)
    own, found = hybrid.encode(images), hybrid.encode(images, search_steps=5)
    before, after = decoded_loss(hybrid, own, images), decoded_loss(hybrid, found, images)
    assert (after < before - 1e-4).all()  # of 0.8; rounding moves it by 1e-6
    assert torch.equal(found.semantic_indices, own.semantic_indices) and found.source == own.source
    assert all(weight.grad is None for weight in hybrid.diffusion.parameters())


def test_an_image_is_searched_for_by_itself():
    hybrid, images = searching(), noise_images(5, 32, 32)
    together = hybrid.encode(images, search_steps=4).guide_indices
    alone = [hybrid.encode(image, search_steps=4).guide_indices for image in images.split(1)]
    for scale, grid in enumerate(together):
        assert torch.equal(grid, torch.cat([grids[scale] for grids in alone]))


def test_the_search_works_in_inference_mode():
    hybrid, images = searching(), noise_images(2, 32, 32)
    expected = hybrid.encode(images, search_steps=2)
    with torch.inference_mode():
        found = hybrid.encode(images.clone(), search_steps=2)
        assert hybrid.decode(found).shape == (2, 3, 32, 32)
    assert all(torch.equal(*pair) for pair in zip(found.guide_indices, expected.guide_indices, strict=True))


def test_the_search_looks_beside_the_semantic_tokens_that_will_be_decoded():
    hybrid, images = searching(), noise_images(2, 32, 32)
    tokens = hybrid.encode(images, search_steps=3)
    with_null = hybrid.encode_guide(images, None, search_steps=3)
    again = hybrid.encode_guide(images, tokens.semantic_indices, search_steps=3)
    assert all(torch.equal(left, right) for left, right in zip(again, tokens.guide_indices, strict=True))
    assert any(not torch.equal(left, right) for left, right in zip(with_null, tokens.guide_indices, strict=True))


def test_how_far_to_search_is_stored_with_the_tokenizer(tmp_path):
    hybrid, images = searching(), noise_images(2, 32, 32)
    hybrid.search_steps = 3
    hybrid.save_pretrained(tmp_path / "stored")
    loaded = HybridTokenizer.from_pretrained(tmp_path / "stored")
    assert loaded.search_steps == 3
    expected = hybrid.encode(images, search_steps=3).guide_indices
    assert all(torch.equal(*pair) for pair in zip(loaded.encode(images).guide_indices, expected, strict=True))
    assert HybridTokenizer.from_pretrained(tmp_path / "stored", search_steps=0).search_steps == 0


@pytest.mark.parametrize("steps", [-1, True])
def test_a_search_of_no_whole_number_of_steps_is_refused(steps):
    hybrid = searching()
    with pytest.raises(HybridTokenizerError, match=r"search_steps is .*, expected a whole number"):
        HybridTokenizer(hybrid.guide, hybrid.semantic, hybrid.diffusion, search_steps=steps)


def test_a_search_through_a_decoder_that_draws_noise_is_refused(hybrid):
    with pytest.raises(
        HybridTokenizerError, match=r"search_steps=2 needs a decoder that draws no noise.*start='add_noise'"
    ):
        hybrid.encode(noise_images(1), search_steps=2)


def test_inversion_draws_no_noise():
    hybrid = small_hybrid(start="ddim_inversion")
    tokens = hybrid.encode(noise_images(1))
    assert hybrid.deterministic and not small_hybrid().deterministic
    assert torch.equal(hybrid.decode(tokens, generator=seeded(0)), hybrid.decode(tokens, generator=seeded(1)))


def test_the_latent_consistency_call_of_the_readme(tmp_path):
    tokenizer = small_hybrid(start="ddim_inversion")
    tokens = tokenizer.encode(noise_images(1))
    options = {"sampler": "lcm", "start": "add_noise", "num_inference_steps": 4}
    timesteps = []
    tokenizer.diffusion.unet.register_forward_pre_hook(lambda module, args: timesteps.append(int(args[1])))
    plain = tokenizer.decode(tokens, **options)
    assert len(timesteps) == 4 and timesteps == sorted(timesteps, reverse=True) and timesteps[0] < 400  # strength 0.4
    adapted = small_hybrid().diffusion.unet
    adapted.add_adapter(LoraConfig(r=2, lora_alpha=8, target_modules=["to_q", "to_v"], init_lora_weights=False))
    StableDiffusionPipeline.save_lora_weights(tmp_path, unet_lora_layers=get_peft_model_state_dict(adapted))
    tokenizer.diffusion.fuse_lora(tmp_path)
    fused = tokenizer.decode(tokens, **options)
    assert fused.shape == plain.shape and not torch.equal(fused, plain)


def test_the_preset_encodes_in_one_pass():
    assert "search_steps" not in read_json(PRESETS / "tiny" / INDEX_NAME)  # so from_pretrained does not search


def test_decoding_reads_both_kinds_of_token(hybrid):
    one, other = hybrid.encode(noise_images(1, seed=1)), hybrid.encode(noise_images(1, seed=2))
    options = {"start": "ddim_inversion"}  # no noise, which would follow the tokens
    images = hybrid.decode(one, **options)
    for semantic, guide in ((other, one), (one, other)):
        mixed = HybridTokens(semantic.semantic_indices, guide.guide_indices, one.image_size)
        assert not torch.equal(hybrid.decode(mixed, **options), images)


def test_token_ids_through_the_vocabulary(hybrid):
    tokens = hybrid.encode(noise_images(2, 32, 48))
    vocabulary = hybrid.vocabulary(text_vocab_size=32000, image_size=(32, 48))
    restored = HybridTokens.from_token_ids(tokens.to_token_ids(vocabulary), vocabulary)
    assert restored == tokens and restored.source == hybrid.source
    assert hybrid.vocabulary().sequence_lengths == (2 + 32 + 16,)


def test_nested_prefixes_decode_at_the_full_size():
    hybrid = small_hybrid(nested=True)
    images = noise_images(1, 32, 40)
    whole = hybrid.encode(images)
    assert whole.grid_shapes == ((1, 1), (2, 2), (4, 5))
    for scales in (1, 2, 3):
        tokens = hybrid.encode(images, guide_scales=scales)
        assert tokens.guide_indices[-1].equal(whole.guide_indices[scales - 1])
        assert hybrid.decode(tokens).shape == (1, 3, 32, 40)
        vocabulary = hybrid.vocabulary(7, image_size=(32, 40))
        assert vocabulary.from_token_ids(tokens.to_token_ids(vocabulary)) == tokens


def test_save_and_load_keep_hash_and_tokens(hybrid, tmp_path):
    hybrid.save_pretrained(tmp_path / "saved")
    loaded = HybridTokenizer.from_pretrained(tmp_path / "saved")
    images = noise_images(2)
    assert (loaded.name, loaded.hash) == (hybrid.name, hybrid.hash)
    tokens = hybrid.encode(images)
    assert loaded.encode(images) == tokens
    assert torch.equal(loaded.decode(tokens), hybrid.decode(tokens))
    assert sorted(os.listdir(tmp_path / "saved")) == ["diffusion", "guide", "model_index.json", "semantic"]
    assert os.listdir(tmp_path) == ["saved"]


def test_hash_is_that_of_the_weights_whatever_their_storage(hybrid, tmp_path):
    hybrid.save_pretrained(tmp_path / "half", dtype=torch.float16)
    assert HybridTokenizer.from_pretrained(tmp_path / "half").hash == hybrid.hash
    assert small_hybrid().hash == hybrid.hash and small_hybrid().to(dtype=torch.bfloat16).hash == hybrid.hash
    other = small_hybrid()
    with torch.no_grad():
        next(other.semantic.parameters()).add_(0.01)
    assert other.hash != hybrid.hash
    other.load_state_dict(hybrid.state_dict())
    assert other.hash == hybrid.hash


def edited(folder, path, **changes):
    values = read_json(folder / path)
    write_json(folder / path, values | changes)


@pytest.mark.parametrize(
    ("path", "change"),
    [
        ("guide/config.json", {"norm_num_groups": 2}),
        ("guide/config.json", {"scale_interpolation": "bilinear"}),
        ("guide/config.json", {"stem": "appended", "stem_factor": 2, "encoder_channels": [8, 8, 8]}),
        ("semantic/config.json", {"causal": False}),
        ("semantic/config.json", {"qformer_heads": 4}),
        ("semantic/config.json", {"vision_heads": 4}),
        ("diffusion/config.json", {"latent_shift": [0.1]}),
        ("diffusion/config.json", {"latent_scale": [1 / 3]}),
        ("diffusion/unet/config.json", {"attention_head_dim": 4}),
        ("diffusion/unet/config.json", {"norm_num_groups": 2}),
        ("diffusion/unet/config.json", {"norm_eps": 1e-3}),
        ("diffusion/unet/config.json", {"act_fn": "gelu"}),
        ("diffusion/vae/config.json", {"act_fn": "gelu"}),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else value.partition("/")[0],
)
def test_hash_covers_what_no_tensor_shows(tmp_path, path, change):
    stem = {"stem": "none", "stem_factor": 1, "encoder_channels": [8, 8, 8, 8]} if "stem" in change else {}
    original = small_hybrid(nested=True, **stem)
    original.save_pretrained(tmp_path / "stored")
    assert HybridTokenizer.from_pretrained(tmp_path / "stored").hash == original.hash
    edited(tmp_path / "stored", path, **change)
    other = HybridTokenizer.from_pretrained(tmp_path / "stored")
    assert other.hash != original.hash
    same = other.state_dict()
    assert all(torch.equal(value, same[key]) for key, value in original.state_dict().items())
    with pytest.raises(HybridTokenizerError, match="were made by tokenizer 'small'"):
        other.decode(original.encode(noise_images(1)))


def test_hash_covers_the_prediction_type(hybrid):
    other = small_hybrid()
    other.diffusion.config = replace(other.diffusion.config, prediction_type="epsilon")
    other.diffusion.schedule = Schedule("epsilon")
    assert other.hash != hybrid.hash


@pytest.mark.parametrize(
    ("part", "change"),
    [
        ("guide", {"prefix_dropout": 0.1}),
        ("semantic", {"dropout": 0.1}),
        ("diffusion", {"decode_defaults": DecodeOptions(strength=0.1)}),
    ],
)
def test_hash_leaves_out_what_changes_no_token(hybrid, part, change):
    other = small_hybrid()
    branch = getattr(other, part)
    branch.config = replace(branch.config, **change)
    assert other.hash == hybrid.hash


def first_hash_of(hybrid):
    """As version 0.1 computed it."""
    config = hybrid.diffusion.config
    branches = [hybrid.guide, hybrid.semantic, hybrid.diffusion]
    settings = json.dumps([config.prediction_type, *([float(v) for v in values] for values in (config.latent_shift, config.latent_scale))])  # fmt: skip
    text = "".join(state_hash(branch, torch.float16) for branch in branches) + settings
    return hashlib.sha256(text.encode()).hexdigest()


def test_tokens_of_files_of_version_1_are_decoded(hybrid, tmp_path):
    tokens = hybrid.encode(noise_images(1))
    path = tmp_path / "tokens.safetensors"
    replace(tokens, source=TokenSource("small", first_hash_of(hybrid))).save(path)
    with safe_open(path, framework="pt") as file:
        assert file.metadata()["version"] == "1"
    old = HybridTokens.load(path)
    assert torch.equal(hybrid.decode(old), hybrid.decode(tokens))
    assert hybrid.adopt(old).source == hybrid.source
    vocabulary = hybrid.vocabulary(7, image_size=(32, 48))
    with pytest.raises(HybridTokenizerError, match=r"file of version 1.*pass them through HybridTokenizer\.adopt"):
        old.to_token_ids(vocabulary)
    assert torch.equal(hybrid.adopt(old).to_token_ids(vocabulary), tokens.to_token_ids(vocabulary))
    with pytest.raises(HybridTokenizerError, match="were made by tokenizer 'small'"):
        small_hybrid(seed=1).decode(old)


def test_the_first_hash_is_computed_for_old_files_alone(hybrid):
    fresh = small_hybrid()
    fresh.decode(fresh.encode(noise_images(1)))
    assert "hash" in vars(fresh) and "first_hash" not in vars(fresh)


def test_what_only_training_reads_is_no_part_of_the_tokenizer(hybrid):
    training = SemanticTokenizer(replace(hybrid.semantic.config, cosine_stack=True))
    built = HybridTokenizer(hybrid.guide, training, hybrid.diffusion)
    published = HybridTokenizer(hybrid.guide, training.without_cosine_stack(), hybrid.diffusion)
    assert built.hash == published.hash != hybrid.hash
    assert training.config.cosine_stack and training.cosine is not None  # the one in training stays whole


def test_large_files_are_split(hybrid, tmp_path):
    hybrid.save_pretrained(tmp_path / "saved", max_shard_size="20KB")
    assert len(list((tmp_path / "saved" / "diffusion" / "unet").glob("*.safetensors"))) > 1
    assert HybridTokenizer.from_pretrained(tmp_path / "saved").hash == hybrid.hash


def zero_tail(path):
    data = bytearray(path.read_bytes())
    data[-2000:] = bytes(2000)
    path.write_bytes(data)


def exchange_two(path):
    tensors = load_file(path)
    first, second = [key for key in sorted(tensors) if tensors[key].shape == (8,)][:2]
    assert not torch.equal(tensors[first], tensors[second])
    save_file({**tensors, first: tensors[second], second: tensors[first]}, path, metadata={"format": "pt"})


@pytest.mark.parametrize("damage", [zero_tail, exchange_two])
def test_weights_that_are_finite_but_not_the_saved_ones_are_refused(tmp_path, damage):
    folder = tmp_path / "saved"
    small_hybrid(seed=1).save_pretrained(folder)
    weights = folder / "guide" / "model.safetensors"
    damage(weights)
    with pytest.raises(HybridTokenizerError) as caught:
        HybridTokenizer.from_pretrained(folder)
    assert str(caught.value) == (
        f"{weights} has another sha256 than model_index.json lists; it is damaged or was exchanged: download it again, "
        "or give your own component with guide=, semantic= or diffusion="
    )
    HybridTokenizer.from_pretrained(folder, guide=folder / "guide")  # the remedy for who wants this file
    index = read_json(folder / INDEX_NAME)
    del index["weights_sha256"]
    write_json(folder / INDEX_NAME, index)
    HybridTokenizer.from_pretrained(folder)  # as folders of earlier versions


def test_a_weights_file_that_is_listed_exists(hybrid, tmp_path):
    folder = tmp_path / "saved"
    hybrid.save_pretrained(folder, max_shard_size="20KB")
    index = read_json(folder / INDEX_NAME)
    write_json(folder / INDEX_NAME, index | {"weights_sha256": {"guide/more.safetensors": "0" * 64}})
    with pytest.raises(HybridTokenizerError, match=r"more.safetensors does not exist, but model_index.json lists it"):
        HybridTokenizer.from_pretrained(folder)
    write_json(folder / INDEX_NAME, index | {"weights_sha256": ["guide"]})
    with pytest.raises(HybridTokenizerError, match=r"weights_sha256 \['guide'\], expected files and their sha256"):
        HybridTokenizer.from_pretrained(folder)


def test_the_preset_lists_all_its_weights():
    home = PRESETS / "tiny"
    listed = read_json(home / INDEX_NAME)["weights_sha256"]
    assert listed == {path.relative_to(home).as_posix(): file_hash(path) for path in home.rglob("*.safetensors")}


def test_components_replace_stored_ones(hybrid, tmp_path):
    hybrid.save_pretrained(tmp_path / "saved")
    other = small_hybrid(seed=1)
    other.guide.save_pretrained(tmp_path / "guide")
    mixed = HybridTokenizer.from_pretrained(tmp_path / "saved", guide=tmp_path / "guide")
    images = noise_images(1)
    assert torch.equal(mixed.encode(images).guide_indices[0], other.encode(images).guide_indices[0])
    assert torch.equal(mixed.encode(images).semantic_indices, hybrid.encode(images).semantic_indices)


def test_another_tokenizers_tokens_are_refused_by_name(hybrid, tmp_path):
    hybrid.encode(noise_images(1)).save(tmp_path / "tokens.safetensors")
    other = small_hybrid(seed=1, name="other")
    with pytest.raises(HybridTokenizerError, match=r"'small'.*'other'") as caught:
        other.decode(HybridTokens.load(tmp_path / "tokens.safetensors"))
    assert "\n" not in str(caught.value)
    renamed = small_hybrid(name="renamed")  # the same weights: the same tokens
    renamed.decode(HybridTokens.load(tmp_path / "tokens.safetensors"))


def test_saving_replaces_a_tokenizer_and_nothing_else(hybrid, tmp_path):
    folder = tmp_path / "saved"
    small_hybrid(seed=1).save_pretrained(folder)
    (folder / "README.md").write_text("notes")
    hybrid.save_pretrained(folder)
    assert HybridTokenizer.from_pretrained(folder).hash == hybrid.hash
    assert (folder / "README.md").read_text() == "notes"
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "photo.jpg").write_bytes(b"x")
    with pytest.raises(HybridTokenizerError, match="holds no tokenizer"):
        hybrid.save_pretrained(tmp_path / "mine")
    assert os.listdir(tmp_path / "mine") == ["photo.jpg"]


def test_a_failed_save_leaves_the_old_tokenizer(hybrid, tmp_path, monkeypatch):
    folder = tmp_path / "saved"
    hybrid.save_pretrained(folder)
    other = small_hybrid(seed=1)

    def fails(*arguments, **options):
        raise OSError("disk full")

    monkeypatch.setattr(other.diffusion, "save_pretrained", fails)
    with pytest.raises(OSError, match="disk full"):
        other.save_pretrained(folder)
    assert HybridTokenizer.from_pretrained(folder).hash == hybrid.hash
    assert os.listdir(tmp_path) == ["saved"]


@pytest.mark.parametrize(
    ("size", "nearest"), [((33, 48), "32x48 or 40x48"), ((5, 32), "8x32"), ((30, 44), "24x40 or 32x48")]
)
def test_odd_image_size_names_the_nearest(hybrid, size, nearest):
    with pytest.raises(HybridTokenizerError, match=f"{nearest}, or pass resize='crop' for squares of 32 px") as caught:
        hybrid.encode(noise_images(1, *size))
    assert "\n" not in str(caught.value)


def test_wrong_value_range_is_refused(hybrid):
    with pytest.raises(HybridTokenizerError, match=r"expected \[-1, 1\]"):
        hybrid.encode((noise_images(1) + 1) * 127.5)


def test_indices_beyond_the_codebook_are_refused(hybrid):
    tokens = hybrid.encode(noise_images(1))
    for semantic, guide in ((20, 0), (0, 50)):
        beyond = HybridTokens(
            tokens.semantic_indices.fill_(semantic),
            (torch.full_like(tokens.guide_indices[0], guide),),
            tokens.image_size,
        )
        with pytest.raises(HybridTokenizerError, match="codebook"):
            hybrid.decode(beyond)


def test_grids_of_another_image_size_are_refused(hybrid):
    tokens = hybrid.encode(noise_images(1, 32, 48))
    with pytest.raises(HybridTokenizerError, match="guide grids"):
        hybrid.decode(HybridTokens(tokens.semantic_indices, tokens.guide_indices, (48, 32)))


@pytest.mark.parametrize(
    ("source", "revision", "message"),
    [
        ("tiiny", None, "no preset, folder or hub id; presets: "),
        ("./nowhere", None, "no preset, folder or hub id"),
        ("/nowhere/at/all", None, "no preset, folder or hub id"),
        (".", "main", "revision='main' is for hub ids"),
    ],
)
def test_unknown_sources_are_one_line(source, revision, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(HybridTokenizerError, match=message) as caught:
        HybridTokenizer.from_pretrained(source, revision=revision)
    assert "\n" not in str(caught.value)


def test_hub_failure_is_one_line(monkeypatch):
    import huggingface_hub

    def unreachable(*arguments, **options):
        raise huggingface_hub.errors.LocalEntryNotFoundError("Cannot reach the hub.\nPlease check your connection.")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", unreachable)
    with pytest.raises(
        HybridTokenizerError, match=r"^someone/tokenizer is no folder.*Cannot reach the hub\)"
    ) as caught:
        HybridTokenizer.from_pretrained("someone/tokenizer")
    assert "\n" not in str(caught.value)


def test_hub_id_is_downloaded_at_its_revision(hybrid, tmp_path, monkeypatch):
    import huggingface_hub

    hybrid.save_pretrained(tmp_path / "snapshot")
    asked = []

    def download(repo_id, *, revision, token, allow_patterns):
        asked.append((repo_id, revision, token, allow_patterns[0]))
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    options = {"revision": "v2", "token": "secret"}
    loaded = HybridTokenizer.from_pretrained("someone/tokenizers", subfolder="snapshot", **options)
    assert loaded.hash == hybrid.hash and loaded.card is None
    assert asked == [("someone/tokenizers", "v2", "secret", "snapshot/*.json")]
    with pytest.raises(HybridTokenizerError, match="someone/tokenizers has no folder 'elsewhere'; check subfolder"):
        HybridTokenizer.from_pretrained("someone/tokenizers", subfolder="elsewhere", **options)


def test_push_to_hub_uploads_what_save_pretrained_writes(hybrid, tmp_path, monkeypatch):
    import huggingface_hub

    uploads = []

    class FakeApi:
        def __init__(self, token=None):
            pass

        def create_repo(self, repo_id, *, private, exist_ok):
            if repo_id == "bad id":
                raise huggingface_hub.errors.HFValidationError("Repo id must\nbe well-formed")

        def upload_folder(self, *, repo_id, folder_path):
            uploads.append((repo_id, sorted(os.listdir(folder_path)), (folder_path / "README.md").read_text()))

    monkeypatch.setattr(huggingface_hub, "HfApi", FakeApi)
    hybrid.push_to_hub("someone/tokenizer")
    repository, files, card = uploads.pop()
    assert repository == "someone/tokenizer" and files == [
        "README.md",
        "diffusion",
        "guide",
        "model_index.json",
        "semantic",
    ]
    assert "# small\n" in card and "\n**Licence: research only.** " in card and "for images of 32 px" in card
    hybrid.save_pretrained(tmp_path / "with card")
    (tmp_path / "with card" / "README.md").write_text("Research only.")
    HybridTokenizer.from_pretrained(tmp_path / "with card").push_to_hub("someone/tokenizer")
    assert uploads.pop() == ("someone/tokenizer", files, "Research only.")
    HybridTokenizer.from_pretrained("tiny").push_to_hub("someone/tiny")
    assert uploads.pop()[2] == (PRESETS / "tiny" / "README.md").read_text()
    with pytest.raises(HybridTokenizerError, match=r"^cannot upload to 'bad id': 'bad id' is no hub id") as caught:
        hybrid.push_to_hub("bad id")
    assert "\n" not in str(caught.value)


def test_a_folder_that_is_no_tokenizer(tmp_path):
    with pytest.raises(HybridTokenizerError, match=r"model_index\.json does not exist"):
        HybridTokenizer.from_pretrained(tmp_path)
    (tmp_path / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    with pytest.raises(HybridTokenizerError, match="does not describe a HybridTokenizer"):
        HybridTokenizer.from_pretrained(tmp_path)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_casting_there_and_back_keeps_the_codebooks(hybrid, dtype):
    cast = small_hybrid().to(dtype=dtype).to(torch.float32)
    for branch, original in ((cast.guide, hybrid.guide), (cast.semantic, hybrid.semantic)):
        assert torch.equal(branch.quantizer.embedding.weight, original.quantizer.embedding.weight)
    assert {weight.dtype for weight in cast.parameters()} == {torch.float32} and cast.hash == hybrid.hash


def test_float16_keeps_what_overflows_in_fp32(hybrid):
    tokens = hybrid.encode(noise_images(2))
    narrow = small_hybrid()
    with torch.no_grad():  # activations of 1e5 in the middle of the decoder, as in the embedded preset
        for model in (hybrid_with_large_guide := small_hybrid(), narrow):
            model.guide.decoder.conv_in.weight.mul_(1e6)
    expected = hybrid_with_large_guide.decode_guide(tokens.guide_indices, (32, 48))
    narrow.half()
    assert narrow.guide.decoder.conv_in.weight.dtype == torch.float32
    assert {narrow.guide.encoder.conv_in.weight.dtype, next(narrow.semantic.parameters()).dtype} == {torch.float16}
    decoded = narrow.decode_guide(tokens.guide_indices, (32, 48))
    torch.testing.assert_close(decoded, expected, rtol=0, atol=0.01)


@pytest.mark.parametrize(
    ("branch", "module"),
    [("guide", "guide.decoder.conv_out"), ("semantic", "semantic.generation.projection"), ("diffusion", "diffusion.unet.conv_out")],
)  # fmt: skip
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_pixels_that_are_not_finite_are_refused(hybrid, branch, module, value):
    tokens = hybrid.encode(noise_images(1))
    damaged = small_hybrid()
    _ = damaged.hash
    with torch.no_grad():
        damaged.get_submodule(module).weight.fill_(value)
    with pytest.raises(
        HybridTokenizerError, match=f"the {branch} branch computed values that are not finite"
    ) as caught:
        damaged.decode(tokens)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("branch", "module"), [("guide", "guide.quant_conv"), ("semantic", "semantic.encode_task.2")])
def test_features_that_are_not_finite_are_not_encoded(branch, module):
    damaged = small_hybrid()
    with torch.no_grad():
        damaged.get_submodule(module).weight.fill_(float("nan"))
    with pytest.raises(HybridTokenizerError, match=f"the {branch} branch computed values that are not finite"):
        damaged.encode(noise_images(1))


def test_no_images_decode_to_none(hybrid):
    tokens = hybrid.encode(noise_images(2))[:0]
    assert hybrid.decode(tokens).shape == (0, 3, 32, 48) and hybrid.decode(tokens, output_type="pil") == []
    assert hybrid.decode(tokens, size=64, output_type="np").shape == (0, 64, 64, 3)


def test_bfloat16_keeps_codebooks_in_fp32(hybrid):
    narrow = small_hybrid().to(dtype=torch.bfloat16)
    for branch, original in ((narrow.guide, hybrid.guide), (narrow.semantic, hybrid.semantic)):
        assert torch.equal(branch.quantizer.embedding.weight, original.quantizer.embedding.weight)
        others = {p.dtype for name, p in branch.named_parameters() if not name.startswith("quantizer.")}
        assert others == {torch.bfloat16}
    images = narrow.reconstruct(noise_images(2))
    assert images.dtype == torch.float32 and images.isfinite().all()
    torch.testing.assert_close(
        narrow.decode(hybrid.encode(noise_images(2))), hybrid.decode(hybrid.encode(noise_images(2))), rtol=0, atol=0.1
    )
