"""What the tools do: one pipeline on one index, which is exchanged for a newer one as ingestion goes on."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rag.errors import RagError, UsageError
from rag.mcp.schemas import (
    MAX_CONTEXT,
    MAX_K,
    MAX_LINES,
    MAX_QUESTION_CHARS,
    MAX_TEXT_CHARS,
    Answered,
    Cited,
    Explained,
    Found,
    LedgerLine,
    Searched,
    SpanText,
    Stats,
)
from rag.server.held import HeldIndex
from rag.types import parse_chunk_id

if TYPE_CHECKING:
    from rag.pipeline import Pipeline
    from rag.server.held import ServedIndex
    from rag.types import Document, Hit

__all__ = ["Library"]

_LOOK_SECONDS = 1.0
_log = logging.getLogger("rag.mcp")


class Library:
    """An index for tools that are called from any thread. Reading runs at once, pipelines one after the other."""

    def __init__(self, directory: Path, pipeline: Pipeline) -> None:
        self.directory, self._pipeline = directory, pipeline
        self._held = HeldIndex(directory, lambda index: None)
        self._running = threading.Lock()
        self._looked = 0.0

    def open(self) -> None:
        """Open the index; UsageError when there is none. Models are loaded by the first call that needs them."""
        self._held.open()
        self._looked = time.monotonic()

    def close(self) -> None:
        """Close the index."""
        self._held.close()

    def search(self, question: str, k: int, where: Mapping[str, Any] | None) -> Searched:
        """The best `k` chunks. Texts share `MAX_TEXT_CHARS`; what is longer is cut short and says so."""
        _check("question", question, MAX_QUESTION_CHARS)
        if not 1 <= k <= MAX_K:
            raise UsageError(f"k must be between 1 and {MAX_K}, not {k}")
        with self._index() as index:
            with self._running:
                hits = self._pipeline.search(question, index, k=k, where=where)
            room = MAX_TEXT_CHARS // max(1, len(hits))
            return Searched(hits=[_found(index, hit, room) for hit in hits], generation=index.corpus.generation)

    def span(self, document: str, start: int | None, end: int | None, context: int) -> SpanText:
        """Characters [start, end) of a document and `context` characters on both sides, at most `MAX_TEXT_CHARS`."""
        _check("document", document, 1_000)
        if not 0 <= context <= MAX_CONTEXT:
            raise UsageError(f"context must be between 0 and {MAX_CONTEXT}, not {context}")
        with self._index() as index:
            found, start, end = _place(index, document, start, end)
            first, last = max(0, start - context), min(len(found.text), end + context)
            stop = min(last, first + MAX_TEXT_CHARS)
            return SpanText(
                doc_id=found.id,
                source=found.source,
                title=found.title,
                section=" > ".join(found.section_at(start)),
                page=found.page_at(start),
                start=first,
                end=stop,
                text=found.text[first:stop],
                truncated=stop < last,
                document_chars=len(found.text),
            )

    def explain(self, run_id: str, lines: int) -> Explained:
        """How a stored answer came about; "last" is the newest."""
        from rag.replay import ledger, totals

        _check("run_id", run_id, 200)
        if not 0 <= lines <= MAX_LINES:
            raise UsageError(f"lines must be between 0 and {MAX_LINES}, not {lines}")
        with self._index() as index:
            newest = index.store.runs(1) if run_id == "last" else [index.store.run(run_id)]
        if not newest:
            raise UsageError(f"this index holds no runs yet; ask something first: rag ask QUESTION --index {self.name}")
        run, written = newest[0], ledger(newest[0])
        return Explained(
            run_id=run["run_id"],
            question=run["question"],
            answer=run["answer"],
            citations=[Cited.model_validate(one) for one in run["citations"]],
            stages=run["trace"],
            totals=totals(run),
            ledger=[LedgerLine.model_validate(one) for one in written[:lines]],
            ledger_lines=len(written),
        )

    def stats(self) -> Stats:
        """Counts of the index."""
        with self._index() as index:
            config = index.manifest().get("config") or {}
            return Stats.model_validate({**index.store.stats(), "index": self.name, "config": config})

    def ask(self, question: str, where: Mapping[str, Any] | None) -> Answered:
        """An answer, kept as a run, so that `explain` can tell how it came about."""
        _check("question", question, MAX_QUESTION_CHARS)
        with self._index() as index, self._running:
            answer = self._pipeline.ask(question, index, where=where)
        told = answer.to_dict()
        return Answered(
            run_id=answer.run_id,
            answer=answer.text,
            citations=[Cited.model_validate(one) for one in told["citations"]],
            supported=list(answer.supported),
        )

    @property
    def name(self) -> str:
        """What messages call the index."""
        return self.directory.name or str(self.directory)

    @contextmanager
    def _index(self) -> Iterator[ServedIndex]:
        """The index of now; a newer one is looked for once a second at most."""
        if time.monotonic() - self._looked > _LOOK_SECONDS:
            self._looked = time.monotonic()
            try:
                self._held.refresh()
            except (RagError, OSError) as error:
                _log.warning("the index cannot be read anew, the snapshot of before is served: %s", error)
        with self._held.lend() as index:
            yield index


def _place(index: ServedIndex, document: str, start: int | None, end: int | None) -> tuple[Document, int, int]:
    """A document by id, beginning of an id, source or chunk id, and a range inside of it."""
    try:
        doc_id, span = parse_chunk_id(document)
    except ValueError:
        found = index.document(document)
    else:
        found = index.document(doc_id)
        start, end = span.start if start is None else start, span.end if end is None else end
    size = len(found.text)
    start, end = start or 0, size if end is None else end
    if not 0 <= start < end <= size:
        raise UsageError(
            f"[{start}, {end}) is no part of {found.source!r}, which has {size} characters; "
            f"use 0 <= start < end <= {size}"
        )
    return found, start, end


def _found(index: ServedIndex, hit: Hit, room: int) -> Found:
    chunk = hit.chunk
    return Found(
        chunk_id=chunk.id,
        doc_id=chunk.doc_id,
        source=index.corpus.source(chunk.doc_id),
        start=chunk.span.start,
        end=chunk.span.end,
        section=" > ".join(chunk.section),
        text=chunk.text[:room],
        truncated=len(chunk.text) > room,
        score=float(hit.score),
        rank=hit.rank,
        parts={name: float(value) for name, value in hit.parts.items()},
    )


def _check(name: str, text: str, most: int) -> None:
    """UsageError for what no index can hold or read."""
    if not text.strip():
        raise UsageError(f"{name} is empty; give some words")
    if len(text) > most:
        raise UsageError(f"{name} has {len(text)} characters; at most {most} are read")
    if any("\ud800" <= char <= "\udfff" for char in text):
        raise UsageError(f"{name} holds half of a surrogate pair, which is no text; send whole characters")
