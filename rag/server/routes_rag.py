"""What the index holds and why an answer came about. What is another tenant's is answered as if it were not there."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi.responses import JSONResponse

from rag.errors import ConfigError
from rag.server.auth import Caller
from rag.server.errors import ApiError, not_found
from rag.server.routes_openai import checked_question
from rag.server.schemas import SearchRequest, SearchResult
from rag.server.scope import caller_of, engine_of, model_named
from rag.types import parse_chunk_id

if TYPE_CHECKING:
    from rag.server.held import ServedIndex
    from rag.types import Chunk, Hit

__all__ = ["router"]

router = APIRouter(tags=["Documents"])
_MOST_LISTED = 1000


@router.post("/search", response_model=SearchResult, summary="The chunks that fit a question best")
async def search(asked: SearchRequest, request: Request) -> JSONResponse:
    """Hits inside of the caller's scope, best first."""
    engine, caller = engine_of(request), caller_of(request)
    model = model_named(engine, asked.model)
    question = checked_question(asked.question, engine.limits.max_question_chars, "question")
    if asked.k is not None and asked.k > engine.limits.max_k:
        raise ApiError(400, f"k is at most {engine.limits.max_k}, not {asked.k}", param="k")
    _check_filter(caller, asked.where)
    started = time.perf_counter()

    def work(index: ServedIndex) -> dict[str, Any]:
        hits = engine.search(index, caller, model, question, asked.k, asked.where)
        return {"hits": [_hit(index, hit) for hit in hits], "generation": index.corpus.generation}

    found = await engine.run(work, caller)
    return JSONResponse({**found, "seconds": time.perf_counter() - started})


@router.get("/documents", summary="The documents")
async def documents(
    request: Request,
    limit: Annotated[int, Query(ge=1, le=_MOST_LISTED)] = 100,
    offset: Annotated[int, Query(ge=0, le=2**31)] = 0,
) -> JSONResponse:
    """Documents inside of the caller's scope, in reading order; `total` counts them all."""
    engine, caller = engine_of(request), caller_of(request)
    found = await engine.run(lambda index: index.store.documents(caller.where), caller)
    names = ("id", "source", "title", "chunks", "chars")
    rows = [{name: getattr(one, name) for name in names} for one in found[offset : offset + limit]]
    return JSONResponse({"documents": rows, "total": len(found), "limit": limit, "offset": offset})


@router.get("/documents/{doc_id}", summary="The text of a document")
async def document(doc_id: str, request: Request) -> JSONResponse:
    """As `rag show --json`: the text that all offsets count in. By its whole id only."""
    engine, caller = engine_of(request), caller_of(request)

    def work(index: ServedIndex) -> dict[str, Any]:
        if not engine.sees(index, caller, doc_id):
            raise not_found("document", doc_id)
        found = index.corpus.document(doc_id)
        return {"id": found.id, "source": found.source, "title": found.title, "text": found.text}

    return JSONResponse(await engine.run(work, caller))


@router.get("/chunks/{chunk_id}", summary="One chunk")
async def chunk(chunk_id: str, request: Request) -> JSONResponse:
    """A chunk by its id, DOC_ID:START-END, with the chunk before and after it."""
    engine, caller = engine_of(request), caller_of(request)

    def work(index: ServedIndex) -> dict[str, Any]:
        try:
            doc_id, _ = parse_chunk_id(chunk_id)
            row = index.corpus.rows_of([chunk_id])
        except (ValueError, KeyError, OverflowError):
            raise not_found("chunk", chunk_id) from None
        if not engine.sees(index, caller, doc_id):
            raise not_found("chunk", chunk_id)
        around = [[one.id for one in index.corpus.neighbours(chunk_id, *span)] for span in ((1, 0), (0, 1))]
        before, after = (ids[0] if ids else None for ids in around)
        return {**_chunk(index, index.corpus.chunks(row)[0]), "before": before, "after": after}

    return JSONResponse(await engine.run(work, caller))


@router.get("/explain/{run_id}", summary="Why an answer came about")
async def explain(run_id: str, request: Request) -> JSONResponse:
    """As `rag explain --json`: stages, ledger, prompt. Runs of another tenant are not there; the operator sees all.

    The config is told to the operator only, since it may hold addresses and paths.
    """
    from rag.replay import ledger, totals

    engine, caller = engine_of(request), caller_of(request)

    def work(index: ServedIndex) -> dict[str, Any]:
        run = engine.run_of(index, caller, run_id)
        if run is None:
            raise not_found("run", run_id)
        told = run if caller.is_operator else {key: value for key, value in run.items() if key != "config"}
        return {**told, "ledger": ledger(run), "totals": totals(run)}

    return JSONResponse(await engine.run(work, caller))


def _check_filter(caller: Caller, where: Mapping[str, Any] | None) -> None:
    from rag.store.filters import compile_filter

    try:
        compile_filter(caller.within(where))
    except (ConfigError, OverflowError, RecursionError) as error:
        raise ApiError(400, str(error), code="bad_filter", param="where") from None


def _chunk(index: ServedIndex, chunk: Chunk) -> dict[str, Any]:
    return {
        "chunk_id": chunk.id,
        "doc_id": chunk.doc_id,
        "source": index.corpus.source(chunk.doc_id),
        "start": chunk.span.start,
        "end": chunk.span.end,
        "section": list(chunk.section),
        "token_count": chunk.token_count,
        "text": chunk.text,
    }


def _hit(index: ServedIndex, hit: Hit) -> dict[str, Any]:
    parts = {name: float(value) for name, value in hit.parts.items()}
    return {**_chunk(index, hit.chunk), "score": float(hit.score), "rank": hit.rank, "parts": parts}
