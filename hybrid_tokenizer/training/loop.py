"""The training loop, counted in steps: accumulate, clip, average, validate, save, resume. It knows objectives only."""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from hybrid_tokenizer.checkpoints.files import load_strict, read_json, state_hash, write_atomic, write_json
from hybrid_tokenizer.data import build_loader
from hybrid_tokenizer.errors import HybridTokenizerError, shorten
from hybrid_tokenizer.images import to_uint8
from hybrid_tokenizer.provenance import provenance
from hybrid_tokenizer.training.config import TrainingConfig
from hybrid_tokenizer.training.facts import LISTED, changes_of, flat, settings_of
from hybrid_tokenizer.training.interrupt import EXIT_STATUS, Interrupt, catching_interrupt
from hybrid_tokenizer.training.lock import locked
from hybrid_tokenizer.training.objective import Objective, ema_decay_at, learning_rate_at
from hybrid_tokenizer.training.sharding import gathered, prepare_sharded, shards_weights, spread_as, whole_weights
from hybrid_tokenizer.training.state import (
    EMA,
    MODEL,
    OPTIMIZER,
    append_jsonl,
    find_checkpoint,
    is_validated,
    keep_newest,
    load_checkpoint_tensors,
    pack_optimizer,
    prepare_folder,
    save_checkpoint,
    trim_jsonl,
    unpack_optimizer,
    writing,
)
from hybrid_tokenizer.training.tracking import TensorBoardEvents, log_pictures, wandb_errors, wandb_options

RECORD = "training.json"
"""In the final folder: what the run was. It is written last."""


def train(
    objective: Objective,
    stream: Dataset,
    val_batches: list[dict[str, Any]],
    config: TrainingConfig,
    output_dir: Path,
    run_facts: dict[str, Any],
) -> None:
    """Train `objective` on `stream` until `config.max_steps`. Resumes from the newest whole checkpoint in `output_dir`.

    Writes to `output_dir`: checkpoints/, metrics.jsonl, validation/*.png, and at the end final/, which holds the averaged
    weights as a component and training.json.

    Args:
        val_batches: batches like those of the stream, on which the main process validates.
        run_facts: the resolved configuration, which training.json records.

    Raises:
        SystemExit: Ctrl-C was pressed; the step in progress is saved, and the status is 130.
        HybridTokenizerError: the loss or a weight is not finite, or `output_dir` cannot be written (the checkpoints stay as
            they were), is in use by another run, or holds a run of another model, seed, batch, data or settings.
    """
    with locked(output_dir):
        run = _Run(objective, stream, val_batches, config, output_dir, run_facts)
        with catching_interrupt() as interrupt:
            run.run(interrupt)


def choose_precision(config: TrainingConfig) -> str:
    """ "auto" is bf16 where the device computes it faster (GPUs with bf16 units, CPUs with AMX or AVX512-BF16), else fp32."""
    if config.mixed_precision != "auto":
        return config.mixed_precision
    if torch.cuda.is_available():
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "no"
    return "bf16" if torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported() else "no"


