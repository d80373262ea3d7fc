# ruff: noqa: S608 (only checked names and constants are put into SQL; values travel as parameters)
"""Retrieval in PostgreSQL, by vectors (pgvector), words, or both: a mirror of the corpus in a table of its own."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field
from typing import ClassVar, Literal, get_args

from rag.errors import ConfigError, RagError
from rag.protocols import Corpus, Embedder, Retriever, Searcher, service
from retrievers._audit import compare
from retrievers._dense import check_dimension
from retrievers._pg_link import Link, check_dsn
from retrievers._pg_mirror import Mirror, digest_of, key_of
from retrievers._pg_search import PgSearcher, Table

Mode = Literal["dense", "text", "hybrid"]
Kind = Literal["auto", "exact", "hnsw"]
_GRAPH_FROM = 10_000
"""Rows from which `auto` builds a graph: 20,000 rows of 384 numbers take 63 ms read one by one, 4 ms by the graph."""
_MOST_DIMENSIONS = 2000
"""pgvector builds no graph over longer vectors of 32-bit numbers."""
_MOST_EF = 1000


@dataclass(frozen=True, kw_only=True)
class PgvectorRetriever(Retriever):
    """Search in PostgreSQL over a mirror of the stored chunks.

    `mode`: `dense` (exact cosines), `text` (BM25 over words that `language`, a text search configuration of the
    database, stems), or `hybrid`: both in one SQL statement, a pool of each (`pool=0`: max(50, k)) fused by reciprocal
    rank, sum of 1 / (rrf_k + rank), as `hybrid` with `fusion: rrf`. The table serves all three. Words of the question
    that are stop words of `bm25` or of `language` are not looked up; at most `max_words` are.

    The address is `dsn` (without a password), or what the environment variable `dsn_env` holds, which goes first.
    `index="auto"` reads every row below 10,000 rows and builds a graph (HNSW, arXiv 1603.09320) from there on; the
    graph is approximate in which rows it finds. Filters bind inside the query. Where the table is of a newer generation
    than the view, or is just being refreshed, the store's own vectors are searched, exactly.
    """

    embedder: Embedder = service()
    k: int = 40
    mode: Mode = "dense"
    language: str = "english"
    rrf_k: int = 60
    pool: int = 0
    max_words: int = 64
    dsn: str = field(default="", repr=False)
    dsn_env: str = "CHUNKWISE_PG_DSN"
    schema: str = "chunkwise"
    collection: str = "chunks"
    index: Kind = "auto"
    hnsw_m: int = 16
    ef_construction: int = 64
    ef_search: int = 128

    needs_vectors: ClassVar[bool] = True

    def __post_init__(self) -> None:
        for name, kinds in (("index", get_args(Kind)), ("mode", get_args(Mode))):
            if getattr(self, name) not in kinds:
                raise ConfigError(f"pgvector: {name} must be one of {', '.join(kinds)}, not {getattr(self, name)!r}")
        ranges = {"k": (1, 10**6), "hnsw_m": (2, 100), "ef_construction": (4, 1000), "ef_search": (1, _MOST_EF)}
        ranges |= {"rrf_k": (0, 10**6), "pool": (0, 10**6), "max_words": (1, 10**4)}
        for name, (low, high) in ranges.items():
            if not low <= getattr(self, name) <= high:
                raise ConfigError(f"pgvector: {name} must be between {low} and {high}, not {getattr(self, name)}")
        if self.ef_construction < 2 * self.hnsw_m:
            raise ConfigError(
                f"pgvector: ef_construction must be at least 2 * hnsw_m = {2 * self.hnsw_m}, not {self.ef_construction}"
            )
        for name in ("schema", "collection"):
            if not re.fullmatch(r"[a-z_][a-z0-9_]{0,29}", getattr(self, name)):
                raise ConfigError(
                    f"pgvector: {name} must be 1 to 30 lower-case letters, digits or '_', not {getattr(self, name)!r}"
                )
        if not re.fullmatch(r"[a-z_][a-z0-9_]{0,62}", self.language):
            raise ConfigError(
                "pgvector: language must be the name of a text search configuration of PostgreSQL, such as english or "
                f"simple, not {self.language!r}"
            )
        check_dsn(self.dsn)

    def open(self, corpus: Corpus) -> Searcher:
        """Brings the table to the generation of `corpus`, unless it is of a newer one already."""
        if not len(corpus):
            return PgSearcher(self, corpus, None)
        _, one = corpus.vectors([int(corpus.rows()[0])])
        check_dimension(one.shape[1], self.embedder.dimension, self.embedder.fingerprint)
        digest = digest_of(corpus)
        mirror, link = self._mirror(corpus), Link(self.dsn, self.dsn_env)
        try:
            with link.session() as connection:
                state = mirror.refresh(connection, corpus, digest)
        except BaseException:
            link.close()
            raise
        if state is None:  # the table is of a newer generation: nothing to ask it
            link.close()
            return PgSearcher(self, corpus, None)
        return PgSearcher(self, corpus, Table(link=link, mirror=mirror, state=state))

    def check(self, corpus: Corpus) -> list[str]:
        """The table, when it claims to be of this generation, holds its rows; one that is newer is named."""
        if not len(corpus):
            return []
        mirror = self._mirror(corpus)
        try:
            link = Link(self.dsn, self.dsn_env)
        except RagError as error:
            return [f"the table {mirror.table} cannot be looked at: {error}"]
        try:
            with link.session() as connection:
                state = mirror.state(connection)
                if state is None or state.fingerprint != mirror.fingerprint:
                    return []
                cure = f'Run in the database: DROP TABLE {mirror.table}; DELETE FROM "{self.schema}".mirrors WHERE '
                cure += f"name = '{mirror.name}'. It is filled again at the next search"
                if state.generation > corpus.generation:
                    told = f"is of generation {state.generation}, the index of {corpus.generation}"
                    return [f"pgvector: the table {mirror.table} {told}, so it is not used. {cure}"]
                if not mirror.is_current(state, digest_of(corpus)):
                    return []
                (count,) = connection.execute(f"SELECT count(*) FROM {mirror.table}").fetchone()
                if count != len(corpus):
                    told = f"holds {count} chunks, the index {len(corpus)}"
                    return [f"pgvector: the table {mirror.table} {told}. {cure}"]
        finally:
            link.close()
        return []

    def audit(self, corpus: Corpus, *, vectors: bool = True) -> tuple[int, list[str]]:
        """(chunks that the table holds as the index does, what is wrong with the others); all of it is read back."""
        mirror, link = self._mirror(corpus), Link(self.dsn, self.dsn_env)
        try:
            with link.session() as connection:
                return compare(corpus, mirror.held(connection, vectors=vectors), lambda row, chunk: key_of(chunk))
        finally:
            link.close()

    def _mirror(self, corpus: Corpus) -> Mirror:
        directory = str(corpus.directory.resolve())
        place = hashlib.blake2b(directory.encode(), digest_size=4).hexdigest()
        dimension = self.embedder.dimension
        graph = self.index == "hnsw" or (self.index == "auto" and len(corpus) >= _GRAPH_FROM)
        if self.index == "hnsw" and dimension > _MOST_DIMENSIONS:
            raise ConfigError(
                f"pgvector: index: hnsw takes vectors of at most {_MOST_DIMENSIONS} numbers, the embedder makes "
                f"{dimension}; set index: exact"
            )
        return Mirror(
            schema=self.schema,
            name=f"{self.collection}_{place}",
            directory=directory,
            embedder=self.embedder.fingerprint,
            dimension=dimension,
            language=self.language,
            graph=(self.hnsw_m, self.ef_construction) if graph and dimension <= _MOST_DIMENSIONS else None,
        )
