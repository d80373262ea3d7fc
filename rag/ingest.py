"""Files -> documents -> chunks -> vectors -> store, one durable batch at a time.

Batches are cut from the whole sorted listing, unchanged files included, so that a run that is resumed after a
kill forms the very same batches, and so the very same bytes, as a run that was never interrupted.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rag.errors import InputError, MissingError
from rag.files import FileListing, FoundFile
from rag.parsers._sandbox import ParserPool
from rag.registry import load
from rag.store.checks import check_entry
from rag.store.records import Entry, FileRecord
from rag.types import Chunk, Document

if TYPE_CHECKING:
    from rag.protocols import Chunker, Embedder, Vectors
    from rag.store.store import Store

__all__ = ["Failure", "IngestReport", "Ingestion", "Progress"]

BATCH_FILES = 16
BATCH_BYTES = 8_000_000


@dataclass(frozen=True, kw_only=True)
class Failure:
    """One input that did not become a document, and why."""

    source: str
    error: str


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Told after every batch. `done` and `total` count files, `bytes_done` what lies behind them on disk."""

    done: int
    total: int
    bytes_done: int
    bytes_total: int
    source: str


@dataclass(frozen=True, kw_only=True)
class IngestReport:
    """What one ingestion did. `documents` and `chunks` were written now, `skipped` files had not changed."""

    documents: int = 0
    chunks: int = 0
    embedded: int = 0
    skipped: int = 0
    removed: int = 0
    ignored: int = 0
    ignored_types: tuple[str, ...] = ()
    failed: tuple[Failure, ...] = ()
    seconds: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """The JSON-safe form that `rag ingest --json` prints."""
        failed = [{"source": failure.source, "error": failure.error} for failure in self.failed]
        return {
            "documents": self.documents,
            "chunks": self.chunks,
            "skipped": self.skipped,
            "failed": failed,
            "seconds": self.seconds,
            "embedded": self.embedded,
            "removed": self.removed,
            "ignored": self.ignored,
            "ignored_types": list(self.ignored_types),
        }


@dataclass
class _Batch:
    """What will be committed together."""

    entries: list[Entry] = field(default_factory=list)
    touched: list[FileRecord] = field(default_factory=list)
    broken: list[FileRecord] = field(default_factory=list)
    moved_from: list[str] = field(default_factory=list)
    failed: list[Failure] = field(default_factory=list)
    skipped: int = 0


