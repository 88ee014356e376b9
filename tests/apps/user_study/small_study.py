"""A study of noise pictures, ready to be served, made without any tokenizer."""

from pathlib import Path

import numpy as np
from PIL import Image

from hybrid_tokenizer.apps.user_study.study import IMAGES_NAME, Study, StudySet, picture_path, write_study

METHODS = ("seed", "lavit", "hybrid")


def write_small_study(
    folder: Path, num_sets: int = 3, study_id: str = "5eed", open_to_all: bool = True, trial: bool = False
) -> Study:
    """Methods of the paper's table; names of pictures are opaque, as `prepare` makes them."""
    (folder / IMAGES_NAME).mkdir(parents=True)
    draws = np.random.default_rng(0)

    def picture() -> str:
        name = draws.bytes(8).hex()
        levels = draws.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(levels).resize((64, 64)).save(picture_path(folder, name))
        return name

    sets = tuple(
        StudySet(f"{number:04x}", f"{number}.jpg", picture(), {method: picture() for method in METHODS})
        for number in range(num_sets + trial)
    )
    study = Study(
        study_id,
        "secret",
        "link-token",
        METHODS,
        sets[:num_sets],
        open_to_all,
        "owner-token",
        sets[num_sets] if trial else None,
    )
    write_study(folder, study, {})
    return study
