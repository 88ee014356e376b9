"""Turns a run's configuration into what the loop takes: the model at its start, the training stream, validation batches."""

import math
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from hybrid_tokenizer.data import TrainingStream, UnreadableImage, hold_out
from hybrid_tokenizer.data.captions import SkippedRow, list_skipped
from hybrid_tokenizer.data.coco import parse_coco
from hybrid_tokenizer.data.config import DataConfig, Verify, say_other_size
from hybrid_tokenizer.data.items import Item, folder_of, item_captions, item_path, list_items, open_item
from hybrid_tokenizer.data.resident import DoesNotFit, ResidentStream
from hybrid_tokenizer.data.training import collate
from hybrid_tokenizer.diffusion import DiffusionConfig, DiffusionDecoder
from hybrid_tokenizer.errors import HybridTokenizerError, printable
from hybrid_tokenizer.guide import GuideConfig, GuideTokenizer
from hybrid_tokenizer.guide.warm_start import start_from
from hybrid_tokenizer.images import fit_square, from_pil
from hybrid_tokenizer.semantic import SemanticConfig, SemanticTokenizer
from hybrid_tokenizer.training.config import SHORT_RUN, TrainingConfig

INDEX_FOLDER = "cache/shards"
"""Where a run's folder keeps the indexes of the WebDataset shards that it reads."""


def training_device() -> torch.device:
    """This process's device, as the loop will choose it. The processes of a run join here, if they have not yet."""
    from accelerate import PartialState
    from accelerate.utils import parse_flag_from_env

    return PartialState(cpu=not torch.accelerator.is_available() or parse_flag_from_env("ACCELERATE_USE_CPU")).device


def split_items(data: DataConfig, captions: bool, index_folder: Path | None = None) -> tuple[list[Item], list[Item]]:
    """Training items and validation items of all roots. Training items appear as often as `data.repeats` says.

    Args:
        captions: items are image-text pairs.
        index_folder: keeps the indexes of WebDataset shards for the next start.
    """
    training: list[Item] = []
    validation: list[Item] = []
    for root, listing, repeat in zip(data.roots, data.captions_of_roots, data.repeats_of_roots, strict=True):
        items = (
            captioned_items(root, listing, "train")
            if captions and listing
            else list_items(root, captions, index_folder)
        )
        if data.val_root is None:
            paths = list(dict.fromkeys(item_path(item) for item in items))  # several rows may name one image
            held = set(hold_out(paths, folder_of(root), data.val_fraction, data.val_at_least)[1])
            validation += [item for item in items if item_path(item) in held]
            items = [item for item in items if item_path(item) not in held]
        training += items * repeat
    if data.val_root is not None:
        root, listing = Path(data.val_root), data.val_captions
        validation = (
            captioned_items(root, listing, "val") if captions and listing else list_items(root, captions, index_folder)
        )
    return training, validation


def captioned_items(root: Path, annotations: str, split: str) -> list[Item]:
    """The images under `root` that a JSON of COCO's form has captions for. What cannot be used is counted and listed: rows, and
    images that are not there."""
    pairs, skipped = parse_coco(annotations, root, split)
    found: list[Item] = []
    for pair in pairs:
        if pair.path.is_file():
            found.append(pair)
        else:
            skipped.append(SkippedRow(printable(pair.path), "the file is not there"))
    list_skipped(skipped, tqdm.write)
    return found


def build_data(
    data: DataConfig, training: TrainingConfig, captions: bool = False, index_folder: Path | None = None
) -> tuple[TrainingStream, list[dict[str, Any]]]:
    """The training stream, and validation batches of at most `training.max_val_images` centre crops."""
    items, held = split_items(data, captions, index_folder)
    stream = training_stream(items, data, training)
    return stream, validation_batches(held, data.val_image_size or data.image_size, training, data.verify)


