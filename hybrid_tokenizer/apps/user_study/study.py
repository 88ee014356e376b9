"""A study on disk: which picture is which method's. Raters see opaque names only, in an order of their own."""

import hashlib
import json
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from hybrid_tokenizer.errors import HybridTokenizerError

STUDY_NAME, VOTES_NAME, IMAGES_NAME = "study.json", "votes.sqlite", "images"
FORMAT = "hybrid_user_study 1"
T = TypeVar("T")


@dataclass(frozen=True)
class StudySet:
    """An original and a reconstruction a method. `original` and the values of `candidates` are names of pictures."""

    id: str
    source: str
    original: str
    candidates: dict[str, str]


@dataclass(frozen=True)
class Study:
    """What `study.json` holds; it is not for raters. `secret` makes the orders, `link_token` opens the link."""

    id: str
    secret: str
    link_token: str
    methods: tuple[str, ...]
    sets: tuple[StudySet, ...]
    open_to_all: bool = True
    """Anybody with the page gets a participant code; otherwise only the codes that were made with the study are good."""

    def set_orders(self, code: str) -> list[tuple[StudySet, list[str]]]:
        """The sets and in each the pictures' names as this participant sees them, the same whenever asked."""
        return [
            (one, shuffled(sorted(one.candidates.values()), self.secret, code, one.id))
            for one in shuffled(self.sets, self.secret, code)
        ]

    def set_by_id(self, set_id: str) -> StudySet | None:
        """None where there is no such set."""
        return next((one for one in self.sets if one.id == set_id), None)


def shuffled(items: Sequence[T], *words: str) -> list[T]:
    """A random order that follows from the words."""
    generator = random.Random(hashlib.sha256("\n".join(words).encode()).digest())
    return generator.sample(items, len(items))


def picture_path(folder: Path, name: str) -> Path:
    """Of an opaque name."""
    return folder / IMAGES_NAME / f"{name}.png"


def write_study(folder: Path, study: Study, provenance: dict[str, Any]) -> None:
    """study.json, last: a folder that has it is whole."""
    from hybrid_tokenizer.checkpoints.files import write_json  # brings torch, which the server does without

    write_json(folder / STUDY_NAME, {"format": FORMAT, **asdict(study), "provenance": provenance})


def read_study(folder: Path) -> Study:
    """Of a folder that `prepare` wrote."""
    path = folder / STUDY_NAME
    try:
        entries = json.loads(path.read_bytes())
    except OSError as error:
        raise HybridTokenizerError(
            f"{path} can not be read ({error.strerror}); give a folder that prepare made"
        ) from None
    except ValueError:
        entries = None
    if not isinstance(entries, dict) or entries.pop("format", None) != FORMAT:
        raise HybridTokenizerError(f"{path} is no {FORMAT!r}; prepare the study with this version")
    entries.pop("provenance", None)
    sets = tuple(StudySet(**one) for one in entries.pop("sets"))
    return Study(**entries | {"sets": sets, "methods": tuple(entries["methods"])})
