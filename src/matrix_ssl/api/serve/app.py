"""The application: its endpoints and its responses, which are JSON in ASCII."""

import io
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np

from matrix_ssl import __version__
from matrix_ssl.api.serve.index import Index
from matrix_ssl.api.serve.page import POLICY, api_page
from matrix_ssl.api.serve.served import ServedEncoder
from matrix_ssl.api.serve.service import Service
from matrix_ssl.api.serve.settings import ServeSettings
from matrix_ssl.api.serve.uploads import Refused
from matrix_ssl.data.files.opening import quiet_pillow
from matrix_ssl.errors import import_extra

if TYPE_CHECKING:
    from fastapi import FastAPI

NPY = "application/x-npy"
_BINARY = {"schema": {"type": "string", "format": "binary"}}
_FORM = {"schema": {"type": "object", "properties": {"image": {"type": "array", "items": _BINARY["schema"]}}}}
_BODY = {
    "requestBody": {
        "required": True,
        "description": "The bytes of one image file, or a form with any number of them.",
        "content": {"image/*": _BINARY, "application/octet-stream": _BINARY, "multipart/form-data": _FORM},
    }
}
_ERROR = {"application/json": {"schema": {"type": "object", "properties": {"error": {"type": "string"}}}}}
_REFUSALS: dict[int | str, dict[str, Any]] = {
    400: {"description": "There is no image, or the form is damaged.", "content": _ERROR},
    408: {"description": "The request arrived too slowly.", "content": _ERROR},
    413: {"description": "The request, an image or the number of images is over a limit.", "content": _ERROR},
    422: {"description": "An image cannot be read, or a parameter is out of range.", "content": _ERROR},
    503: {"description": "Too many images wait, or the answer took too long: try again later.", "content": _ERROR},
}
_FEATURES = {"type": "array", "items": {"type": "array", "items": {"type": "number"}}}
_K = "Neighbours of each image; by default 10, or all of fewer."
_PATHS = {"type": "array", "items": {"type": "array", "items": {"type": "object"}}}


def create_app(
    encoder: ServedEncoder,
    *,
    index: Index | None = None,
    settings: ServeSettings | None = None,
    hosts: tuple[str, ...] = (),
) -> "FastAPI":
    """An application for any ASGI server: /embed, /search, /health, /info, /openapi.json and a page about them at /.

    Args:
        encoder: an encoder from ``open_served``.
        index: an index from ``open_index``; None: /search has nothing to search.
        settings: limits and batch sizes.
        hosts: host names that requests may be addressed to; empty: any. A service on the loopback address should set
            them: otherwise a stranger's page in a browser on this machine can send requests under its own host name.

    Raises:
        MissingExtra: the extra ``serve`` is not installed.
        DataError: the index is of a different encoder.
    """
    import_extra("fastapi", extra="serve")
    import_extra("python_multipart", extra="serve")
    from fastapi import FastAPI

    service = Service(encoder, index, settings or ServeSettings())

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        with quiet_pillow():  # once, around all decoding threads
            yield
            service.close()

    app = FastAPI(
        title="matrix-ssl", version=__version__, docs_url=None, redoc_url=None, lifespan=lifespan,
        description="Features of images by an encoder, and their nearest neighbours.",
    )  # fmt: skip
    _add_questions(app, service)
    _add_facts(app, service)
    _add_errors(app)
    if hosts:
        app.add_middleware(KnownHosts, hosts=hosts)
    return app


class KnownHosts:
    """Refuses requests that are addressed to a host name other than the service's."""

    def __init__(self, app: Any, hosts: tuple[str, ...]):
        self._app, self._hosts = app, hosts

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Handles one connection."""
        if scope["type"] == "http":
            host = dict(scope["headers"]).get(b"host", b"").decode("latin-1")
            name = host.rpartition(":")[0] if host.rpartition(":")[2].isdecimal() else host
            if name.strip("[]").lower() not in self._hosts:
                await _answer({"error": "The service has a different name than the request says."}, 421)(
                    scope, receive, send
                )
                return
        await self._app(scope, receive, send)


def _add_questions(app: "FastAPI", service: Service) -> None:
    from fastapi import Query, Request
    from fastapi.responses import Response

    schema = {"type": "object", "properties": {"features": _FEATURES, "width": {"type": "integer"}}}
    numbers = {"content": {"application/json": {"schema": schema}, NPY: _BINARY},
               "description": f"Features of every image, in order; with Accept: {NPY} as a file of NumPy."}  # fmt: skip
    near = {"content": {"application/json": {"schema": {"type": "object", "properties": {"neighbours": _PATHS}}}},
            "description": "Rank, path, similarity and label of the neighbours of every image, in order."}  # fmt: skip

    @app.post("/embed", summary="Features of images", openapi_extra=_BODY, responses={200: numbers, **_REFUSALS})
    async def embed(request: Request) -> Response:
        features = await service.embed(request)
        if NPY not in request.headers.get("accept", ""):
            return _answer({"features": features.tolist(), "width": features.shape[1]})
        file = io.BytesIO()
        np.save(file, features)
        return Response(file.getvalue(), media_type=NPY)

    @app.post("/search", summary="Images most similar to each of the images sent", openapi_extra=_BODY,
              responses={200: near, **_REFUSALS})  # fmt: skip
    async def search(request: Request, k: Annotated[int | None, Query(description=_K, ge=1)] = None) -> Response:
        return _answer({"neighbours": await service.search(request, k)})


def _add_facts(app: "FastAPI", service: Service) -> None:
    from fastapi.responses import HTMLResponse, Response

    @app.get("/health", summary="Whether the service answers, and how many images wait")
    async def health() -> Response:
        return _answer({"status": "ok", "waiting": service.waiting})

    @app.get("/info", summary="The encoder, how images are prepared for it, the index, and the limits")
    async def info() -> Response:
        return _answer(service.info())

    @app.get("/", include_in_schema=False)
    @app.get("/docs", include_in_schema=False)
    async def page() -> Response:
        headers = {"Content-Security-Policy": POLICY, "X-Content-Type-Options": "nosniff"}
        return HTMLResponse(api_page(app.openapi(), service.info()), headers=headers)


def _add_errors(app: "FastAPI") -> None:
    from fastapi import Request
    from fastapi.exceptions import RequestValidationError
    from fastapi.responses import Response
    from starlette.exceptions import HTTPException
    from starlette.requests import ClientDisconnect

    @app.exception_handler(Refused)
    async def refused(_: Request, error: Refused) -> Response:
        return _answer({"error": error.sentence}, error.status, {"Retry-After": "1"} if error.status == 503 else None)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        return _answer({"error": f"{first['loc'][-1]}: {first['msg'].rstrip('.')}."}, 422)

    @app.exception_handler(HTTPException)
    async def known(_: Request, error: HTTPException) -> Response:
        sentence = {404: "There is no such address.", 405: "The address has no such method."}
        return _answer({"error": sentence.get(error.status_code, f"{error.detail}.")}, error.status_code)

    @app.exception_handler(ClientDisconnect)
    async def gone(_: Request, error: ClientDisconnect) -> Response:
        return _answer({"error": "The request broke off."}, 400)

    @app.exception_handler(Exception)
    async def defect(_: Request, error: Exception) -> Response:
        return _answer({"error": "The request met a defect of the service, whose log has more."}, 500)


def _answer(content: Any, status: int = 200, headers: dict[str, str] | None = None) -> Any:
    from starlette.responses import Response

    return Response(json.dumps(content), status, headers, media_type="application/json")
