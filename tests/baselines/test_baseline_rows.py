"""Every family in its published nesting and names, at reduced width, through the path a user takes."""

import math

import pytest
import torch
from helpers.small_models import noise_images, small_hybrid

from hybrid_tokenizer.baselines.grid_row import GridTokens, pad_to_multiple
from hybrid_tokenizer.baselines.loading import find_folder, load_baseline
from hybrid_tokenizer.baselines.registry import BASELINES
from hybrid_tokenizer.baselines.var_vae import shared_residual
from hybrid_tokenizer.checkpoints.files import save_tensors, write_json
from hybrid_tokenizer.checkpoints.hub import find_file
from hybrid_tokenizer.errors import HybridTokenizerError
from hybrid_tokenizer.evaluation.rows import rows_by_name
from hybrid_tokenizer.protocol import ImageTokenizer
from hybrid_tokenizer.verification.layouts import layouts

F8, F16 = [32] * 4, [32] * 5
TITOK = (4, 16, 9, (64, 1), (64, 1))
REDUCED = {
    "movq_67m": layouts.taming(F8, 1, 4, 4, 16384, [3], spatial=True),
    "vqgan_f8_256": layouts.taming(F8, 1, 4, 4, 256, [3]),
    "vqgan_gumbel_f8": layouts.gumbel(F8, 1, 8, 8192, [3]),
    "var_vae": layouts.var(F16, 1, 8, 4096, 10),
    "magvit2_16384": layouts.with_averages(layouts.magvit2(F16, 1, 14)),
    "ibq_1024": layouts.with_averages(layouts.taming(F16, 1, 8, 8, 1024, [4])),
    "llamagen_ds16": layouts.llamagen(F16, 1, 8, 8, 16384) | {"quantize.codebook_used": (7,)},
    "titok_l32": layouts.titok(*TITOK, 4096, 12, (1024, 8, F16, 1)),
    "titok_bl64": layouts.titok(*TITOK, 8192, 12),
}
TOKENS = {"movq_67m": 5 * 7, "vqgan_f8_256": 5 * 7, "vqgan_gumbel_f8": 5 * 7, "titok_l32": 9, "titok_bl64": 9}
NESTING = {"movq_67m": None, "var_vae": None, "titok_l32": None, "titok_bl64": None, "llamagen_ds16": "ema"}


