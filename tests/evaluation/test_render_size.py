"""One render size for all rows that draw by diffusion; dtype and reading threads of an evaluation."""

import pytest
import torch
from helpers.small_models import noise_images, small_hybrid

from hybrid_tokenizer.baselines.seed import SeedRow
from hybrid_tokenizer.commands.loading import load_tokenizer
from hybrid_tokenizer.data.samples import sample_photographs
from hybrid_tokenizer.errors import HybridTokenizerError
from hybrid_tokenizer.evaluation.config import EvalData, EvalReconConfig, ReconstructConfig
from hybrid_tokenizer.evaluation.controls import GuideOnly, HybridRow
from hybrid_tokenizer.evaluation.images import EvalImages
from hybrid_tokenizer.evaluation.loop import evaluate
from hybrid_tokenizer.evaluation.measures import metrics_named
from hybrid_tokenizer.hybrid import HybridTokenizer
from hybrid_tokenizer.images import fit_square, from_pil, resize_bicubic

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def hybrid():
    hybrid = small_hybrid(start="ddim_inversion")
    hybrid.diffusion.config.unet["sample_size"] = 8  # trained at 64 px, while the guide takes 32
    hybrid.render_size = hybrid.diffusion.config.trained_size
    return hybrid


def test_rows_that_draw_say_at_which_size_and_agree(hybrid):
    images = EvalImages.from_samples(32, max_images=2, progress=False)
    seed = SeedRow("seed", hybrid.semantic, hybrid.diffusion, num_inference_steps=2)
    rows = [
        evaluate(row, images, metrics_named("psnr"), progress=False).row
        for row in (HybridRow(hybrid), seed, GuideOnly(hybrid))
    ]
    assert [row.get("render_size") for row in rows] == [64, 64, None]
    assert [row["image_size"] for row in rows] == [32, 32, 32]


def test_diffusion_draws_at_the_render_size_and_the_image_is_resized(hybrid):
    tokens = hybrid.encode(noise_images(1, 32, 48))
    small = hybrid.decode(tokens)
    hybrid.render_size = None
    drawn = hybrid.decode(tokens, size=(64, 96))
    assert torch.equal(small, resize_bicubic(drawn, (32, 48)).clamp(-1, 1))
    assert not torch.equal(small, hybrid.decode(tokens))
    hybrid.render_size = 64


def test_a_configuration_decides_size_and_dtype():
    tiny = load_tokenizer(EvalReconConfig(), CPU)
    assert tiny.render_size == 256 and next(tiny.diffusion.unet.parameters()).dtype == torch.float32
    asked = load_tokenizer(ReconstructConfig(render_size=128, dtype="bfloat16"), CPU)
    assert asked.render_size == 128 and next(asked.diffusion.unet.parameters()).dtype == torch.bfloat16
    with pytest.raises(HybridTokenizerError, match="render_size=100 must be a multiple of 64; use 128, or null"):
        EvalData(render_size=100)
    with pytest.raises(HybridTokenizerError, match="dtype='int8' is unknown; use float32, bfloat16 or float16"):
        EvalReconConfig(dtype="int8")
    with pytest.raises(HybridTokenizerError, match="num_workers=-1 must be at least 0"):
        EvalData(num_workers=-1)


def test_bf16_decodes_what_fp32_decodes():
    tiny = HybridTokenizer.from_pretrained("tiny")
    tokens = tiny.encode(from_pil(fit_square(sample_photographs()["coffee"], 256))[None])
    exact = tiny.decode(tokens)
    rounded = tiny.to(dtype=torch.bfloat16).decode(tokens)
    assert 0 < (rounded - exact).abs().max() < 0.05


def test_threads_read_the_same_images_in_the_same_order(tmp_path):
    for name, photograph in sample_photographs().items():
        photograph.resize((40, 40)).save(tmp_path / f"{name}.png")
    (tmp_path / "broken.png").write_bytes(b"no image")

    def read(num_workers, max_images=None):
        said = []
        options = {"max_images": max_images, "num_workers": num_workers, "say": said.append, "progress": False}
        images = EvalImages.from_folder(tmp_path, 32, **options)
        return images.names, images.pixels_hash, images.skipped, said

    assert read(0) == read(3) and len(read(3)[2]) == 1
    assert read(0, max_images=2) == read(3, max_images=2) and len(read(3, max_images=2)[0]) == 2
