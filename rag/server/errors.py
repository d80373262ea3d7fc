"""Errors in the shape that OpenAI's clients read: {"error": {"message", "type", "param", "code"}}."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from typing import Any

from rag.errors import ConfigError, IndexLockedError, InputError, MissingError, RagError, UsageError
from rag.server.engine import Gone
from rag.server.limits import Busy
from rag.text import printable

__all__ = ["ApiError", "body_of", "not_found", "understood"]

_log = logging.getLogger("rag.server")
_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


class ApiError(Exception):
    """A refusal or failure, as the client sees it."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.param = status, message, code, param
        self.headers = dict(headers or {})

    @property
    def body(self) -> dict[str, Any]:
        kind = _TYPES.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


def body_of(error: ApiError) -> bytes:
    """The JSON of an error; ASCII, so that whatever a client sent can be named in it."""
    return json.dumps(error.body).encode("ascii")


def not_found(kind: str, name: str) -> ApiError:
    """The same answer for what is not there and for what is another tenant's."""
    return ApiError(404, f"there is no {kind} {printable(name[:80])!r}", code=f"{kind}_not_found", param=kind)


def understood(error: BaseException) -> ApiError:
    """What the client is told. Messages that may hold paths of this machine go to the log, not to the client."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, Busy):
        seconds = str(error.retry_seconds)
        return ApiError(429, str(error), code="server_busy", headers={"Retry-After": seconds})
    if isinstance(error, TimeoutError | Gone):
        return ApiError(504, "the answer took longer than this server allows", code="timeout")
    if isinstance(error, UsageError | InputError):
        return ApiError(400, str(error), code="bad_request")
    if isinstance(error, IndexLockedError):
        return ApiError(503, "the index is busy", code="index_busy", headers={"Retry-After": "1"})
    _log.error("request failed: %s", error, exc_info=None if isinstance(error, RagError) else error)
    if isinstance(error, MissingError):
        return ApiError(503, "a model or package that this pipeline needs is missing", code="not_available")
    if isinstance(error, ConfigError):
        return ApiError(500, "this pipeline does not fit the index; see the server's log", code="bad_config")
    return ApiError(500, "the server failed; see its log", code="server_error")
