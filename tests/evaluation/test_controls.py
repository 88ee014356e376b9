import pytest
import torch
from helpers.small_models import noise_images, small_hybrid

from hybrid_tokenizer.baselines.codec import Codec, best_file, read_file, write_file
from hybrid_tokenizer.data import sample_photographs
from hybrid_tokenizer.errors import HybridTokenizerError
from hybrid_tokenizer.evaluation.controls import (
    HybridRow,
    Identity,
    LosslessGuide,
    Unrelated,
    bits_at_native_size,
    control_rows,
    other_photographs,
)
from hybrid_tokenizer.evaluation.rows import hybrid_row, rows_by_name
from hybrid_tokenizer.images import fit_square, from_pil, resize_area, resize_bicubic, to_pil
from hybrid_tokenizer.protocol import ImageTokenizer, PairTokenizer

NAMES = [
    "identity", "unrelated", "lossless_guide", "guide_only", "semantic_only", "semantic_only_wrong_semantics",
    "guide_tokens_null_condition", "hybrid_wrong_semantics", "hybrid", "codec",
]  # fmt: skip


@pytest.fixture(scope="module")
def hybrid():
    return small_hybrid()


@pytest.fixture(scope="module")
def rows(hybrid):
    return {row.name: row for row in control_rows(hybrid)}


@pytest.fixture
def images():
    return noise_images(3, 32, 48)


def photographs(side=64, count=2):
    return torch.stack([from_pil(fit_square(picture, side)) for picture in list(sample_photographs().values())[:count]])


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def psnr(images, others):
    return -10 * ((images - others) / 2).square().mean(dim=(1, 2, 3)).log10()


def tokens_of(row, images):
    return row.encode_pair(images, images.roll(-1, 0)) if isinstance(row, PairTokenizer) else row.encode(images)


def test_every_control_is_a_row_of_the_protocol(rows):
    assert list(rows) == NAMES
    assert all(isinstance(row, ImageTokenizer) for row in rows.values())
    pairs = [name for name, row in rows.items() if isinstance(row, PairTokenizer)]
    assert pairs == ["unrelated", "semantic_only_wrong_semantics", "hybrid_wrong_semantics"]
    assert pairs == [name for name, row in rows.items() if getattr(row, "needs_next", False)]


@pytest.mark.parametrize("name", NAMES)
def test_decodes_its_tokens_to_the_size_asked_for(rows, name, images):
    row = rows[name]
    tokens = tokens_of(row, images)
    for size in ((32, 48), (40, 64)):
        decoded = row.decode(tokens, size, seeded())
        assert decoded.shape == (3, 3, *size) and decoded.abs().max() <= 1
    assert row.num_tokens(tokens).shape == (3,) and row.bits(tokens).dtype == torch.float32


@pytest.mark.parametrize(
    ("name", "num_tokens"),
    [
        ("identity", 32 * 48),
        ("unrelated", 0),
        ("lossless_guide", 16 * 24),
        ("guide_only", 24),
        ("semantic_only", 32),
        ("semantic_only_wrong_semantics", 32),
        ("guide_tokens_null_condition", 24),
        ("hybrid_wrong_semantics", 56),
        ("hybrid", 56),
    ],
)
def test_counts_what_it_decodes_from(rows, name, num_tokens, images):
    tokens = tokens_of(rows[name], images)
    assert rows[name].num_tokens(tokens).tolist() == [num_tokens] * 3
    assert (rows[name].bits(tokens) > 0).all() == (num_tokens > 0)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "codec"])
def test_images_do_not_depend_on_their_batch(rows, name, images):
    row = rows[name]
    following = images.roll(-1, 0)

    def run(i):
        pair = isinstance(row, PairTokenizer)
        tokens = row.encode_pair(images[i], following[i]) if pair else row.encode(images[i])
        return row.decode(tokens, (32, 48), seeded())

    torch.testing.assert_close(run(slice(1, 2)), run(slice(None))[1:2], rtol=1e-4, atol=1e-4)


