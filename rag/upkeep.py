"""What keeping an index needs a pipeline for: cutting and embedding anew, and comparing with what models say."""

from __future__ import annotations

import random
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rag.embedders._chunks import check_reads, embed_chunks
from rag.errors import ConfigError, IndexDamagedError, InputError, MissingError, RagError, no_index
from rag.ingest import cutting
from rag.store.failpoints import hit
from rag.store.records import Entry, FileRecord
from rag.store.repair import RepairReport, repair
from rag.store.schema import FILE_NAME
from rag.store.store import Store
from rag.store.swap import need_room, swap
from rag.tokens import counter_name

if TYPE_CHECKING:
    from rag.pipeline import Pipeline
    from rag.protocols import Embedder, Vectors
    from rag.types import Chunk, Document

__all__ = ["MendReport", "RebuildProgress", "RebuildReport", "compare_vectors", "mend", "rebuild"]

REBUILD = "rebuild"
BATCH_DOCUMENTS = 64
BATCH_CHARS = 4_000_000
_EMBED_AT_ONCE = 256
_LEAST_COSINE = 0.999


@dataclass(frozen=True, kw_only=True)
class RebuildProgress:
    """Told after every batch that is durable. Counts documents."""

    done: int
    total: int
    source: str


@dataclass(frozen=True, kw_only=True)
class RebuildReport:
    """What a rebuild did. `kept` documents were there from a rebuild that was interrupted; `reused` contents have
    their vectors from the old index."""

    documents: int = 0
    chunks: int = 0
    kept: int = 0
    embedded: int = 0
    reused: int = 0
    seconds: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """The JSON form that `rag rebuild --json` prints."""
        return asdict(self)


def rebuild(
    directory: Path,
    pipeline: Pipeline,
    *,
    wait_seconds: float = 0.0,
    on_progress: Callable[[RebuildProgress], None] | None = None,
) -> RebuildReport:
    """Cut and embed the stored documents anew with `pipeline`, beside the live index, and swap at the end.

    The sources are not read. The live index can be searched all the time; after a death the same call goes on where
    it was. InputError, and the live index as it was, when a document cannot be cut with this pipeline.
    """
    directory = Path(directory)
    if not (directory / FILE_NAME).exists():
        raise no_index(directory)
    with Store.create_or_open(directory, wait_seconds=wait_seconds) as live:
        need_room(directory, 2 * (directory / FILE_NAME).stat().st_size, "Rebuilding the index")
        run = _Rebuild(live, pipeline, on_progress)
        report = run.build()
        hit("rebuild.built")
        swap(directory, directory / REBUILD / FILE_NAME)
        hit("rebuild.done")
        shutil.rmtree(directory / REBUILD, ignore_errors=True)
        pipeline._open_once(live)
    return report


