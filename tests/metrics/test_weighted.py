"""Measures with weights from files in their published layout: random weights, the formulas as they are."""

import pytest
import torch
import torchvision
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection, Dinov2Config, Dinov2Model

from hybrid_tokenizer.errors import HybridTokenizerError
from hybrid_tokenizer.evaluation.images import EvalImages
from hybrid_tokenizer.evaluation.loop import evaluate
from hybrid_tokenizer.evaluation.measures import default_metrics
from hybrid_tokenizer.metrics.weighted import LPIPS, DinoDistance, clip_similarity, inception, of_a_set

SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28, "patch_size": 14}


@pytest.fixture
def pair():
    generator = torch.Generator().manual_seed(0)
    references = torch.rand(3, 3, 40, 56, generator=generator) * 2 - 1
    return (references + 0.2 * torch.randn(references.shape, generator=generator)).clamp(-1, 1), references


def test_lpips_reads_torchvisions_file_and_knows_equals(pair, tmp_path):
    images, references = (torch.nn.functional.interpolate(x, (64, 80)) for x in pair)
    torch.save(torchvision.models.alexnet().state_dict(), tmp_path / "alex.pth")
    measure = LPIPS("alex", tmp_path / "alex.pth")
    values = measure(images, references)
    assert values.shape == (3,) and values.dtype == torch.float64 and (values > 0).all()
    assert measure(references, references).abs().max() == 0
    torch.testing.assert_close(measure(images[1:2], references[1:2]), values[1:2])
    first = torchvision.models.alexnet()
    first.load_state_dict(torch.load(tmp_path / "alex.pth", weights_only=True))
    torch.testing.assert_close(measure.lpips.net.slice1[0].weight, first.features[0].weight)
    with pytest.raises(HybridTokenizerError, match="it is not torchvision's vgg"):
        LPIPS("vgg", tmp_path / "alex.pth")


@pytest.mark.parametrize("name", ["clip_i", "dino_distance"])
def test_similarities_of_folders(pair, tmp_path, name):
    images, references = pair
    if name == "clip_i":
        CLIPVisionModelWithProjection(
            CLIPVisionConfig(intermediate_size=32, projection_dim=8, **SIZES)
        ).save_pretrained(tmp_path)
    else:
        Dinov2Model(Dinov2Config(**SIZES)).save_pretrained(tmp_path)
    load = clip_similarity if name == "clip_i" else DinoDistance
    measure = load(tmp_path)
    values, same = measure(images, references), measure(references, references)
    torch.testing.assert_close(same, torch.full_like(same, float(name == "clip_i")), rtol=0, atol=1e-5)
    assert ((values < 1) if name == "clip_i" else (values > 0)).all()
    torch.testing.assert_close(measure(images[:1], references[:1]), values[:1], rtol=0, atol=1e-5)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(HybridTokenizerError, match="cannot be loaded"):
        load(tmp_path)


class Pooled(torch.nn.Module):
    """Eight features an image in place of Inception's."""

    num_features = 8

    def forward(self, images):
        return torch.nn.functional.adaptive_avg_pool2d(images.double(), (2, 2)).flatten(1)[:, :8] / 255


