import json

import pytest
import torch
from helpers.small_models import noise_images, small_hybrid
from training_runs import picture, said

from hybrid_tokenizer.diffusion import DiffusionDecoder
from hybrid_tokenizer.guide import GuideConfig, GuideTokenizer
from hybrid_tokenizer.semantic import SemanticConfig, SemanticTokenizer
from hybrid_tokenizer.training.config import UNetOptions
from hybrid_tokenizer.training.unet import UNetObjective

SMALL = (
    "diffusion.unet.block_out_channels=[32,32,32]", "diffusion.vae.block_out_channels=[8,8,8,8]", "diffusion.vae.decoder_channels=8",
    "data.image_size=32", "data.val_at_least=4",
    "training.batch_size=2", "training.warmup_steps=0", "training.num_workers=0", "training.num_threads=1",
    "training.tracker=none", "training.progress=false",
)  # fmt: skip


@pytest.fixture
def pairs(tmp_path):
    folder = tmp_path / "pairs"
    folder.mkdir()
    rows = []
    for index in range(10):
        picture(index).save(folder / f"{index}.png")
        rows.append(json.dumps({"file": f"{index}.png", "captions": [f"picture {index}", "squares of colour"]}))
    (folder / "captions.jsonl").write_text("\n".join(rows))
    return folder


@pytest.fixture
def semantic_folder(tmp_path):
    SemanticTokenizer(
        SemanticConfig(
            image_size=32, patch_size=16, vision_width=16, vision_layers=1, vision_heads=2, vision_mlp_width=16, width=16,
            num_queries=4, qformer_layers=1, qformer_heads=2, qformer_mlp_width=16, decoder_layers=1, decoder_heads=2,
            decoder_mlp_width=16, reverse_layers=1, generation_width=384,
        )
    ).save_pretrained(tmp_path / "semantic")  # fmt: skip
    return tmp_path / "semantic"


@pytest.fixture
def guide_folder(tmp_path):
    """A nested guide of 1 + 4 + 16 tokens."""
    GuideTokenizer(
        GuideConfig(
            image_size=32, encoder_channels=[8, 8, 8], decoder_channels=[8, 8, 8], encoder_layers=1, decoder_layers=1,
            encoder_attention=[], decoder_attention=[], norm_type="group", norm_num_groups=4, stem="unshuffle",
            stem_factor=2, guide_scales=[1, 2, 4], linear_path=True,
        )
    ).save_pretrained(tmp_path / "guide")  # fmt: skip
    return tmp_path / "guide"


def test_the_vae_then_a_unet_that_reads_guides(script, pairs, semantic_folder, guide_folder, tmp_path):
    """The first start of the U-Net is stopped, the second goes on with its cache, and both end as one that was not stopped."""
    vae, unet, whole = (tmp_path / name for name in ("vae", "unet", "whole"))
    error, stdout, stderr = script(
        "pretrain_diffusion.py", "stage=vae", *SMALL, f"data.root={pairs}", f"output_dir={vae}", "training.max_steps=1"
    )
    assert error is None and said(stdout) == ["starting from step 0", "finished at step 1"], stderr
    decoder = DiffusionDecoder.from_pretrained(vae / "final")
    images = torch.rand(1, 3, 32, 48) * 2 - 1
    assert decoder.encode_latents(images).shape == (1, 16, 4, 6)
    assert len(decoder.config.latent_scale) == 16, "measured on the validation images"

    options = (
        "pretrain_diffusion.py", "stage=unet", *SMALL, f"data.root={pairs}", f"diffusion.init={vae / 'final'}",
        f"semantic_folder={semantic_folder}", f"guide_folder={guide_folder}", "training.max_steps=2",
        "unet.linear_path=true", "unet.perceptual=0.01", "unet.pixel=0.1", "unet.restore_share=0.5", "unet.vae_decoder=true",
    )  # fmt: skip
    error, stdout, stderr = script(*options, f"output_dir={unet}", "training.max_minutes=1e-9")
    assert error is None and said(stdout)[0] == "starting from step 0" and "guide latents" in stderr, stderr
    error, stdout, stderr = script(*options, f"output_dir={unet}")
    assert error is None and said(stdout) == ["resumed from step 1", "finished at step 2"], stderr
    assert "latents" not in stderr and "semantic" not in stderr, "the cache of the first start is used"
    error, stdout, stderr = script(*options, f"output_dir={whole}")
    assert error is None
    for part in ("unet", "vae"):
        files = [folder / "final" / part / "diffusion_pytorch_model.safetensors" for folder in (unet, whole)]
        assert files[0].read_bytes() == files[1].read_bytes()

    trained = DiffusionDecoder.from_pretrained(whole / "final")
    assert trained.null_condition.abs().sum() > 0
    for half, same in (("encoder", True), ("decoder", False)):
        before, after = (getattr(one.vae, half).state_dict() for one in (decoder, trained))
        assert all(torch.equal(value, after[key]) for key, value in before.items()) == same, f"the VAE's {half}"
    assert trained.config.guide_conditioning and trained.unet.config.in_channels == 32
    assert len(trained.config.guide_residual) == 16 and min(trained.config.guide_residual) > 0
    assert trained.unet.conv_in.weight[:, 16:].abs().max() > 0, "the guide's weights start at zero and have moved"
    rows = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    validated = {name for row in rows for name in row if name.startswith("val_")}
    names = ("error_no_guide", "error_other_guide", "psnr_restored", "psnr_guide", "psnr_vae")
    assert {f"val_{name}" for name in names} <= validated


