"""The application: routes behind the guard, errors in one shape, the engine's life."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from fastapi.responses import Response
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware

from rag.errors import RagError
from rag.server import routes_openai, routes_ops, routes_rag
from rag.server.engine import Gone
from rag.server.errors import ApiError, body_of, understood
from rag.server.guard import Guard
from rag.server.limits import Busy
from rag.server.schemas import ErrorBody

if TYPE_CHECKING:
    from rag.server.auth import Tokens
    from rag.server.engine import Engine

__all__ = ["create_app"]

_log = logging.getLogger("rag.server")
_STATUSES = {
    400: "wrong request", 401: "no token, or a wrong one", 403: "not allowed", 404: "not there",
    408: "the request came too slowly", 413: "the request is too large", 429: "come again after Retry-After seconds",
    503: "not ready", 504: "it took too long",
}  # fmt: skip


def create_app(engine: Engine, tokens: Tokens, *, version: str) -> FastAPI:
    """The ASGI application. Its life loads the engine, looks after the index, and drains what runs at the end.

    ConfigError for a pipeline that cannot keep the tenants of `tokens` apart.
    """
    engine.check_tenants(tokens)
    guard = Middleware(Guard, tokens=tokens, limits=engine.limits, metrics=engine.metrics)
    app = FastAPI(
        title="Chunkwise",
        version=version,
        docs_url=None,  # its page would load scripts from elsewhere
        redoc_url=None,
        redirect_slashes=False,
        middleware=[guard],
        lifespan=_life,
        responses={status: {"model": ErrorBody, "description": text} for status, text in _STATUSES.items()},
    )
    app.state.engine = engine
    app.state.broken = None
    app.state.stop = lambda: None
    for routes in (routes_openai, routes_rag, routes_ops):
        app.include_router(routes.router)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _refused)
    for known in (ApiError, Busy, Gone, TimeoutError, RagError):  # understood, so no traceback in the log
        app.add_exception_handler(known, _failed)
    app.add_exception_handler(Exception, _failed)
    _document(app, bearer=tokens.required)
    return app


@asynccontextmanager
async def _life(app: FastAPI) -> AsyncIterator[None]:
    engine: Engine = app.state.engine
    watch = asyncio.create_task(_look_after(app, engine))
    try:
        yield
    finally:
        watch.cancel()
        with suppress(asyncio.CancelledError):
            await watch
        app.state.is_drained = await asyncio.to_thread(engine.close)


async def _look_after(app: FastAPI, engine: Engine) -> None:
    """Load while /healthz answers already, then look for new generations. What cannot be loaded ends the server."""
    try:
        if not engine.is_ready:
            await asyncio.to_thread(engine.start)
    except Exception as error:
        app.state.broken = error
        app.state.stop()
        return
    while True:
        await asyncio.sleep(engine.limits.refresh_seconds)
        try:
            await asyncio.to_thread(engine.refresh)
        except Exception:  # the next look may fare better, and the snapshot of before is sound
            _log.exception("looking for a new generation failed")


def _respond(error: ApiError) -> Response:
    return Response(body_of(error), error.status, headers=error.headers, media_type="application/json")


async def _invalid(request: Request, error: Exception) -> Response:
    """What pydantic found, in one line; never with the value, which may be anything."""
    found: list[Any] = list(error.errors()) if isinstance(error, RequestValidationError) else []
    first = found[0] if found else {"loc": ("body",), "msg": "cannot be read"}
    place = ".".join(str(part) for part in first["loc"] if part not in ("body", "query", "path")) or "body"
    return _respond(ApiError(400, f"{place}: {first['msg']}", code="invalid_request", param=place))


async def _refused(request: Request, error: Exception) -> Response:
    """What the router says: no such path, no such method, no JSON."""
    if not isinstance(error, HTTPException):
        return _respond(understood(error))
    return _respond(ApiError(error.status_code, str(error.detail), code="bad_request", headers=error.headers))


async def _failed(request: Request, error: Exception) -> Response:
    return _respond(understood(error))


def _document(app: FastAPI, *, bearer: bool) -> None:
    """The OpenAPI document as it is: wrong requests are 400 here, not FastAPI's 422, and tokens are bearer tokens."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            made = get_openapi(title=app.title, version=app.version, routes=app.routes, summary=__doc__)
            for path in made["paths"].values():
                for operation in path.values():
                    operation["responses"].pop("422", None)
            if bearer:
                schemes = made.setdefault("components", {}).setdefault("securitySchemes", {})
                schemes["bearer"] = {"type": "http", "scheme": "bearer"}
                made["security"] = [{"bearer": []}]
            app.openapi_schema = made
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]  # as FastAPI's documentation has it