def test_rfid_and_kid_of_a_set(monkeypatch, tmp_path):
    monkeypatch.setattr("hybrid_tokenizer.metrics.weighted.inception", lambda file: Pooled())
    new = of_a_set({"rfid": "file", "kid": "file"}, "cpu")
    references = torch.rand(24, 3, 16, 16) * 2 - 1
    same, halves, other = new(), new(), new()
    same.update(references, references, 0)
    for first in (21, 0, 14, 7):
        part = references[first : first + 7]
        halves.update(part * 0.5, part, first)
    other.update(references * 0.5, references, 0)
    assert same.compute(24)["rfid"] == pytest.approx(0, abs=1e-6)
    mine, whole = halves.compute(24), other.compute(24)
    assert mine["rfid"] == pytest.approx(whole["rfid"], rel=1e-6) and mine["rfid"] > 1e-3
    assert mine["kid"] == pytest.approx(whole["kid"], rel=1e-6)
    assert halves.compute(24) == mine, "the subsets of KID are seeded"
    levels = [((x + 1) * 127.5).round().clamp(0, 255).to(torch.uint8) for x in (references, references * 0.5)]
    means, covariances = zip(*((f.mean(0), torch.cov(f.T)) for f in map(Pooled(), levels)), strict=True)
    root = torch.linalg.eigvals(covariances[0] @ covariances[1]).sqrt().real.sum()
    expected = (means[0] - means[1]).square().sum() + covariances[0].trace() + covariances[1].trace() - 2 * root
    assert whole["rfid"] == pytest.approx(expected.item(), rel=1e-3)
    real, fake = map(Pooled(), levels)
    kernels = [(x @ y.T / 8 + 1) ** 3 for x, y in ((real, real), (fake, fake), (real, fake))]
    within = [(kernel.sum() - kernel.trace()) / (24 * 23) for kernel in kernels[:2]]
    assert whole["kid"] == pytest.approx((sum(within) - 2 * kernels[2].mean()).item(), rel=1e-3)
    with pytest.raises(HybridTokenizerError, match="have different files"):
        of_a_set({"rfid": "a", "kid": "b"}, "cpu")


def test_references_go_through_the_network_once_for_all_rows_and_both_measures(monkeypatch):
    seen = []

    class Counting(Pooled):
        def forward(self, images):
            seen.append(len(images))
            return super().forward(images)

    monkeypatch.setattr("hybrid_tokenizer.metrics.weighted.inception", lambda file: Counting())
    new = of_a_set({"rfid": "file", "kid": "file"}, "cpu")
    references = torch.rand(6, 3, 16, 16) * 2 - 1
    rows = [new(), new(), new()]
    for row in rows:
        for first in (0, 3):
            row.update(references[first : first + 3] * 0.5, references[first : first + 3], first)
    assert sum(seen) == 6 + 3 * 6
    assert rows[0].compute(6) == rows[2].compute(6)


def test_rows_have_them(monkeypatch, tmp_path):
    monkeypatch.setattr("hybrid_tokenizer.metrics.weighted.inception", lambda file: Pooled())
    Dinov2Model(Dinov2Config(**SIZES)).save_pretrained(tmp_path)
    weights = {"dino_distance": str(tmp_path), "rfid": "file"}
    from hybrid_tokenizer.evaluation.controls import LosslessGuide

    images = EvalImages.from_samples(32, max_images=3, progress=False)
    metrics = [metric for metric in default_metrics("cpu", weights) if metric.name in ("psnr", "dino_distance")]
    row = evaluate(
        LosslessGuide(8), images, metrics, batch_size=2, progress=False, of_a_set=of_a_set(weights, "cpu")
    ).row
    assert row["dino_distance"] > 0 and row["rfid"] > 0
    with pytest.raises(HybridTokenizerError, match="metric_weights names fid; use some of lpips_alex"):
        default_metrics("cpu", {"fid": "x"})
    alone = EvalImages.from_samples(32, max_images=1, progress=False)
    row = evaluate(LosslessGuide(8), alone, metrics, progress=False, of_a_set=of_a_set(weights, "cpu")).row
    assert row["rfid"] is None and row["rfid_note"] == "needs at least two images"


def test_inception_is_torch_fidelitys(monkeypatch, tmp_path):
    with pytest.raises(HybridTokenizerError, match="does not exist"):
        inception(tmp_path / "none.pth")
    torch.save({"weight": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(HybridTokenizerError, match="is not torch-fidelity's Inception"):
        inception(tmp_path / "other.pth")
    monkeypatch.setattr(torch.nn.Module, "load_state_dict", lambda self, state: None)  # 24 M random weights, unsaved
    torch.save({}, tmp_path / "empty.pth")
    network = inception(tmp_path / "empty.pth")
    assert isinstance(network, FeatureExtractorInceptionV3) and network.num_features == 2048
