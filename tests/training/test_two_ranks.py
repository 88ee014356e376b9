"""Two processes, as `torchrun --nproc_per_node 2` starts them on a machine without a GPU. One launch runs every job."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers.small_models import small_hybrid
from safetensors.torch import load_file
from training_runs import SHARD_ROWS, SMALL_GUIDE, assert_same_gradients, environment, free_port, said

from hybrid_tokenizer.training import crop_cache

KINDS = ("ema", "vq")
STEPS, UNET_STEPS = 2, 3
NOT_OF_THE_UNET = ("guide.", "training.batch_size", "training.learning_rate")
FSDP = {
    "ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_TRANSFORMER_CLS_TO_WRAP": "BasicTransformerBlock",
}  # fmt: skip


def guide_options(pictures):
    """Two micro-batches a step on each of two processes."""
    return [
        *SMALL_GUIDE, f"data.root={pictures}", f"training.max_steps={STEPS}", "training.save_every=1",
        "training.mixed_precision=no",
    ]  # fmt: skip


def unet_options(folder, pictures):
    return [
        "stage=finetune", f"diffusion.init={folder / 'diffusion'}", f"semantic_folder={folder / 'semantic'}",
        f"guide_folder={folder / 'guide'}", "unet.pixel=0.1", "unet.views=2",
        *(option for option in SMALL_GUIDE if not option.startswith(NOT_OF_THE_UNET)),
        "training.learning_rate=0.001", "training.max_val_images=1",
        f"data.root={pictures}", f"training.max_steps={UNET_STEPS}", "training.mixed_precision=no",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def two(tmp_path_factory, pictures):
    """The folder of all runs; `logs/NAME.RANK.json` is what `two_ranks.py` says, `stdout` what was printed."""
    folder = tmp_path_factory.mktemp("two")
    hybrid = small_hybrid(nested=True)
    for name in ("diffusion", "semantic", "guide"):
        getattr(hybrid, name).save_pretrained(folder / name)
    (folder / "logs").mkdir()
    (folder / "fsdp").mkdir()
    (folder / "fsdp" / "cache").symlink_to(folder / "ddp" / "cache")  # there is nothing left to encode

    def job(name, script, *arguments, **changes):
        arguments = [*map(str, arguments), f"output_dir={folder / name}"]
        return {"name": name, "script": script, "arguments": arguments, "environment": changes, "port": free_port()}

    train_guide = ("train_guide.py", *guide_options(pictures), "training.batch_size=1", "training.accumulation=2")
    train_unet = ("pretrain_diffusion.py", *unet_options(folder, pictures), "training.batch_size=2")
    jobs = [job(kind, *train_guide, f"guide.quantizer.kind={kind}") for kind in KINDS]
    jobs += [job("ddp", *train_unet), job("fsdp", *train_unet, **FSDP)]
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2",
        str(Path(__file__).with_name("two_ranks.py")), json.dumps(jobs), str(folder / "logs"),
    ]  # fmt: skip
    run = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment(GLOO_SOCKET_IFNAME="lo")
    )
    try:
        stdout, stderr = run.communicate(timeout=300)
    finally:
        run.terminate()  # it ends the two processes
    assert run.returncode == 0, stderr[-4000:]
    (folder / "stdout").write_text(stdout)
    return folder


def logged(folder, name, what):
    return [json.loads((folder / "logs" / f"{name}.{rank}.json").read_text())[what] for rank in (0, 1)]


def facts_of(folder):
    return json.loads((folder / "final" / "training.json").read_text())


def test_the_main_process_alone_speaks(two):
    runs = [STEPS, STEPS, UNET_STEPS, UNET_STEPS]
    expected = [line for steps in runs for line in ("starting from step 0", f"finished at step {steps}")]
    waits = "waiting for the cache shards of the other processes"
    assert [line for line in said((two / "stdout").read_text()) if line != waits] == expected


def test_two_processes_train_one_model_on_different_images(two, script, pictures, tmp_path):
    for kind in KINDS:
        facts = facts_of(two / kind)
        assert facts["processes"] == 2 and facts["images_seen"] == 4 * STEPS
        hashes = facts["weights_sha256_by_rank"]  # codebooks included
        assert len(hashes) == 2 and hashes[0] == hashes[1]
        ranks = logged(two, kind, "seen")
        assert [len(step) for seen in ranks for step in seen.values()] == [2] * 2 * STEPS
        drawn = {image for seen in ranks for step in seen.values() for image in step}
        assert len(drawn) == 4 * STEPS, "within an epoch no image comes twice, on whichever rank"

    # in one process the same images give the same gradient, up to rounding; and it can go on from the two's checkpoint
    options = guide_options(pictures)
    error, _, _ = script(
        "train_guide.py", *options, "guide.quantizer.kind=vq", f"output_dir={tmp_path / 'one'}", "training.batch_size=4",
        "training.max_steps=1",
    )  # fmt: skip
    assert error is None
    assert_same_gradients(*(first_gradients(folder) for folder in (tmp_path / "one", two / "vq")))
    options = [option for option in options if "max_steps" not in option]
    error, stdout, _ = script(
        "train_guide.py", *options, "guide.quantizer.kind=ema", f"output_dir={two / 'ema'}",
        "training.batch_size=4", f"training.max_steps={STEPS + 1}", "training.allow_changes=true",
    )  # fmt: skip
    changes = (
        "training.accumulation was 2, is 1",
        "training.batch_size was 1, is 4",
        "training.max_steps was 2, is 3",
        "processes was 2, is 1",
    )
    assert error is None and sorted(said(stdout)) == [
        *sorted(f"changed after step {STEPS}: {change}" for change in changes),
        f"finished at step {STEPS + 1}", f"resumed from step {STEPS}",
    ]  # fmt: skip


def first_gradients(folder):
    """AdamW's first mean after its first step is the gradient times 1 - beta."""
    state = load_file(folder / "checkpoints" / "step-00000001" / "optimizer.safetensors")
    return {name: value for name, value in state.items() if name.endswith("/exp_avg")}


