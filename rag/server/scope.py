"""What a route finds in its request: the engine, the caller, and the pipeline that is named."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rag.server.auth import Caller
from rag.server.errors import ApiError
from rag.text import printable

if TYPE_CHECKING:
    from fastapi import Request

    from rag.server.engine import Engine

__all__ = ["caller_of", "engine_of", "model_named"]


def caller_of(request: Request) -> Caller:
    """Whom the guard let in; without it nobody, who sees nothing."""
    caller = getattr(request.state, "caller", None)
    return caller if isinstance(caller, Caller) else Caller(tenant="nobody")


def engine_of(request: Request) -> Engine:
    """The engine; ApiError 503 while it loads and when it goes down."""
    engine: Engine = request.app.state.engine
    if not engine.is_ready:
        raise ApiError(503, "the models are not loaded yet", code="not_ready", headers={"Retry-After": "2"})
    return engine


def model_named(engine: Engine, name: str) -> str:
    """The name, if a pipeline has it; ApiError 404 as OpenAI says it."""
    if name not in engine.pipelines:
        known = ", ".join(engine.pipelines)
        raise ApiError(
            404, f"there is no model {printable(name)!r}; models: {known}", code="model_not_found", param="model"
        )
    return name
