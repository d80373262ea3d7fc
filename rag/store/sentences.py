"""Vectors of sentences, kept in a small SQLite file of their own: what was embedded once is not embedded again.

They are no part of the truth. A vector is found by its text and the fingerprint of its embedder, so it never goes
stale: not with a new generation, a restored snapshot or a rebuilt index. Vectors of deleted documents age out. Whoever
asks may add, without the writer lock; a file that is busy, full, read-only or damaged costs time and never an answer.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import sqlite3
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from rag.store.database import batches, marks
from rag.store.failpoints import hit

if TYPE_CHECKING:
    from rag.protocols import Embedder, Vectors

__all__ = [
    "MOST_BYTES",
    "SENTENCES_NAME",
    "SentenceFile",
    "check_sentences",
    "clear_sentences",
    "count_sentences",
    "text_key",
]

SENTENCES_NAME = "sentences.sqlite"
MOST_BYTES = 1 << 30
"""The file is kept below this: some 600,000 sentences at 384 dimensions. Then what was added first goes first."""

_APPLICATION_ID = 0x43_48_57_53  # "CHWS"
_FORMAT = 1
_BUSY_SECONDS = 0.2
_PAGE_BYTES = 16384  # ten vectors of 384 numbers; SQLite's 4096 hold two and waste a quarter
_FAILURES = (sqlite3.Error, OSError, UnicodeDecodeError)  # SQLite quotes a damaged schema, which is then no text
_DAMAGED = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_FORMAT, sqlite3.SQLITE_ERROR}
_SCHEMA = (
    "CREATE TABLE models(id INTEGER PRIMARY KEY, fingerprint TEXT NOT NULL UNIQUE)",
    "CREATE TABLE vectors(id INTEGER PRIMARY KEY, model INTEGER NOT NULL, key BLOB NOT NULL, crc INTEGER NOT NULL, "
    "vector BLOB NOT NULL, UNIQUE(model, key))",
    "CREATE TABLE documents(model INTEGER NOT NULL, key BLOB NOT NULL, UNIQUE(model, key))",
)
_ADD = "INSERT OR REPLACE INTO vectors(model, key, crc, vector) VALUES (?, ?, ?, ?)"
_TRIM = (
    "DELETE FROM vectors WHERE id <= (SELECT min(id) + (max(id) - min(id)) / 8 FROM vectors)",
    "DELETE FROM documents",  # some of their sentences may be gone
)


def text_key(text: str) -> bytes:
    """What a text is found by."""
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


class SentenceFile:
    """The kept vectors of one embedder, for the index in `directory`. Holds nothing open."""

    def __init__(self, directory: Path, embedder: Embedder) -> None:
        self._path = directory / SENTENCES_NAME
        self._embedder = embedder

    def vectors(self, texts: Sequence[str]) -> Vectors:
        """(len(texts), d) what `embedder.embed` gives; what is not kept is embedded at once, and kept if that works."""
        import numpy as np

        keys = [text_key(text) for text in texts]
        known = self.read(keys)
        new = {key: text for key, text in zip(keys, texts, strict=True) if key not in known}
        if new:
            made = dict(zip(new, self._embedder.embed(list(new.values())), strict=True))
            self.add(made)
            known.update(made)
        if not keys:
            return np.zeros((0, self._embedder.dimension), dtype=np.float32)
        return np.stack([known[key] for key in keys])

    def read(self, keys: Iterable[bytes]) -> dict[bytes, Vectors]:
        """Those of `keys` that are kept and whole."""
        import numpy as np

        wanted, found, width = list(dict.fromkeys(keys)), {}, 4 * self._embedder.dimension
        with contextlib.suppress(*_FAILURES), closing(_reading(self._path)) as connection:
            model = self._model(connection)
            for part in batches(wanted if model is not None else []):
                sql = f"SELECT key, crc, vector FROM vectors WHERE model = ? AND key IN ({marks(part)})"  # noqa: S608
                for key, crc, vector in connection.execute(sql, (model, *part)):
                    if _is_whole(key, vector, crc) and len(vector) == width:
                        found[key] = np.frombuffer(vector, dtype="<f4").astype(np.float32, copy=False)
        return found

    def add(self, vectors: Mapping[bytes, Vectors], documents: Iterable[bytes] = (), *, wait: float = 0.0) -> bool:
        """Keep vectors by their keys, and the keys of documents all of whose sentences are kept; False: not possible.

        Waits at most a moment, or `wait` seconds, for another who adds.
        """
        import numpy as np

        blobs = [(key, np.asarray(vector, dtype="<f4").tobytes()) for key, vector in vectors.items()]
        for attempt in (1, 2):
            try:
                with _writing(self._path, max(wait, _BUSY_SECONDS)) as connection:
                    connection.execute("INSERT OR IGNORE INTO models(fingerprint) VALUES (?)", self._name)
                    model = self._model(connection)
                    connection.executemany(_ADD, ((model, key, _crc(key, blob), blob) for key, blob in blobs))
                    connection.executemany(
                        "INSERT OR IGNORE INTO documents VALUES (?, ?)", ((model, d) for d in documents)
                    )
                    _trim(connection)
                return True
            except _FAILURES as error:
                if attempt == 2 or not _is_damage(error) or not clear_sentences(self._path.parent):
                    return False
        return False

    def done(self, documents: Sequence[bytes]) -> set[bytes]:
        """Those keys of documents that were added: all their sentences were kept."""
        found: set[bytes] = set()
        with contextlib.suppress(*_FAILURES), closing(_reading(self._path)) as connection:
            model = self._model(connection)
            for part in batches(documents):
                sql = f"SELECT key FROM documents WHERE model = ? AND key IN ({marks(part)})"  # noqa: S608
                found.update(key for (key,) in connection.execute(sql, (model, *part)))
        return found

    @property
    def is_full(self) -> bool:
        """True when more would push others out."""
        with contextlib.suppress(*_FAILURES), closing(_reading(self._path)) as connection:
            return _used(connection) > MOST_BYTES * 7 // 8  # what is left when the oldest eighth has gone
        return False

    @property
    def _name(self) -> tuple[str]:
        return (self._embedder.fingerprint,)

    def _model(self, connection: sqlite3.Connection) -> int | None:
        row = connection.execute("SELECT id FROM models WHERE fingerprint = ?", self._name).fetchone()
        return None if row is None else int(row[0])


def count_sentences(directory: Path) -> int:
    """How many vectors are kept; 0 when their file cannot be read."""
    with contextlib.suppress(*_FAILURES), closing(_reading(directory / SENTENCES_NAME)) as connection:
        return int(connection.execute("SELECT count(*) FROM vectors").fetchone()[0])
    return 0


def check_sentences(directory: Path) -> list[str]:
    """What is wrong with the file, for `verify`."""
    path = directory / SENTENCES_NAME
    if not path.exists():
        return []
    cure = "it is made anew when it is next needed"
    try:
        with closing(_reading(path)) as connection:
            lines = [str(line) for (line,) in connection.execute("PRAGMA quick_check(5)") if line != "ok"]
            rows = connection.execute("SELECT key, vector, crc FROM vectors")
            torn = sum(not _is_whole(*row) for row in rows)
    except _FAILURES as error:
        return [f"{SENTENCES_NAME}: the kept vectors of sentences cannot be read ({error}); {cure}"]
    if torn:
        lines.append(f"{torn} vectors are not what was kept")
    return [f"{SENTENCES_NAME}: {line}; {cure}" for line in lines]


def clear_sentences(directory: Path) -> bool:
    """Delete the file; False when that is not possible."""
    try:
        for end in ("-journal", ""):
            (directory / f"{SENTENCES_NAME}{end}").unlink(missing_ok=True)
    except OSError:
        return False
    return True


def _reading(path: Path) -> sqlite3.Connection:
    """A connection that makes no file. sqlite3.Error when there is none, or it is not ours."""
    if not path.is_file():
        raise FileNotFoundError(path)
    # A writable connection may finish what a dead one left; on a disk that cannot be written nobody has left anything.
    options = "mode=rw" if os.access(path, os.W_OK) and os.access(path.parent, os.W_OK) else "mode=ro"
    connection = sqlite3.connect(f"{path.absolute().as_uri()}?{options}", uri=True, timeout=_BUSY_SECONDS)
    try:
        if not _is_ours(connection):
            raise sqlite3.DatabaseError(f"{path} is no file of sentences of this version")
    except BaseException:
        connection.close()
        raise
    return connection


@contextmanager
def _writing(path: Path, wait: float) -> Iterator[sqlite3.Connection]:
    """A transaction, the tables made when the file is new."""
    if not os.access(path.parent, os.W_OK):
        raise PermissionError(path.parent)
    with closing(sqlite3.connect(path, timeout=wait, isolation_level=None)) as connection:
        connection.execute(f"PRAGMA page_size={_PAGE_BYTES}")
        connection.execute("PRAGMA synchronous=NORMAL")
        connection.execute("BEGIN IMMEDIATE")
        if not _is_ours(connection):
            if connection.execute("SELECT count(*) FROM sqlite_master").fetchone() != (0,):
                raise sqlite3.DatabaseError(f"{path} is no file of sentences of this version")
            connection.execute(f"PRAGMA application_id={_APPLICATION_ID}")
            connection.execute(f"PRAGMA user_version={_FORMAT}")
            for statement in _SCHEMA:
                connection.execute(statement)
        yield connection
        hit("sentences.written")
        connection.execute("COMMIT")
        hit("sentences.done")


def _is_ours(connection: sqlite3.Connection) -> bool:
    found = [connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("application_id", "user_version")]
    return found == [_APPLICATION_ID, _FORMAT]


def _is_damage(error: Exception) -> bool:
    """False for a file that is busy or a disk that is full: those pass."""
    if isinstance(error, OSError):
        return False
    code = getattr(error, "sqlite_errorcode", None)  # our own error, about somebody else's file, has none
    return code is None or (code & 0xFF) in _DAMAGED


def _trim(connection: sqlite3.Connection) -> None:
    while _used(connection) > MOST_BYTES:
        for statement in _TRIM:
            connection.execute(statement)
        if connection.execute("SELECT count(*) FROM (SELECT 1 FROM vectors LIMIT 1)").fetchone() == (0,):
            return


def _used(connection: sqlite3.Connection) -> int:
    """Bytes of pages in use."""
    size, pages, free = (
        int(connection.execute(f"PRAGMA {name}").fetchone()[0])
        for name in ("page_size", "page_count", "freelist_count")
    )
    return size * (pages - free)


def _crc(key: bytes, blob: bytes) -> int:
    return zlib.crc32(blob, zlib.crc32(key))


def _is_whole(key: object, vector: object, crc: object) -> bool:
    return isinstance(key, bytes) and isinstance(vector, bytes) and _crc(key, vector) == crc