def test_identity_is_the_image(images):
    row = Identity()
    assert torch.equal(row.decode(row.encode(images), (32, 48)), images)


def test_unrelated_is_the_next_image(images):
    row = Unrelated()
    assert torch.equal(row.decode(row.encode_pair(images, images.roll(-1, 0)), (32, 48)), images.roll(-1, 0))


def test_a_single_image_is_paired_with_another_photograph():
    first, second = photographs().split(1)
    row = Unrelated()
    assert torch.equal(row.encode(second), first)
    assert torch.equal(row.encode(first), second)
    assert torch.equal(other_photographs(torch.cat([first, second])), torch.cat([second, first]))
    assert row.encode(noise_images(1, 32, 48)).shape == (1, 3, 32, 48)


def test_lossless_guide_is_area_down_and_bicubic_up():
    images = photographs(64)
    row = LosslessGuide(guide_size=16)
    expected = resize_bicubic(resize_area(images, (16, 16)), (64, 64)).clamp(-1, 1)
    torch.testing.assert_close(row.decode(row.encode(images), (64, 64)), expected, rtol=0, atol=0.01)  # 8-bit guide
    assert row.bits(row.encode(images)).tolist() == [16 * 16 * 24] * 2
    assert row.encode(torch.nn.functional.pad(images, (0, 64))).shape[-2:] == (16, 32)


def test_guide_only_is_the_decoded_guide(rows, hybrid, images):
    row = rows["guide_only"]
    guide_images = hybrid.guide.decode(hybrid.guide.encode(images)).clamp(-1, 1)
    expected = resize_bicubic(guide_images, (32, 48)).clamp(-1, 1)
    torch.testing.assert_close(row.decode(row.encode(images), (32, 48)), expected)


def test_hybrid_row_is_the_tokenizer_itself(rows, hybrid, images):
    row = rows["hybrid"]
    decoded = row.decode(row.encode(images), (32, 48), seeded(4))
    assert torch.equal(decoded, hybrid.decode(hybrid.encode(images), generator=seeded(4)))


def test_each_kind_of_token_alone(rows, hybrid, images):
    whole = hybrid.encode(images)
    semantic = rows["semantic_only"].encode(images)
    assert semantic.guide_indices is None and torch.equal(semantic.semantic_indices, whole.semantic_indices)
    guide = rows["guide_tokens_null_condition"].encode(images)
    assert guide.semantic_indices is None and torch.equal(guide.guide_indices[0], whole.guide_indices[0])
    wrong = rows["hybrid_wrong_semantics"].encode_pair(images, images.roll(-1, 0))
    assert torch.equal(wrong.guide_indices[0], whole.guide_indices[0])
    assert torch.equal(wrong.semantic_indices, whole.semantic_indices.roll(-1, 0))
    assert not torch.equal(wrong.semantic_indices, whole.semantic_indices)
    alone = rows["semantic_only_wrong_semantics"].encode_pair(images, images.roll(-1, 0))
    assert alone.guide_indices is None and torch.equal(alone.semantic_indices, wrong.semantic_indices)


def test_semantic_only_starts_from_pure_noise(rows, hybrid, images):
    tokens = rows["semantic_only"].encode(images[:1])
    embeds = hybrid.semantic.decode(tokens.semantic_indices)
    seen = []
    original = hybrid.diffusion.decode

    def record(guide_images, generation_embeds, size, **options):
        seen.append((guide_images, torch.equal(generation_embeds, embeds)))
        return original(guide_images, generation_embeds, size, **options)

    hybrid.diffusion.decode = record
    try:
        first, second = (rows["semantic_only"].decode(tokens, (32, 48), seeded(seed)) for seed in (0, 1))
    finally:
        del hybrid.diffusion.decode
    assert seen == [(None, True)] * 2 and not torch.equal(first, second)