def test_a_trained_decoder_learns_to_read_guides(script, pairs, tmp_path):
    """As for a Stable Diffusion folder: no captions, its own null condition; before training it decodes as it did."""
    hybrid = small_hybrid()
    for name, part in (("decoder", hybrid.diffusion), ("semantic", hybrid.semantic), ("guide", hybrid.guide)):
        part.save_pretrained(tmp_path / name)
    objective = UNetObjective(hybrid.diffusion, hybrid.semantic, UNetOptions(), hybrid.guide)
    plain, images = small_hybrid(), noise_images(2)
    tokens = plain.encode(images)
    embeds = plain.semantic.decode(tokens.semantic_indices)
    guides = plain.decode_guide(tokens.guide_indices, tokens.image_size)
    options = {"start": "add_noise", "strength": 0.5, "num_inference_steps": 4}
    before, after = (
        decoder.decode(guides, embeds, (32, 48), generator=torch.Generator().manual_seed(0), **options)
        for decoder in (plain.diffusion, objective.decoder)
    )
    assert torch.equal(before, after)

    error, stdout, stderr = script(
        "pretrain_diffusion.py", "stage=finetune", f"diffusion.init={tmp_path / 'decoder'}",
        f"semantic_folder={tmp_path / 'semantic'}", f"guide_folder={tmp_path / 'guide'}", f"data.root={pairs}",
        f"output_dir={tmp_path / 'run'}",
        "training.max_steps=2", *(option for option in SMALL if not option.startswith("diffusion.")),
    )  # fmt: skip
    assert error is None and said(stdout) == ["starting from step 0", "finished at step 2"], stderr
    trained = DiffusionDecoder.from_pretrained(tmp_path / "run" / "final")
    assert trained.unet.conv_in.weight[:, 4:].abs().max() > 0, "the guide's weights start at zero and have moved"
    assert trained.config.guide_conditioning and torch.equal(trained.null_condition, plain.diffusion.null_condition)


def test_mistakes_are_one_line(script, pairs, tmp_path):
    for words, *options in (
        ("stage='unett' is unknown", "stage=unett"),
        ("stage has no value",),
        ("captions.jsonl does not exist", "stage=unet", f"data.root={tmp_path}"),
        (str(tmp_path / "none"), "stage=unet", f"diffusion.init={tmp_path / 'none'}"),
        ("views=0", "stage=unet", "unet.views=0"),
        ("add diffusion.init=FOLDER guide_folder=FOLDER", "stage=finetune", f"semantic_folder={tmp_path}"),
    ):
        given = (*SMALL, f"data.root={pairs}", f"output_dir={tmp_path / 'out'}", *options)
        error, stdout, stderr = script("pretrain_diffusion.py", *given)
        assert error.startswith("error: ") and "\n" not in error and words in error, error
        assert "Traceback" not in stderr and stdout == ""
