"""Training of the offline score: closed forms, a problem that it can solve, and the committed probe."""

import math
from pathlib import Path

import pytest
import torch
from helpers.caption_data import CAPTIONS, write_pairs

from hybrid_tokenizer.checkpoints.files import read_json
from hybrid_tokenizer.errors import HybridTokenizerError
from hybrid_tokenizer.metrics.probe import PROBE_FACTS, PROBE_WEIGHTS, load_probe
from hybrid_tokenizer.training.probe import (
    Features,
    TrainProbeConfig,
    contrastive_loss,
    fit_probe,
    join,
    recalls,
    train_probe,
)

SCORER = Path(__file__).resolve().parents[2] / "hybrid_tokenizer" / "presets" / "probe"


def features(count, seed=0):
    """Two captions an image; what an image looks like is a fixed map of its captions."""
    generator = torch.Generator().manual_seed(seed)
    captions = torch.nn.functional.normalize(torch.randn(count, 384, generator=generator), dim=-1)
    mixing = torch.randn(384, 64, generator=torch.Generator().manual_seed(99))
    images = (captions @ mixing)[:, None].expand(-1, 2, -1).clone()
    first = 2 * torch.arange(count)
    return Features(images, captions.repeat_interleave(2, 0), first, torch.full((count,), 2))


def test_loss_and_recalls_in_closed_form():
    eye = torch.eye(4)
    assert contrastive_loss(eye, eye, torch.tensor(2.0)).item() == pytest.approx(math.log(math.e**2 + 3) - 2)
    assert contrastive_loss(eye, eye.flip(0), torch.tensor(0.0)).item() == pytest.approx(math.log(4))
    found = recalls(torch.eye(20), torch.eye(20)[[1, 0, *range(2, 20)]])
    assert found["image_to_text_r1"] == found["text_to_image_r1"] == 0.9 and found["image_to_text_r5"] == 1.0


def test_joined_folders_keep_their_captions():
    one, two = features(3), features(2, seed=1)
    both = join([one, two])
    assert both.first.tolist() == [0, 2, 4, 6, 8] and len(both.images) == 5
    assert torch.equal(both.captions[both.first[3:]], two.captions[two.first])


def test_it_learns_what_can_be_learnt_and_is_reproducible():
    config = TrainProbeConfig(roots=[], val_root="", hidden_width=64, steps=60, batch_size=64, dropout=0.0)
    material = features(256)
    probe, loss = fit_probe(material, config)
    found = recalls(probe(material.images[:, 0]), material.captions[material.first])
    assert found["image_to_text_r1"] > 0.2 and loss < math.log(64)  # chance is 0.004
    again, _ = fit_probe(material, config)
    assert all(torch.equal(a, b) for a, b in zip(probe.state_dict().values(), again.state_dict().values(), strict=True))


def test_from_folders_to_a_score(tmp_path):
    root = write_pairs(tmp_path / "pairs")
    config = TrainProbeConfig(
        roots=[str(root)], val_root=str(root), output_dir=str(tmp_path / "probe"), cache_dir=str(tmp_path / "cache"),
        hidden_width=8, steps=2, batch_size=4,
    )  # fmt: skip
    facts = train_probe(config)
    assert facts["training_pairs"] == facts["validation_pairs"] == len(CAPTIONS) and facts["num_features"] == 1024
    assert read_json(tmp_path / "probe" / PROBE_FACTS) == facts
    (cached,) = (tmp_path / "cache").iterdir()
    before = cached.stat().st_mtime_ns
    assert train_probe(config) == facts and cached.stat().st_mtime_ns == before


def test_impossible_settings_are_refused():
    with pytest.raises(HybridTokenizerError, match="steps=0 must be at least 1"):
        TrainProbeConfig(roots=[], val_root="", steps=0)
    with pytest.raises(HybridTokenizerError, match=r"must lie in \[0, 1\)"):
        TrainProbeConfig(roots=[], val_root="", dropout=1.0)


def test_the_committed_probe_is_small_and_far_from_chance():
    facts = read_json(SCORER / PROBE_FACTS)
    assert (SCORER / PROBE_WEIGHTS).stat().st_size < 2 * 2**20
    assert facts["validation"]["image_to_text_r1"] > 20 * facts["chance_r1"]
    assert facts["validation"]["cosine_of_own_caption"] > facts["validation"]["cosine_of_another_caption"] + 0.1

    class Text(torch.nn.Module):
        def sentence_features(self, captions):
            return torch.nn.functional.normalize(torch.ones(len(captions), 384), dim=-1)

    assert load_probe(SCORER, Text())(torch.zeros(1, 3, 64, 64), ["grey"]).abs().item() < 1
