# ruff: noqa: S608 (only constants and question marks are put into SQL; values travel as parameters)
"""The index directory as an object: one writer at a time, any number of readers."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rag.errors import RagError, UsageError
from rag.protocols import Filter
from rag.store import lookup, runs, signatures, snapshots
from rag.store.checks import check_entry, check_failed, check_file
from rag.store.compact import sweep_compact
from rag.store.corpus import StoreCorpus
from rag.store.database import Database, batches, marks
from rag.store.derived import DerivedFiles
from rag.store.kv import drop_kv, sweep_kv
from rag.store.listing import count_all, files_of, find_document, list_documents, list_files
from rag.store.lock import WriterLock
from rag.store.problems import document_problems
from rag.store.read import (
    TextReader,
    chunk_row,
    document_row,
    read_chunks,
    read_state,
    slice_chunks,
    sound_document,
)
from rag.store.records import DocumentInfo, Entry, FileRecord
from rag.store.schema import FILE_NAME, create_file
from rag.store.snapshots import SnapshotInfo
from rag.store.swap import finish_replacement
from rag.store.write import Change, lexical_signature, put_vectors, rebuild_lexical, write_state
from rag.types import Chunk, Document

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["Store"]


class Store:
    """An open index; a context manager. Threads may share it. A process that forks must open its own.

    Law: what `commit` returned from survives any death of the process; what it did not return from is there
    wholly or not at all.
    """

    def __init__(self, directory: Path, lock: WriterLock | None) -> None:
        """Use `create_or_open` or `open`."""
        self.directory = directory
        self.writable = lock is not None
        self._lock = lock
        self._db = Database(directory, writable=self.writable)
        self._derived = DerivedFiles(directory, is_writable=lambda: self.writable)

    @classmethod
    def create_or_open(cls, directory: Path, *, wait_seconds: float = 0.0) -> Store:
        """Open for writing, making the directory and an empty index when there is none.

        IndexLockedError when another writer holds it for longer than `wait_seconds`.
        """
        directory = Path(directory)
        try:
            directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f"{directory} cannot be an index directory: {error.strerror}") from error
        lock = WriterLock(directory, wait_seconds=wait_seconds)
        try:
            finish_replacement(directory)
            if not (directory / FILE_NAME).exists():
                create_file(directory)
            store = cls(directory, lock)
            store._tidy()
        except OSError as error:
            lock.release()
            raise RagError(f"{directory}: the index cannot be written ({error.strerror})") from error
        except BaseException:
            lock.release()
            raise
        return store

    @classmethod
    def open(cls, directory: Path) -> Store:
        """Open for reading, without any lock; UsageError when there is no index."""
        return cls(Path(directory), None)

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Give back the file and the writer lock; calling twice is fine."""
        self.writable = False
        self._db.close()
        if self._lock is not None:
            self._lock.release()

    def _tidy(self) -> None:
        """Clear what a dead writer or an older version left: unrecorded files, a full-text index of other rules."""
        self._derived.sweep()
        snapshots.sweep_snapshots(self.directory)
        sweep_compact(self.directory)
        if read_state(self._db, "lexical") != lexical_signature():
            self.rebuild_lexical()
        sweep_kv(self.directory, lambda doc_id: self.place(doc_id) is not None)

    def _need_writer(self) -> None:
        if not self.writable:
            raise UsageError(f"the index in {self.directory} is open for reading only; use Store.create_or_open")

    # -- writing ---------------------------------------------------------------------------------------------

    def commit(
        self,
        *,
        entries: Sequence[Entry] = (),
        failed: Sequence[FileRecord] = (),
        removed: Sequence[str] = (),
        touched: Sequence[FileRecord] = (),
    ) -> None:
        """Carry out one change, whole or not at all: first `removed`, then `failed`, `touched`, `entries`.

        An entry replaces what its origin held; a document that another origin holds too is shared, and stays until
        the last of them goes. InputError, and nothing done, when an entry cannot be stored.
        """
        self._need_writer()
        for entry in entries:
            check_entry(entry)
        for record in failed:
            check_failed(record)
        for record in touched:
            check_file(record)
        with self._db.writing():
            change = Change(self._db)
            for origin in removed:
                change.remove(origin)
            for record in failed:
                change.fail(record)
            for record in touched:
                change.touch(record)
            for entry in entries:
                change.put(entry)
            change.finish()
        drop_kv(self.directory, [doc_id for doc_id in sorted(change.deleted) if self.place(doc_id) is None])

    def set_manifest(self, manifest: Mapping[str, Any]) -> None:
        """Replace the manifest (JSON). Its key `fingerprint` names the embedder whose vectors searches read."""
        self._need_writer()
        with self._db.writing():
            old = read_state(self._db, "manifest")
            write_state(self._db, "manifest", dict(manifest))
            if old.get("fingerprint") != manifest.get("fingerprint"):
                write_state(self._db, "generation", read_state(self._db, "generation") + 1)

    def prune_vectors(self) -> int:
        """Delete the vectors of all embedders but the one in the manifest; how many there were."""
        self._need_writer()
        with self._db.writing():
            name = read_state(self._db, "manifest").get("fingerprint")
            others = "SELECT id FROM fingerprints WHERE name IS NOT ?"
            gone = self._db.many(f"DELETE FROM vectors WHERE fingerprint IN ({others})", [(name,)])
            self._db.many("DELETE FROM fingerprints WHERE name IS NOT ?", [(name,)])
        return gone

    def rebuild_lexical(self) -> int:
        """Write the full-text index anew from the chunks; how many rows it has."""
        self._need_writer()
        with self._db.writing():
            return rebuild_lexical(self._db)

    def optimize_lexical(self) -> None:
        """Merge the parts of the full-text index into one; searches read it faster afterwards."""
        self._need_writer()
        with self._db.writing():
            self._db.run("INSERT INTO lexical(lexical) VALUES ('optimize')")

    def derived_present(self) -> bool:
        """True when every recorded derived file is there with its recorded size. Contents are checked where used."""
        return self._derived.present()

    def clear_derived(self) -> None:
        """Delete all derived files; they are made again when they are next needed."""
        self._need_writer()
        with self._db.writing():
            self._db.run("DELETE FROM derived")
            manifest = read_state(self._db, "manifest")
            if manifest.pop("ready", None):  # what says that they are made
                write_state(self._db, "manifest", manifest)
        self._derived.sweep()

    def add_vectors(self, fingerprint: str, vectors: Mapping[str, NDArray[np.float32]]) -> None:
        """Store vectors of chunks that are there already, key -> (dimension,) vector."""
        self._need_writer()
        with self._db.writing():
            if put_vectors(self._db, fingerprint, vectors):
                write_state(self._db, "generation", read_state(self._db, "generation") + 1)

    def reserve_rows(self, documents: int, chunks: int) -> tuple[int, int]:
        """Take row ids out of use here, for a store that will replace this one; the last ids given out before."""
        self._need_writer()
        with self._db.writing():
            last: dict[str, int] = dict(self._db.rows("SELECT name, seq FROM sqlite_sequence"))
            self._set_last_rows(last.get("documents", 0) + documents, last.get("chunks", 0) + chunks)
        return last.get("documents", 0), last.get("chunks", 0)

    def start_rows_after(self, documents: int, chunks: int) -> None:
        """Rows that are written from now on have ids greater than these."""
        self._need_writer()
        with self._db.writing():
            self._set_last_rows(documents, chunks)

    def _set_last_rows(self, documents: int, chunks: int) -> None:
        for row in (("documents", documents), ("chunks", chunks)):
            self._db.run("DELETE FROM sqlite_sequence WHERE name = ?", row[:1])
            self._db.run("INSERT INTO sqlite_sequence(name, seq) VALUES (?, ?)", row)

    # -- whole copies ----------------------------------------------------------------------------------------

    def snapshot_create(
        self, name: str | None = None, *, on_progress: Callable[[int, int], None] | None = None
    ) -> SnapshotInfo:
        """Copy the newest committed state under a name (default: the time). Needs no writer lock."""
        return snapshots.create_snapshot(self.directory, name, on_progress=on_progress)

    def snapshots(self) -> list[SnapshotInfo]:
        """All snapshots, oldest first."""
        return snapshots.list_snapshots(self.directory)

    def snapshot_restore(self, name: str) -> None:
        """Go back to a snapshot; readers that are open keep what they see. IndexDamagedError when it is damaged."""
        self._need_writer()
        snapshots.restore_snapshot(self.directory, name)
        self._tidy()

    def snapshot_delete(self, name: str) -> None:
        """UsageError for an unknown name."""
        snapshots.delete_snapshot(self.directory, name)

    def add_run(self, run: Mapping[str, Any]) -> str:
        """Keep the trace of a run and return its id; "" when the index cannot be written. Needs no writer lock."""
        return runs.add_run(self.directory, run)

    # -- reading ---------------------------------------------------------------------------------------------

    def corpus(self) -> StoreCorpus:
        """A snapshot for retrievers; close it."""
        return StoreCorpus(self.directory, self._derived)

    def manifest(self) -> dict[str, Any]:
        """What `set_manifest` stored; {} in a new index."""
        return dict(read_state(self._db, "manifest"))

    @property
    def generation(self) -> int:
        """Grows with every change of the chunks."""
        return int(read_state(self._db, "generation"))

    def files(self) -> dict[str, FileRecord]:
        """All known inputs by origin."""
        return list_files(self._db)

    def files_at(self, origins: Sequence[str]) -> dict[str, FileRecord]:
        """The known inputs among `origins`."""
        return lookup.find_files(self._db, origins)

    def origins(self) -> list[str]:
        """The origins of all known inputs, sorted."""
        return lookup.list_origins(self._db)

    def owners(self, sources: Sequence[str]) -> dict[str, str]:
        """Source -> the origin that has this name."""
        return lookup.find_owners(self._db, sources)

    def place(self, doc_id: str) -> tuple[str, tuple[str, ...]] | None:
        """(source, origins) of a document, None for an unknown id."""
        return lookup.find_place(self._db, doc_id)

    def files_of(self, doc_id: str) -> list[FileRecord]:
        """The inputs that a document stands for."""
        return files_of(self._db, doc_id)

    def check_document(self, doc_id: str) -> list[str]:
        """What is wrong with the text and the facts of a document; [] when they are as committed."""
        with self._db.reading():
            return document_problems(self._db, document_row(self._db, doc_id)).document

    def document_marks(self) -> dict[str, int]:
        """Document id -> checksum of its facts (title, metadata, pages), in reading order."""
        return dict(self._db.rows("SELECT doc_id, crc FROM documents ORDER BY id"))

    def failed_files(self) -> list[FileRecord]:
        """Inputs that are quarantined, by origin."""
        origins = self._db.rows("SELECT origin FROM files WHERE error IS NOT NULL ORDER BY origin")
        wanted = {origin for (origin,) in origins}
        return [record for origin, record in self.files().items() if origin in wanted] if wanted else []

    def known_vectors(self, fingerprint: str, keys: Sequence[str]) -> dict[str, NDArray[np.float32]]:
        """The stored vectors among `keys` that are what was committed; a damaged one counts as unknown."""
        from rag.vectors import from_blob

        found: dict[str, NDArray[np.float32]] = {}
        for part in batches([bytes.fromhex(key) for key in dict.fromkeys(keys)]):
            rows = self._db.rows(
                "SELECT v.key, v.vector, v.crc FROM vectors v JOIN fingerprints f ON f.id = v.fingerprint "
                f"WHERE f.name = ? AND v.key IN ({marks(part)})",
                (fingerprint, *part),
            )
            found.update((key.hex(), from_blob(blob)) for key, blob, crc in rows if zlib.crc32(blob) == crc)
        return found

    def chunks_without_vector(self, fingerprint: str, limit: int) -> list[Chunk]:
        """The first chunks, in row order, whose content has no vector under this fingerprint."""
        sql = (
            "SELECT c.id FROM chunks c WHERE NOT EXISTS (SELECT 1 FROM vectors v JOIN fingerprints f "
            "ON f.id = v.fingerprint WHERE f.name = ? AND v.key = c.key) ORDER BY c.id LIMIT ?"
        )
        with self._db.reading():
            rows = [row for (row,) in self._db.rows(sql, (fingerprint, limit))]
            return read_chunks(self._db, TextReader(self._db), rows)

    def signature(self, doc_id: str) -> bytes | None:
        """What near-duplicates of a document are recognised by; None when it has none."""
        return signatures.read_signature(self._db, doc_id)

    def find_alike(self, signature: bytes, threshold: float) -> list[tuple[str, bytes]]:
        """(document id, signature) of the documents that may be `threshold` alike, in reading order."""
        return signatures.find_alike(self._db, signature, threshold)

    def documents(self, where: Filter | None = None) -> list[DocumentInfo]:
        """All documents in reading order; with a filter, those with a chunk that matches."""
        with self._db.reading():
            return list_documents(self._db, where)

    def document(self, doc_id: str) -> Document:
        """KeyError for an unknown id."""
        with self._db.reading():
            return sound_document(self._db, doc_id)

    def find_document(self, name: str) -> Document:
        """By id, by the unique beginning of an id, by source or by origin; UsageError when none or several fit."""
        with self._db.reading():
            return sound_document(self._db, find_document(self._db, name))

    def chunk(self, chunk_id: str) -> Chunk:
        """KeyError for an unknown id."""
        with self._db.reading():
            return read_chunks(self._db, TextReader(self._db), [chunk_row(self._db, chunk_id)])[0]

    def chunks_of(self, doc_id: str) -> list[Chunk]:
        """The chunks of a document in reading order; KeyError for an unknown id."""
        with self._db.reading():
            return slice_chunks(self._db, TextReader(self._db), document_row(self._db, doc_id))

    def run(self, run_id: str) -> dict[str, Any]:
        """A stored trace; UsageError for an unknown id."""
        return runs.read_run(self.directory, run_id)

    def runs(self, limit: int = 20) -> list[dict[str, Any]]:
        """The newest traces, newest first."""
        return runs.read_runs(self.directory, limit)

    def stats(self) -> dict[str, Any]:
        """Counts. `embedded` are chunks with a vector of the manifest's embedder, `bytes` is the size on disk."""
        with self._db.reading():
            return count_all(self._db)
