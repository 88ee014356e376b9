"""Reading and writing a tokenizer as a folder in diffusers' layout: local, in the package, or on the hub."""

import os
import shutil
import tempfile
from collections.abc import Collection
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from hybrid_tokenizer import __version__
from hybrid_tokenizer.checkpoints import hub
from hybrid_tokenizer.checkpoints.files import file_hash, read_config, write_json
from hybrid_tokenizer.diffusion import DiffusionDecoder
from hybrid_tokenizer.errors import HybridTokenizerError, shown
from hybrid_tokenizer.guide import GuideTokenizer
from hybrid_tokenizer.presets import INDEX_NAME, PRESETS, list_presets
from hybrid_tokenizer.semantic import SemanticTokenizer

CLASS_NAME = "HybridTokenizer"
CARD_NAME = "README.md"
WEIGHTS_ENTRY = "weights_sha256"
"""In the index: the sha256 of each weights file, by its path within the folder."""
HUB_PATTERNS = ("*.json", "*.safetensors", CARD_NAME)
COMPONENTS: dict[str, type] = {"guide": GuideTokenizer, "semantic": SemanticTokenizer, "diffusion": DiffusionDecoder}


class Stored(NamedTuple):
    """Contents of a folder beside its components."""

    parts: dict[str, Any]
    name: str
    search_steps: int
    card: str | None


def read_tokenizer(
    source: str | Path,
    replacements: dict[str, str | Path | None],
    *,
    subfolder: str | None = None,
    revision: str | None = None,
    token: str | None = None,
) -> Stored:
    """Read the components of a preset, a folder or a hub id. Each can be replaced by a folder of its own.

    If all three are replaced, nothing is read from `source`, which is then only the name.
    """
    folders = {part: Path(folder) for part, folder in replacements.items() if folder is not None}
    name, search_steps, card = str(source), 0, None
    home, hashes = Path(), {}
    if len(folders) < len(COMPONENTS):
        home = find_home(source, subfolder, revision, token)
        index = read_config(home / INDEX_NAME)
        if index.get("_class_name") != CLASS_NAME:
            raise HybridTokenizerError(
                f"{home / INDEX_NAME} does not describe a {CLASS_NAME}; give a folder that save_pretrained wrote"
            )
        name, search_steps = str(index.get("name", home.name)), index.get("search_steps", 0)
        hashes = read_hashes(index, home / INDEX_NAME, own=COMPONENTS.keys() - folders.keys())
        folders = {part: home / part for part in COMPONENTS} | folders
        if (home / CARD_NAME).is_file():
            card = (home / CARD_NAME).read_text(encoding="utf-8", errors="replace")
    parts = {part: kind.from_pretrained(folders[part]) for part, kind in COMPONENTS.items()}
    made, read = parts["semantic"].config.generation_width, parts["diffusion"].config.cross_attention_dim
    if made != read:
        raise HybridTokenizerError(
            f"{folders['semantic']} makes embeddings of width {made}, {folders['diffusion']} reads width {read}; "
            "give components of one model"
        )
    check_hashes(home, hashes)
    return Stored(parts, name, search_steps, card)


def read_hashes(index: dict[str, Any], source: Path, own: Collection[str]) -> dict[str, str]:
    """The sha256 of the weights files of the components `own`. Folders of earlier versions have none."""
    hashes = index.get(WEIGHTS_ENTRY, {})
    if not isinstance(hashes, dict) or not all(isinstance(digest, str) for digest in hashes.values()):
        raise HybridTokenizerError(
            f"{source} has {WEIGHTS_ENTRY} {shown(hashes)}, expected files and their sha256; download it again"
        )
    return {name: digest for name, digest in hashes.items() if name.split("/")[0] in own}


def check_hashes(home: Path, hashes: dict[str, str]) -> None:
    """Raise where a weights file is not the one that was saved. Zeros and exchanged tensors are finite and fit the model."""
    for name, digest in hashes.items():
        if not (home / name).is_file():
            raise HybridTokenizerError(f"{home / name} does not exist, but {INDEX_NAME} lists it; download it again")
        if file_hash(home / name) != digest:
            raise HybridTokenizerError(
                f"{home / name} has another sha256 than {INDEX_NAME} lists; it is damaged or was exchanged: download it again, "
                "or give your own component with guide=, semantic= or diffusion="
            )


def plain_card(name: str, size: int) -> str:
    """The model card of weights that came without one, of a tokenizer for images of `size` px."""
    return f"""---
library_name: hybrid_tokenizer
license: other
license_name: research-only
---

# {name}

A tokenizer of hybrid_tokenizer {__version__} for images of {size} px: `HybridTokenizer.from_pretrained(...)`.

**Licence: research only.** Nobody has stated another licence for these weights. Weights that they were made from, and the
images and captions that they were trained on, have terms of their own, which still hold.
"""


def write_tokenizer(
    folder: Path,
    tokenizer: nn.Module,
    facts: dict[str, Any],
    dtype: torch.dtype | None,
    max_shard_size: int | str,
) -> None:
    """Write a complete folder beside `folder` and rename it at the end. `facts` go into the index."""
    existing = sorted(entry.name for entry in folder.iterdir()) if folder.is_dir() else []
    if folder.is_file() or (existing and INDEX_NAME not in existing):
        raise HybridTokenizerError(f"{folder} exists and holds no tokenizer; give a new or empty folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as scratch:
        new, old = Path(scratch) / "new", Path(scratch) / "old"
        new.mkdir()
        for part, module in tokenizer.named_children():
            options = {"max_shard_size": max_shard_size} if part == "diffusion" else {}
            module.save_pretrained(new / part, dtype=dtype, **options)
        classes = {part: ["hybrid_tokenizer", kind.__name__] for part, kind in COMPONENTS.items()}
        index = {"_class_name": CLASS_NAME, "_hybrid_tokenizer_version": __version__, **facts}
        weights = {path.relative_to(new).as_posix(): file_hash(path) for path in sorted(new.rglob("*.safetensors"))}
        write_json(new / INDEX_NAME, index | classes | {WEIGHTS_ENTRY: weights})
        for name in set(existing) - {INDEX_NAME, *COMPONENTS}:
            entry = folder / name
            (shutil.copytree if entry.is_dir() else shutil.copy2)(entry, new / name)
        if folder.is_dir():
            os.rename(folder, old)
        try:
            os.rename(new, folder)
        except OSError:
            if old.is_dir():
                os.rename(old, folder)
            raise


def find_home(source: str | Path, subfolder: str | None, revision: str | None, token: str | None) -> Path:
    """Find the local folder of a preset's name, a path or a hub id."""
    text = str(source)
    if text in list_presets():
        source = PRESETS / text
    elif text == "sd15" and not Path(text).is_dir():
        raise HybridTokenizerError(
            "the weights of 'sd15' are not embedded; make a guide (hybrid-tokenizer train-guide model=sd15), convert SEED v1 "
            "(hybrid-tokenizer convert), download Stable Diffusion 1.5, put the three folders together with hybrid-tokenizer "
            "assemble, and give that folder"
        )
    elif not Path(source).is_dir() and not hub.is_hub_id(source):
        raise HybridTokenizerError(
            f"{text!r} is no preset, folder or hub id; presets: {', '.join(list_presets()) or 'none installed'}"
        )
    return hub.folder(source, subfolder=subfolder, revision=revision, token=token, patterns=HUB_PATTERNS)
