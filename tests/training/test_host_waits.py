"""Between logs a training step does not make the host wait for the device."""

from dataclasses import replace

import pytest
import torch
from helpers.small_models import small_hybrid
from test_objectives import batch_of, build
from torch.utils.data import Dataset

from hybrid_tokenizer.guide import GuideTokenizer
from hybrid_tokenizer.training.config import GuideLossOptions, TrainingConfig
from hybrid_tokenizer.training.guide import GuideObjective
from hybrid_tokenizer.training.loop import train
from hybrid_tokenizer.training.vae import VAEObjective
from hybrid_tokenizer.verification.gpu.syncs import counted_syncs

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
STEPS = TrainingConfig(
    max_steps=3, batch_size=2, warmup_steps=0, num_workers=0, tracker="none", progress=False, num_threads=1, log_every=100,
    validate_every=100, save_every=100,
)  # fmt: skip


class Rows(Dataset):
    """The rows of one batch, again and again."""

    def __init__(self, batch):
        self.batch = batch

    def __getitem__(self, index):
        row = index % len(self.batch["captions"])
        return {"skipped": [], **{name: values[row] for name, values in self.batch.items() if name != "skipped"}}


def waits(objective, folder):
    batch = batch_of(objective)
    val_batches = [batch] if isinstance(objective, VAEObjective) else []  # it exports their statistics
    with counted_syncs(DEVICE) as places:
        train(objective, Rows(batch), val_batches, STEPS, folder, {})
    return places


@pytest.mark.parametrize("stage", ["guide", "ema", "vae", "unet_and_vae_decoder", "contrastive", "quantize"])
def test_no_stage_waits(stage, tmp_path):
    if stage == "ema":
        config = small_hybrid(nested=True).guide.config
        config = replace(config, quantizer=replace(config.quantizer, kind="ema"))
        objective = GuideObjective(GuideTokenizer(config), GuideLossOptions())
    else:
        objective = build(stage)
    assert waits(objective, tmp_path) == []


class Waiting(GuideObjective):
    """Reads its loss in every step."""

    def forward(self, batch, step):
        losses = super().forward(batch, step)
        assert losses["total"].item() > 0
        return losses


def test_a_wait_is_counted_in_every_step_but_the_first(tmp_path):
    objective = Waiting(small_hybrid(nested=True).guide, GuideLossOptions())
    assert len(waits(objective, tmp_path)) == STEPS.max_steps - 1