def test_a_row_that_says_deterministic_is(images):
    hybrid = small_hybrid(start="ddim_inversion")
    for row in control_rows(hybrid):
        tokens = tokens_of(row, images[:1])
        same = torch.equal(row.decode(tokens, (32, 48), seeded(0)), row.decode(tokens, (32, 48), seeded(1)))
        assert same == row.deterministic, row.name
    assert not hybrid_row(hybrid, start="add_noise").deterministic and not hybrid_row(hybrid, eta=0.5).deterministic
    assert hybrid_row(small_hybrid(start="add_noise"), start="ddim_inversion").deterministic


def test_rows_that_decode_share_the_guide_tokens_of_one_search(monkeypatch):
    hybrid, images = small_hybrid(start="ddim_inversion", nested=True), noise_images(3, 32, 32)
    hybrid.search_steps = 2
    expected = hybrid.encode(images)
    searched = []
    original = hybrid.encode_guide
    monkeypatch.setattr(
        hybrid, "encode_guide", lambda images, *rest: (searched.append(len(images)), original(images, *rest))[1]
    )
    rows = {row.name: row for row in control_rows(hybrid)}
    names = [name for name in NAMES if name != "codec"]
    assert list(rows) == [*names[:4], "guide_of_hybrid", *names[4:], "codec"]
    decoding = ("guide_of_hybrid", "guide_tokens_null_condition", "hybrid_wrong_semantics", "hybrid")
    for name in decoding:
        tokens = tokens_of(rows[name], images)
        assert all(torch.equal(*pair) for pair in zip(tokens.guide_indices, expected.guide_indices, strict=True)), name
    assert searched == [3]
    of_guide = hybrid.decode_guide(expected.guide_indices, (32, 32))
    shown = rows["guide_of_hybrid"].decode(rows["guide_of_hybrid"].encode(images), (32, 32))
    torch.testing.assert_close(shown, resize_bicubic(of_guide, (32, 32)).clamp(-1, 1))


def test_rows_share_a_search_of_as_many_steps_and_no_other(monkeypatch):
    hybrid, images = small_hybrid(start="ddim_inversion", nested=True), noise_images(2, 32, 32)
    searched = []
    original = hybrid.encode_guide

    def encode_guide(images, semantic_indices, guide_scales, search_steps):
        searched.append((len(images), guide_scales, search_steps))
        return original(images, semantic_indices, guide_scales, search_steps)

    monkeypatch.setattr(hybrid, "encode_guide", encode_guide)
    names = ["hybrid", "guide_only", "hybrid@search2", "hybrid@search2,s0.6", "guide_of_hybrid@search2",
             "hybrid@search3", "hybrid@5,search2"]  # fmt: skip
    rows = {row.name: row for row in rows_by_name(hybrid, names)}
    tokens = {name: row.encode(images).guide_indices for name, row in rows.items()}
    assert searched == [(2, None, 2), (2, None, 3), (2, 2, 2)]
    for name, options in (
        ("hybrid", {}),
        ("guide_only", {}),
        ("hybrid@search2", {"search_steps": 2}),
        ("hybrid@search2,s0.6", {"search_steps": 2}),
        ("guide_of_hybrid@search2", {"search_steps": 2}),
        ("hybrid@search3", {"search_steps": 3}),
        ("hybrid@5,search2", {"search_steps": 2, "guide_scales": 2}),
    ):
        expected = hybrid.encode(images, **options).guide_indices
        assert all(torch.equal(*pair) for pair in zip(tokens[name], expected, strict=True)), name


def test_guide_only_searches_for_the_guides_own_loss():
    hybrid, images = small_hybrid(start="ddim_inversion", nested=True), noise_images(3, 32, 32)
    plain = hybrid.guide.encode(images)
    hybrid.search_steps = 3
    tokens = {row.name: row for row in control_rows(hybrid)}["guide_only"].encode(images)
    expected = hybrid.guide.encode(images, search_steps=3)
    assert all(torch.equal(*pair) for pair in zip(tokens.guide_indices, expected, strict=True))
    assert any(not torch.equal(*pair) for pair in zip(tokens.guide_indices, plain, strict=True))


