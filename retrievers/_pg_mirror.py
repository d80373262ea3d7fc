# ruff: noqa: S608 (only checked names and constants are put into SQL; values travel as parameters)
"""Keeps a table of PostgreSQL equal to a corpus. It is a mirror: the store stays the only owner of the data.

A record stands for one row with one content (`key`: content hash and chunk id), so it is never taken for another
chunk that has the row later. `mirrors.digest` names the content of a whole generation. A table that has one is
brought to the next generation in one transaction; it is empty while a new table is filled, batch by batch, so that a
search never trusts half of it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rag.errors import ConfigError
from rag.types import Chunk
from retrievers._pg_filter import stored_text
from retrievers._pg_words import full_text

if TYPE_CHECKING:
    from rag.protocols import Corpus, Vectors

__all__ = ["Mirror", "State", "digest_of", "key_of"]

_MARKER = "pgvector-mirror.digest"
_BATCH = 1000
_LAYOUT = 2
"""Raised with the columns: a table of another layout is made anew."""
_FIRST = "row, key, chunk_id, doc_id, start, stop, source, title, section, text"
_TYPES = ["int8", "text", "text", "text", "int4", "int4", "text", "text", "text[]", "text", "text", "int4", "vector"]
_INCOMING = "pg_temp.chunkwise_incoming"


@dataclass(frozen=True)
class State:
    """What the table says of itself. `plain`: no NUL was replaced in a field that filters read."""

    fingerprint: str
    dimension: int
    generation: int
    digest: str
    plain: bool


@dataclass(frozen=True)
class Mirror:
    """The table of one index. `schema` and `name` are checked identifiers; `graph` is (m, ef_construction) or None.

    `language` is the text search configuration that stems the words.
    """

    schema: str
    name: str
    directory: str
    embedder: str
    dimension: int
    language: str
    graph: tuple[int, int] | None

    @property
    def fingerprint(self) -> str:
        """Names what a table is made with; one that was made with something else is made anew."""
        return f"{self.embedder} words={self.language} layout={_LAYOUT}"

    @property
    def table(self) -> str:
        return f'"{self.schema}"."{self.name}"'

    def state(self, connection: Any) -> State | None:
        """None where there is no mirror of that name."""
        if connection.execute("SELECT to_regclass(%s)", (f'"{self.schema}"."mirrors"',)).fetchone()[0] is None:
            return None
        found = connection.execute(self.state_sql, (self.name,)).fetchone()
        return None if found is None else State(*found)

    @property
    def state_sql(self) -> str:
        columns = "fingerprint, dimension, generation, digest, plain"
        return f'SELECT {columns} FROM "{self.schema}".mirrors WHERE name = %s'

    def is_current(self, state: State | None, digest: str) -> bool:
        return state is not None and (state.fingerprint, state.digest) == (self.fingerprint, digest)

    def refresh(self, connection: Any, corpus: Corpus, digest: str) -> State | None:
        """Make the table equal to `corpus`; None when it holds a newer generation, which is left alone.

        One writer at a time, the others wait. What a new generation changes is one transaction: a writer that dies
        leaves the generation before. A new table is filled in transactions of 1,000 chunks, spans, texts, words and
        vectors together: a writer that dies leaves a table that nobody trusts and the next one completes.
        """
        state = self.state(connection)
        if state is not None and self.is_current(state, digest) and self._has_graph(connection):
            return state  # without waiting for anybody
        with self._writer(connection):
            state = self.state(connection)
            if state is not None and self.is_current(state, digest):
                self._index(connection)
                return state
            if state is not None and state.generation > corpus.generation:
                return None
            grows = state is not None and state.digest != "" and self._is_ours(state)
            with connection.transaction() if grows else nullcontext():
                if not grows:
                    self._begin(connection, state, corpus.generation)
                plain = self._fill(connection, corpus)
                self._index(connection)
                connection.execute(f"ANALYZE {self.table}")
                self._finish(connection, digest, corpus.generation, plain)
            return State(self.fingerprint, self.dimension, corpus.generation, digest, plain)

    def _is_ours(self, state: State) -> bool:
        return (state.fingerprint, state.dimension) == (self.fingerprint, self.dimension)

    def _finish(self, connection: Any, digest: str, generation: int, plain: bool) -> None:
        """From here on the table is trusted. Its counts are what BM25 asks for."""
        connection.execute(
            f'UPDATE "{self.schema}".mirrors SET digest = %s, generation = %s, plain = %s, (chunks, words) = '
            f"(SELECT count(*), coalesce(sum(length), 0) FROM {self.table}) WHERE name = %s",
            (digest, generation, plain, self.name),
        )

    @contextmanager
    def _writer(self, connection: Any) -> Iterator[None]:
        name = f"chunkwise:{self.schema}:{self.name}"
        connection.execute("SELECT pg_advisory_lock(hashtextextended(%s, 0))", (name,))
        try:
            yield
        finally:
            if not connection.closed and not connection.broken:
                connection.execute("SELECT pg_advisory_unlock(hashtextextended(%s, 0))", (name,))

    def _begin(self, connection: Any, state: State | None, generation: int) -> None:
        """An empty digest first, in a transaction of its own: from here on nobody trusts the table."""
        known = "SELECT 1 FROM pg_ts_config WHERE cfgname = %s AND pg_ts_config_is_visible(oid)"
        if connection.execute(known, (self.language,)).fetchone() is None:
            raise ConfigError(
                f"pgvector: language must be a text search configuration of the database (`\\dF` in psql lists them), "
                f"such as english or simple, not {self.language!r}"
            )
        with connection.transaction():
            connection.execute("SELECT pg_advisory_xact_lock(hashtext('chunkwise:schema'))")
            connection.execute(f'CREATE SCHEMA IF NOT EXISTS "{self.schema}"')
            connection.execute(
                f'CREATE TABLE IF NOT EXISTS "{self.schema}".mirrors(name text PRIMARY KEY, directory text NOT NULL, '
                "fingerprint text NOT NULL, dimension int NOT NULL, generation bigint NOT NULL, digest text NOT NULL, "
                "plain bool NOT NULL)"
            )
            for counts in ("chunks", "words"):  # not there before layout 2
                add = f"ADD COLUMN IF NOT EXISTS {counts} bigint NOT NULL DEFAULT 0"
                connection.execute(f'ALTER TABLE "{self.schema}".mirrors {add}')
            if state is None or not self._is_ours(state):
                connection.execute(f"DROP TABLE IF EXISTS {self.table}")
            self._create(connection)
            values = (self.name, self.directory, self.fingerprint, self.dimension, generation)
            connection.execute(
                f'INSERT INTO "{self.schema}".mirrors(name, directory, fingerprint, dimension, generation, digest, '
                "plain) VALUES (%s, %s, %s, %s, %s, '', true) ON CONFLICT (name) DO "
                "UPDATE SET directory = excluded.directory, fingerprint = excluded.fingerprint, "
                "dimension = excluded.dimension, generation = excluded.generation, digest = '', plain = true",
                values,
            )

    def _create(self, connection: Any) -> None:
        connection.execute(
            f"CREATE TABLE IF NOT EXISTS {self.table}(row bigint PRIMARY KEY, key text NOT NULL, "
            'chunk_id text NOT NULL, doc_id text COLLATE "C" NOT NULL, start int NOT NULL, stop int NOT NULL, '
            'source text COLLATE "C" NOT NULL, title text COLLATE "C" NOT NULL, section text[] COLLATE "C" NOT NULL, '
            "text text NOT NULL, words tsvector NOT NULL, length int NOT NULL, "
            f"embedding vector({self.dimension}) NOT NULL)"
        )
        # Beside the row, not in a table of its own: a question reads the words of every chunk that it might mean
        connection.execute(f"ALTER TABLE {self.table} ALTER COLUMN words SET STORAGE MAIN")
        for suffix, place in (("source", "(source)"), ("doc", "(doc_id)"), ("words", "USING gin (words)")):
            connection.execute(f'CREATE INDEX IF NOT EXISTS "{self.name}_{suffix}" ON {self.table} {place}')

    def _fill(self, connection: Any, corpus: Corpus) -> bool:
        """Delete what is stale, add what is missing; False when a NUL was replaced in a field that filters read."""
        rows = [int(row) for row in corpus.rows()]
        present = dict(connection.execute(f"SELECT row, key FROM {self.table}").fetchall())
        gone = sorted(set(present).difference(rows))
        for part in _batches(gone):
            connection.execute(f"DELETE FROM {self.table} WHERE row = ANY(%s)", (part,))
        plain = True
        for part in _batches(rows):
            chunks = corpus.chunks(part)
            fields = [_fields(corpus, chunk) for chunk in chunks]
            plain = plain and not any("\0" in text for field in fields for text in field)
            missing = [at for at, row in enumerate(part) if present.get(row) != key_of(chunks[at])]
            if missing:
                _, matrix = corpus.vectors([part[at] for at in missing])
                records = [
                    (part[at], key_of(chunks[at]), *_record(fields[at], chunks[at]), vector)
                    for at, vector in zip(missing, matrix, strict=True)
                ]
                self._write(connection, records)
        return plain

    def _write(self, connection: Any, records: Sequence[tuple[Any, ...]]) -> None:
        """One batch, whole or not at all."""
        with connection.transaction(), connection.cursor() as cursor:
            cursor.execute(
                "CREATE TEMP TABLE IF NOT EXISTS chunkwise_incoming(row bigint, key text, chunk_id text, doc_id text, "
                "start int, stop int, source text, title text, section text[], text text, body text, length int, "
                "embedding vector)"
            )
            cursor.execute(f"TRUNCATE {_INCOMING}")
            with cursor.copy(f"COPY {_INCOMING} FROM STDIN (FORMAT BINARY)") as copy:
                copy.set_types(_TYPES)
                for record in records:
                    copy.write_row(record)
            cursor.execute(f"DELETE FROM {self.table} WHERE row = ANY(%s)", ([record[0] for record in records],))
            cursor.execute(
                f"INSERT INTO {self.table}({_FIRST}, words, length, embedding) "
                f"SELECT {_FIRST}, to_tsvector(%s::regconfig, body), length, embedding FROM {_INCOMING}",
                (self.language,),
            )
            cursor.execute(f"TRUNCATE {_INCOMING}")

    def held(self, connection: Any, *, vectors: bool) -> Iterator[tuple[list[int], list[str], Vectors | None]]:
        """(rows, keys, vectors) of everything that the table holds, by row; nothing of a table that is not ours."""
        import numpy as np

        state, last = self.state(connection), -1
        if state is None or not self._is_ours(state):
            return
        wanted = "row, key, embedding" if vectors else "row, key, NULL"
        while True:
            sql = f"SELECT {wanted} FROM {self.table} WHERE row > %s ORDER BY row LIMIT {_BATCH}"
            found = connection.execute(sql, (last,)).fetchall()
            if not found:
                return
            rows, keys, matrix = (list(column) for column in zip(*found, strict=True))
            yield rows, keys, np.stack([_numbers(one) for one in matrix]) if vectors else None
            last = rows[-1]

    def _graphs(self, connection: Any) -> set[str]:
        """The names of the graphs that are there and whole."""
        found = connection.execute(
            "SELECT i.relname FROM pg_index x JOIN pg_class i ON i.oid = x.indexrelid JOIN pg_am a ON a.oid = i.relam "
            "WHERE x.indrelid = to_regclass(%s) AND a.amname = 'hnsw'",
            (self.table,),
        )
        return {name for (name,) in found.fetchall()}

    @property
    def _graph_name(self) -> str:
        return "" if self.graph is None else f"{self.name}_hnsw_{self.graph[0]}_{self.graph[1]}"

    def _has_graph(self, connection: Any) -> bool:
        return self._graphs(connection) == ({self._graph_name} if self.graph else set())

    def _index(self, connection: Any) -> None:
        """The graph with these parameters, and no other."""
        wanted = self._graph_name
        if self.graph is not None:
            m, ef = self.graph
            connection.execute(
                f'CREATE INDEX IF NOT EXISTS "{wanted}" ON {self.table} USING hnsw (embedding vector_ip_ops) '
                f"WITH (m = {int(m)}, ef_construction = {int(ef)})"
            )
        for name in sorted(self._graphs(connection) - {wanted}):
            connection.execute(f'DROP INDEX IF EXISTS "{self.schema}"."{name}"')


def digest_of(corpus: Corpus) -> str:
    """One name for the content of this generation; kept as a derived file where the view may be written to."""
    marker = corpus.derived(_MARKER)
    if marker is not None:
        return marker.read_text(encoding="ascii")
    digest = hashlib.blake2b(digest_size=16)
    for part in _batches([int(row) for row in corpus.rows()]):
        for row, chunk in zip(part, corpus.chunks(part), strict=True):
            digest.update(f"{row}:{key_of(chunk)}\n".encode())
    name = digest.hexdigest()

    def write(path: Path) -> None:
        path.write_text(name, encoding="ascii")

    corpus.publish(_MARKER, write)
    return name


def _numbers(vector: Any) -> Any:
    """What pgvector's reader made of a vector: an array, or from 0.5 on its own type."""
    return vector.to_numpy() if hasattr(vector, "to_numpy") else vector


def key_of(chunk: Chunk) -> str:
    """Content and place of a chunk."""
    return f"{chunk.key}:{chunk.id}"


def _fields(corpus: Corpus, chunk: Chunk) -> tuple[str, ...]:
    """What filters read: source, title and headings."""
    document = corpus.document(chunk.doc_id)
    return (document.source, document.title, *chunk.section)


def _record(fields: Sequence[str], chunk: Chunk) -> tuple[Any, ...]:
    """The columns from `chunk_id` to `length`."""
    source, title, *section = [stored_text(text) for text in fields]
    place = (chunk.id, chunk.doc_id, chunk.span.start, chunk.span.end)
    return *place, source, title, section, stored_text(chunk.text), *full_text(fields[1:], chunk.text)


def _batches(rows: Sequence[int]) -> Iterator[list[int]]:
    for start in range(0, len(rows), _BATCH):
        yield list(rows[start : start + _BATCH])
