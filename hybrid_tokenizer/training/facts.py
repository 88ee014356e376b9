"""What determines a run's result, and what a resumed run has changed of it."""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset

from hybrid_tokenizer.checkpoints.files import state_hash
from hybrid_tokenizer.data.items import Item, item_captions, item_path
from hybrid_tokenizer.data.shards import ShardSample
from hybrid_tokenizer.data.training import TrainingStream
from hybrid_tokenizer.errors import shown
from hybrid_tokenizer.training.config import TrainingConfig
from hybrid_tokenizer.training.objective import Objective

WITHOUT_EFFECT = (
    "output_dir", "training.num_workers", "training.save_every", "training.keep_checkpoints", "training.validate_every",
    "training.log_every", "training.max_minutes", "training.tracker", "training.run_name", "training.wandb_project",
    "training.wandb_mode",
    "training.progress", "training.allow_changes",
)  # fmt: skip
"""Options that change neither weights nor validation figures."""
LISTED = ("training.max_steps", "training.epochs", "training.num_threads")
"""Options that a resumed run may change, which is said: a longer run, and another machine, whose sums round differently."""
DATA, FROZEN, PRECISION, PROCESSES = "the data", "the frozen weights", "training.mixed_precision", "processes"


def settings_of(
    run_facts: Mapping[str, Any],
    config: TrainingConfig,
    precision: str,
    processes: int,
    objective: Objective,
    stream: Dataset,
) -> dict[str, Any]:
    """Everything by dotted name that determines the weights: options, and hashes of the data and of the frozen weights.

    Args:
        run_facts: the resolved configuration.
        config: the loop's options, which `run_facts` need not hold.
        precision: what "auto" chose.
    """
    settings = {
        name: value
        for name, value in flat({**run_facts, "training": asdict(config)}).items()
        if name not in WITHOUT_EFFECT
    }
    settings |= {PRECISION: precision, PROCESSES: processes}
    if (data := data_hash(stream)) is not None:
        for name in ("data.root", "data.captions"):
            settings.pop(name, None)  # the same data may have moved
        settings[DATA] = data
    if len(getattr(objective, "frozen", ())):
        settings[FROZEN] = state_hash(objective.frozen)[:16]
    return json.loads(json.dumps(settings))


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, by dotted name."""
    entries: dict[str, Any] = {}
    for name, value in values.items():
        entries |= flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {prefix + name: value}
    return entries


def changes_of(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, str]:
    """What differs, by name, in words."""
    names = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    return {name: f"{name} was {shown(before.get(name))}, is {shown(now.get(name))}" for name in names}


def data_hash(stream: Dataset) -> str | None:
    """Of the images and captions that a stream draws from. None for a stream that does not know it."""
    return items_hash(stream.items) if isinstance(stream, TrainingStream) else getattr(stream, "data_hash", None)


def items_hash(items: Sequence[Item]) -> str:
    """Of the items' names below the folder that all share, their sizes in bytes and their captions.

    The bytes themselves are not read: that would take as long as an epoch.
    """
    size = lru_cache(maxsize=2)(_size)
    paths = [os.path.abspath(item_path(item)) for item in items]
    folder = os.path.commonpath(list(map(os.path.dirname, paths)))
    digest = hashlib.sha256()
    for item, path in zip(items, paths, strict=True):
        packed = isinstance(item, ShardSample)
        what = [*item.image, item.texts] if packed else item_captions(item)
        facts = [path[len(folder) :], size(item.shard if packed else item_path(item)), what]
        digest.update(json.dumps(facts).encode())
    return digest.hexdigest()[:16]


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:  # it is skipped when it is opened
        return -1
