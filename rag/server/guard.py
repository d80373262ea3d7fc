"""What a request passes before any route sees it: host, token, size and time of its body. Counts every answer."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import MutableMapping
from typing import TYPE_CHECKING

from rag.server.auth import Tokens, is_loopback
from rag.server.errors import ApiError, body_of
from rag.server.limits import ServerLimits
from rag.server.metrics import Metrics

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

__all__ = ["Guard"]

_PUBLIC = {"/healthz", "/readyz", "/openapi.json"}
"""Paths without a token: they tell nothing about what is indexed."""


class Guard:
    """ASGI middleware. A refused request costs no more than its headers, or `max_body_bytes`."""

    def __init__(self, app: ASGIApp, *, tokens: Tokens, limits: ServerLimits, metrics: Metrics) -> None:
        self._app, self._tokens, self._limits, self._metrics = app, tokens, limits, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return
        started, status = time.perf_counter(), 500

        async def counted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), *_headers()]
            await send(message)

        try:
            await self._pass(scope, receive, counted)
        finally:
            route = getattr(scope.get("route"), "path", "other")
            method = scope["method"] if scope["method"] in ("GET", "POST", "HEAD") else "other"
            self._metrics.requests.labels(route, method, str(status)).inc()
            self._metrics.seconds.labels(route).observe(time.perf_counter() - started)

    async def _pass(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            self._check(scope)
            body = await self._body(scope, receive)
        except ApiError as error:
            self._metrics.refused.labels(str(error.code)).inc()
            await _refuse(error, send)
            return
        if body is None:
            return  # the client has left
        is_read = False

        async def replayed() -> Message:
            nonlocal is_read
            if is_read:
                return await receive()
            is_read = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self._app(scope, replayed, send)

    def _check(self, scope: Scope) -> None:
        headers: MutableMapping[bytes, bytes] = dict(scope["headers"])
        if not self._tokens.required and not is_loopback(_hostname(headers.get(b"host", b"").decode("latin-1"))):
            # A web page may point a name of its own at this machine; only requests for this machine are answered.
            raise ApiError(403, "without a token this server answers to localhost only", code="wrong_host")
        if scope["path"] in _PUBLIC:
            return
        given = headers.get(b"authorization")
        caller = self._tokens.caller(given.decode("latin-1") if given else None)
        if caller is None:
            message = "wrong token" if given else "a token is needed: Authorization: Bearer TOKEN"
            raise ApiError(401, message, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})
        scope.setdefault("state", {})["caller"] = caller

    async def _body(self, scope: Scope, receive: Receive) -> bytes | None:
        """The whole body, None when the client leaves meanwhile; ApiError when it is too large or too slow."""
        most = self._limits.max_body_bytes
        length = dict(scope["headers"]).get(b"content-length", b"0")
        if int(length) > most:  # h11 lets digits through only
            raise _too_large(most)
        body = bytearray()
        try:
            async with asyncio.timeout(self._limits.receive_seconds):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return None
                    body += message.get("body", b"")
                    if len(body) > most:
                        raise _too_large(most)
                    if not message.get("more_body", False):
                        return bytes(body)
        except TimeoutError:
            seconds = self._limits.receive_seconds
            raise ApiError(408, f"the request did not arrive within {seconds:g} s", code="request_timeout") from None


async def _refuse(error: ApiError, send: Send) -> None:
    body = body_of(error)
    headers = {"content-type": "application/json", "content-length": str(len(body)), **error.headers}
    raw = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": error.status, "headers": raw})
    await send({"type": "http.response.body", "body": body})


def _headers() -> list[tuple[bytes, bytes]]:
    """On every answer: a name for it, and that no cache keeps it."""
    request_id = f"req_{secrets.token_hex(8)}".encode()
    return [(b"x-request-id", request_id), (b"cache-control", b"no-store"), (b"x-content-type-options", b"nosniff")]


def _hostname(host: str) -> str:
    """Without the port; "" for none."""
    return host.rpartition("]")[0].lstrip("[") if host.startswith("[") else host.partition(":")[0]


def _too_large(most: int) -> ApiError:
    return ApiError(413, f"the request is larger than {most:,} bytes", code="request_too_large")
