"""The voting app: a page, the images, calls for participants (consent, join, sheet, vote) and the results for its owner."""

import secrets
from pathlib import Path
from typing import Annotated, Any

from fastapi import FastAPI, Header
from fastapi.responses import Response
from pydantic import BaseModel, ConfigDict, Field, StrictInt

from hybrid_tokenizer.apps.user_study.study import Study, picture_path, read_consent
from hybrid_tokenizer.apps.user_study.votes import Vote, Votes, VoteStands
from hybrid_tokenizer.apps.web.guard import Access, Limits
from hybrid_tokenizer.apps.web.pages import MEDIA_TYPES, WebError, guarded_app

PAGE = Path(__file__).parent / "page"
LIMITS = Limits(body_bytes=16_384)
MAX_PARTICIPANTS = 500
CACHED = {"cache-control": "private, max-age=86400, immutable"}
Code = Annotated[str, Header(alias="x-participant", max_length=40)]
Owner = Annotated[str, Header(alias="x-owner", max_length=60)]
Name = Annotated[str, Field(max_length=40)]


class Ballot(BaseModel):
    """A vote as the page sends it."""

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
    max_participants: int = MAX_PARTICIPANTS,
) -> FastAPI:
    """The names of the methods never leave the server: images and sets have opaque names."""
    app = guarded_app(PAGE, limits, access)
    consent, results_page = read_consent(folder), (PAGE / "results.html").read_bytes()
    all_sets = study.sets if study.trial is None else (*study.sets, study.trial)
    pictures = {
        name: picture_path(folder, name) for one in all_sets for name in (one.original, *one.candidates.values())
    }

    @app.get("/api/consent")
    def consent_text() -> dict[str, str]:
        return {"text": consent}

    @app.get("/results")
    def owners_page() -> Response:
        return Response(results_page, media_type=MEDIA_TYPES[".html"], headers={"cache-control": "no-cache"})

    @app.get("/api/results")
    def owners_results(owner: Owner = "") -> dict[str, Any]:
        if not study.owner_token or not secrets.compare_digest(owner.encode(), study.owner_token.encode()):
            raise WebError(403, "this is not the owner's link; take it from the lines that serve prints")
        from hybrid_tokenizer.apps.user_study.results import results  # needs more packages than voting does

        return results(study, votes.all()) | {"joined": len(votes.codes())}

    @app.get("/images/{name}")
    def image(name: str) -> Response:
        if name not in pictures:
            raise WebError(404, f"there is no image {name[:40]!r} in this study; reload the page")
        # not a FileResponse: its Last-Modified would show in which order the methods were run
        return Response(pictures[name].read_bytes(), media_type="image/png", headers=CACHED)

    @app.post("/api/join", status_code=201)
    def join() -> dict[str, str]:
        if not study.open_to_all:
            raise WebError(403, "this study is by invitation only; enter the participant code that you received")
        code = votes.join(max_participants)
        if code is None:
            raise WebError(403, f"this study already has {max_participants} participants, its limit; ask its organiser")
        return {"code": code}

    @app.get("/api/sheet")
    def sheet(code: Code = "") -> dict[str, Any]:
        check_code(code)
        saved = votes.votes_of(code)
        sets = [
            {"id": one.id, "original": one.original, "candidates": shown, "places": saved.get(one.id)}
            for one, shown in study.set_orders(code)
        ]
        trial = None
        if study.trial is not None:
            trial = {"id": study.trial.id, "original": study.trial.original, "candidates": study.trial_order(code)}
        return {"study": study.id, "num_places": len(study.methods), "sets": sets, "trial": trial}

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
                return {"saved": one.id, "new": new, "votes": len(votes.votes_of(code))}
        raise WebError(404, f"there is no set {ballot.set!r} in this study; reload the page")

    def check_code(code: str) -> None:
        if not votes.is_known(code):
            raise WebError(403, "this participant code is unknown; check it, or start without a code")

    return app


def check_places(places: dict[str, int], shown: list[str]) -> None:
    """Each image has a place from 1 to their number. Ties are allowed, and at least one image is first."""
    if set(places) != set(shown):
        raise WebError(
            422,
            f"there are places for {len(places)} images, expected the {len(shown)} images of the set; reload the page",
        )
    values = sorted(places.values())
    if values[0] != 1 or values[-1] > len(shown):
        raise WebError(422, f"places are {values}, expected 1 to {len(shown)} with at least one first; correct them")