class _Rebuild:
    """The second store, filled from the first."""

    def __init__(self, live: Store, pipeline: Pipeline, on_progress: Callable[[RebuildProgress], None] | None) -> None:
        self._live = live
        self._pipeline = pipeline
        self._tell = on_progress or (lambda progress: None)
        self._embedder = pipeline.embedder if pipeline.retriever.uses_vectors else None
        if self._embedder is not None:
            check_reads(pipeline.chunker, self._embedder)
        self._fingerprint = _name_of_vectors(self._embedder, live.manifest().get("fingerprint"))
        counter = pipeline.embedder.counter
        self._cutting = cutting(pipeline.chunker, counter_name(counter), self._fingerprint)
        self._embedded = self._reused = 0
        self._failures: list[str] = []

    def build(self) -> RebuildReport:
        """Fill the store and close it."""
        started = time.perf_counter()
        with self._open() as fresh:
            self._drop_what_is_gone(fresh)
            held = fresh.document_marks()
            wanted = self._live.document_marks()
            todo = [doc_id for doc_id in wanted if not self._is_there(fresh, doc_id, held.get(doc_id), wanted[doc_id])]
            done = kept = len(wanted) - len(todo)
            for batch in self._batches(todo):
                self._commit(fresh, batch)
                hit("rebuild.batch")
                done += len(batch)
                self._tell(RebuildProgress(done=done, total=len(wanted), source=batch[-1].source))
            if self._failures:
                raise InputError(
                    f"{len(self._failures)} documents cannot be cut with this config, so that the index stays as it "
                    f"was: {'; '.join(self._failures[:5])}. Change the config, or remove these files first"
                )
            failed = [replace(record, doc_id=None) for record in self._live.failed_files()]
            fresh.commit(failed=failed)
            stats = fresh.stats()
            if set(fresh.document_marks()) != set(wanted):
                raise RagError(f"{fresh.directory} does not hold the documents of the index; delete it and try again")
        return RebuildReport(
            documents=stats["documents"],
            chunks=stats["chunks"],
            kept=kept,
            embedded=self._embedded,
            reused=self._reused,
            seconds=round(time.perf_counter() - started, 3),
        )

    def _open(self) -> Store:
        """The store of a rebuild to the same config that was interrupted, else an empty one."""
        folder, target = self._live.directory / REBUILD, self._manifest()
        try:
            fresh = Store.create_or_open(folder)
            if fresh.manifest() == target:
                return fresh
            fresh.close()
        except RagError:
            pass  # it can be made again, whatever it is
        shutil.rmtree(folder, ignore_errors=True)
        fresh = Store.create_or_open(folder)
        fresh.set_manifest(target)
        return fresh

    def _manifest(self) -> dict[str, Any]:
        ours = {
            "config": self._pipeline.config.for_index(),
            "fingerprint": self._fingerprint,
            "dimension": self._embedder.dimension if self._embedder else None,
            "counter": self._pipeline.embedder.counter.name,
        }
        return {**{key: value for key, value in self._live.manifest().items() if key != "ready"}, **ours}

    def _drop_what_is_gone(self, fresh: Store) -> None:
        here = self._live.files()
        gone = [
            origin
            for origin, record in fresh.files().items()
            if origin not in here or here[origin].doc_id != record.doc_id
        ]
        if gone:
            fresh.commit(removed=gone)

    def _is_there(self, fresh: Store, doc_id: str, held: int | None, wanted: int) -> bool:
        if held != wanted:
            return False
        ours = {record.origin: record for record in fresh.files_of(doc_id)}
        theirs = {record.origin: self._renewed(record) for record in self._live.files_of(doc_id)}
        return all(
            origin in ours and (record.error or ours[origin] == replace(record, error=ours[origin].error))
            for origin, record in theirs.items()
        ) and len(ours) == len(theirs)

    def _batches(self, doc_ids: Sequence[str]) -> Iterator[list[Document]]:
        batch: list[Document] = []
        chars = 0
        for doc_id in doc_ids:
            if problems := self._live.check_document(doc_id):
                raise IndexDamagedError(f"{problems[0]}. The index stays as it was; cure it first with: rag repair")
            document = self._live.document(doc_id)
            batch.append(document)
            chars += len(document.text)
            if len(batch) == BATCH_DOCUMENTS or chars >= BATCH_CHARS:
                yield batch
                batch, chars = [], 0
        if batch:
            yield batch

    def _commit(self, fresh: Store, batch: Sequence[Document]) -> None:
        cut = {document.id: made for document in batch if (made := self._cut(document)) is not None}
        texts = {document.id: document.text for document in batch}
        vectors = self._vectors(fresh, [chunk for chunks, _ in cut.values() for chunk in chunks], texts.__getitem__)
        entries = []
        for document in batch:
            chunks, decision = cut.get(document.id, ((), None))
            for record in self._live.files_of(document.id) if document.id in cut else ():
                entry = Entry(
                    file=replace(self._renewed(record), error=None),
                    document=document,
                    chunks=chunks,
                    vectors={key: vectors[key] for chunk in chunks if (key := chunk.key) in vectors},
                    fingerprint=self._fingerprint,
                    decision=decision,
                    signature=self._live.signature(document.id),
                )
                entries.append(entry)
        if entries:
            count = sum(len(chunks) for chunks, _ in cut.values())
            fresh.start_rows_after(*self._live.reserve_rows(len(cut), count))
            fresh.commit(entries=entries)

    def _cut(self, document: Document) -> tuple[tuple[Chunk, ...], Mapping[str, Any] | None] | None:
        try:
            chunks, decision = self._pipeline.chunker.decide(document)
            return tuple(chunks), decision
        except (ConfigError, MissingError):
            raise
        except InputError as error:
            self._failures.append(str(error))
        except Exception as error:  # named with its document; the live index stays
            self._failures.append(f"{document.source}: the chunker failed: {type(error).__name__}: {error}")
        return None

    def _vectors(self, fresh: Store, chunks: Sequence[Chunk], text_of: Callable[[str], str]) -> dict[str, Vectors]:
        """Key -> vector of what the second store does not hold yet: out of the live index, or made."""
        if self._embedder is None or self._fingerprint is None:
            return {}
        contents = {chunk.key: chunk for chunk in chunks}
        there = fresh.known_vectors(self._fingerprint, list(contents))
        wanted = [key for key in contents if key not in there]
        vectors: dict[str, Vectors] = dict(self._live.known_vectors(self._fingerprint, wanted))
        self._reused += len(vectors)
        made = embed_chunks(self._embedder, [contents[key] for key in wanted if key not in vectors], text_of)
        self._embedded += len(made)
        return vectors | made

    def _renewed(self, record: FileRecord) -> FileRecord:
        """With the recipe of this pipeline. How the file was read stays as noted, so that a newer parser is seen."""
        reading, dash, _ = record.recipe.partition("-")
        return replace(record, recipe=f"{reading}-{self._cutting}") if dash else record


