import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from training_runs import assert_same_gradients, final_weights, reset_accelerate

from hybrid_tokenizer.data.config import DataConfig
from hybrid_tokenizer.errors import HybridTokenizerError
from hybrid_tokenizer.guide import GuideConfig, GuideTokenizer
from hybrid_tokenizer.quantizers import QuantizerConfig
from hybrid_tokenizer.training.config import GuideLossOptions, TrainingConfig
from hybrid_tokenizer.training.guide import GuideObjective
from hybrid_tokenizer.training.loop import train
from hybrid_tokenizer.training.objective import Objective, Validated
from hybrid_tokenizer.training.setup import build_data


@pytest.fixture(autouse=True)
def fresh_process():
    threads = torch.get_num_threads()
    yield
    reset_accelerate()
    torch.set_num_threads(threads)


def guide_objective(kind="ema", nested=False):
    torch.manual_seed(0)
    config = GuideConfig(
        image_size=32, encoder_channels=[8, 8, 8], decoder_channels=[8, 8, 8], encoder_layers=1, decoder_layers=0,
        encoder_attention=[], decoder_attention=[], norm_type="group", norm_num_groups=4, stem="unshuffle", stem_factor=2,
        guide_scales=[1, 2, 4] if nested else None, quantizer=QuantizerConfig(kind, codebook_size=16, codebook_dim=4),
    )  # fmt: skip
    return GuideObjective(GuideTokenizer(config), GuideLossOptions())


def settings(**changes):
    fields = {
        "max_steps": 4, "batch_size": 2, "learning_rate": 0.01, "min_learning_rate": 0.001, "warmup_steps": 1,
        "num_workers": 0, "num_threads": 1, "tracker": "none", "progress": False, "ema_decay": 0.9,
    }  # fmt: skip
    return TrainingConfig(**{**fields, **changes})


def run(objective, pictures, folder, **changes):
    reset_accelerate()
    config = settings(**changes)
    stream, val_batches = build_data(DataConfig(root=str(pictures), image_size=32, val_at_least=4), config)
    torch.seed()  # whatever the process drew before must not matter
    train(objective, stream, val_batches, config, folder, {"some": "facts"})


