"""An app that serves a page of static files behind the guard and reports errors as one line of JSON."""

from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from starlette.exceptions import HTTPException
from starlette.middleware.trustedhost import TrustedHostMiddleware

from hybrid_tokenizer.apps.web.guard import Access, Guard, Limits
from hybrid_tokenizer.apps.web.headers import SecurityHeaders, error_response
from hybrid_tokenizer.errors import HybridTokenizerError

SHARED = Path(__file__).parent / "page"
MEDIA_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}

SILENT = {"tracing": False, "metrics": False, "logs": False, "auto_configure": False}
"""No data about raters goes to a telemetry collector, whatever the environment says."""


class WebError(HybridTokenizerError):
    """An error with its own HTTP status; a plain HybridTokenizerError is 400."""

    def __init__(self, status: int, message: str):
        super().__init__(message)
        self.status = status


def guarded_app(page: Path, limits: Limits, access: Access) -> FastAPI:
    """Serves `page/index.html` at /, and its other files and the shared ones under /static/.

    The files are read once, so no path of a request reaches the disk.
    """
    # a redirect to the path without its last slash would be built from the Host header
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, telemetry=SILENT, redirect_slashes=False)
    app.add_middleware(Guard, limits=limits, access=access)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(access.hosts), www_redirect=False)
    app.add_middleware(SecurityHeaders)  # added last, so it is the outermost
    files = {path.name: path.read_bytes() for folder in (SHARED, page) for path in sorted(folder.iterdir())}

    @app.get("/")
    def index() -> Response:
        return Response(files["index.html"], media_type=MEDIA_TYPES[".html"], headers={"cache-control": "no-cache"})

    @app.get("/static/{name}")
    def static(name: str) -> Response:
        if name not in files:
            raise WebError(404, f"there is no file {name[:80]!r} here; open the first page")
        media_type = MEDIA_TYPES[Path(name).suffix]
        return Response(files[name], media_type=media_type, headers={"cache-control": "no-cache"})

    app.add_exception_handler(HybridTokenizerError, _project_error)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_exception_handler(HTTPException, _http_error)
    return app


def _project_error(request: Request, error: Any) -> Response:
    return error_response(getattr(error, "status", 400), str(error))


def _http_error(request: Request, error: Any) -> Response:
    where = f": {request.method} {request.url.path[:80]!r}" if error.status_code in (404, 405) else ""
    return error_response(error.status_code, f"{error.detail}{where}; open the first page", error.headers)


def _validation_error(request: Request, error: Any) -> Response:
    first = error.errors()[0]
    where = ".".join(str(part)[:40] for part in first["loc"] if part != "body")
    return error_response(422, f"{where or 'request'}: {first['msg']}; reload the page and try again")
