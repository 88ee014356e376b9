"""The demo's server: samples, encode, decode, and a language model that draws and captions. It stores nothing it receives."""

import io
from pathlib import Path
from typing import Annotated, Any

from fastapi import FastAPI, File
from fastapi.responses import Response
from pydantic import BaseModel, ConfigDict, Field, StrictInt

from hybrid_tokenizer.apps.demo.pictures import MAX_SEED, MAX_STEPS, DemoTokenizer, Part
from hybrid_tokenizer.apps.demo.uploads import MAX_BYTES, read_upload
from hybrid_tokenizer.apps.demo.writing import DemoWriter
from hybrid_tokenizer.apps.web.guard import Access, Limits
from hybrid_tokenizer.apps.web.pages import WebError, guarded_app
from hybrid_tokenizer.apps.web.work_queue import WorkQueue
from hybrid_tokenizer.data.samples import sample_photographs
from hybrid_tokenizer.images import fit_square

PAGE = Path(__file__).parent / "page"
LIMITS = Limits(body_bytes=MAX_BYTES + 65_536)  # the form adds a little to the file
MAX_WAITING = 8
MAX_TEXT = 300
THUMBNAIL = 160
Ids = Annotated[list[StrictInt], Field(min_length=1, max_length=20_000)]
Seed = Annotated[StrictInt, Field(ge=0, le=MAX_SEED)]


class Decoding(BaseModel):
    """A request of the page; the ranges are those of its sliders."""

    model_config = ConfigDict(extra="forbid")
    ids: Ids
    part: Part
    strength: float = Field(ge=0, le=1)
    steps: int = Field(ge=1, le=MAX_STEPS)
    guidance: float = Field(ge=1, le=15)
    seed: Seed = 0


class Drawing(BaseModel):
    """A text of the page."""

    model_config = ConfigDict(extra="forbid")
    text: str = Field(min_length=1, max_length=MAX_TEXT)
    seed: Seed = 0


class Captioning(BaseModel):
    """The picture on the page."""

    model_config = ConfigDict(extra="forbid")
    ids: Ids


def demo_app(
    tokenizer: DemoTokenizer,
    access: Access,
    limits: Limits = LIMITS,
    max_waiting: int = MAX_WAITING,
    writer: DemoWriter | None = None,
) -> FastAPI:
    """Runs one computation at a time. The page and the samples are served meanwhile.

    Args:
        writer: draws from a text and writes captions; without it the page offers neither.
    """
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
        return tokenizer.facts() | {"samples": list(samples), "max_bytes": MAX_BYTES, "writes": writer is not None}

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

    def chosen_writer() -> DemoWriter:
        if writer is None:
            raise WebError(404, "this server has no language model; start it with --language-model")
        return writer

    @app.post("/api/draw")
    def draw(asked: Drawing) -> dict[str, Any]:
        return queue.run(lambda: chosen_writer().draw(asked.text, asked.seed))

    @app.post("/api/caption")
    def caption(asked: Captioning) -> dict[str, str]:
        return queue.run(lambda: chosen_writer().caption(asked.ids))

    return app
