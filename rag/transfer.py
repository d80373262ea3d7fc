"""Moves an index's retrieval to another store: what is kept there is made from the stored chunks and vectors."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from rag.errors import ConfigError, RagError, UsageError, no_index
from rag.index import Index
from rag.registry import spec_name
from rag.store.schema import FILE_NAME
from rag.store.store import Store

if TYPE_CHECKING:
    from rag.pipeline import Pipeline
    from rag.protocols import Corpus, Retriever

__all__ = ["StoreRetriever", "TransferReport", "transfer"]


@runtime_checkable
class StoreRetriever(Protocol):
    """A retriever that keeps chunks and vectors of its own beside the index."""

    def open(self, corpus: Corpus) -> Any:
        """Brings what it keeps to the generation of `corpus`."""

    def audit(self, corpus: Corpus, *, vectors: bool = True) -> tuple[int, list[str]]:
        """(chunks that it keeps as the index does, what is wrong in words that follow "the store").

        Everything is read back; without `vectors` ids and contents alone. Changes nothing that is searched.
        """


@dataclass(frozen=True, kw_only=True)
class TransferReport:
    """What `transfer` did. Chunks are counted for each store that the new retriever has; `present` were there before,
    `verified` were read back and are the index's, ids and vectors."""

    before: str
    after: str
    chunks: int
    present: int
    written: int
    verified: int
    config: str
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """The JSON form that `rag migrate --to --json` prints."""
        return asdict(self)


def transfer(
    directory: Path, pipeline: Pipeline, *, keep_config: bool = False, wait_seconds: float = 0.0
) -> TransferReport:
    """Fill the store of `pipeline.retriever` from the index in `directory` and read all of it back.

    Nothing is cut or embedded, and the chunks and vectors of the index stay as they are. Then the index's own config
    names the new retriever, unless `keep_config`. After a death the same call goes on where the store allows it, and
    writes nothing twice. UsageError for a retriever without a store, ConfigError where the vectors do not fit,
    RagError when what is read back differs.
    """
    started = time.perf_counter()
    directory = Path(directory)
    if not (directory / FILE_NAME).exists():
        raise no_index(directory)
    stores = list(_stores(pipeline.retriever))
    name = spec_name(pipeline.config.retriever)
    if not stores:
        raise UsageError(f"the retriever {name!r} keeps no store beside the index, so there is nothing to move to")
    with Index(Store.create_or_open(directory, wait_seconds=wait_seconds)) as index:
        pipeline._check_vectors(index)
        corpus = index.corpus
        present = sum(store.audit(corpus, vectors=False)[0] for store in stores)
        pipeline.retriever.open(corpus).close()
        verified = sum(_verified(store, corpus, name) for store in stores)
        config = index.manifest().get("config") or {}
        if not keep_config:
            _name_it(index, pipeline)
    return TransferReport(
        before=spec_name(config["retriever"]) if "retriever" in config else "none",
        after=name,
        chunks=verified,
        present=present,
        written=verified - present,
        verified=verified,
        config="kept" if keep_config else "changed",
        seconds=round(time.perf_counter() - started, 3),
    )


def _stores(retriever: Retriever) -> Iterator[StoreRetriever]:
    """The retriever, or those inside of it, that keep something."""
    if isinstance(retriever, StoreRetriever):
        yield retriever
        return
    for field in fields(retriever):  # type: ignore[arg-type]  # every plugin is a dataclass
        if field.metadata.get("nested") == "retriever":
            inner = getattr(retriever, field.name)
            for part in inner if isinstance(inner, tuple) else (inner,):
                if part is not None:
                    yield from _stores(part)


def _verified(store: StoreRetriever, corpus: Corpus, name: str) -> int:
    same, problems = store.audit(corpus)
    if problems or same != len(corpus):
        told = "; ".join(problems) or f"has {same} of {len(corpus)} chunks"
        raise RagError(
            f"the store of {name} {told}. The index and its config are as they were. Run the same command again; if "
            "this stays, `rag verify` says how to empty that store"
        )
    return same


def _name_it(index: Index, pipeline: Pipeline) -> None:
    """In the index's config, as what the newest generation is ready for."""
    manifest = index.manifest()
    config = manifest.get("config")
    if not config:
        raise ConfigError(f"{index.directory} does not say what it was built with; use --keep-config")
    ready = {"generation": index.store.generation, "retriever": repr(pipeline.retriever)}
    changed = {**config, "retriever": pipeline.config.for_index()["retriever"]}
    index.store.set_manifest({**manifest, "config": changed, "ready": ready})