def random_state(layout, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def fill(key, shape):
        noise = torch.randn(shape, generator=generator)
        if "embedding" in key or "embed" in key:
            return noise
        if len(shape) < 2:
            return noise * 0.1 + ("norm" in key or "ln_" in key) * float(key.endswith("weight"))
        return noise / math.sqrt(math.prod(shape[1:]))

    return {key: fill(key, shape) for key, shape in layout.items()}


def save_published(name, folder, state=None):
    """The file as its authors nest it, under its published name."""
    file = folder / BASELINES[name].sources[0].file
    state = random_state(REDUCED[name]) if state is None else state
    if file.suffix == ".safetensors":
        save_tensors(file, state)
        return file
    wrapper = NESTING.get(name, "state_dict")
    if wrapper == "ema":
        torch.save({"ema": state, "model": random_state(REDUCED[name], seed=1), "steps": 3}, file)
    else:
        torch.save({wrapper: state, "global_step": 3} if wrapper else state, file)
    return file


@pytest.fixture(scope="module", params=REDUCED)
def row(request, tmp_path_factory):
    return load_baseline(request.param, save_published(request.param, tmp_path_factory.mktemp(request.param)))


def test_a_row_of_the_protocol_that_decodes_from_indices_alone(row):
    assert isinstance(row, ImageTokenizer)
    images = noise_images(2, 40, 56)
    tokens = row.encode(images)
    decoded = row.decode(GridTokens(tuple(grid.clone() for grid in tokens.grids), (40, 56)), (40, 56))
    assert decoded.shape == images.shape and decoded.abs().max() <= 1
    assert torch.equal(decoded, row.decode(tokens, (40, 56)))
    assert row.decode(tokens, (24, 30)).shape == (2, 3, 24, 30)
    expected = TOKENS.get(row.name, 3 * 4)
    if row.name == "var_vae":
        assert [tuple(grid.shape[1:]) for grid in tokens.grids][-1] == (3, 4)
        expected = sum(grid[0].numel() for grid in tokens.grids)
    assert row.num_tokens(tokens).tolist() == [expected] * 2
    bits = expected * math.log2(BASELINES[row.name].codebook_size)
    torch.testing.assert_close(row.bits(tokens), torch.full((2,), bits))
    indices, size = row.codebook_indices(tokens)["codebook"]
    assert indices.shape == (2, expected) and size == BASELINES[row.name].codebook_size
    assert len(indices.unique()) > 1

    alone = row.encode(images[1:])
    assert all(torch.equal(a, b[1:]) for a, b in zip(alone.grids, tokens.grids, strict=True))
    torch.testing.assert_close(row.decode(alone, (40, 56)), decoded[1:], rtol=0, atol=1e-4)


def test_an_index_that_is_no_code_is_refused(row):
    tokens = row.encode(noise_images(1, 32, 32))
    grids = (*tokens.grids[:-1], torch.full_like(tokens.grids[-1], BASELINES[row.name].codebook_size))
    with pytest.raises(HybridTokenizerError, match="this codebook has 0"):
        row.decode(GridTokens(grids, (32, 32)), (32, 32))


def test_averaged_weights_are_read_and_raw_ones_are_not(tmp_path):
    name = "magvit2_16384"
    state = random_state(REDUCED[name])
    first = load_baseline(name, save_published(name, tmp_path, state)).model.state_dict()
    raw = {k: torch.zeros_like(v) if not k.startswith("model_ema.") else v for k, v in state.items()}
    second = load_baseline(name, save_published(name, tmp_path, raw)).model.state_dict()
    assert all(torch.equal(first[key], second[key]) for key in first)
    bare = {k: v for k, v in state.items() if not k.startswith("model_ema.")}
    third = load_baseline(name, save_published(name, tmp_path, bare)).model.state_dict()
    assert torch.equal(third["encoder.conv_in.weight"], state["encoder.conv_in.weight"])
    assert not torch.equal(third["encoder.conv_in.weight"], first["encoder.conv_in.weight"])


def test_a_stated_norm_of_the_codes_is_followed(tmp_path):
    file = save_published("titok_bl64", tmp_path)
    assert not load_baseline("titok_bl64", file).model.quantizer.unit_codes
    write_json(tmp_path / "config.json", {"model": {"vq_model": {"use_l2_norm": True}}})
    assert load_baseline("titok_bl64", tmp_path).model.quantizer.unit_codes


def test_a_diffusers_movq_folder(tmp_path):
    from diffusers import VQModel

    VQModel(
        block_out_channels=(32,) * 4, layers_per_block=1, latent_channels=4, num_vq_embeddings=16384, norm_type="spatial",
        down_block_types=("DownEncoderBlock2D",) * 3 + ("AttnDownEncoderBlock2D",),
        up_block_types=("AttnUpDecoderBlock2D",) + ("UpDecoderBlock2D",) * 3,
    ).save_pretrained(tmp_path / "movq")  # fmt: skip
    for folder in (tmp_path, tmp_path / "movq"):
        row = load_baseline("movq_kandinsky3", folder)
        assert row.decode(row.encode(noise_images(1, 32, 48)), (32, 48)).shape == (1, 3, 32, 48)


def test_padding_reflects_and_is_cropped_away():
    images = noise_images(1, 13, 20)
    padded = pad_to_multiple(images, 8)
    assert padded.shape[-2:] == (16, 24) and torch.equal(padded[..., :13, :20], images)
    assert torch.equal(padded[..., 13, :20], images[..., 11, :])
    with pytest.raises(HybridTokenizerError, match="cannot be padded"):
        pad_to_multiple(images[..., :3, :], 8)


@pytest.mark.parametrize(
    ("num_scales", "expected"), [(10, [0, 0, 1, 1, 1, 2, 2, 3, 3, 3]), (6, [0, 0, 1, 2, 3, 3]), (1, [0])]
)
def test_scales_share_the_nearest_of_four_convolutions(num_scales, expected):
    assert [shared_residual(scale, num_scales, 4) for scale in range(num_scales)] == expected


def test_published_scales(tmp_path):
    model = load_baseline("var_vae", save_published("var_vae", tmp_path)).model
    assert sum(h * w for h, w in model.scale_sizes((16, 16))) == 680
    assert sum(h * w for h, w in model.scale_sizes((32, 32))) == 2240


@pytest.mark.parametrize(
    ("name", "path", "message"),
    [
        ("nonsense", "x", "baseline 'nonsense' is unknown"),
        (
            "movq_270m",
            None,
            r"^movq_270m needs its weights; give load_baseline\('movq_270m', PATH\): movqgan_270M.ckpt of "
            r"ai-forever/MoVQGAN, its folder, a hub id, or 'hub' to download it$",
        ),
        ("seed", None, r"^seed needs its weights; give load_baseline\('seed', PATH\): a folder with eva_vit_g.pth, "),
        (
            "var_vae",
            "nowhere.pth",
            r"^nowhere.pth does not exist; give vae_ch160v4096z32.pth of var_vae, its folder, a hub "
            r"id like owner/name, or hub$",
        ),
        (
            "movq_270m",
            "weights/movqgan_270M.ckpt",
            r"^weights/movqgan_270M.ckpt does not exist; give movqgan_270M.ckpt of ",
        ),
        (
            "movq_kandinsky3",
            "a/b/c",
            r"^a/b/c does not exist; give the folder movq/ of movq_kandinsky3, or a hub id like",
        ),
        ("vqgan_f8", "hub", "^vqgan_f8 is on no hub; download model.ckpt from https"),
        (
            "lavit",
            "nowhere",
            "^nowhere is not a folder; give a folder with visual_tokenizer/ and highres_pixel_decoding/$",
        ),
    ],
)
def test_errors_are_one_line(name, path, message):
    with pytest.raises(HybridTokenizerError, match=message) as caught:
        load_baseline(name, path)
    assert "\n" not in str(caught.value)


def test_other_models_folders_and_pickles_are_refused(tmp_path):
    vqgan = save_published("vqgan_f8_256", tmp_path)
    with pytest.raises(HybridTokenizerError, match="256 codes and factor 8, vqgan_f8 has 16384 and 8"):
        load_baseline("vqgan_f8", vqgan)
    with pytest.raises(HybridTokenizerError, match="no spatial norms"):
        load_baseline("movq_67m", vqgan)
    with pytest.raises(HybridTokenizerError, match=r"has no vae_ch160v4096z32\.pth"):
        load_baseline("var_vae", tmp_path)
    with pytest.raises(HybridTokenizerError, match="is a file; give its folder"):
        load_baseline("movq_kandinsky2", vqgan)
    torch.save({"state_dict": {}, "callbacks": {object: 1}}, tmp_path / "last.ckpt")
    with pytest.raises(HybridTokenizerError, match="cannot be read safely"):
        load_baseline("vqgan_f16_1024", tmp_path)


def test_weights_come_from_the_published_repository_or_a_given_one(monkeypatch, tmp_path):
    from huggingface_hub.errors import LocalEntryNotFoundError

    asked = []

    def download(repository, file, **options):
        asked.append((repository, file))
        if repository == "FoundationVision/var":
            raise LocalEntryNotFoundError("no connection")
        return str(tmp_path / file)

    def snapshot(repository, *, allow_patterns, **options):
        asked.append((repository, *allow_patterns))
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    with pytest.raises(
        HybridTokenizerError, match=r"^FoundationVision/var/vae_ch160v4096z32.pth cannot be fetched from"
    ):
        load_baseline("var_vae", "hub")
    file = tmp_path / "vae_ch160v4096z32.pth"
    assert find_file("var_vae", "mine/copy", BASELINES["var_vae"].sources) == file
    assert find_file("vqgan_f16_1024", "hub", BASELINES["vqgan_f16_1024"].sources) == tmp_path / "pytorch_model.bin"
    (tmp_path / "movq").mkdir()
    assert find_folder("movq_kandinsky3", "hub", BASELINES["movq_kandinsky3"].sources) == tmp_path / "movq"
    assert asked == [
        ("FoundationVision/var", file.name),
        ("mine/copy", file.name),
        ("thomwolf/vqgan_imagenet_f16_1024", "pytorch_model.bin"),
        ("kandinsky-community/kandinsky-3", "movq/config.json", "movq/*.safetensors"),
    ]


def test_rows_by_name_take_baselines_beside_the_controls(tmp_path):
    hybrid = small_hybrid()
    path = str(save_published("vqgan_f8_256", tmp_path))
    assert [row.name for row in rows_by_name(hybrid, ["identity", "vqgan_f8_256"], {"vqgan_f8_256": path})] == [
        "identity", "vqgan_f8_256",
    ]  # fmt: skip
    assert rows_by_name(hybrid, None, {"vqgan_f8_256": path})[-1].name == "vqgan_f8_256"
    with pytest.raises(
        HybridTokenizerError, match=r"add \+baselines\.var_vae=PATH, vae_ch160v4096z32\.pth of FoundationVision/var"
    ):
        rows_by_name(hybrid, ["var_vae"])
    with pytest.raises(HybridTokenizerError, match="baselines nonsense are unknown"):
        rows_by_name(hybrid, None, {"nonsense": path})
