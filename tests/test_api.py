"""What a new user tries first, with the call that comes to mind, on the embedded preset."""

import io
import subprocess
import sys
import warnings

import jaxtyping
import numpy as np
import pytest
import torch
from PIL import Image

import hybrid_tokenizer
from hybrid_tokenizer import HybridTokenizer, HybridTokenizerError, HybridTokens
from hybrid_tokenizer.data import sample_photographs
from hybrid_tokenizer.images import fit_square, from_pil, from_uint8, to_pil

PHOTOGRAPHS = list(sample_photographs().values())[:2]


@pytest.fixture(scope="module")
def tokenizer():
    return HybridTokenizer.from_pretrained("tiny")


@pytest.fixture(scope="module")
def images():
    return torch.stack([from_pil(fit_square(photograph, 256)) for photograph in PHOTOGRAPHS])


@pytest.fixture(scope="module")
def tokens(tokenizer, images):
    return tokenizer.encode(images)


@pytest.fixture
def users_checks():
    """What a user meets: the package's own checks, without the shape annotations that tests execute."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def run(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


# 1: import it
def test_configurations_and_lists_load_no_model_library():
    heavy = "('torch', 'numpy', 'PIL', 'diffusers', 'transformers', 'safetensors')"
    code = (
        "import sys, hybrid_tokenizer, hybrid_tokenizer.commands.config, hybrid_tokenizer.language.config\n"
        "print(hybrid_tokenizer.list_presets(), hybrid_tokenizer.list_baselines()[0])\n"
        f"print([name for name in {heavy} if name in sys.modules])"
    )
    assert run(code).splitlines() == ["['tiny'] movq_67m", "[]"]


def test_everything_at_the_top_of_the_package_is_there():
    assert all(getattr(hybrid_tokenizer, name) is not None for name in hybrid_tokenizer.__all__)
    assert "HybridTokenizer" in dir(hybrid_tokenizer)
    with pytest.raises(AttributeError, match="HybridTokeniser"):
        hybrid_tokenizer.HybridTokeniser  # noqa: B018


# 2: load it
def test_load_on_a_device_in_a_dtype(tokenizer, tokens):
    narrow = HybridTokenizer.from_pretrained("tiny", device="cpu", dtype="bfloat16")
    assert next(narrow.diffusion.unet.parameters()).dtype == torch.bfloat16
    assert (narrow.name, narrow.hash, narrow.device.type) == (tokenizer.name, tokenizer.hash, "cpu")


@pytest.mark.parametrize("preset", hybrid_tokenizer.list_presets())
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_presets_decode_alike_in_every_dtype(preset, dtype):
    loaded = HybridTokenizer.from_pretrained(preset)
    squares = [fit_square(photograph, loaded.native_size) for photograph in PHOTOGRAPHS]
    tokens, first_hash = loaded.encode(squares), loaded.hash
    expected = loaded.decode(tokens)
    narrow = loaded.to(dtype=dtype)
    difference = (narrow.decode(tokens) - expected).abs()
    assert difference.max() < 0.06 and difference.mean() < 0.005  # of values in [-1, 1]; measured: 0.02 and 0.002
    kept = [
        (a == b).float().mean() for a, b in zip(narrow.encode(squares).guide_indices, tokens.guide_indices, strict=True)
    ]
    assert min(kept) > 0.85  # a code near the border to another is the other in a narrower dtype
    assert HybridTokenizer.from_pretrained(preset, dtype=dtype).hash == first_hash


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": torch.float64}, "dtype is torch.float64, expected float32, bfloat16 or float16"),
        ({"dtype": "half"}, "dtype is 'half'"),
        ({"device": "gpu"}, r"device='gpu' cannot be used \(.*\); use cpu or cuda"),
    ],
)
def test_other_devices_and_dtypes_are_refused(tokenizer, options, message):
    with pytest.raises(HybridTokenizerError, match=message) as caught:
        tokenizer.to(**options)
    assert "\n" not in str(caught.value)


# 3: encode a picture, whatever it is
def test_every_kind_of_picture_gives_the_same_tokens(tokenizer, tokens, images, tmp_path):
    squares = [fit_square(photograph, 256) for photograph in PHOTOGRAPHS]
    squares[0].save(tmp_path / "first.png")
    levels = np.asarray(squares[0])
    first = tokens[0]
    kinds = {
        "path": tmp_path / "first.png",
        "text": str(tmp_path / "first.png"),
        "PIL": squares[0],
        "array h w 3": levels,
        "array 3 h w": levels.transpose(2, 0, 1),
        "mirrored view": levels[:, ::-1][:, ::-1],
        "tensor h w 3": torch.from_numpy(levels.copy()),
        "tensor b 3 h w of bytes": torch.from_numpy(levels.copy()).permute(2, 0, 1)[None],
        "floats 3 h w": images[0],
        "float64": images[:1].double(),
    }
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for kind, picture in kinds.items():
            assert tokenizer.encode(picture) == first, kind
    assert tokenizer.encode([tmp_path / "first.png", squares[1]]) == tokens
    assert tokenizer.encode([levels, images[1]]) == tokens


def test_a_photograph_is_cropped_to_the_native_square(tokenizer, tokens, tmp_path):
    photograph = PHOTOGRAPHS[1]
    assert photograph.size != (256, 256)
    photograph.save(tmp_path / "whole.png")
    assert tokenizer.encode(tmp_path / "whole.png") == tokens[1]
    assert tokenizer.encode(photograph, resize="crop") == tokens[1]
    assert tokenizer.encode(np.asarray(photograph), resize="crop") == tokens[1]
    assert tokenizer.encode(from_pil(photograph), resize="crop") == tokens[1]


def test_a_padded_photograph_is_whole(tokenizer):
    wide = PHOTOGRAPHS[0].resize((200, 100))
    white = Image.new("RGB", (400, 200), "white")
    decoded = tokenizer.decode(tokenizer.encode(white, resize="pad"))[0]
    rows = decoded.mean((0, 2))
    assert rows[128] > 0.5 and rows[10] < -0.5 and rows[-10] < -0.5
    assert tokenizer.encode(wide, resize="pad").image_size == (256, 256)


def test_without_resizing_the_sides_have_to_fit(tokenizer):
    assert tokenizer.encode(PHOTOGRAPHS[0].resize((160, 96)), resize=None).image_size == (96, 160)
    with pytest.raises(
        HybridTokenizerError, match=r"images are 100x130 .* resize to 96x128 or 112x144, or pass resize='crop'"
    ):
        tokenizer.encode(np.asarray(PHOTOGRAPHS[0].resize((130, 100))))
    with pytest.raises(HybridTokenizerError, match=r"sizes 96x96, 64x64 .* pass resize='crop'"):
        tokenizer.encode([np.zeros((96, 96, 3), np.uint8), np.zeros((64, 64, 3), np.uint8)])


# 4: get the value range wrong
def test_images_in_zero_to_one_are_warned_of(tokenizer, images):
    unit = (images[:1] + 1) / 2
    with pytest.warns(UserWarning, match=r"span 0.* in \[0, 1\], give 2 \* images - 1"):
        tokenizer.encode(unit)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tokenizer.encode(2 * unit - 1)
        tokenizer.encode(to_pil(images[0]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda images: (images + 1) * 127.5, r"span .* to .*, expected \[-1, 1\]"),
        (lambda images: images.index_fill(3, torch.tensor([5]), float("nan")), "nan"),
        (lambda images: images.index_fill(3, torch.tensor([5]), float("inf")), "inf"),
        (lambda images: ((images + 1) * 127.5).long(), r"torch.int64, expected uint8 in 0..255 or floats in \[-1, 1\]"),
        (lambda images: images[:, :1], r"shape \(2, 1, 256, 256\), expected \(height, width, 3\)"),
        (lambda images: images[0, 0].numpy(), r"shape \(256, 256\)"),
        (lambda images: images[:0], "no images to encode"),
        (lambda images: [], "no images to encode"),
        (lambda images: [None], "an image is 'NoneType', expected a path, a PIL image"),
        (lambda images: np.array([["a"]]), "array of <U1"),
        (lambda images: "nowhere.png", "nowhere.png: No such file"),
        (lambda images: Image.new("F", (64, 64)), "PIL image of mode F cannot be read: .*no known value range"),
        (lambda images: Image.new("RGB", (2000, 20)), "2000x20 is too long"),
    ],
)  # fmt: skip
def test_what_is_no_picture_is_refused_in_one_line(tokenizer, images, change, message, users_checks):
    with pytest.raises(HybridTokenizerError, match=message) as caught:
        tokenizer.encode(change(images))
    assert "\n" not in str(caught.value)


# 5: decode
def test_decode_to_what_is_asked_for(tokenizer, tokens):
    images = tokenizer.decode(tokens)
    assert images.shape == (2, 3, 256, 256) and images.dtype == torch.float32 and images.abs().max() <= 1
    arrays = tokenizer.decode(tokens, output_type="np")
    assert arrays.shape == (2, 256, 256, 3) and arrays.dtype == np.uint8
    pictures = tokenizer.decode(tokens, output_type="pil")
    assert [np.array_equal(np.asarray(picture), array) for picture, array in zip(pictures, arrays, strict=True)] == [
        True
    ] * 2
    torch.testing.assert_close(
        from_uint8(torch.from_numpy(arrays).permute(0, 3, 1, 2)), images, rtol=0, atol=1.001 / 255
    )


def test_decode_at_another_size(tokenizer, tokens):
    assert tokenizer.decode(tokens[0], size=512).shape == (1, 3, 512, 512)
    assert tokenizer.decode(tokens[0], size=(128, 192)).shape == (1, 3, 128, 192)


def test_a_seed_is_a_generator_of_that_seed(tokenizer, tokens):
    options = {"start": "add_noise", "size": 128}
    seeded = tokenizer.decode(tokens[0], seed=3, **options)
    assert torch.equal(seeded, tokenizer.decode(tokens[0], generator=torch.Generator().manual_seed(3), **options))
    assert not torch.equal(seeded, tokenizer.decode(tokens[0], seed=4, **options))
    with pytest.raises(HybridTokenizerError, match="both seed=3 and a generator"):
        tokenizer.decode(tokens[0], seed=3, generator=torch.Generator())


def test_a_damaged_file_that_was_opened_by_pil_is_refused(tokenizer):
    buffer = io.BytesIO()
    PHOTOGRAPHS[0].save(buffer, "JPEG")
    data = buffer.getvalue()
    whole = tokenizer.encode(Image.open(io.BytesIO(data)))
    loaded = Image.open(io.BytesIO(data))
    loaded.load()
    assert tokenizer.encode(loaded) == whole
    damaged = Image.open(io.BytesIO(data[: len(data) // 2] + b"\xff\xd9"))
    with pytest.raises(HybridTokenizerError) as caught:
        tokenizer.encode(damaged)
    assert str(caught.value) == (
        "the PIL image of mode RGB cannot be read: the JPEG's coded data ends early; it is damaged or incomplete"
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": -8}, "a side of size is -8, expected a whole number from 1"),
        ({"size": 256.0}, "size is 256.0"),
        ({"size": True}, "size is True"),
        ({"size": (256, 256, 3)}, r"size is \(256, 256, 3\), expected \(height, width\) in pixels"),
        ({"size": 250}, "size is 250x250 .*multiples of 8"),
        ({"size": 10**9}, "size is 1000000000"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": 1.5}, "seed is 1.5"),
        ({"output_type": "jpeg"}, "output_type='jpeg' is unknown; use pt, pil, np"),
        ({"guidance_scale": 1e30}, r"guidance_scale is 1e\+30, expected a number from 0 to 100"),
        ({"guidance_scale": float("nan")}, "guidance_scale is nan"),
        ({"guidance_scale": True}, "guidance_scale is True"),
        ({"guidance_scale": "3"}, "guidance_scale is '3'"),
        ({"strength": "0.4"}, "strength is '0.4'"),
        ({"eta": None, "strength": -1}, "strength is -1"),
        ({"num_inference_steps": True}, "num_inference_steps is True"),
        ({"num_inference_steps": 20.0}, "num_inference_steps is 20.0"),
        ({"num_inference_steps": "20"}, "num_inference_steps is '20'"),
        ({"num_fixed_point_iterations": 10**6}, "num_fixed_point_iterations is 1000000"),
        ({"steps": 20}, "unknown decode options steps"),
        ({"vocabulary": 7}, "vocabulary is for ids"),
    ],
)
def test_options_out_of_range_are_refused_in_one_line(tokenizer, tokens, options, message, users_checks):
    with pytest.raises(HybridTokenizerError, match=message) as caught:
        tokenizer.decode(tokens, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("option", [{"resize": "stretch"}, {"guide_scales": 0}, {"guide_scales": 9}, {"search_steps": 1.5}, {"search_steps": -1}, {"guide_scales": True}])  # fmt: skip
def test_encode_options_out_of_range_are_refused(tokenizer, images, option, users_checks):
    with pytest.raises(HybridTokenizerError, match=f"{next(iter(option))}( is|=)") as caught:
        tokenizer.encode(images, **option)
    assert "\n" not in str(caught.value)


# 6: ids of a language model
def test_ids_with_their_vocabulary(tokenizer, tokens):
    vocabulary = tokenizer.vocabulary(text_vocab_size=1000)
    ids = tokens.to_token_ids(vocabulary)
    expected = tokenizer.decode(tokens, size=128)
    assert torch.equal(tokenizer.decode(ids, size=128, vocabulary=vocabulary), expected)
    assert torch.equal(tokenizer.decode(ids.tolist(), size=128, vocabulary=vocabulary), expected)
    alone = tokenizer.decode(ids[0].numpy(), size=128, vocabulary=vocabulary)
    torch.testing.assert_close(alone, expected[:1], rtol=0, atol=1e-4)
    with pytest.raises(HybridTokenizerError, match=r"decode\(ids, vocabulary=...\)"):
        tokenizer.decode(ids)


@pytest.mark.parametrize("text", [1.5, -1, True, "3", 2**40])
def test_a_vocabulary_of_no_whole_number_of_texts(tokenizer, text, users_checks):
    with pytest.raises(HybridTokenizerError, match="text_vocab_size is"):
        tokenizer.vocabulary(text)


@pytest.mark.parametrize("size", [256, (256,), (256.0, 256.0), (0, 256), (100, 100)])
def test_a_vocabulary_of_no_image_size(tokenizer, size, users_checks):
    with pytest.raises(HybridTokenizerError, match=r"image_size is|multiples of 16"):
        tokenizer.vocabulary(0, size)


# 7: play with the tokens
def test_semantics_of_one_with_the_guide_of_another(tokenizer, tokens):
    mixed = tokenizer.mix(semantic_of=tokens[0], guide_of=tokens[1])
    assert torch.equal(mixed.semantic_indices, tokens[0].semantic_indices)
    assert torch.equal(mixed.guide_indices[3], tokens[1].guide_indices[3])
    assert mixed.source == tokenizer.source
    with pytest.raises(HybridTokenizerError, match="semantic_of has 2 images and guide_of 1"):
        HybridTokens.mix(semantic_of=tokens, guide_of=tokens[0])


def test_embeddings_between_two_pictures(tokenizer, tokens):
    embeds = tokenizer.semantic_embeds(tokens)
    assert embeds.shape == (2, 77, 384)
    one, other, options = tokens[0], embeds[1:], {"size": 128, "strength": 0.6}
    own = tokenizer.decode(one, semantic_embeds=embeds[:1], **options)
    assert torch.equal(own, tokenizer.decode(one, **options))
    middle = tokenizer.decode(one, semantic_embeds=embeds[:1].lerp(other, 0.5), **options)
    far = tokenizer.decode(one, semantic_embeds=other, **options)
    assert 0 < (middle - own).abs().mean() < (far - own).abs().mean()
    with pytest.raises(HybridTokenizerError, match="there are 1 guide_images and 2 generation_embeds"):
        tokenizer.decode(one, semantic_embeds=embeds)


# 8: treat it as a torch module
def test_it_is_a_torch_module(tokenizer):
    assert isinstance(tokenizer, torch.nn.Module) and not tokenizer.training
    assert tokenizer.eval() is tokenizer and not any(module.training for module in tokenizer.modules())
    assert 2e7 < sum(weight.numel() for weight in tokenizer.parameters()) < 3e7
    state = tokenizer.state_dict()
    assert {name.partition(".")[0] for name in state} == {"guide", "semantic", "diffusion"}
    with pytest.raises(
        HybridTokenizerError, match="hybrid-tokenizer train-guide, train-semantic and pretrain-diffusion"
    ):
        tokenizer.train()


# 9: look at it
def test_everything_has_a_short_name(tokenizer, tokens):
    assert repr(tokenizer) == "HybridTokenizer('tiny', 256 px to 32 semantic + 340 guide tokens, float32 on cpu)"
    assert repr(tokens) == (
        f"HybridTokens(2 images of 256x256: 32 semantic + 4 + 16 + 64 + 256 guide tokens, made by {tokenizer.source})"
    )
    assert repr(tokenizer.vocabulary(1000)) == (
        "HybridVocabulary(text 0..999, <img> 1000, </img> 1001, semantic 1002..5097, guide 5098..21481; "
        "38 or 54 or 118 or 374 ids per 256x256 image)"
    )
    for branch in (tokenizer.guide, tokenizer.semantic, tokenizer.diffusion):
        assert repr(branch).startswith(type(branch).__name__) and len(repr(branch)) < 200 and "\n" not in repr(branch)


# 10: compare with others
def test_measure_a_reconstruction(tokenizer, tokens, images):
    decoded = tokenizer.decode(tokens)
    values = hybrid_tokenizer.metrics.psnr(decoded, images)
    assert values.shape == (2,) and 18 < values.min() < values.max() < 40
    assert 0.4 < hybrid_tokenizer.metrics.ssim(decoded, images).min() < 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("movq_270m",), r"movq_270m needs its weights; give load_baseline\('movq_270m', PATH\)"),
        (("movq_270m", "/nowhere.ckpt"), r"/nowhere.ckpt does not exist; give movqgan_270M.ckpt"),
        (("moqv",), "baseline 'moqv' is unknown; use one of movq_67m, "),
    ],
)
def test_a_baseline_without_its_weights(arguments, message):
    with pytest.raises(HybridTokenizerError, match=message) as caught:
        hybrid_tokenizer.load_baseline(*arguments)
    assert "\n" not in str(caught.value)


def test_reconstruct_a_file_in_one_call(tokenizer, tokens, tmp_path):
    PHOTOGRAPHS[0].save(tmp_path / "cat.png")
    (picture,) = tokenizer.reconstruct(tmp_path / "cat.png", output_type="pil")
    assert np.array_equal(np.asarray(picture), tokenizer.decode(tokens[0], output_type="np")[0])
