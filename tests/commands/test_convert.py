"""MoVQ's published layouts to a guide tokenizer's folder, checked against the reference's own outputs."""

import sys
from dataclasses import replace
from pathlib import Path

import diffusers
import pytest
import torch
from safetensors.torch import load_file

from hybrid_tokenizer.baselines.loading import load_baseline
from hybrid_tokenizer.baselines.registry import BASELINES
from hybrid_tokenizer.commands.convert import convert, main
from hybrid_tokenizer.errors import HybridTokenizerError
from hybrid_tokenizer.guide import GuideTokenizer
from hybrid_tokenizer.images import resize_area
from hybrid_tokenizer.training.setup import start_guide

GOLDEN = Path(__file__).resolve().parents[1] / "golden"


def fixture(kind):
    """State dict, inputs and outputs of a reference implementation at reduced width."""
    tensors = load_file(GOLDEN / f"{kind}_a.safetensors")
    parts = {"state": {}, "in": {}, "out": {}}
    for name, value in tensors.items():
        part, _, key = name.partition(".")
        parts[part][key] = value.float() if part == "state" and value.is_floating_point() else value
    return parts["state"], parts["in"], parts["out"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """MoVQGAN's file: a flat state dict with the training's leftovers beside the weights."""
    path = tmp_path_factory.mktemp("movq") / "movqgan_reduced.ckpt"
    state, _, _ = fixture("movq")
    torch.save({**state, "loss.discriminator.weight": torch.zeros(2), "ema_encoder.decay": torch.zeros(1)}, path)
    return path


@pytest.fixture(scope="module")
def folder(checkpoint):
    folder = checkpoint.with_name("guide")
    convert("movq", [checkpoint], folder)
    return folder


def test_the_command_converts_movqgans_checkpoint(checkpoint, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["convert", "movq", str(checkpoint), "--output", str(tmp_path / "guide")])
    main()
    assert capsys.readouterr().out == f"0.9 M weights, 64 codes, one token per 8 px; written to {tmp_path / 'guide'}\n"
    assert sorted(path.name for path in (tmp_path / "guide").iterdir()) == ["config.json", "model.safetensors"]


def test_the_folder_computes_what_the_reference_does(folder):
    model = GuideTokenizer.from_pretrained(folder)
    _, inputs, outputs = fixture("movq")
    (indices,) = model.encode(inputs["image"])
    assert torch.equal(indices, outputs["indices"])
    torch.testing.assert_close(model.decode([indices]), outputs["rec_from_indices"], rtol=0, atol=1e-4)


def test_guide_init_starts_from_it_behind_a_deeper_encoder(folder):
    base = GuideTokenizer.from_pretrained(folder)
    deeper = replace(base.config, image_size=128, stem="residual_front", stem_factor=2)
    started = start_guide(deeper, str(folder)).eval()
    images = torch.rand(1, 3, 128, 64) * 2 - 1
    with torch.no_grad():
        assert torch.equal(started.features(images), base.features(resize_area(images, (64, 32))))


def test_the_folder_is_a_baseline(folder, monkeypatch):
    with pytest.raises(HybridTokenizerError, match="has 64 codes and factor 8, movq_270m has 16384 and 8"):
        load_baseline("movq_270m", folder)
    monkeypatch.setitem(BASELINES, "movq_270m", replace(BASELINES["movq_270m"], codebook_size=64))
    row = load_baseline("movq_270m", folder)
    _, inputs, outputs = fixture("movq")
    decoded = row.decode(row.encode(inputs["image"]), (64, 64))
    torch.testing.assert_close(decoded, outputs["rec_from_indices"].clamp(-1, 1), rtol=0, atol=1e-4)


def test_kandinskys_folder_is_converted_too(tmp_path):
    """diffusers' VQModel, which decodes the same codes to the same image."""
    torch.manual_seed(0)
    reference = diffusers.VQModel(
        down_block_types=("DownEncoderBlock2D", "AttnDownEncoderBlock2D"), block_out_channels=(32, 32),
        up_block_types=("AttnUpDecoderBlock2D", "UpDecoderBlock2D"), latent_channels=4, num_vq_embeddings=16,
        vq_embed_dim=4, norm_type="spatial",
    ).eval()  # fmt: skip
    reference.save_pretrained(tmp_path / "movq")
    convert("movq", [tmp_path / "movq"], tmp_path / "guide")
    model = GuideTokenizer.from_pretrained(tmp_path / "guide")
    indices = torch.randint(16, (1, 6, 4))
    with torch.no_grad():
        codes = reference.quantize.embedding(indices).permute(0, 3, 1, 2)
        expected = reference.decode(codes, force_not_quantize=True).sample
    torch.testing.assert_close(model.decode([indices]), expected, rtol=1e-4, atol=1e-5)


def test_what_is_no_movq_is_refused(checkpoint, tmp_path):
    state, _, _ = fixture("taming_vqgan")
    torch.save({"state_dict": state}, tmp_path / "vqgan.ckpt")
    (tmp_path / "empty").mkdir()
    for kind, paths, words in (
        ("movq", [tmp_path / "vqgan.ckpt"], "is no MoVQ: its decoder has no spatial norms"),
        ("movq", [checkpoint, checkpoint], "one file or one folder, and 2 were given"),
        ("movq", [tmp_path / "none.ckpt"], "does not exist"),
        ("movq", [tmp_path / "empty"], "config.json does not exist"),
        ("movqgan", [checkpoint], "unknown kind 'movqgan'; known kinds: movq, blip2"),
    ):
        with pytest.raises(HybridTokenizerError, match=words) as error:
            convert(kind, paths, tmp_path / "guide")
        assert "\n" not in str(error.value)
    assert not (tmp_path / "guide").exists()
