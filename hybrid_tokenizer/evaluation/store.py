"""Rows of a table that a killed run had finished, for the run that goes on."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any
from urllib.parse import quote

from hybrid_tokenizer.checkpoints.files import load_tensors, read_json, save_tensors, write_json
from hybrid_tokenizer.evaluation.summary import Evaluation

FOLDER = "finished_rows"


class FinishedRows:
    """One pair of files a row in `folder`, read back only when it was made for the same `facts` (anything JSON takes)."""

    def __init__(self, folder: Path, facts: Any):
        self.folder = folder / FOLDER
        self.key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()

    def read(self, name: str) -> Evaluation | None:
        """The row called `name`, or None where it was not finished for these facts."""
        listing = self._path(name, ".json")
        if not listing.is_file():
            return None
        stored = read_json(listing)
        if stored.get("key") != self.key:
            return None
        pictures = load_tensors(self._path(name, ".safetensors"))["pictures"]
        return Evaluation(stored["row"], stored["per_image"], pictures)

    def write(self, name: str, done: Evaluation) -> None:
        """Keep a row; its listing comes last, so that a row that is found is whole."""
        self._path(name, ".json").unlink(missing_ok=True)
        save_tensors(self._path(name, ".safetensors"), {"pictures": done.pictures})
        write_json(self._path(name, ".json"), {"key": self.key, "row": done.row, "per_image": done.per_image})

    def clear(self) -> None:
        """Forget them all: the table is written."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _path(self, name: str, suffix: str) -> Path:
        return self.folder / (quote(name, safe="") + suffix)