def _name_of_vectors(embedder: Embedder | None, theirs: str | None) -> str | None:
    """The fingerprint under which vectors of `embedder` stand in an index that holds those of `theirs`."""
    if embedder is None:
        return None
    return theirs if theirs and embedder.agrees_with(theirs) else embedder.fingerprint


@dataclass(frozen=True, kw_only=True)
class MendReport:
    """A repair with everything that a pipeline could add to it; `left` says what could not be done and why."""

    repair: RepairReport
    recut: int = 0
    embedded: int = 0
    left: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """The JSON form, part of what `rag repair --json` prints."""
        return {**self.repair.to_dict(), "recut": self.recut, "embedded": self.embedded, "left": self.left}


def mend(directory: Path, pipeline: Callable[[dict[str, Any]], Pipeline], *, wait_seconds: float = 0.0) -> MendReport:
    """`repair`, then cut again the documents whose chunks were damaged, and embed what has no vector.

    `pipeline(manifest)` is called only when there is something to cut or to embed; a RagError of it is noted.
    """
    report = repair(directory, wait_seconds=wait_seconds)
    if not report.uncut and not report.unembedded:
        return MendReport(repair=report)
    left: list[str] = []
    recut = embedded = 0
    with Store.create_or_open(directory, wait_seconds=wait_seconds) as store:
        try:
            line = pipeline(store.manifest())
            fingerprint = _usable_fingerprint(store, line)
            for doc_id in report.uncut:
                recut += _cut_again(store, line, doc_id, fingerprint, left)
            embedded = _embed_missing(store, line, fingerprint) if fingerprint else 0
        except RagError as error:
            left.append(str(error))
    return MendReport(repair=report, recut=recut, embedded=embedded, left=left)


def _usable_fingerprint(store: Store, pipeline: Pipeline) -> str | None:
    theirs: str | None = store.manifest().get("fingerprint")
    if theirs is not None and not pipeline.embedder.agrees_with(theirs):
        raise ConfigError(
            f"the index holds vectors of {theirs!r}, this config makes {pipeline.embedder.fingerprint!r}: chunks "
            "without a vector stay so. Name the embedder of the index with --config, or run: rag rebuild"
        )
    return theirs


def _cut_again(store: Store, pipeline: Pipeline, doc_id: str, fingerprint: str | None, left: list[str]) -> int:
    document = store.document(doc_id)
    try:
        chunks, decision = pipeline.chunker.decide(document)
        known = store.known_vectors(fingerprint, [chunk.key for chunk in chunks]) if fingerprint else {}
        missing = [chunk for chunk in chunks if fingerprint and chunk.key not in known]
        vectors = embed_chunks(pipeline.embedder, missing, lambda _: document.text)
        entries = [
            Entry(
                file=replace(record, error=None),
                document=document,
                chunks=tuple(chunks),
                vectors=vectors,
                fingerprint=fingerprint,
                decision=decision,
                signature=store.signature(doc_id),
            )
            for record in store.files_of(doc_id)
        ]
        failed = [replace(record, doc_id=None) for record in store.files_of(doc_id) if record.error]
        store.commit(entries=entries)
        store.commit(failed=failed)
    except InputError as error:
        left.append(f"{document.source} cannot be cut with this config: {error}")
        return 0
    return 1


def _embed_missing(store: Store, pipeline: Pipeline, fingerprint: str) -> int:
    count = 0
    while chunks := store.chunks_without_vector(fingerprint, _EMBED_AT_ONCE):
        vectors = embed_chunks(pipeline.embedder, chunks, _texts(store.document))
        store.add_vectors(fingerprint, vectors)
        count += len(vectors)
    return count


def _texts(document: Callable[[str], Document]) -> Callable[[str], str]:
    """doc_id -> text, each document read once, and only when it is asked for."""
    return cache(lambda doc_id: document(doc_id).text)


def compare_vectors(store: Store, embedder: Embedder, sample: int) -> tuple[int, list[str]]:
    """Embed `sample` chunks again and compare with what is stored; (how many were compared, problems).

    Which ones is drawn from the generation of the index, so that the same call looks at the same chunks.
    """
    import numpy as np

    with store.corpus() as corpus:
        rows = corpus.rows().tolist()
        picked = sorted(random.Random(corpus.generation).sample(rows, min(sample, len(rows))))  # noqa: S311
        if not picked:
            return 0, []
        chunks = corpus.chunks(picked)
        _, stored = corpus.vectors(picked)
        vectors = embed_chunks(embedder, chunks, _texts(corpus.document))
        fresh = np.stack([vectors[chunk.key] for chunk in chunks])
    cosines = (stored * fresh).sum(axis=1)
    return len(picked), [
        f"chunk {chunk.id}: its vector is not what {embedder.fingerprint!r} makes of its text (cosine {cosine:.4f})"
        for chunk, cosine in zip(chunks, cosines.tolist(), strict=True)
        if not cosine > _LEAST_COSINE
    ]
