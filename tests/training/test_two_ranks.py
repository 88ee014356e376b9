import json
import subprocess
import sys
from pathlib import Path

from safetensors.torch import load_file
from training_runs import SMALL_GUIDE, assert_same_gradients, environment, said

KINDS = ("ema", "vq")
STEPS = 2


def finished(command):
    run = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment(GLOO_SOCKET_IFNAME="lo")
    )
    try:
        stdout, stderr = run.communicate(timeout=300)
    finally:
        run.terminate()  # it ends the two processes
    return run.returncode, stdout, stderr


def test_two_processes_train_one_model_on_different_images(script, pictures, tmp_path):
    """As `torchrun --nproc_per_node 2` on a machine without a GPU, two micro-batches a step."""
    options = (
        *SMALL_GUIDE, f"data.root={pictures}", f"training.max_steps={STEPS}", "training.save_every=1",
        "training.mixed_precision=no",
    )  # fmt: skip
    for (
        kind
    ) in KINDS:  # a launch each: a second process group would find the first one's addresses in the launcher's store
        command = [
            sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2",
            str(Path(__file__).with_name("two_ranks.py")), str(tmp_path / "seen"), kind, *options,
            f"output_dir={tmp_path}/{{kind}}", "training.batch_size=1", "training.accumulation=2",
        ]  # fmt: skip
        code, stdout, stderr = finished(command)
        assert code == 0, stderr[-4000:]
        assert said(stdout) == ["starting from step 0", f"finished at step {STEPS}"]
    for kind in KINDS:
        facts = json.loads((tmp_path / kind / "final" / "training.json").read_text())
        assert facts["processes"] == 2 and facts["images_seen"] == 4 * STEPS
        hashes = facts["weights_sha256_by_rank"]  # codebooks included
        assert len(hashes) == 2 and hashes[0] == hashes[1]
        ranks = [json.loads((tmp_path / f"seen.{kind}.{rank}.json").read_text()) for rank in (0, 1)]
        assert [len(step) for seen in ranks for step in seen.values()] == [2] * 2 * STEPS
        drawn = {image for seen in ranks for step in seen.values() for image in step}
        assert len(drawn) == 4 * STEPS, "within an epoch no image comes twice, on whichever rank"

    # in one process the same images give the same gradient, up to rounding; and it can go on from the two's checkpoint
    error, _, _ = script(
        "train_guide.py", *options, "guide.quantizer.kind=vq", f"output_dir={tmp_path / 'one'}", "training.batch_size=4"
    )
    assert error is None
    assert_same_gradients(*(first_gradients(tmp_path / name) for name in ("one", "vq")))
    options = [option for option in options if "max_steps" not in option]
    error, stdout, _ = script(
        "train_guide.py", *options, "guide.quantizer.kind=ema", f"output_dir={tmp_path / 'ema'}",
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
