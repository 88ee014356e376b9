"""Finished rows on disk, so that a killed run resumes; and what the numbers of a run come from."""

import hashlib
import json
import shutil
import time
from pathlib import Path
from typing import Any
from urllib.parse import quote

import torch

from hybrid_tokenizer.checkpoints.files import load_tensors, read_json, save_tensors, write_json
from hybrid_tokenizer.errors import HybridTokenizerError
from hybrid_tokenizer.evaluation.images import EvalImages
from hybrid_tokenizer.evaluation.summary import Evaluation
from hybrid_tokenizer.provenance import git_revision, machine, peak_memory_bytes, versions

FOLDER = "finished_rows"


class FinishedRows:
    """Two files per row in `folder`. A row is read back only by a run with the same `facts` (anything that JSON takes)."""

    def __init__(self, folder: Path, facts: Any):
        self.folder = folder / FOLDER
        self.key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()

    def read(self, name: str) -> Evaluation | None:
        """The row called `name`. None where it was not finished with these facts, or where its files are damaged."""
        listing = self._path(name, ".json")
        if not listing.is_file():
            return None
        try:
            stored = read_json(listing)
            if not isinstance(stored, dict) or stored.get("key") != self.key:
                return None
            pictures = load_tensors(self._path(name, ".safetensors"))["pictures"]
            return Evaluation(stored["row"], stored["per_image"], pictures)
        except (HybridTokenizerError, KeyError):
            return None

    def write(self, name: str, done: Evaluation) -> None:
        """Keep a row. The listing is written last, so that a row with a listing is complete."""
        self._path(name, ".json").unlink(missing_ok=True)
        save_tensors(self._path(name, ".safetensors"), {"pictures": done.pictures})
        write_json(self._path(name, ".json"), {"key": self.key, "row": done.row, "per_image": done.per_image})

    def clear(self) -> None:
        """Delete all rows, once the table is written."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _path(self, name: str, suffix: str) -> Path:
        return self.folder / (quote(name, safe="") + suffix)


def open_store(folder: Path, facts: Any, images: EvalImages, device: torch.device | str) -> FinishedRows:
    """The rows of a run with these `facts` (configuration, seeds, hashes of weights), images, code and device."""
    return FinishedRows(folder, [facts, images.pixels_hash, images.names, git_revision(), str(device)])


def run_facts(images: EvalImages, device: torch.device | str, started: float) -> dict[str, Any]:
    """What the numbers of a run come from: code, images, versions, machine, time since `started`, peak memory.

    started: a value of time.perf_counter.
    """
    return {
        "revision": git_revision(),
        "images": {
            "n": len(images),
            "size": images.size,
            "names_sha256": images.names_hash,
            "pixels_sha256": images.pixels_hash,
        },
        "skipped": images.skipped,
        "versions": versions(),
        "device": str(device),
        "machine": machine(),
        "wall_seconds": time.perf_counter() - started,
        "peak_memory_bytes": peak_memory_bytes(),
    }
