"""The images of a study: opaque names, equal size and date, and the tokenizers' own outputs."""

import numpy as np
import pytest
from helpers.small_models import small_hybrid
from PIL import Image

from hybrid_tokenizer.apps.user_study.prepare import CODES_NAME, StudyOptions, prepare_study
from hybrid_tokenizer.apps.user_study.study import (
    CONSENT,
    CONSENT_NAME,
    IMAGES_NAME,
    VOTES_NAME,
    picture_path,
    read_study,
)
from hybrid_tokenizer.apps.user_study.votes import Votes
from hybrid_tokenizer.errors import HybridTokenizerError
from hybrid_tokenizer.evaluation.rows import rows_by_name

NAMES = ["hybrid", "guide_only", "identity"]


@pytest.fixture(scope="module")
def rows():
    return rows_by_name(small_hybrid(), NAMES)


def make_images(folder, count=6):
    folder.mkdir()
    draws = np.random.default_rng(0)
    for number in range(count):
        levels = draws.integers(0, 256, (40, 50, 3), dtype=np.uint8)
        Image.fromarray(levels).save(folder / f"photo{number}.png")
    return folder


def test_a_study_of_a_folder(tmp_path, rows):
    options = StudyOptions(make_images(tmp_path / "photos"), num_sets=4, image_size=32, participants=2)
    study = prepare_study(tmp_path / "study", rows, options)
    assert read_study(tmp_path / "study") == study
    assert study.methods == tuple(NAMES) and len(study.sets) == 4 and not study.open_to_all
    files = sorted((tmp_path / "study" / IMAGES_NAME).iterdir())
    assert study.trial.id not in {one.id for one in study.sets}  # a fifth image, since there are more than four
    assert len(files) == 5 * (1 + len(NAMES))
    assert (tmp_path / "study" / CONSENT_NAME).read_text() == CONSENT
    assert len({file.stat().st_mtime for file in files}) == 1
    pictures = [Image.open(file) for file in files]
    assert {(picture.size, picture.mode, str(picture.info)) for picture in pictures} == {((32, 32), "RGB", "{}")}
    codes = (tmp_path / "study" / CODES_NAME).read_text().split()
    assert len(codes) == 2 and Votes(tmp_path / "study" / VOTES_NAME, study.id).codes() == sorted(codes)
    for one in study.sets:
        original, same = (picture_path(tmp_path / "study", name) for name in (one.original, one.candidates["identity"]))
        assert original.name != same.name and original.read_bytes() == same.read_bytes()


def test_the_draw_is_random_and_follows_the_seed(tmp_path, rows):
    photos = make_images(tmp_path / "photos")
    drawn = []
    for number, seed in enumerate((0, 0, 1)):
        options = StudyOptions(photos, num_sets=3, image_size=32, seed=seed)
        study = prepare_study(tmp_path / f"study{number}", rows[1:], options)
        drawn.append([one.source for one in study.sets])
        names = {one.original for one in study.sets}
        assert not names & {f"photo{i}" for i in range(6)}
    assert drawn[0] == drawn[1] != drawn[2]


def test_studies_that_are_refused(tmp_path, rows):
    said = []
    options = StudyOptions(make_images(tmp_path / "photos", 2), num_sets=5, image_size=32)
    study = prepare_study(tmp_path / "study", rows, options, said.append)
    assert len(study.sets) == 2 and study.trial is None
    assert "2 usable images for 5 sets" in said[0]
    with pytest.raises(HybridTokenizerError, match="is not empty"):
        prepare_study(tmp_path / "study", rows, options)
    with pytest.raises(HybridTokenizerError, match="two or more"):
        prepare_study(tmp_path / "other", rows[:1], options)
    with pytest.raises(HybridTokenizerError, match="num_sets=0"):
        StudyOptions(num_sets=0)
