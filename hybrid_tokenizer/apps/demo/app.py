"""The demo's server: samples, encode, decode. It stores nothing that it receives."""

import io
from pathlib import Path
from typing import Annotated, Any

from fastapi import FastAPI, File
from fastapi.responses import Response
from pydantic import BaseModel, ConfigDict, Field, StrictInt

from hybrid_tokenizer.apps.demo.pictures import MAX_SEED, MAX_STEPS, DemoTokenizer, Part
from hybrid_tokenizer.apps.demo.uploads import MAX_BYTES, read_upload
from hybrid_tokenizer.apps.web.guard import Access, Limits
from hybrid_tokenizer.apps.web.pages import WebError, guarded_app
from hybrid_tokenizer.apps.web.work_queue import WorkQueue
from hybrid_tokenizer.data.samples import sample_photographs
from hybrid_tokenizer.images import fit_square

PAGE = Path(__file__).parent / "page"
LIMITS = Limits(body_bytes=MAX_BYTES + 65_536)  # the form adds a little to the file
MAX_WAITING = 8
THUMBNAIL = 160


class Decoding(BaseModel):
    """A request of the page; the ranges are those of its sliders."""

    model_config = ConfigDict(extra="forbid")
    ids: list[StrictInt] = Field(min_length=1, max_length=20_000)
    part: Part
    strength: float = Field(ge=0, le=1)
    steps: int = Field(ge=1, le=MAX_STEPS)
    guidance: float = Field(ge=1, le=15)
    seed: StrictInt = Field(default=0, ge=0, le=MAX_SEED)


def demo_app(
    tokenizer: DemoTokenizer, access: Access, limits: Limits = LIMITS, max_waiting: int = MAX_WAITING
) -> FastAPI:
    """Runs one computation at a time. The page and the samples are served meanwhile."""
    app = guarded_app(PAGE, limits, access)
    queue = WorkQueue(max_waiting)
    samples = sample_photographs()
    thumbnails = {}
    for name, photograph in samples.items():
        buffer = io.BytesIO()
        fit_square(photograph, THUMBNAIL).save(buffer, "JPEG", quality=85)
        thumbnails[name] = buffer.getvalue()

    def sample(name: str) -> Any:
        if name not in samples:
            raise WebError(404, f"there is no sample {name[:40]!r}; use one of {', '.join(samples)}")
        return samples[name]

    @app.get("/api/tokenizer")
    def facts() -> dict[str, Any]:
        return tokenizer.facts() | {"samples": list(samples), "max_bytes": MAX_BYTES}

    @app.get("/samples/{name}")
    def thumbnail(name: str) -> Response:
        sample(name)
        return Response(thumbnails[name], media_type="image/jpeg", headers={"cache-control": "private, max-age=86400"})

    @app.post("/api/encode/{name}")
    def encode_sample(name: str, search: bool = False) -> dict[str, Any]:
        photograph = sample(name)
        return queue.run(lambda: tokenizer.encode(photograph, search))

    @app.post("/api/encode")
    def encode(file: Annotated[bytes, File()], search: bool = False) -> dict[str, Any]:
        # the upload is decoded in the queue too, so that one image at a time is in memory
        return queue.run(lambda: tokenizer.encode(read_upload(file), search))

    @app.post("/api/decode")
    def decode(asked: Decoding) -> dict[str, Any]:
        return queue.run(
            lambda: tokenizer.decode(asked.ids, asked.part, asked.strength, asked.steps, asked.guidance, asked.seed)
        )

    return app
