"""A few built-in photographs with captions, and a probe of random weights."""

import json
import tarfile
from pathlib import Path

import torch

from hybrid_tokenizer.checkpoints.files import save_tensors, write_json
from hybrid_tokenizer.data.samples import sample_photographs
from hybrid_tokenizer.images import fit_square
from hybrid_tokenizer.metrics.probe import FEATURES, PROBE_FACTS, PROBE_WEIGHTS, Probe

CAPTIONS = {
    "astronaut": ["A woman in an orange space suit.", "An astronaut smiles."],
    "cat": ["A cat looks up.", "The face of a cat."],
    "coffee": ["A cup of coffee on a table."],
}


def write_pairs(root: Path) -> Path:
    """A folder with captions.jsonl."""
    root.mkdir(parents=True)
    photographs = sample_photographs()
    for name in CAPTIONS:
        fit_square(photographs[name], 48).save(root / f"{name}.png")
    rows = [json.dumps({"file": f"{name}.png", "captions": captions}) for name, captions in CAPTIONS.items()]
    (root / "captions.jsonl").write_text("\n".join(rows) + "\n")
    return root


def write_shard(folder: Path, path: Path) -> Path:
    """The same pairs as a WebDataset shard, and one image without a caption."""
    with tarfile.open(path, "w") as tar:
        for name, captions in CAPTIONS.items():
            text = folder / f"{name}.json"
            text.write_text(json.dumps({"captions": captions}))
            tar.add(folder / f"{name}.png", f"{name}.png")
            tar.add(text, f"{name}.json")
        tar.add(folder / "cat.png", "silent.png")
    return path


def write_probe(folder: Path) -> Path:
    """In the form of tools/train_probe.py."""
    torch.manual_seed(0)
    save_tensors(folder / PROBE_WEIGHTS, Probe(1024, 8).state_dict())
    write_json(folder / PROBE_FACTS, {"features": FEATURES, "num_features": 1024, "hidden_width": 8})
    return folder
