"""The voting app: a page, the pictures, and three calls (join, sheet, vote)."""

from pathlib import Path
from typing import Annotated, Any

from fastapi import FastAPI, Header
from fastapi.responses import Response
from pydantic import BaseModel, ConfigDict, Field, StrictInt

from hybrid_tokenizer.apps.user_study.study import Study, picture_path
from hybrid_tokenizer.apps.user_study.votes import Vote, Votes, VoteStands
from hybrid_tokenizer.apps.web.guard import Access, Limits
from hybrid_tokenizer.apps.web.pages import WebError, guarded_app

PAGE = Path(__file__).parent / "page"
LIMITS = Limits(body_bytes=16_384)
MOST_PARTICIPANTS = 500
FOREVER = {"cache-control": "private, max-age=86400, immutable"}
Code = Annotated[str, Header(alias="x-participant", max_length=40)]
Name = Annotated[str, Field(max_length=40)]


class Ballot(BaseModel):
    """What the page sends."""

    model_config = ConfigDict(extra="forbid")
    study: Name
    set: Name
    places: dict[Name, StrictInt] = Field(max_length=40)


def voting_app(
    folder: Path,
    study: Study,
    votes: Votes,
    access: Access,
    limits: Limits = LIMITS,
    most_participants: int = MOST_PARTICIPANTS,
) -> FastAPI:
    """Methods' names never leave the server: pictures, sets and places go by opaque names."""
    app = guarded_app(PAGE, limits, access)
    pictures = {
        name: picture_path(folder, name) for one in study.sets for name in (one.original, *one.candidates.values())
    }

    @app.get("/images/{name}")
    def image(name: str) -> Response:
        if name not in pictures:
            raise WebError(404, f"there is no picture {name[:40]!r} in this study; reload the page")
        # read here and not by FileResponse, whose Last-Modified would tell in which order the methods were run
        return Response(pictures[name].read_bytes(), media_type="image/png", headers=FOREVER)

    @app.post("/api/join", status_code=201)
    def join() -> dict[str, str]:
        if not study.open_to_all:
            raise WebError(403, "this study has its participants; enter the code that you were given")
        code = votes.join(most_participants)
        if code is None:
            raise WebError(403, f"this study has its {most_participants} participants; ask who runs it")
        return {"code": code}

    @app.get("/api/sheet")
    def sheet(code: Code = "") -> dict[str, Any]:
        check_code(code)
        saved = votes.of(code)
        sets = [
            {"id": one.id, "original": one.original, "candidates": shown, "places": saved.get(one.id)}
            for one, shown in study.set_orders(code)
        ]
        return {"study": study.id, "num_places": len(study.methods), "sets": sets}

    @app.post("/api/vote")
    def vote(ballot: Ballot, code: Code = "") -> dict[str, Any]:
        check_code(code)
        if ballot.study != study.id:
            raise WebError(409, "this vote is for another study; reload the page")
        for one, shown in study.set_orders(code):
            if one.id == ballot.set:
                check_places(ballot.places, shown)
                try:
                    new = votes.save(Vote(code, one.id, ballot.places, shown))
                except VoteStands as error:
                    raise WebError(409, str(error)) from None
                return {"saved": one.id, "new": new, "votes": len(votes.of(code))}
        raise WebError(404, f"there is no set {ballot.set!r} in this study; reload the page")

    def check_code(code: str) -> None:
        if not votes.is_known(code):
            raise WebError(403, "this participant code is not known here; check it, or start without one")

    return app


def check_places(places: dict[str, int], shown: list[str]) -> None:
    """Every picture has a place from 1 to their number, ties are free, and the closest is first."""
    if set(places) != set(shown):
        raise WebError(
            422, f"places are for {len(places)} pictures, expected the {len(shown)} of the set; reload the page"
        )
    values = sorted(places.values())
    if values[0] != 1 or values[-1] > len(shown):
        raise WebError(422, f"places are {values}, expected 1 to {len(shown)} with at least one first; correct them")
