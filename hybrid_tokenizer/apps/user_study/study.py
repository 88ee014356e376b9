"""A study on disk: which image belongs to which method. Raters see opaque names, in an order of their own."""

import hashlib
import json
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from hybrid_tokenizer.errors import HybridTokenizerError, first_line

STUDY_NAME, VOTES_NAME, IMAGES_NAME, CONSENT_NAME = "study.json", "votes.sqlite", "images", "consent.txt"
MOST_CONSENT = 20_000
"""Characters."""
CONSENT = """Your votes are kept under a random code. Your name and address are not stored, and there are no tracking cookies.

Taking part is voluntary. You may stop at any time and continue later.
"""
"""What `prepare` writes to `CONSENT_NAME`, for the organiser to edit."""
FORMAT = "hybrid_user_study 1"
T = TypeVar("T")


@dataclass(frozen=True)
class StudySet:
    """An original and one reconstruction per method. `original` and the values of `candidates` are names of images."""

    id: str
    source: str
    original: str
    candidates: dict[str, str]


@dataclass(frozen=True)
class Study:
    """The content of `study.json`, which raters must not see.

    `secret` determines the orders, `link_token` is the token of the link to the page.
    """

    id: str
    secret: str
    link_token: str
    methods: tuple[str, ...]
    sets: tuple[StudySet, ...]
    open_to_all: bool = True
    """Whether everyone who opens the page gets a participant code. Otherwise only the codes made with the study work."""
    owner_token: str = ""
    """Opens the page of results. Without it there is none."""
    trial: StudySet | None = None
    """A set that each participant sees first and that does not count."""

    def set_orders(self, code: str) -> list[tuple[StudySet, list[str]]]:
        """The sets and the names of the images in each, in this participant's order, which never changes."""
        return [
            (one, shuffled(sorted(one.candidates.values()), self.secret, code, one.id))
            for one in shuffled(self.sets, self.secret, code)
        ]

    def trial_order(self, code: str) -> list[str]:
        """The names of the trial's images, in this participant's order."""
        return (
            []
            if self.trial is None
            else shuffled(sorted(self.trial.candidates.values()), self.secret, code, self.trial.id)
        )


def shuffled(items: Sequence[T], *words: str) -> list[T]:
    """A random order that is determined by the words."""
    generator = random.Random(hashlib.sha256("\n".join(words).encode()).digest())
    return generator.sample(items, len(items))


def picture_path(folder: Path, name: str) -> Path:
    """The file of an image."""
    return folder / IMAGES_NAME / f"{name}.png"


def write_study(folder: Path, study: Study, provenance: dict[str, Any]) -> None:
    """Write study.json. It is written last, so a folder that has it is complete."""
    from hybrid_tokenizer.checkpoints.files import write_json  # imports torch, which the server does not need

    write_json(folder / STUDY_NAME, {"format": FORMAT, **asdict(study), "provenance": provenance})


def read_study(folder: Path) -> Study:
    """Read the study in a folder that `prepare` made."""
    path = folder / STUDY_NAME
    try:
        entries = json.loads(path.read_bytes())
    except OSError as error:
        raise HybridTokenizerError(
            f"{path} cannot be read ({error.strerror}); give a folder that prepare made"
        ) from None
    except ValueError:
        entries = None
    if not isinstance(entries, dict) or entries.pop("format", None) != FORMAT:
        raise HybridTokenizerError(
            f"{path} does not have the format {FORMAT!r}; prepare the study again with this version"
        )
    entries.pop("provenance", None)
    sets = tuple(StudySet(**one) for one in entries.pop("sets"))
    trial = entries.pop("trial", None)
    read = {"sets": sets, "methods": tuple(entries["methods"]), "trial": trial and StudySet(**trial)}
    return Study(**entries | read)


def read_consent(folder: Path) -> str:
    """The text that participants read before they start; the usual one where the study has no file of it."""
    path = folder / CONSENT_NAME
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return CONSENT
    except (OSError, UnicodeDecodeError) as error:
        raise HybridTokenizerError(f"{path} cannot be read ({first_line(error)}); save it as UTF-8") from None
    if not text.strip() or len(text) > MOST_CONSENT:
        raise HybridTokenizerError(f"{path} has {len(text)} characters, expected 1 to {MOST_CONSENT}; edit it")
    return text
