"""For those who run the server: is it up, is it ready, what did it do."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from rag.server.errors import ApiError
from rag.server.scope import caller_of

__all__ = ["router"]

router = APIRouter(tags=["Operation"])
_METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"


@router.get("/healthz", summary="Is the process up")
async def healthz() -> dict[str, Any]:
    """200 as long as the server answers at all. Needs no token."""
    return {"ok": True}


@router.get("/readyz", summary="Are the models loaded", responses={503: {"description": "not yet, or going down"}})
async def readyz(request: Request) -> JSONResponse:
    """200 when models are loaded and the index is open. Needs no token."""
    is_ready = request.app.state.engine.is_ready
    return JSONResponse({"ready": is_ready}, status_code=200 if is_ready else 503)


@router.get("/metrics", summary="Counters for Prometheus", response_class=Response)
async def metrics(request: Request) -> Response:
    """The text format of Prometheus; for the operator, as it counts what all tenants do."""
    if not caller_of(request).is_operator:
        raise ApiError(403, "the counters are for the holder of RAG_TOKEN", code="operator_only")
    return Response(request.app.state.engine.metrics.text(), media_type=_METRICS_TYPE)