def rows_of(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(("kind", "nested"), [("ema", False), ("ema", True), ("vq", True), ("simvq", False)])
def test_stopping_at_every_step_changes_nothing(pictures, tmp_path, capfd, kind, nested):
    """A start a step, fresh objects each time; also, validation (only at the end there) leaves the random state alone."""
    stopped, whole = tmp_path / "stopped", tmp_path / "whole"
    for _ in range(4):
        run(guide_objective(kind, nested), pictures, stopped, max_minutes=1e-9)
    said = [line for line in capfd.readouterr().out.splitlines() if not line.startswith(("step ", "the weights "))]
    expected = ["starting from step 0"]
    for step in (1, 2, 3):
        expected += [
            f"stopped at step {step} after 1e-09 minutes; run the same command to resume",
            f"resumed from step {step}",
        ]
    assert said == [*expected, "finished at step 4"]
    run(guide_objective(kind, nested), pictures, whole, validate_every=1)
    assert final_weights(stopped) == final_weights(whole)
    losses = [{row["step"]: row["total"] for row in rows_of(folder) if "total" in row} for folder in (stopped, whole)]
    assert losses[0] == losses[1] and list(losses[0]) == [1, 2, 3, 4]


def test_what_is_averaged_and_exported(pictures, tmp_path):
    run(guide_objective(), pictures, tmp_path / "live", ema_decay=0.0)
    run(guide_objective(), pictures, tmp_path / "averaged", ema_decay=0.9)
    live, averaged = (load_file(tmp_path / name / "final" / "model.safetensors") for name in ("live", "averaged"))
    checkpoint = tmp_path / "live" / "checkpoints" / "step-00000004"
    assert not (checkpoint / "ema.safetensors").exists()
    trained = {k.removeprefix("model."): v for k, v in load_file(checkpoint / "model.safetensors").items()}
    assert all(torch.equal(live[key], trained[key]) for key in live)
    different = [key for key in live if not torch.equal(live[key], averaged[key])]
    assert not [key for key in different if key.startswith("quantizer.")], "the codebook is a running mean already"
    assert len(different) == len([*guide_objective().model.parameters()])


def test_accumulated_gradients_are_the_batchs(pictures, tmp_path):
    """Without batch statistics two micro-batches of 2 are one batch of 4, up to rounding."""
    gradients = []
    for name, batch_size, accumulation in (("parts", 2, 2), ("whole", 4, 1)):
        run(
            guide_objective("vq"),
            pictures,
            tmp_path / name,
            max_steps=1,
            batch_size=batch_size,
            accumulation=accumulation,
            mixed_precision="no",
        )
        optimizer = load_file(tmp_path / name / "checkpoints" / "step-00000001" / "optimizer.safetensors")
        gradients.append({key: value for key, value in optimizer.items() if key.endswith("/exp_avg")})
        rows = [row for row in rows_of(tmp_path / name) if "total" in row]
        assert len(rows) == 1 and rows[0]["step"] == 1
    assert_same_gradients(*gradients)
    facts = json.loads((tmp_path / "parts" / "final" / "training.json").read_text())
    assert facts["images_seen"] == 4 and facts["config"] == {"some": "facts"}


class Breaking(GuideObjective):
    """Its loss is NaN at step 3 (the fourth)."""

    def forward(self, batch, step):
        losses = super().forward(batch, step)
        return {**losses, "total": losses["total"] * (math.nan if step == 3 else 1)}


def test_a_loss_that_is_not_finite_ends_the_run_and_spares_the_checkpoints(pictures, tmp_path):
    plain = guide_objective()
    with pytest.raises(HybridTokenizerError, match="learning_rate") as error:
        run(Breaking(plain.model, plain.options), pictures, tmp_path / "run", max_steps=8, save_every=2)
    assert "\n" not in str(error.value) and "total" in str(error.value)
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-00000002"]
    assert [row["step"] for row in rows_of(tmp_path / "run") if "total" in row] == [2]
    assert not (tmp_path / "run" / "final").exists()
    run(guide_objective(), pictures, tmp_path / "run", max_steps=8, save_every=2)  # mended, it goes on
    run(guide_objective(), pictures, tmp_path / "whole", max_steps=8, save_every=2)
    assert final_weights(tmp_path / "run") == final_weights(tmp_path / "whole")


def test_too_high_a_learning_rate(pictures, tmp_path):
    with pytest.raises(HybridTokenizerError, match="learning_rate"):
        run(guide_objective(), pictures, tmp_path, learning_rate=1e30, log_every=1, max_steps=10)
    assert all(math.isfinite(value) for row in rows_of(tmp_path) for value in row.values())


class Overflowing(Objective):
    """The loss stays finite while the step takes the weight beyond the range of its type."""

    def __init__(self):
        super().__init__()
        self.model = nn.Linear(1, 1)
        nn.init.constant_(self.model.weight, 3e38)

    def forward(self, batch, step):
        return {"total": -1e-3 * self.model.weight.sum()}

    def validate(self, batches):
        return Validated({"batches": float(len(batches))}, None)

    def export(self, folder, val_batches):
        raise AssertionError("a broken model must not be exported")


def test_broken_weights_are_not_saved(pictures, tmp_path):
    steps = {"learning_rate": 1e38, "warmup_steps": 0, "weight_decay": 0.0, "betas": [0.0, 0.0], "save_every": 1}
    with pytest.raises(HybridTokenizerError, match="weight"):
        run(Overflowing(), pictures, tmp_path, **steps)
    assert not list(tmp_path.glob("checkpoints/*"))


def test_the_log_of_a_start_that_saved_nothing_is_dropped(pictures, tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 0, "val_psnr": 1.0}\n{"step": 1, "tot')
    run(guide_objective(), pictures, tmp_path, max_steps=1)
    assert [row["step"] for row in rows_of(tmp_path)] == [0, 1, 1]


def test_skipped_images_are_named_once(pictures, tmp_path, capfd):
    folder = tmp_path / "pictures"
    for path in sorted(pictures.rglob("*.png")):
        (folder / path.name).parent.mkdir(exist_ok=True)
        (folder / path.name).write_bytes(path.read_bytes())
    bad = sorted(folder.iterdir())
    for path in bad[:6]:
        path.write_bytes(b"not an image")
    run(guide_objective(), folder, tmp_path / "run", max_steps=12, num_workers=1)
    lines = [line for line in capfd.readouterr().out.splitlines() if line.startswith("skipped ")]
    named = [Path(line.removeprefix("skipped ").split(": ")[0]) for line in lines]
    assert sorted(named) == bad[:6]
    facts = json.loads((tmp_path / "run" / "final" / "training.json").read_text())
    assert facts["skipped"] and set(facts["skipped"]) <= set(map(str, bad[:6]))
