"""An app with a page of plain files behind the guard, and errors as one line of JSON."""

from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

from hybrid_tokenizer.apps.web.guard import Access, Guard, Limits
from hybrid_tokenizer.errors import HybridTokenizerError

SHARED = Path(__file__).parent / "page"
KINDS = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}

SILENT = {"tracing": False, "metrics": False, "logs": False, "auto_configure": False}
"""Nothing of what raters do goes to a collector, whatever the environment says."""


class WebError(HybridTokenizerError):
    """An error with its own HTTP status; a plain HybridTokenizerError is 400."""

    def __init__(self, status: int, message: str):
        super().__init__(message)
        self.status = status


def guarded_app(page: Path, limits: Limits, access: Access) -> FastAPI:
    """`page/index.html` at /, its other files and the shared ones under /static/; read once, so no path reaches the disk."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, telemetry=SILENT)
    app.add_middleware(Guard, limits=limits, access=access)
    files = {path.name: path.read_bytes() for folder in (SHARED, page) for path in sorted(folder.iterdir())}

    @app.get("/")
    def index() -> Response:
        return Response(files["index.html"], media_type=KINDS[".html"], headers={"cache-control": "no-cache"})

    @app.get("/static/{name}")
    def static(name: str) -> Response:
        if name not in files:
            raise WebError(404, f"there is no file {name[:80]!r} here; open the first page")
        return Response(files[name], media_type=KINDS[Path(name).suffix], headers={"cache-control": "no-cache"})

    app.add_exception_handler(HybridTokenizerError, _one_line)
    app.add_exception_handler(RequestValidationError, _first_of_the_validation)
    app.add_exception_handler(HTTPException, _plain)
    return app


def _one_line(request: Request, error: Any) -> Response:
    return JSONResponse({"error": str(error)}, status_code=getattr(error, "status", 400))


def _plain(request: Request, error: Any) -> Response:
    where = f": {request.method} {request.url.path[:80]!r} is nothing here" if error.status_code in (404, 405) else ""
    message = f"{error.detail}{where}; open the first page"
    return JSONResponse({"error": message}, error.status_code, headers=error.headers)


def _first_of_the_validation(request: Request, error: Any) -> Response:
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"] if part != "body")
    return JSONResponse({"error": f"{where or 'request'}: {first['msg']}; reload the page and try again"}, 422)
