"""Prepares a study: draws images at random, reconstructs them with each tokenizer, and stores them under opaque names."""

import os
import random
import secrets
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from hybrid_tokenizer.apps.user_study.study import (
    CONSENT,
    CONSENT_NAME,
    IMAGES_NAME,
    VOTES_NAME,
    Study,
    StudySet,
    picture_path,
    write_study,
)
from hybrid_tokenizer.apps.user_study.votes import Votes
from hybrid_tokenizer.checkpoints.files import write_atomic
from hybrid_tokenizer.data.folders import find_images, mark_output
from hybrid_tokenizer.data.open import open_rgb
from hybrid_tokenizer.data.samples import sample_photographs
from hybrid_tokenizer.errors import HybridTokenizerError
from hybrid_tokenizer.evaluation.images import EvalImages
from hybrid_tokenizer.evaluation.loop import reconstruct
from hybrid_tokenizer.evaluation.pictures import write_png
from hybrid_tokenizer.images import to_pil
from hybrid_tokenizer.protocol import ImageTokenizer
from hybrid_tokenizer.provenance import provenance

CODES_NAME = "codes.txt"
NUM_SETS = 25


@dataclass(frozen=True)
class StudyOptions:
    """`images` is a folder; None takes the built-in photographs. `participants` is the number of codes made in advance; with
    0 everyone may take part."""

    images: Path | None = None
    num_sets: int = NUM_SETS
    image_size: int = 256
    seed: int = 0
    participants: int = 0

    def __post_init__(self) -> None:
        if self.num_sets < 1 or self.participants < 0:
            raise HybridTokenizerError(
                f"num_sets={self.num_sets} and participants={self.participants}, expected at least 1 set and at least 0 "
                "participants; correct the numbers"
            )


def prepare_study(
    folder: Path, tokenizers: Sequence[ImageTokenizer], options: StudyOptions, say: Callable[[str], None] = tqdm.write
) -> Study:
    """Write a new folder with everything that `serve` needs. Raises if it is not empty, or for fewer than two tokenizers."""
    if len(tokenizers) < 2:
        raise HybridTokenizerError(f"{len(tokenizers)} tokenizer(s) cannot be ranked; give two or more")
    if folder.exists() and any(folder.iterdir()):
        raise HybridTokenizerError(f"{folder} is not empty; give a new or empty folder")
    images = draw_images(options, say)
    if len(images) < options.num_sets:
        say(f"there are {len(images)} usable images for {options.num_sets} sets; the study has {len(images)} sets")
    folder.parent.mkdir(parents=True, exist_ok=True)
    # written beside the folder and renamed, so that a study is complete or absent
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as scratch:
        new = Path(scratch) / "study"
        mark_output(new)
        (new / IMAGES_NAME).mkdir()
        write_atomic(new / CONSENT_NAME, CONSENT.encode())
        drawn = write_pictures(new, images, tokenizers, options.seed)
        study = Study(
            id=opaque_name(),
            secret=secrets.token_hex(16),
            link_token=secrets.token_urlsafe(16),
            methods=tuple(tokenizer.name for tokenizer in tokenizers),
            sets=tuple(drawn[: options.num_sets]),
            open_to_all=options.participants == 0,
            owner_token=secrets.token_urlsafe(16),
            trial=drawn[options.num_sets] if len(drawn) > options.num_sets else None,
        )
        votes = Votes(new / VOTES_NAME, study.id)
        codes = [votes.join() for _ in range(options.participants)]
        votes.close()
        if codes:
            write_atomic(new / CODES_NAME, "".join(f"{code}\n" for code in codes).encode())
        write_study(new, study, study_provenance(options, images))
        if folder.exists():
            folder.rmdir()
        os.rename(new, folder)
    return study


def draw_images(options: StudyOptions, say: Callable[[str], None]) -> EvalImages:
    """Usable images for the sets and the trial in random order, cropped to squares as in every evaluation."""
    generator = random.Random(options.seed)
    if options.images is None:
        photographs = sample_photographs()
        names = generator.sample(sorted(photographs), len(photographs))
        return EvalImages(
            names, photographs.__getitem__, options.image_size, max_images=options.num_sets + 1, say=say, progress=False
        )
    root = options.images
    found = [path.relative_to(root).as_posix() for path in find_images(root)]
    return EvalImages(
        generator.sample(found, len(found)), lambda name: open_rgb(root / name), options.image_size,
        root=root, max_images=options.num_sets + 1, say=say, progress=False,
    )  # fmt: skip


def write_pictures(folder: Path, images: EvalImages, tokenizers: Sequence[ImageTokenizer], seed: int) -> list[StudySet]:
    """Write PNG files of one size without metadata, one set at a time so that memory does not grow with the sets."""
    sets = []
    with torch.no_grad(), tqdm(total=len(images) * len(tokenizers), desc="reconstructing", unit="image") as bar:
        for batch in images.batches(1):
            candidates = {}
            for tokenizer in tokenizers:
                output, _, _ = reconstruct(tokenizer, batch, torch.Generator().manual_seed(seed))
                candidates[tokenizer.name] = write_picture(folder, output[0].cpu())
                bar.update()
            original = write_picture(folder, batch.references[0])
            sets.append(StudySet(opaque_name(), images.names[batch.positions.start], original, candidates))
    return sets


def write_picture(folder: Path, image: Float[Tensor, "3 h w"]) -> str:
    """Write an image under an opaque name, which is returned. Equal dates of all files hide the order of the methods."""
    name = opaque_name()
    write_png(picture_path(folder, name), to_pil(image))
    os.utime(picture_path(folder, name), (0, 0))
    return name


def opaque_name() -> str:
    """64 random bits."""
    return secrets.token_hex(8)


def study_provenance(options: StudyOptions, images: EvalImages) -> dict[str, Any]:
    """How the images were made."""
    return provenance() | {
        "options": {
            "images": None if options.images is None else str(options.images),
            "num_sets": options.num_sets,
            "image_size": options.image_size,
            "seed": options.seed,
        },
        "skipped": images.skipped,
        "pixels_sha256": images.pixels_hash,
    }
