"""Participants and votes in one SQLite file. A vote is on disk before it is reported as saved, and it is stored once."""

import json
import secrets
import sqlite3
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from hybrid_tokenizer.errors import HybridTokenizerError

ALPHABET = "23456789abcdefghjkmnpqrstuvwxyz"  # no letters that are easily confused; 10 letters are 49 bits
CODE_LENGTH = 10
SCHEMA = """
CREATE TABLE IF NOT EXISTS study (id TEXT PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS participants (code TEXT PRIMARY KEY, joined TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS votes (
    code TEXT NOT NULL REFERENCES participants, set_id TEXT NOT NULL, places TEXT NOT NULL, shown TEXT NOT NULL,
    saved TEXT NOT NULL, PRIMARY KEY (code, set_id)
) WITHOUT ROWID;
"""


class Vote(NamedTuple):
    """`places`: image -> 1 (closest) and up. `shown`: images in the order of the page."""

    code: str
    set_id: str
    places: dict[str, int]
    shown: list[str]


class VoteStands(HybridTokenizerError):
    """This participant has already saved a different vote for this set."""


class Votes:
    """The file of one study. Thread-safe; other processes may read the file at the same time."""

    def __init__(self, path: Path, study_id: str):
        self._lock = threading.Lock()
        # autocommit: every INSERT is a transaction of its own
        self._base = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=10)
        self._base.execute("PRAGMA journal_mode=WAL")
        self._base.execute("PRAGMA synchronous=FULL")  # NORMAL may lose the last commits when the machine stops
        self._base.execute("PRAGMA foreign_keys=ON")
        self._base.executescript(SCHEMA)
        self._base.execute("INSERT OR IGNORE INTO study SELECT ? WHERE NOT EXISTS (SELECT 1 FROM study)", (study_id,))
        found = self._base.execute("SELECT id FROM study").fetchall()
        if found != [(study_id,)]:
            self.close()
            raise HybridTokenizerError(
                f"{path} holds the votes of another study; move it away, or restore its study.json"
            )
        self._codes = {code for (code,) in self._base.execute("SELECT code FROM participants")}

    def close(self) -> None:
        """Close the file and merge the write-ahead log into it."""
        self._base.close()

    def join(self, max_participants: int | None = None) -> str | None:
        """Store and return a new participant code; None if there are already `max_participants`."""
        code = "".join(secrets.choice(ALPHABET) for _ in range(CODE_LENGTH))
        with self._lock:
            if max_participants is not None and len(self._codes) >= max_participants:
                return None
            self._base.execute("INSERT INTO participants VALUES (?, ?)", (code, _now()))
            self._codes.add(code)
        return code

    def is_known(self, code: str) -> bool:
        """Whether `join` returned this code. Does not read the disk."""
        return code in self._codes

    def save(self, vote: Vote) -> bool:
        """Write a vote to disk. True if it is new, False if the same vote is already stored.

        Raises VoteStands if a different vote is stored.
        """
        places = json.dumps(vote.places, sort_keys=True)
        with self._lock:
            added = self._base.execute(
                "INSERT OR IGNORE INTO votes VALUES (?, ?, ?, ?, ?)",
                (vote.code, vote.set_id, places, json.dumps(vote.shown), _now()),
            ).rowcount
            (stored,) = self._base.execute(
                "SELECT places FROM votes WHERE code = ? AND set_id = ?", (vote.code, vote.set_id)
            ).fetchone()
        if stored != places:
            raise VoteStands(
                "you have already saved another vote for these pictures, and a saved vote cannot be changed; reload the page"
            )
        return added == 1

    def votes_of(self, code: str) -> dict[str, dict[str, int]]:
        """Set -> places, for one participant."""
        with self._lock:
            rows = self._base.execute("SELECT set_id, places FROM votes WHERE code = ?", (code,)).fetchall()
        return {set_id: json.loads(places) for set_id, places in rows}

    def all(self) -> list[Vote]:
        """All votes, ordered by participant and set."""
        with self._lock:
            rows = self._base.execute("SELECT code, set_id, places, shown FROM votes ORDER BY code, set_id").fetchall()
        return [Vote(code, set_id, json.loads(places), json.loads(shown)) for code, set_id, places, shown in rows]

    def codes(self) -> list[str]:
        """The codes of all participants, with or without a vote."""
        return sorted(self._codes)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