def training_stream(items: list[Item], data: DataConfig, training: TrainingConfig) -> TrainingStream:
    """The stream of `items`, kept on the training device where `data.resident_mb` holds them."""
    if data.resident_mb:
        options = data.resident_mb, training.num_workers, training.progress
        try:
            return ResidentStream(items, data.crop, training.seed, data.verify, training_device(), *options)
        except DoesNotFit as error:
            print(f"data.resident_mb={data.resident_mb} holds {error}; they are read from disk", flush=True)
    return TrainingStream(items, data.crop, training.seed, data.verify)


def validation_batches(
    items: list[Item], image_size: int, training: TrainingConfig, verify: Verify = "full"
) -> list[dict[str, Any]]:
    """Centre crops of items spread evenly over `items`, in batches of the training's size. Unreadable images are reported and
    left out."""
    count = min(len(items), training.max_val_images)
    chosen = [items[round(index)] for index in torch.linspace(0, len(items) - 1, count).tolist()] if count else []
    samples = []
    for item in chosen:
        try:
            image = from_pil(fit_square(open_item(item, verify), image_size))
            caption = item_captions(item)[0]
        except UnreadableImage as error:
            print(f"skipped {error.name}: {error.reason}", flush=True)
            continue
        samples.append({"images": image, "captions": caption, "skipped": []})
    if not samples:
        raise HybridTokenizerError("no validation image can be read; set data.val_root to a folder of images")
    return [
        collate(samples[start : start + training.batch_size]) for start in range(0, len(samples), training.batch_size)
    ]


def with_length(training: TrainingConfig, epoch_length: int, model_name: str, recipe: str) -> TrainingConfig:
    """The options with the steps of `training.epochs`, where those are given.

    Args:
        epoch_length: images of one pass over the data.
        model_name: "sd15" must have a length.
        recipe: the recipe that gives one, for the error.

    Raises:
        HybridTokenizerError: the paper's sizes without a length, whose short run would end in its warm-up.
    """
    if training.epochs is not None:
        processes = int(os.environ.get("WORLD_SIZE", "1"))
        per_step = training.batch_size * training.accumulation * processes
        return replace(training, max_steps=max(1, math.ceil(training.epochs * epoch_length / per_step)))
    if model_name == "sd15" and training.max_steps == SHORT_RUN:
        raise HybridTokenizerError(
            f"model=sd15 needs a length, and the default training.max_steps={SHORT_RUN} only shows that a run works; give "
            f"recipe={recipe}, training.epochs=N or another training.max_steps"
        )
    return training


def say_training_size(image_size: int, model: GuideTokenizer | SemanticTokenizer) -> None:
    """Say it where the crops have another size than the branch was made for."""
    own = model.config.image_size
    if isinstance(model, SemanticTokenizer):
        change = "enlarges" if image_size < own else "shrinks"
        say_other_size("data.image_size", image_size, own, f"its encoder {change} every crop", "semantic branch")
        return
    count, usual = (math.prod(model.guide_scale_sizes((side, side))[-1]) for side in (image_size, own))
    say_other_size("data.image_size", image_size, own, f"a crop's finest grid has {count} tokens instead of {usual}")


def start_guide(config: GuideConfig, init: str | None) -> GuideTokenizer:
    """Random weights, those of a stored guide tokenizer, or a warm start from an f8 MoVQ."""
    model = GuideTokenizer(config)
    if init is not None:
        start_from(model, init)
    return model


def start_diffusion(config: DiffusionConfig, init: str | None) -> DiffusionDecoder:
    """Random weights, or those of a DiffusionDecoder or Stable Diffusion folder, whose sizes then replace those of `config`."""
    return DiffusionDecoder(config) if init is None else DiffusionDecoder.from_pretrained(init)


def start_semantic(config: SemanticConfig, init: str | None) -> SemanticTokenizer:
    """Random weights, or those of a SemanticTokenizer folder, whose sizes then replace those of `config`."""
    if init is None:
        return SemanticTokenizer(config)
    if not Path(init).is_dir():
        raise HybridTokenizerError(
            f"semantic.init={init!r} is not a folder; convert published checkpoint files with scripts/convert_checkpoint.py first"
        )
    return SemanticTokenizer.from_pretrained(init).train()
