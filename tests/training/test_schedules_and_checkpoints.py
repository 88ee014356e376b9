import math
from itertools import pairwise

import pytest
import torch
from torch import nn

from hybrid_tokenizer.errors import HybridTokenizerError
from hybrid_tokenizer.training.config import TrainingConfig
from hybrid_tokenizer.training.loop import choose_precision
from hybrid_tokenizer.training.objective import ema_decay_at, learning_rate_at
from hybrid_tokenizer.training.state import (
    MODEL,
    OPTIMIZER,
    find_checkpoint,
    load_checkpoint_tensors,
    pack_optimizer,
    save_checkpoint,
    trim_jsonl,
    unpack_optimizer,
)


def test_learning_rate_rises_then_falls_along_a_cosine():
    rates = [learning_rate_at(step, 1.0, 0.1, 10, 110) for step in range(111)]
    assert rates[:10] == [(step + 1) / 10 for step in range(10)], "never zero, the peak at the end of the warm-up"
    assert rates[10] == 1.0 and rates[60] == pytest.approx(0.55) and rates[110] == pytest.approx(0.1)
    assert all(a > b for a, b in pairwise(rates[10:]))
    assert learning_rate_at(200, 1.0, 0.1, 10, 110) == pytest.approx(0.1), "a longer run stays at the floor"
    assert learning_rate_at(0, 1.0, 0.1, 0, 1) == 1.0 and learning_rate_at(5, 1.0, 0.1, 5, 5) == 1.0


def test_average_remembers_as_long_as_there_were_steps():
    decays = [ema_decay_at(step, 0.999) for step in range(20000)]
    assert decays[0] == 0.1 and decays == sorted(decays) and decays[-1] == 0.999
    assert math.prod(decays[:100]) < 1e-6, "after 100 steps the initial weights are forgotten"
    assert ema_decay_at(10**6, 0.5) == 0.5


@pytest.mark.parametrize(
    "options",
    [
        {"mixed_precision": "fp16"}, {"tracker": "mlflow"}, {"wandb_mode": "onlin"}, {"max_steps": 0}, {"batch_size": 0}, {"accumulation": 0},
        {"save_every": 0}, {"keep_checkpoints": 0}, {"validate_every": 0}, {"log_every": 0}, {"num_threads": 0},
        {"max_val_images": 0}, {"num_workers": -1}, {"learning_rate": -1.0}, {"weight_decay": -0.1},
        {"warmup_steps": -1}, {"seed": -1}, {"ema_decay": 1.0}, {"ema_decay": -0.1}, {"betas": [0.9]},
        {"betas": [0.9, 1.0]}, {"max_grad_norm": 0.0}, {"max_minutes": 0.0}, {"learning_rate": math.nan},
    ],
    ids=str,
)  # fmt: skip
def test_impossible_options_are_refused(options):
    (name,) = options
    with pytest.raises(HybridTokenizerError, match=f"training.{name}=") as error:
        TrainingConfig(**options)
    assert "\n" not in str(error.value)


def test_precision():
    assert choose_precision(TrainingConfig(mixed_precision="no")) == "no"
    assert choose_precision(TrainingConfig(mixed_precision="bf16")) == "bf16"
    assert choose_precision(TrainingConfig()) in ("no", "bf16")


def trained_module(seed, steps):
    """A convolution in channels-last order, and a number without dimensions, as temperatures are."""
    torch.manual_seed(seed)
    module = nn.ParameterDict(
        {"conv": nn.Parameter(torch.randn(4, 3, 3, 3)), "temperature": nn.Parameter(torch.ones(()))}
    )
    module.to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        (module["conv"].square().mean() * module["temperature"]).backward()
        optimizer.step()
    return module, optimizer


def names_of(module):
    return {parameter: name for name, parameter in module.named_parameters()}


def test_optimizer_state_goes_through_files_and_back(tmp_path):
    module, optimizer = trained_module(0, steps=3)
    packed = pack_optimizer(optimizer, names_of(module))
    save_checkpoint(tmp_path, 3, 1, {"optimizer.safetensors": packed}, {})
    other, fresh = trained_module(1, steps=0)
    unpack_optimizer(
        fresh, names_of(other), load_checkpoint_tensors(tmp_path / "step-00000003")["optimizer.safetensors"], "x"
    )
    for name, parameter in module.named_parameters():
        mine, theirs = optimizer.state[parameter], fresh.state[other[name]]
        assert set(mine) == set(theirs) == {"step", "exp_avg", "exp_avg_sq"}
        for entry in mine:
            assert torch.equal(mine[entry], theirs[entry]) and mine[entry].stride() == theirs[entry].stride()
    with pytest.raises(HybridTokenizerError, match="'else', which this run does not train"):
        unpack_optimizer(fresh, names_of(other), {"else/exp_avg": torch.ones(1)}, "x")


def save(root, step, keep=2):
    tensors = {MODEL: {"weight": torch.full((3,), float(step))}, OPTIMIZER: {}}
    return save_checkpoint(root, step, keep, tensors, {"geometry": {}, "seconds": 1.0})


def names(root):
    return sorted(path.name for path in root.iterdir())


def test_newest_whole_checkpoint_is_found(tmp_path, capsys):
    assert find_checkpoint(tmp_path / "none") is None
    for step in (2, 4, 6):
        save(tmp_path, step)
    assert names(tmp_path) == ["step-00000004", "step-00000006"]
    folder, facts = find_checkpoint(tmp_path)
    assert folder.name == "step-00000006" and facts["step"] == 6
    assert load_checkpoint_tensors(folder)[MODEL]["weight"].tolist() == [6.0] * 3
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("damage", ["cut", "flip", "gone", "no_state", "cut_state", "empty", "list"])
def test_damaged_checkpoints_are_named_and_passed_over(tmp_path, capsys, damage):
    for step in (2, 4):
        folder = save(tmp_path, step)
    weights, state = folder / MODEL, folder / "state.json"
    data = weights.read_bytes()
    if damage == "cut":
        weights.write_bytes(data[:-1])
    elif damage == "flip":
        weights.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    elif damage == "gone":
        weights.unlink()
    elif damage == "no_state":
        state.unlink()
    elif damage == "cut_state":
        state.write_bytes(state.read_bytes()[:20])
    elif damage == "list":
        state.write_text("[]")
    else:
        weights.write_bytes(b"")
        state.write_bytes(b"")
    found, facts = find_checkpoint(tmp_path)
    assert found.name == "step-00000002" and facts["step"] == 2
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith(f"passed over damaged checkpoint {folder}: ")
    save(tmp_path, 3, keep=1)
    assert names(tmp_path) == ["step-00000003", "step-00000004"], "the new one stays, older than the damaged one"
    assert find_checkpoint(tmp_path)[1]["step"] == 3
    save(tmp_path, 4, keep=1)
    assert names(tmp_path) == ["step-00000004"] and find_checkpoint(tmp_path)[1]["step"] == 4


def test_logs_are_cut_back_to_the_checkpoint(tmp_path):
    log = tmp_path / "metrics.jsonl"
    trim_jsonl(log, 3)
    assert not log.exists()
    log.write_text('{"step": 1, "a": 0.1}\n{"step": 3, "a": 1e-05}\n{"step": 4, "a": 2}\n{"step": 5, "a"')
    trim_jsonl(log, 3)
    assert log.read_text() == '{"step": 1, "a": 0.1}\n{"step": 3, "a": 1e-05}\n'