@dataclass
class Ingestion:
    """One run of ingestion into a writable store.

    `embedder` is None when no retriever reads vectors; `fingerprint` is the name that the index has for its vectors;
    `counter` names the tokenizer that sizes the chunks.
    """

    store: Store
    chunker: Chunker
    embedder: Embedder | None
    fingerprint: str | None
    counter: str
    pool: ParserPool
    on_progress: Callable[[Progress], None] | None = None

    def run(self, listing: FileListing, *, delete_below: Sequence[Path] = ()) -> IngestReport:
        """Ingest the listing; every batch is durable when the next one starts.

        Indexed files below the folders `delete_below` that exist no longer are removed.
        """
        started = time.perf_counter()
        known = self.store.files()
        owners = {record.source: record for record in known.values()}
        report = IngestReport(
            ignored=listing.ignored,
            ignored_types=tuple(sorted(listing.ignored_suffixes)),
            failed=tuple(_failure(source, error) for source, error in listing.problems),
        )
        gone = _missing(known, listing, delete_below)
        if gone:
            self.store.commit(removed=gone)
            report = replace(report, removed=len(gone))
        total, bytes_total, done, bytes_done = len(listing.files), sum(f.size_bytes for f in listing.files), 0, 0
        for group in _groups(listing.files):
            batch = _Batch()
            for found in group:
                self._take(found, known, owners, batch)
            embedded = self._commit(batch)
            done += len(group)
            bytes_done += sum(found.size_bytes for found in group)
            report = replace(
                report,
                documents=report.documents + len(batch.entries),
                chunks=report.chunks + sum(len(entry.chunks) for entry in batch.entries),
                embedded=report.embedded + embedded,
                skipped=report.skipped + batch.skipped,
                failed=report.failed + tuple(batch.failed),
            )
            if self.on_progress:
                self.on_progress(
                    Progress(
                        done=done, total=total, bytes_done=bytes_done, bytes_total=bytes_total, source=group[-1].source
                    )
                )
        return replace(report, seconds=time.perf_counter() - started)

    def _take(
        self, found: FoundFile, known: dict[str, FileRecord], owners: dict[str, FileRecord], batch: _Batch
    ) -> None:
        """Decide what to do with one file, and do all of it but the embedding and the commit."""
        origin, old = str(found.path), known.get(str(found.path))
        source = old.source if old else found.source
        owner = owners.get(source)
        if owner and owner.origin != origin and not Path(owner.origin).exists():
            batch.moved_from.append(owner.origin)  # the file has moved, and its name with it
        elif owner and owner.origin != origin:
            error = (
                f"{origin}: the name {source!r} stands for {owner.origin} already; ingest their common parent folder"
            )
            batch.failed.append(_failure(source, error))
            return
        recipe = self._recipe(found.parser)
        same_recipe = old is not None and old.recipe == recipe
        if old and same_recipe and (old.size_bytes, old.mtime_ns) == (found.size_bytes, found.mtime_ns):
            self._keep(old, batch)
            return
        try:
            data = found.path.read_bytes()
        except OSError as error:
            batch.failed.append(_failure(source, f"cannot be read: {error.strerror or error}"))
            return
        record = FileRecord(
            origin=origin,
            source=source,
            content_hash=hashlib.blake2b(data, digest_size=16).hexdigest(),
            size_bytes=found.size_bytes,
            mtime_ns=found.mtime_ns,
            recipe=recipe,
            doc_id=None,
            error=None,
        )
        owners[source] = record
        if old and same_recipe and old.content_hash == record.content_hash:
            batch.touched.append(replace(record, doc_id=old.doc_id, error=old.error))
            self._keep(old, batch)
            return
        self._parse(found.parser, data, record, batch)

    def _keep(self, old: FileRecord, batch: _Batch) -> None:
        if old.error is None:
            batch.skipped += 1
        else:
            batch.failed.append(_failure(old.source, old.error))

    def _parse(self, parser: str, data: bytes, record: FileRecord, batch: _Batch) -> None:
        try:
            document = self.pool.parse(parser, data, record.source)
            entry = _entry(record, document, self.chunker.chunk(document))
            check_entry(entry)
        except InputError as error:
            batch.broken.append(replace(record, error=str(error)))
            batch.failed.append(_failure(record.source, str(error)))
        except MissingError as error:  # not the file's fault, so it is not remembered
            batch.failed.append(_failure(record.source, str(error)))
        else:
            batch.entries.append(entry)

    def _commit(self, batch: _Batch) -> int:
        """Embed what is new and make the batch durable; the number of texts embedded."""
        vectors = self._embed([chunk for entry in batch.entries for chunk in entry.chunks])
        if self.fingerprint is not None:
            batch.entries = [_with_vectors(entry, vectors, self.fingerprint) for entry in batch.entries]
        if batch.entries or batch.touched or batch.broken:
            self.store.commit(
                entries=batch.entries, failed=batch.broken, touched=batch.touched, removed=batch.moved_from
            )
        return len(vectors)

    def _embed(self, chunks: Sequence[Chunk]) -> dict[str, Vectors]:
        """Key -> vector of every content that the store does not hold yet."""
        if self.embedder is None or self.fingerprint is None:
            return {}
        texts = {chunk.key: chunk.embed_text for chunk in chunks}
        known = self.store.known_vectors(self.fingerprint, list(texts))
        fresh = [key for key in texts if key not in known]
        if not fresh:
            return {}
        matrix = self.embedder.embed([texts[key] for key in fresh])
        return {key: matrix[row] for row, key in enumerate(fresh)}

    def _recipe(self, parser: str) -> str:
        """Names everything that shapes the chunks of a file: when it changes, the file is read again."""
        version = load("parser", parser).version
        shape = f"{parser}/{version}|{self.chunker!r}|{self.counter}|{self.fingerprint}"
        return hashlib.blake2b(shape.encode(), digest_size=8).hexdigest()


def _failure(source: str, error: str) -> Failure:
    """A failure whose reason does not say its source twice."""
    return Failure(source=source, error=error.removeprefix(f"{source}: "))


def _entry(record: FileRecord, document: Document, chunks: Sequence[Chunk]) -> Entry:
    return Entry(
        file=replace(record, doc_id=document.id),
        document=document,
        chunks=tuple(chunks),
        vectors={},
        fingerprint=None,
        decision=None,
    )


def _with_vectors(entry: Entry, vectors: dict[str, Vectors], fingerprint: str) -> Entry:
    keys = sorted({chunk.key for chunk in entry.chunks} & vectors.keys())
    return replace(entry, vectors={key: vectors[key] for key in keys}, fingerprint=fingerprint)


def _groups(files: Sequence[FoundFile]) -> Iterator[list[FoundFile]]:
    """Consecutive files, at most BATCH_FILES and, but for a single large file, BATCH_BYTES together."""
    group: list[FoundFile] = []
    size = 0
    for found in files:
        if group and (len(group) == BATCH_FILES or size + found.size_bytes > BATCH_BYTES):
            yield group
            group, size = [], 0
        group.append(found)
        size += found.size_bytes
    if group:
        yield group


def _missing(known: dict[str, FileRecord], listing: FileListing, roots: Sequence[Path]) -> list[str]:
    """Known origins below `roots` that exist no longer. A file that is there but was not listed is not missing."""
    present = {str(found.path) for found in listing.files}
    return sorted(
        origin
        for origin in known
        if origin not in present
        and any(Path(origin).is_relative_to(root) for root in roots)
        and not Path(origin).exists()
    )
