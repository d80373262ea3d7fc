# ruff: noqa: S608 (only checked names and constants are put into SQL; values travel as parameters)
"""Dense retrieval in PostgreSQL with the extension pgvector: a mirror of the corpus in a table of its own."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args

from rag.errors import ConfigError, RagError
from rag.protocols import Corpus, Embedder, Filter, Retriever, Searcher, service
from rag.types import Hit
from retrievers._dense import check_dimension, exact_best, to_hits
from retrievers._pg_filter import compile_filter
from retrievers._pg_link import Link, check_dsn
from retrievers._pg_mirror import Mirror, State, digest_of

if TYPE_CHECKING:
    from rag.protocols import Vectors

Kind = Literal["auto", "exact", "hnsw"]
_GRAPH_FROM = 10_000
"""Rows from which `auto` builds a graph: 20,000 rows of 384 numbers take 63 ms read one by one, 4 ms by the graph."""
_MOST_DIMENSIONS = 2000
"""pgvector builds no graph over longer vectors of 32-bit numbers."""
_SPARE = 16
_MOST_EF = 1000


@dataclass(frozen=True, kw_only=True)
class PgvectorRetriever(Retriever):
    """Cosine search in PostgreSQL over a mirror of the stored vectors; the scores are exact cosines.

    The address is `dsn` (without a password), or what the environment variable `dsn_env` holds, which goes first.
    `index="auto"` reads every row below 10,000 rows and builds a graph (HNSW, arXiv 1603.09320) from there on; the
    graph is approximate in which rows it finds. Filters bind inside the query. Where the table is of a newer generation
    than the view, or is just being refreshed, the store's own vectors are searched, exactly.
    """

    embedder: Embedder = service()
    k: int = 40
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
        if self.index not in get_args(Kind):
            raise ConfigError(f"pgvector: index must be one of {', '.join(get_args(Kind))}, not {self.index!r}")
        ranges = {"k": (1, 10**6), "hnsw_m": (2, 100), "ef_construction": (4, 1000), "ef_search": (1, _MOST_EF)}
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
        check_dsn(self.dsn)

    def open(self, corpus: Corpus) -> Searcher:
        """Brings the table to the generation of `corpus`, unless it is of a newer one already."""
        if not len(corpus):
            return _PgSearcher(self, corpus, None, None, None)
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
            return _PgSearcher(self, corpus, None, None, None)
        return _PgSearcher(self, corpus, link, mirror, state)

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
                if state is None or state.fingerprint != self.embedder.fingerprint:
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
            fingerprint=self.embedder.fingerprint,
            dimension=dimension,
            graph=(self.hnsw_m, self.ef_construction) if graph and dimension <= _MOST_DIMENSIONS else None,
        )


class _PgSearcher(Searcher):
    def __init__(
        self,
        retriever: PgvectorRetriever,
        corpus: Corpus,
        link: Link | None,
        mirror: Mirror | None,
        state: State | None,
    ) -> None:
        self._retriever = retriever
        self._corpus = corpus
        self._link = link
        self._mirror = mirror
        self._state = state

    def search(self, question: str, k: int, where: Filter | None = None) -> list[Hit]:
        if k < 1 or not len(self._corpus):
            return []
        vector = self._retriever.embedder.embed_question(question)
        asked = None
        if self._link is not None and self._mirror is not None and self._state is not None:
            asked = self._ask(self._link, self._mirror, self._state, vector, k, where)
        if asked is None:
            asked = exact_best(self._corpus, self._corpus.rows(where), vector, k)
        return to_hits(self._corpus, asked[0], asked[1], "pgvector")

    def close(self) -> None:
        if self._link is not None:
            self._link.close()
            self._link = None

    def _ask(
        self, link: Link, mirror: Mirror, state: State, vector: Vectors, k: int, where: Filter | None
    ) -> tuple[Any, Any] | None:
        """The k best (rows, scores), found by PostgreSQL and scored by the store; None when the table moved on."""
        condition = self._condition(state, where)
        wanted, graph = k + _SPARE, mirror.graph is not None
        while True:
            rows = _retried(link, lambda: self._query(link, mirror, state, condition, vector, wanted, graph))  # noqa: B023
            if rows is None:
                return None
            if len(rows) < wanted and graph:  # the graph ran dry
                graph = False
                continue
            best, scores = exact_best(self._corpus, rows, vector, len(rows))
            if len(rows) <= k or len(rows) < wanted or scores[k - 1] > scores[-1]:
                return best[:k], scores[:k]
            wanted *= 4  # the k-th is tied with the last: more are needed to order the ties by row

    def _condition(self, state: State, where: Filter | None) -> tuple[str, list[Any]]:
        if not where:
            return "TRUE", []
        compiled = compile_filter(where) if state.plain else None
        return compiled or ("c.row = ANY(%s)", [[int(row) for row in self._corpus.rows(where)]])

    def _query(
        self,
        link: Link,
        mirror: Mirror,
        state: State,
        condition: tuple[str, list[Any]],
        vector: Vectors,
        wanted: int,
        graph: bool,
    ) -> list[int] | None:
        """One snapshot for the state and the rows, so that half a refresh is never read."""
        effort = min(max(self._retriever.ef_search, wanted), _MOST_EF)
        with link.session() as connection, connection.transaction():
            connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
            found = connection.execute(mirror.state_sql, (mirror.name,)).fetchone()
            if found is None or State(*found) != state:
                return None
            if graph:
                connection.execute(f"SET LOCAL hnsw.ef_search = {effort}")
                connection.execute("SELECT set_config('hnsw.iterative_scan', 'strict_order', true)")
            else:
                connection.execute("SET LOCAL enable_indexscan = off")
            sql, values = condition
            query = f"SELECT c.row FROM {mirror.table} c WHERE {sql} ORDER BY c.embedding <#> %s LIMIT %s"
            return [int(row) for (row,) in connection.execute(query, (*values, vector, wanted))]


def _retried(link: Link, ask: Callable[[], list[int] | None]) -> list[int] | None:
    """Asks once more over a new connection when the server dropped the old one."""
    try:
        return ask()
    except RagError:
        if not link.is_broken():
            raise
    return ask()