class _Run:
    def __init__(
        self,
        objective: Objective,
        stream: Dataset,
        val_batches: list[dict[str, Any]],
        config: TrainingConfig,
        output_dir: Path,
        run_facts: dict[str, Any],
    ):
        self.config, self.output_dir, self.val_batches, self.run_facts = config, output_dir, val_batches, run_facts
        self.stream = stream
        self.events = TensorBoardEvents(output_dir / "tensorboard") if config.tracker == "tensorboard" else None
        tracker = None if config.tracker == "none" else self.events or config.tracker
        self.accelerator = Accelerator(
            # without this, Accelerate takes the processes of a plain torchrun without a GPU for unrelated ones
            cpu=not torch.accelerator.is_available(),
            gradient_accumulation_steps=config.accumulation,
            mixed_precision=choose_precision(config),
            log_with=tracker,
            project_dir=str(output_dir),
            kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=objective.unused_parameters)],
        )
        if self.accelerator.device.type == "cpu":
            torch.set_num_threads(config.num_threads)
        # what the processes agree on at every step goes between the hosts, which then do not wait for their GPUs
        self.hosts = torch.distributed.new_group(backend="gloo") if self.accelerator.num_processes > 1 else None
        self.main = self.accelerator.is_main_process
        self.accelerator.wait_for_everyone()  # until here the other processes may be writing caches
        if self.main:
            prepare_folder(output_dir)
        precision, processes = self.accelerator.mixed_precision, self.accelerator.num_processes
        self.settings = settings_of(run_facts, config, precision, processes, objective, stream) if self.main else {}
        self.sharded = shards_weights(self.accelerator)
        # FSDP takes contiguous weights only
        objective.to(memory_format=torch.contiguous_format if self.sharded else torch.channels_last)
        trained = [p for p in objective.parameters() if p.requires_grad]
        groups = [
            {"params": [p for p in trained if p.ndim > 1], "weight_decay": config.weight_decay},
            {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
        ]
        on_cpu = self.accelerator.device.type == "cpu"
        optimizer = torch.optim.AdamW(
            groups, lr=config.learning_rate, betas=tuple(config.betas), fused=None if on_cpu else True
        )
        prepare = prepare_sharded if self.sharded else Accelerator.prepare
        self.prepared, self.optimizer = prepare(self.accelerator, objective, optimizer)
        self.objective = objective
        self.names = {p: name for name, p in objective.named_parameters() if p.requires_grad}
        averaged = objective.model.named_parameters() if config.ema_decay else ()
        self.ema = {name: p.detach().clone() for name, p in averaged if p.requires_grad}
        self.step = 0
        self.seconds_before = 0.0
        self.changes: list[dict[str, Any]] = []
        self.validated = self.finished = False
        self._resume()
        self.loader = build_loader(
            stream,
            config.batch_size,
            first=self.step * config.accumulation,
            rank=self.accelerator.process_index,
            world_size=self.accelerator.num_processes,
            num_workers=config.num_workers,
        )
        self.compiled = torch.compile(self.prepared) if config.compile else self.prepared

    @property
    def geometry(self) -> dict[str, int]:
        """What determines the images of each step. A resumed run must not change it."""
        return {
            "seed": self.config.seed,
            "images_per_step": self.config.batch_size * self.config.accumulation * self.accelerator.num_processes,
        }

    def _resume(self) -> None:
        found = find_checkpoint(self.output_dir / "checkpoints") if self.main else None
        last = -1 if found is None else found[1]["step"]
        log = self.output_dir / "metrics.jsonl"
        if self.main:
            with writing(self.output_dir):
                self.validated = is_validated(log, last)
            self.finished = last == self.config.max_steps and trained_steps(self.output_dir / "final") == last
        if self.accelerator.num_processes > 1:  # every rank must do what the main process found
            shared = [found, self.settings, self.validated, self.finished]
            torch.distributed.broadcast_object_list(shared)
            found, self.settings, self.validated, self.finished = shared
        if found is None:
            self._trim(log, last)  # the rows of a start that ended before its first checkpoint
            self._say("starting from step 0")
            return
        folder, facts = found
        if facts["geometry"] != self.geometry:
            raise HybridTokenizerError(
                f"{folder} was trained with {facts['geometry']}, this run has {self.geometry}; "
                "keep the seed and the images per step when resuming, or use a new output_dir"
            )
        tensors = load_checkpoint_tensors(folder)
        target = self.objective.state_dict()
        stored = {key: spread_as(value, target.get(key, value)) for key, value in tensors[MODEL].items()}
        unsaved = set(target) - set(self.objective.saved_state())
        load_strict(self.objective, stored, str(folder / MODEL), ignore=unsaved)
        listed = self._accept_changes(folder, facts)
        if self.ema:
            if set(tensors.get(EMA, {})) != set(self.ema):
                raise HybridTokenizerError(
                    f"{folder} holds other averaged weights than this run keeps; use a new output_dir"
                )
            for name, average in self.ema.items():
                average.copy_(spread_as(tensors[EMA][name], average))
        inner = self.optimizer.optimizer
        unpack_optimizer(inner, self.names, tensors[OPTIMIZER], str(folder / OPTIMIZER))
        self.step, self.seconds_before = facts["step"], facts["seconds"]
        self._trim(log, last)
        if self.main:
            keep_newest(folder, self.config.keep_checkpoints)  # after a kill between saving and deleting
        for line in listed:
            self._say(line)
        self._say(f"resumed from step {self.step}")

    def _trim(self, log: Path, last: int) -> None:
        if self.main:
            with writing(self.output_dir):
                trim_jsonl(log, last)

    def _accept_changes(self, folder: Path, facts: dict[str, Any]) -> list[str]:
        """What this run says of settings that differ from the checkpoint's. Raises where they must not."""
        step, self.changes = facts["step"], facts.get("changes", [])
        if step > self.config.max_steps:
            raise HybridTokenizerError(
                f"{folder} is beyond training.max_steps={self.config.max_steps}; give at least {step}, or use a new output_dir"
            )
        if "settings" not in facts:
            return [f"{folder} does not record its settings, so that they are not compared with this run's"]
        changes = changes_of(facts["settings"], self.settings)
        refused = [words for name, words in changes.items() if name not in LISTED]
        if refused and not self.config.allow_changes:
            raise HybridTokenizerError(
                f"{folder} was trained with other settings: {shorten(refused)}; give the earlier ones, use a new output_dir, "
                "or accept the changes with training.allow_changes=true"
            )
        if refused and step == self.config.max_steps:
            raise HybridTokenizerError(
                f"no step is left to train with other settings: {shorten(refused)}; give more than training.max_steps={step}, "
                "or use a new output_dir"
            )
        if changes:
            self.changes = [*self.changes, {"after_step": step, "changes": list(changes.values())}]
        return [f"changed after step {step}: {words}" for words in changes.values()]

    def run(self, interrupt: Interrupt) -> None:
        self.started = self.logged_at = time.monotonic()
        if self.finished:
            self._say_finished()
            return
        if self.events is not None:
            self.events.from_step = self.step
        if self.accelerator.log_with:
            with writing(self.output_dir), wandb_errors():
                self.accelerator.init_trackers(
                    self.config.wandb_project,
                    config=flat({**self.run_facts, "training": asdict(self.config)}),
                    init_kwargs={"wandb": wandb_options(self.output_dir, self.config.wandb_mode, self.config.run_name)},
                )
        batches = iter(self.loader)
        self.skipped: set[str] = set()
        self.pending: list[dict[str, Tensor]] = []
        waited = 0.0
        bar = tqdm(
            total=self.config.max_steps,
            initial=self.step,
            unit="step",
            disable=not (self.main and self.config.progress),
        )
        if self._validates() and not self.validated:  # at step 0, or after a kill between saving and validating
            self._validate()
            self.logged_at = time.monotonic()
        while self.step < self.config.max_steps:
            waited += self._train_step(batches)
            self.step += 1
            bar.update()
            last = self.step == self.config.max_steps
            out_of_time, interrupted = self._asked_to_stop(interrupt)
            stops = out_of_time or interrupted
            saves = last or stops or self.step % self.config.save_every == 0
            validates = self._validates()
            if saves or validates or self.step % self.config.log_every == 0:
                self._log(bar, waited)
            if saves:
                self._save()
            if validates:
                self._validate()
            if saves or validates:
                self.logged_at = time.monotonic()  # the rate is that of training alone
            if stops and not last:
                bar.close()
                limit = "" if interrupted else f" after {self.config.max_minutes} minutes"
                self._say(f"stopped at step {self.step}{limit}; run the same command to resume")
                self.accelerator.end_training()
                if interrupted:
                    raise SystemExit(EXIT_STATUS)
                return
        bar.close()
        self._finish()

    def _train_step(self, batches: Iterator[dict[str, Any]]) -> float:
        """One optimizer step; returns the seconds spent waiting for data."""
        # resuming is exact because all random draws of a step follow from (seed, rank, step)
        torch.manual_seed(self.config.seed * 1_000_003 + self.step * 1_009 + self.accelerator.process_index)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate_at(
                self.step,
                self.config.learning_rate,
                self.config.min_learning_rate,
                self.config.warmup_steps,
                self.config.max_steps,
            )
        self.objective.train()
        waited = 0.0
        for _ in range(self.config.accumulation):
            before = time.monotonic()
            batch = next(batches)
            waited += time.monotonic() - before
            self._report_skipped(batch["skipped"])
            batch = to_device(batch, self.accelerator.device)
            with self.accelerator.accumulate(self.prepared):
                with self.accelerator.autocast():
                    losses = self.compiled(batch, self.step)
                self.accelerator.backward(losses["total"])
                if self.accelerator.sync_gradients:
                    losses["grad_norm"] = torch.as_tensor(
                        self.accelerator.clip_grad_norm_(self.names.keys(), self.config.max_grad_norm)
                    )
                self.optimizer.step()
                self.optimizer.zero_grad()
            self.pending.append({name: value.detach() for name, value in losses.items()})
        decay = ema_decay_at(self.step, self.config.ema_decay)
        if self.ema:
            live = [p.detach() for name, p in self.objective.model.named_parameters() if name in self.ema]
            # one kernel for many weights; torch has no public name for it
            torch._foreach_lerp_(list(self.ema.values()), live, 1 - decay)
        return waited

    def _validates(self) -> bool:
        """Whether the log has a validation of this step."""
        return self.step == self.config.max_steps or self.step % self.config.validate_every == 0

    def _asked_to_stop(self, interrupt: Interrupt) -> tuple[bool, bool]:
        """Whether the time is over, and whether Ctrl-C was pressed."""
        limit = self.config.max_minutes
        over = limit is not None and time.monotonic() - self.started > limit * 60
        asked = (over, interrupt.pressed)
        if self.accelerator.num_processes > 1:  # all ranks must stop at the same step
            flags = torch.tensor(asked, dtype=torch.int32)
            torch.distributed.all_reduce(flags, group=self.hosts)
            over, pressed = flags.tolist()
            asked = (bool(over), bool(pressed))
        return asked

    def _report_skipped(self, skipped: list[tuple[str, str]]) -> None:
        for path, reason in skipped:
            if path not in self.skipped:
                self.skipped.add(path)
                print(f"skipped {path}: {reason}", flush=True)

    def _log(self, bar: tqdm, waited: float) -> None:
        """Log the means since the last call to bar, file and trackers. Losses stay on the device until here."""
        steps = len(self.pending) // self.config.accumulation
        names = {name for losses in self.pending for name in losses}
        means = {
            name: torch.stack([losses[name].float() for losses in self.pending if name in losses]).mean().item()
            for name in sorted(names)
        }
        self.pending.clear()
        broken = [name for name, value in means.items() if not math.isfinite(value)]
        # the losses are of the weights before the last step; a checkpoint must not hold weights that this step has broken
        broken += [name for name, weight in self.objective.model.named_parameters() if not weight.isfinite().all()]
        if broken:
            bar.close()
            raise HybridTokenizerError(
                f"the loss or the weights stopped being finite in the steps up to {self.step} ({shorten(broken)}); the "
                f"checkpoints in {self.output_dir / 'checkpoints'} are earlier: lower training.learning_rate and run again; "
                "if this repeats, delete the newest checkpoint first"
            )
        elapsed = time.monotonic() - self.started
        row = {
            "step": self.step,
            **means,
            "lr": self.optimizer.param_groups[0]["lr"],
            "waited_for_data": waited / elapsed,
        }
        now = time.monotonic()
        per_step = self.geometry["images_per_step"]
        progress = {"images": self.step * per_step}
        if (length := getattr(self.stream, "epoch_length", None)) is not None:
            progress["epoch"] = round(progress["images"] / length, 2)
        bar.set_postfix(loss=f"{means['total']:.4f}", **progress)
        progress["images_per_second"] = steps * per_step / (now - self.logged_at)
        self.logged_at = now
        with writing(self.output_dir):
            if self.main:
                append_jsonl(self.output_dir / "metrics.jsonl", row)
            shown = {name: value for name, value in (row | progress).items() if name != "step"}
            self.accelerator.log({f"train/{name}": value for name, value in shown.items()}, step=self.step)

    @contextmanager
    def _averaged_weights(self) -> Iterator[None]:
        live = {name: p.detach().clone() for name, p in self.objective.model.named_parameters()}
        self._set_weights(self.ema)
        try:
            yield
        finally:
            self._set_weights(live)

    @torch.no_grad()
    def _set_weights(self, weights: dict[str, Tensor]) -> None:
        for name, parameter in self.objective.model.named_parameters():
            if name in weights:
                parameter.copy_(weights[name])

    @torch.no_grad()
    def _validate(self) -> None:
        """Validate the averaged weights on the main process while the others wait, or on all where each holds a shard."""
        if (self.main or self.sharded) and self.val_batches:
            self.objective.eval()
            # validation must not change the training's random state
            with torch.random.fork_rng(devices=[]), self._averaged_weights(), self.accelerator.autocast():
                torch.manual_seed(self.config.seed)
                validated = self.objective.validate([to_device(b, self.accelerator.device) for b in self.val_batches])
                if self.sharded:
                    self.objective.reshard()  # FSDP keeps the outermost weights whole after a forward pass
        if self.main and self.val_batches:
            figures = {f"val_{name}": value for name, value in validated.figures.items()}
            with writing(self.output_dir):
                if validated.pictures is not None:  # before the row, which tells a resumed run that both are there
                    grid = picture_grid(validated.pictures)
                    save_picture(grid, self.output_dir / "validation" / f"step-{self.step:08d}.png")
                    log_pictures(self.accelerator.trackers, grid, self.step)
                append_jsonl(self.output_dir / "metrics.jsonl", {"step": self.step, **figures})
                self.accelerator.log(
                    {name.replace("val_", "val/", 1): v for name, v in figures.items()}, step=self.step
                )
            shown = " ".join(f"{name}={short(value)}" for name, value in validated.figures.items())
            tqdm.write(f"step {self.step}: validation {shown}")
        self.accelerator.wait_for_everyone()

    def _save(self) -> None:
        tensors = {
            MODEL: gathered(self.objective.saved_state()),
            OPTIMIZER: gathered(pack_optimizer(self.optimizer.optimizer, self.names)),
        }
        if self.ema:
            tensors[EMA] = gathered(self.ema)
        if self.main:
            seconds = self.seconds_before + time.monotonic() - self.started
            facts = {"geometry": self.geometry, "seconds": seconds, "settings": self.settings, "changes": self.changes}
            save_checkpoint(self.output_dir / "checkpoints", self.step, self.config.keep_checkpoints, tensors, facts)
        self.accelerator.wait_for_everyone()

    def _finish(self) -> None:
        hashes = [] if self.sharded else [state_hash(self.objective.model)]
        if hashes and self.accelerator.num_processes > 1:
            of_all: list[Any] = [None] * self.accelerator.num_processes
            torch.distributed.all_gather_object(of_all, hashes[0])
            hashes = of_all
        if len(set(hashes)) > 1:
            raise HybridTokenizerError(
                f"weights differ between processes at the end ({hashes}); do not use this run, and report how it was started"
            )
        record = self.output_dir / "final" / RECORD
        if self.main or self.sharded:
            self.objective.eval()
            with self._averaged_weights(), writing(record.parent):
                if self.main:
                    record.unlink(missing_ok=True)  # of a shorter run, whose weights are overwritten now
                if self.sharded and not self.objective.exports_sharded:
                    with whole_weights(self.objective):
                        if self.main:
                            self.objective.export(record.parent, self.val_batches)
                else:
                    self.objective.export(record.parent, self.val_batches)
        if self.main:
            seconds = self.seconds_before + time.monotonic() - self.started
            facts = {
                "step": self.step,
                "images_seen": self.step * self.geometry["images_per_step"],
                "seconds": round(seconds, 1),
                "processes": self.accelerator.num_processes,
                "mixed_precision": self.accelerator.mixed_precision,
                "weights_sha256_by_rank": hashes,
                "skipped": sorted(self.skipped),
                "config": self.run_facts,
                "changes": self.changes,
                "provenance": provenance(),
            }
            with writing(record.parent):
                write_json(record, facts)
        self.accelerator.wait_for_everyone()
        self.accelerator.end_training()
        self._say_finished()

    def _say_finished(self) -> None:
        final = self.output_dir / "final"
        self._say(f"finished at step {self.step}")
        following = self.objective.next_command.format(final=final)
        self._say(f"the weights are in {final}" + (f"; next: {following}" if following else ""))

    def _say(self, line: str) -> None:
        if self.main:
            print(line, flush=True)


def trained_steps(final: Path) -> int | None:
    """The steps of the run that wrote this folder whole; None where none did."""
    return read_json(final / RECORD).get("step") if (final / RECORD).exists() else None


def to_device(batch: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """The tensors of a batch on `device`, images in channels-last order."""
    return {
        name: value.to(
            device,
            non_blocking=True,
            memory_format=torch.channels_last if value.ndim == 4 else torch.preserve_format,
        )
        if isinstance(value, Tensor)
        else value
        for name, value in batch.items()
    }


def short(value: float | int) -> str:
    """A figure in four digits; an integer whole."""
    return str(value) if isinstance(value, int) else f"{value:.4g}"


def picture_grid(pictures: Float[Tensor, "rows columns 3 h w"]) -> UInt8[Tensor, "3 H W"]:
    """Rows of images in [-1, 1] as one picture."""
    from torchvision.utils import make_grid

    rows, columns = pictures.shape[:2]
    images = to_uint8(pictures.float().cpu().reshape(rows * columns, *pictures.shape[2:]))
    return make_grid(images, nrow=columns, padding=2)


def save_picture(picture: UInt8[Tensor, "3 h w"], path: Path) -> None:
    """Write a PNG, atomically."""
    from torchvision.io import encode_png

    write_atomic(path, encode_png(picture).numpy().tobytes())
