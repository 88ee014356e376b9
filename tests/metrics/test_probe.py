"""The offline text-image score on random weights."""

import pytest
import torch

from hybrid_tokenizer.checkpoints.files import save_tensors, write_json
from hybrid_tokenizer.errors import HybridTokenizerError
from hybrid_tokenizer.metrics.probe import (
    FEATURES,
    PROBE_FACTS,
    PROBE_WEIGHTS,
    Probe,
    ProbeScore,
    load_probe,
    pooled_features,
)
from hybrid_tokenizer.perceptual import EfficientNetDistance


class Letters(torch.nn.Module):
    """A unit vector a caption."""

    def sentence_features(self, captions):
        rows = [torch.randn(384, generator=torch.Generator().manual_seed(len(caption))) for caption in captions]
        return torch.nn.functional.normalize(torch.stack(rows), dim=-1)


def test_features_are_mean_and_deviation_of_every_stage():
    network = EfficientNetDistance("lite0")
    images = torch.rand(2, 3, 224, 224) * 2 - 1
    features = pooled_features(network, images)
    stages = network.features(images)
    assert features.shape == (2, 2 * sum(stage.shape[1] for stage in stages)) == (2, 1024)
    torch.testing.assert_close(features[:, :16], stages[0].mean((2, 3)), rtol=0, atol=1e-5)
    torch.testing.assert_close(features[:, -320:], stages[-1].flatten(2).std(-1), rtol=0, atol=1e-5)


def test_the_score_is_a_cosine_whatever_the_batch(tmp_path):
    probe = Probe(1024, 16)
    probe.mean.fill_(0.1)
    save_tensors(tmp_path / PROBE_WEIGHTS, {key: value.half() for key, value in probe.state_dict().items()})
    write_json(tmp_path / PROBE_FACTS, {"features": FEATURES, "num_features": 1024, "hidden_width": 16})
    score = load_probe(tmp_path, Letters())
    images, captions = torch.rand(3, 3, 48, 64) * 2 - 1, ["a", "bc", "def"]
    values = score(images, captions)
    assert values.dtype == torch.float64 and values.abs().max() <= 1
    alone = torch.cat([score(images[i : i + 1], captions[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(values, alone, rtol=0, atol=1e-5)
    whole = ProbeScore(probe.eval(), Letters())
    torch.testing.assert_close(whole(images, captions), values, rtol=0, atol=2e-3)  # stored in fp16
    with pytest.raises(HybridTokenizerError, match="expected"):
        score(images * 127.5, captions)


def test_wrong_folders_are_refused(tmp_path):
    with pytest.raises(HybridTokenizerError, match="does not exist"):
        load_probe(tmp_path, Letters())
    write_json(tmp_path / PROBE_FACTS, {"hidden_width": 16})
    with pytest.raises(HybridTokenizerError, match="is not of a probe"):
        load_probe(tmp_path, Letters())
    write_json(tmp_path / PROBE_FACTS, {"features": "efficientnet-lite0", "num_features": 1024, "hidden_width": 16})
    with pytest.raises(HybridTokenizerError, match="reads 'efficientnet-lite0', expected 'efficientnet-lite1'"):
        load_probe(tmp_path, Letters())
    write_json(tmp_path / PROBE_FACTS, {"features": FEATURES, "num_features": 1024, "hidden_width": 16})
    save_tensors(tmp_path / PROBE_WEIGHTS, {"mean": torch.zeros(1024)})
    with pytest.raises(HybridTokenizerError, match="5 missing: deviation, layers"):
        load_probe(tmp_path, Letters())
