# ruff: noqa: S608 (only checked names and constants are put into SQL; values travel as parameters)
"""A question to the mirror in PostgreSQL. Where the table is of another generation, the store is asked instead."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from rag.errors import RagError
from rag.protocols import Corpus, Embedder, Filter, Searcher
from rag.types import Hit
from retrievers._dense import exact_best, to_hits
from retrievers._pg_filter import compile_filter
from retrievers._pg_mirror import State
from retrievers._pg_words import SPARE, Ask, statement
from retrievers._words import query_words

if TYPE_CHECKING:
    from rag.protocols import Vectors
    from retrievers._pg_link import Link
    from retrievers._pg_mirror import Mirror

__all__ = ["PgSearcher", "Table"]

_MOST_EF = 1000
_LEAST_POOL = 50
_DIGITS = 12
_PARTS = ("dense", "dense.rank", "text", "text.rank")

Found = tuple[int, float, Mapping[str, float]]
"""Row, score, and what it is made of."""


class Config(Protocol):
    """What of the retriever is read here."""

    @property
    def embedder(self) -> Embedder: ...
    @property
    def mode(self) -> str: ...
    @property
    def rrf_k(self) -> int: ...
    @property
    def pool(self) -> int: ...
    @property
    def max_words(self) -> int: ...
    @property
    def ef_search(self) -> int: ...


@dataclass(frozen=True, kw_only=True)
class Table:
    """The mirror as it was when the searcher was opened, and the connection to it."""

    link: Link
    mirror: Mirror
    state: State


class PgSearcher(Searcher):
    """Open on one view; `table` None searches the store alone."""

    def __init__(self, config: Config, corpus: Corpus, table: Table | None) -> None:
        self._config = config
        self._corpus = corpus
        self._table = table

    def search(self, question: str, k: int, where: Filter | None = None) -> list[Hit]:
        if k < 1 or not len(self._corpus):
            return []
        if self._config.mode == "dense":
            return self._dense(self._config.embedder.embed_question(question), k, where)
        vector = None if self._config.mode == "text" else self._config.embedder.embed_question(question)
        words = query_words(question)[: self._config.max_words]
        pool = max(self._config.pool or _LEAST_POOL, k) if vector is not None else k
        found = None if self._table is None else self._fused(self._table, words, vector, k, pool, where)
        if found is None:
            found = self._fused_by_store(words, vector, k, pool, where)
        chunks = self._corpus.chunks([row for row, _, _ in found])
        return [
            Hit(chunk=chunk, score=score, rank=rank, retriever="pgvector", parts=parts)
            for rank, (chunk, (_, score, parts)) in enumerate(zip(chunks, found, strict=True), start=1)
        ]

    def close(self) -> None:
        if self._table is not None:
            self._table.link.close()
            self._table = None

    # ------------------------------------------------------------------ vectors alone

    def _dense(self, vector: Vectors, k: int, where: Filter | None) -> list[Hit]:
        asked = None if self._table is None else self._ask(self._table, vector, k, where)
        if asked is None:
            asked = exact_best(self._corpus, self._corpus.rows(where), vector, k)
        return to_hits(self._corpus, asked[0], asked[1], "pgvector")

    def _ask(self, table: Table, vector: Vectors, k: int, where: Filter | None) -> tuple[Any, Any] | None:
        """The k best (rows, scores), found by PostgreSQL and scored by the store; None when the table moved on."""
        condition = self._condition(table, where)
        wanted, graph = k + SPARE, table.mirror.graph is not None
        while True:
            found = self._nearest(table, condition, vector, wanted, graph)
            if found is None:
                return None
            rows = [int(row) for (row,) in found]
            if len(rows) < wanted and graph:  # the graph ran dry
                graph = False
                continue
            best, scores = exact_best(self._corpus, rows, vector, len(rows))
            if len(rows) <= k or len(rows) < wanted or scores[k - 1] > scores[-1]:
                return best[:k], scores[:k]
            wanted *= 4  # the k-th is tied with the last: more are needed to order the ties by row

    def _nearest(
        self, table: Table, condition: tuple[str, list[Any]], vector: Vectors, wanted: int, graph: bool
    ) -> list[Any] | None:
        sql, values = condition
        query = f"SELECT c.row FROM {table.mirror.table} c WHERE {sql} ORDER BY c.embedding <#> %s LIMIT %s"
        return self._query(table, query, [*values, vector, wanted], wanted, graph)

    # ------------------------------------------------------------------ words, and both

    def _fused(
        self, table: Table, words: Sequence[str], vector: Vectors | None, k: int, pool: int, where: Filter | None
    ) -> list[Found] | None:
        """The k best, fused by PostgreSQL; None when the table moved on."""
        condition = self._condition(table, where)
        graph = table.mirror.graph is not None and vector is not None
        while True:
            ask = Ask(
                schema=table.mirror.schema,
                name=table.mirror.name,
                language=table.mirror.language,
                words=words,
                vector=vector,
                condition=condition,
                k=k,
                pool=pool,
                rrf_k=self._config.rrf_k,
                graph=graph,
            )
            rows = self._query(table, *statement(ask), pool + SPARE, graph)
            if rows is None:
                return None
            if graph and (not rows or rows[0][-1] < pool + SPARE):  # the graph ran dry
                graph = False
                continue
            return [(int(row), float(score), _parts(score, parts, vector)) for row, score, *parts, _ in rows]

    def _fused_by_store(
        self, words: Sequence[str], vector: Vectors | None, k: int, pool: int, where: Filter | None
    ) -> list[Found]:
        text = self._corpus.lexical(words, pool, where) if words else []
        if vector is None:
            return [(row, score, _parts(score, (None, None, score, rank), None))
                    for rank, (row, score) in enumerate(text, start=1)]  # fmt: skip
        rows, scores = exact_best(self._corpus, self._corpus.rows(where), vector, pool)
        dense = {int(row): (float(score), rank) for rank, (row, score) in enumerate(zip(rows, scores, strict=True), 1)}
        worded = {row: (score, rank) for rank, (row, score) in enumerate(text, start=1)}
        fused: list[Found] = []
        for row in dense.keys() | worded.keys():
            pair = (dense.get(row), worded.get(row))
            score = round(sum(1 / (self._config.rrf_k + one[1]) for one in pair if one), _DIGITS)
            parts = [value for one in pair for value in (one or (None, None))]
            fused.append((row, score, _parts(score, parts, vector)))
        return sorted(fused, key=lambda one: (-one[1], one[0]))[:k]

    # ------------------------------------------------------------------ the table

    def _condition(self, table: Table, where: Filter | None) -> tuple[str, list[Any]]:
        if not where:
            return "TRUE", []
        compiled = compile_filter(where) if table.state.plain else None
        return compiled or ("c.row = ANY(%s)", [[int(row) for row in self._corpus.rows(where)]])

    def _query(self, table: Table, sql: str, values: Sequence[Any], wanted: int, graph: bool) -> list[Any] | None:
        """The rows of the result, None when the table moved on. A dropped connection is made anew, once."""
        settings = {"enable_indexscan": "off"}
        if graph:
            effort = min(max(self._config.ef_search, wanted), _MOST_EF)
            settings = {"hnsw.ef_search": str(effort), "hnsw.iterative_scan": "strict_order"}
        if self._config.mode != "dense":
            settings["enable_seqscan"] = "off"  # the planner thinks too little of what reading all words takes
        return _retried(table.link, lambda: _snapshot(table, sql, values, settings))


def _snapshot(table: Table, sql: str, values: Sequence[Any], settings: Mapping[str, str]) -> list[Any] | None:
    """One snapshot for the state and the rows, so that half a refresh is never read."""
    with table.link.session() as connection, connection.transaction():
        connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        found = connection.execute(table.mirror.state_sql, (table.mirror.name,)).fetchone()
        if found is None or State(*found) != table.state:
            return None
        for name, value in settings.items():
            connection.execute("SELECT set_config(%s, %s, true)", (name, value))
        rows: list[Any] = connection.execute(sql, values).fetchall()
        return rows


def _retried(link: Link, ask: Callable[[], list[Any] | None]) -> list[Any] | None:
    """Asks once more over a new connection when the server dropped the old one."""
    try:
        return ask()
    except RagError:
        if not link.is_broken():
            raise
    return ask()


def _parts(score: float, parts: Sequence[Any], vector: Any) -> dict[str, float]:
    """Score and rank of each half that found the row, and what they come to."""
    told = {name: float(value) for name, value in zip(_PARTS, parts, strict=True) if value is not None}
    return {"text": float(score)} if vector is None else {**told, "rrf": float(score)}