def test_variants_have_suffixed_names():
    hybrid = small_hybrid(nested=True)
    assert hybrid_row(hybrid).name == "hybrid"
    assert hybrid_row(hybrid, strength=0.4).name == "hybrid@s0.4"
    assert (
        hybrid_row(hybrid, start="add_noise", num_inference_steps=50, guidance_scale=3.0).name
        == "hybrid@add_noise,n50,g3"
    )
    row = hybrid_row(hybrid, guide_scales=2)
    tokens = row.encode(noise_images(1, 32, 32))
    assert row.name == "hybrid@5" and row.num_tokens(tokens).tolist() == [32 + 5]
    with pytest.raises(HybridTokenizerError, match=r"guide_scales=4 must lie in 1\.\.3"):
        hybrid_row(hybrid, guide_scales=4)


def test_variant_options_reach_the_decoder(hybrid, images):
    row = hybrid_row(hybrid, strength=1.0, num_inference_steps=5)
    decoded = row.decode(row.encode(images), (32, 48), seeded())
    expected = hybrid.decode(hybrid.encode(images), generator=seeded(), strength=1.0, num_inference_steps=5)
    assert torch.equal(decoded, expected)


def test_a_row_without_tokens_is_refused(hybrid):
    with pytest.raises(HybridTokenizerError, match="neither"):
        HybridRow(hybrid, "nothing", use_guide=False, use_semantic=False)


def test_codebook_indices_are_those_that_the_row_reads(rows, images):
    for name, expected in (
        ("semantic_only", {"semantic"}),
        ("guide_only", {"guide"}),
        ("hybrid", {"semantic", "guide"}),
    ):
        row = rows[name]
        read = row.codebook_indices(row.encode(images))
        assert set(read) == expected
        assert sum(indices.shape[1] for indices, _ in read.values()) == row.num_tokens(row.encode(images))[0]


def test_codec_budget_is_the_hybrids_bits_at_its_native_size(hybrid):
    at_native = hybrid.bits(hybrid.encode(noise_images(1, 32, 32))).item()
    for side in (32, 64, 100):
        assert bits_at_native_size(hybrid, (side, side)) == pytest.approx(at_native)


@pytest.mark.parametrize("budget", [120, 600])
def test_codec_keeps_its_budget_and_uses_it(budget):
    images = photographs(64)
    row = Codec(lambda size: budget * 8 + 7)
    tokens = row.encode(images)
    assert all(0.5 * budget < len(file) <= budget for file in tokens.files)
    assert row.bits(tokens).tolist() == [len(file) * 8 for file in tokens.files]
    assert (psnr(row.decode(tokens, (64, 64)), images) > 14).all()


def test_more_bytes_are_not_worse():
    (image,) = photographs(64, 1).split(1)
    scores = [psnr(read_file(best_file(image, budget), (64, 64)), image).item() for budget in (100, 300, 900)]
    assert scores == sorted(scores) and scores[-1] > scores[0] + 3


def test_codec_beats_full_size_files_of_the_same_bytes():
    (image,) = photographs(64, 1).split(1)
    plain = write_file(to_pil(image[0]), "WEBP", 0)
    best = best_file(image, len(plain))
    assert psnr(read_file(best, (64, 64)), image) >= psnr(read_file(plain, (64, 64)), image)


def test_too_small_a_budget_gives_the_smallest_file_at_its_true_cost():
    images = photographs(64, 1)
    row = Codec(lambda size: 64)
    tokens = row.encode(images)
    assert row.bits(tokens).item() == len(tokens.files[0]) * 8 > 64
    assert len(tokens.files[0]) <= len(best_file(images, 200))
    assert row.decode(tokens, (64, 64)).shape == (1, 3, 64, 64)
