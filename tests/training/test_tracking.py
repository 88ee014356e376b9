"""What TensorBoard and Weights & Biases show of a run, offline, and that a resumed run continues the same one."""

import pytest
import torch
from training_runs import SMALL_GUIDE, run_script

from hybrid_tokenizer.training.config import TrainingConfig, machine_threads
from hybrid_tokenizer.training.loop import picture_grid, short
from hybrid_tokenizer.training.tracking import TensorBoardEvents, log_pictures, run_id, wandb_options


def test_tensorboard_has_configuration_scalars_and_pictures(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = TensorBoardEvents(tmp_path)
    events.start()
    events.store_init_configuration({"training.max_steps": 6, "data.root": "photos", "betas": [0.9, 0.99]})
    events.log({"train/lr": 0.5, "train/images_per_second": 3.0}, step=1)
    log_pictures([events], picture_grid(torch.zeros(2, 3, 3, 8, 8)), 1)
    events.finish()
    shown = EventAccumulator(str(tmp_path)).Reload()
    assert {"train/lr", "train/images_per_second"} == set(shown.Tags()["scalars"])
    (text,) = shown.Tensors("configuration")
    assert b"    training.max_steps: 6" in text.tensor_proto.string_val[0].splitlines()
    (picture,) = shown.Images("validation/0")
    assert (picture.step, picture.width, picture.height) == (1, 32, 22)
    assert picture.encoded_image_string.startswith(b"\x89PNG")


@pytest.fixture(scope="module")
def tracked(pictures, tmp_path_factory):
    """A run under W&B that is offline, stopped after a step and resumed."""
    folder = tmp_path_factory.mktemp("tracked") / "my run"
    for steps in (1, 2):
        options = (f"training.max_steps={steps}", "training.log_every=1", "training.tracker=wandb")
        assert (
            run_script("train_guide.py", f"data.root={pictures}", f"output_dir={folder}", *SMALL_GUIDE, *options)
            is None
        )
    return folder


def test_a_resumed_run_is_the_same_one_in_wandb(tracked):
    starts = sorted((tracked / "wandb").glob("offline-run-*"))
    assert len(starts) == 2 and {start.name.rpartition("-")[2] for start in starts} == {run_id(tracked)}
    recorded = b"".join(path.read_bytes() for start in starts for path in start.glob("*.wandb"))
    for name in (b"my run", b"train/lr", b"train/images_per_second", b"train/epoch", b"val/psnr", b"guide.image_size"):
        assert name in recorded, name
    assert {path.suffix for start in starts for path in (start / "files/media/images").iterdir()} == {".png"}


def test_the_runs_name_and_id(tmp_path):
    first = wandb_options(tmp_path, "offline", None)
    assert first == wandb_options(tmp_path, "offline", None)
    assert first["name"] == tmp_path.name and first["resume"] == "allow" and len(first["id"]) == 12
    assert wandb_options(tmp_path, "online", "mine")["name"] == "mine"
    assert run_id(tmp_path / "other") != first["id"]


def test_figures_are_short_and_integers_whole():
    assert (short(0.123456), short(123456), short(12.0)) == ("0.1235", "123456", "12")


def test_threads_are_shared_by_the_processes_of_a_machine(monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda process: set(range(6)))
    assert TrainingConfig().num_threads == 6
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert machine_threads() == 1