def test_two_processes_encode_each_image_once(two, script, pictures, tmp_path, monkeypatch):
    """Their cache is that of one process, byte for byte."""
    ranks = logged(two, "ddp", "read")
    assert all(ranks) and sorted([*ranks[0], *ranks[1]]) == list(range(8)), "12 pictures, of which 4 are held out"
    assert logged(two, "fsdp", "read") == [[], []], "a second run finds the shards of the first"
    monkeypatch.setattr(crop_cache, "ROWS_OF_SHARD", SHARD_ROWS)
    error, _, stderr = script(
        "pretrain_diffusion.py", *unet_options(two, pictures), "training.max_steps=1", f"output_dir={tmp_path}"
    )
    assert error is None, stderr
    shards = sorted(path.relative_to(tmp_path) for path in (tmp_path / "cache").rglob("*.safetensors"))
    assert {path.parts[1] for path in shards} == {"latents", "semantic_indices", "guide_latents", "pixels"}
    assert len(shards) == 4 * 16 // SHARD_ROWS
    assert all((tmp_path / path).read_bytes() == (two / "ddp" / path).read_bytes() for path in shards)


def test_spread_weights_train_like_copies(two):
    """FSDP2 on two processes equals DDP after three steps: live, averaged and exported weights, and the optimizer."""
    checkpoint = Path("checkpoints") / f"step-{UNET_STEPS:08d}"
    unet = Path("final") / "unet" / "diffusion_pytorch_model.safetensors"
    for file in (*(checkpoint / f"{name}.safetensors" for name in ("model", "ema", "optimizer")), unet):
        copies, spread = (load_file(two / name / file) for name in ("ddp", "fsdp"))
        assert set(copies) == set(spread) and len(copies) > 20
        for name, value in copies.items():
            torch.testing.assert_close(spread[name], value, rtol=0, atol=1e-5, msg=f"{file} {name}")
    start = load_file(two / "diffusion" / "unet" / "diffusion_pytorch_model.safetensors")
    trained = load_file(two / "fsdp" / unet)
    moved = [name for name in start if name != "conv_in.weight" and (trained[name] - start[name]).abs().max() > 1e-3]
    assert len(moved) > 20, "three steps move the weights by far more than the tolerance"
    norms = [
        [row["grad_norm"] for row in map(json.loads, (two / name / "metrics.jsonl").read_text().splitlines()) if "grad_norm" in row]
        for name in ("ddp", "fsdp")
    ]  # fmt: skip
    assert norms[0] and norms[1] == pytest.approx(norms[0], rel=1e-4)
    assert facts_of(two / "fsdp")["processes"] == 2 and facts_of(two / "fsdp")["weights_sha256_by_rank"] == []
