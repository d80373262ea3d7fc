"""What the adapters share: an index that several threads may ask, the metadata of a hit, and how a text is cut."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from rag.errors import ConfigError, InputError, UsageError
from rag.index import Index
from rag.types import Chunk, Document

if TYPE_CHECKING:
    from rag.pipeline import Pipeline
    from rag.protocols import Filter
    from rag.types import Hit

__all__ = [
    "OWN_FIELDS",
    "Cutter",
    "Found",
    "OpenIndex",
    "PipelineLike",
    "chunk_metadata",
    "config_of",
    "field_name",
    "name_of",
    "pipeline_of",
    "positive",
]

PipelineLike = Any
"""A Pipeline, its config as a mapping such as {"retriever": "bm25"}, or None for what the index was built with."""

OWN_FIELDS = ("source", "doc_id", "title", "section")
"""Fields that filters know by these names; every other one is `meta.NAME`."""


@dataclass(frozen=True, slots=True)
class Found:
    """A hit and the name of its document's source."""

    hit: Hit
    source: str

    @property
    def metadata(self) -> dict[str, Any]:
        """`chunk_metadata`, and how the chunk was found: `score`, `rank`, `retriever`, `parts` (score parts)."""
        return {
            **chunk_metadata(self.hit.chunk, self.source),
            "score": float(self.hit.score),
            "rank": self.hit.rank,
            "retriever": self.hit.retriever,
            "parts": {name: float(value) for name, value in self.hit.parts.items()},
        }


class OpenIndex:
    """A pipeline on an index, for adapters that are called from any thread: one search runs at a time.

    The index may be given open; then the caller closes it. The snapshot stays until `refresh`.
    """

    def __init__(self, index: Index | str | Path, pipeline: PipelineLike = None) -> None:
        self._is_own = not isinstance(index, Index)
        self._index = index if isinstance(index, Index) else Index.open(index)
        self._lock = threading.Lock()
        try:
            self.pipeline = pipeline_of(pipeline, stored=self._index.manifest().get("config"))
        except BaseException:
            self.close()
            raise

    def search(self, question: str, k: int | None = None, where: Filter | None = None) -> list[Found]:
        """The best `k` chunks that match `where`, as `Pipeline.search` gives them."""
        with self._lock:
            hits = self.pipeline.search(question, self._index, k=k, where=where)
            corpus = self._index.corpus
            sources = {doc_id: corpus.source(doc_id) for doc_id in {hit.chunk.doc_id for hit in hits}}
        return [Found(hit, sources[hit.chunk.doc_id]) for hit in hits]

    @property
    def directory(self) -> Path:
        return self._index.directory

    def refresh(self) -> None:
        """Let the next search see what has been ingested by then."""
        with self._lock:
            self._index.refresh()

    def close(self) -> None:
        """Close the index if it was opened here."""
        if self._is_own:
            with self._lock:
                self._index.close()


class Cutter:
    """A chunker of Chunkwise, by its spec, for texts that come from elsewhere.

    `chunker` is a spec such as "recursive" or {"use": "sentence", "max_tokens": 200}; None takes the pipeline's.
    """

    def __init__(self, chunker: str | Mapping[str, Any] | None = None, pipeline: PipelineLike = None) -> None:
        from rag.pipeline import Pipeline

        made = pipeline_of(pipeline)
        if chunker is not None:
            made = Pipeline(made.config.merged({"chunker": chunker}, where="chunker"))
        made.config.check()
        self.pipeline = made

    def cut(self, text: str, source: str) -> list[Chunk]:
        """The chunks that ingestion makes of this text under this source name, with the same ids."""
        return self.pipeline.chunk(_document(text, source))


def chunk_metadata(chunk: Chunk, source: str) -> dict[str, Any]:
    """`chunk_id`, `doc_id`, `source`, `start`, `end` (code points of the document's text) and `section`."""
    return {
        "chunk_id": chunk.id,
        "doc_id": chunk.doc_id,
        "source": source,
        "start": chunk.span.start,
        "end": chunk.span.end,
        "section": " > ".join(chunk.section),
    }


def pipeline_of(pipeline: PipelineLike, stored: Mapping[str, Any] | None = None) -> Pipeline:
    """The pipeline itself; one of a mapping over `stored`, or over the defaults; ConfigError for something else."""
    from rag.config import PipelineConfig
    from rag.pipeline import Pipeline

    if isinstance(pipeline, Pipeline):
        return pipeline
    if pipeline is not None and not isinstance(pipeline, Mapping):
        raise ConfigError(
            f"pipeline: expected a Pipeline, a mapping such as {{'retriever': 'bm25'}}, or None, not {pipeline!r}"
        )
    base = PipelineConfig.from_dict(stored or {}, where="index")
    config = base.merged(pipeline or {}, where="pipeline")
    config.check()
    return Pipeline(config)


def config_of(pipeline: PipelineLike) -> dict[str, Any] | None:
    """What describes `pipeline` in JSON, for frameworks that write their components down."""
    if pipeline is None:
        return None
    return dict(pipeline) if isinstance(pipeline, Mapping) else dict(pipeline.config.to_dict())


def field_name(name: str) -> str:
    """How our filters name a field that another framework calls `name` or `meta.name`."""
    bare = name.removeprefix("meta.")
    return bare if bare in OWN_FIELDS else f"meta.{bare}"


def positive(name: str, value: int | None) -> int | None:
    """`value`, or UsageError when it is below 1."""
    if value is not None and value < 1:
        raise UsageError(f"{name} must be at least 1, not {value}")
    return value


def name_of(metadata: Mapping[str, Any], keys: Sequence[str], otherwise: str = "") -> str:
    """The source name that a document of another framework carries under the first of `keys` that it has."""
    return next((str(metadata[key]) for key in keys if metadata.get(key)), otherwise)


def _document(text: str, source: str) -> Document:
    """With the blocks that the parser of this suffix sees, where it reads the text as it is; else plain text."""
    from rag.parsers._choose import is_isolated, make_parser, parser_for

    parser = parser_for(PurePath(source).suffix)
    if parser and not is_isolated(parser):
        try:
            parsed = make_parser(parser).parse(text.encode("utf-8", "surrogatepass"), source=source)
        except InputError:
            return Document(text=text, source=source)
        if parsed.text == text:
            return parsed
    return Document(text=text, source=source)
