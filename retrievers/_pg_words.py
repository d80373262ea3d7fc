# ruff: noqa: S608 (only checked names and constants are put into SQL; values travel as parameters)
"""Full-text search and fusion inside PostgreSQL: what is written for it, and the one statement that asks.

Words are cut and folded here, as for the store's own full-text index; a text search configuration of PostgreSQL stems
them. PostgreSQL's own ranks know nothing of how rare a word is, so the statement reckons BM25 (Robertson & Zaragoza,
2009; k1 1.2, b .75, as FTS5 has it) from the positions that a tsvector holds. Deviations: a tsvector keeps at most 256
positions of a word, and `snake_case` is two words here, one phrase there.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rag.text import lexical_words

__all__ = ["Ask", "full_text", "statement"]

SPARE = 16
"""Rows beyond the pool that a graph is asked for, so that ties at its end are ordered by row."""
_MOST_CHARS = 200_000
"""Of a chunk: a tsvector holds at most 1 MB."""
_TIMES = "round(1 / (1.6449340668::float8 * (1 - ts_rank('{1,1,1,1}', c.words, a.query)::float8)) - 0.5)"
"""How often a word stands in a chunk. ts_rank of one word is 6 / pi^2 times 1 + 1/4 + ... + 1/times^2; a look at its
positions with unnest() would read all other words too, at ten times the price."""
_MARKS = range(0x300, 0x370)


def full_text(heading: Sequence[str], text: str) -> tuple[str, int]:
    """(words in one text, how many) of a chunk: its own and those of title and headings."""
    words = [*lexical_words(text[:_MOST_CHARS]), *lexical_words(" ".join(heading)[:_MOST_CHARS])]
    plain = _plain(" ".join(words))
    return plain, len(plain.split())


def _plain(text: str) -> str:
    """Cut at underscores, without the accents of letters: `cafe` finds `café`, as in the store."""
    text = text.replace("_", " ")
    if text.isascii():
        return text
    bare = "".join(char for char in unicodedata.normalize("NFD", text) if ord(char) not in _MARKS)
    return unicodedata.normalize("NFC", bare)


@dataclass(frozen=True, kw_only=True)
class Ask:
    """One question to the table. `vector` None asks for words alone; `condition` is a filter and its values.

    `pool` rows of each kind are fused, the best `k` are given out.
    """

    schema: str
    name: str
    language: str
    words: Sequence[str]
    vector: Any
    condition: tuple[str, list[Any]]
    k: int
    pool: int
    rrf_k: int
    graph: bool


def statement(ask: Ask) -> tuple[str, list[Any]]:
    """(SQL, values). Rows: row, score, dense score, dense rank, text score, text rank, rows that the graph gave.

    Best first, ties by row. The condition binds in both halves; scores are rounded before they are ranked, as in the
    store (dense 6 digits, text 9, fused 12).
    """
    sql, values = _text(ask)
    if ask.vector is None:
        sql += " SELECT t.row, t.score, NULL::float8, NULL::int, t.score, t.rank, 0 FROM text t ORDER BY t.rank"
        return sql, values
    dense, more = _dense(ask)
    fused = (
        "SELECT row, round((coalesce(1.0::float8 / (%s + d.rank), 0) + coalesce(1.0::float8 / (%s + t.rank), 0))"
        "::numeric, 12)::float8 AS score, d.score, d.rank, t.score, t.rank, (SELECT count(*) FROM near) "
        "FROM dense d FULL JOIN text t USING (row) ORDER BY 2 DESC, row LIMIT %s"
    )
    return f"{sql}, {dense} {fused}", [*values, *more, ask.rrf_k, ask.rrf_k, ask.k]


def _text(ask: Ask) -> tuple[str, list[Any]]:
    """WITH ..., text(row, score, rank): the pool by BM25."""
    table = f'"{ask.schema}"."{ask.name}"'
    condition, values = ask.condition
    sql = (
        f'WITH mirror AS MATERIALIZED (SELECT chunks, words::float8 / greatest(chunks, 1) AS mean FROM "{ask.schema}"'
        ".mirrors WHERE name = %s), "
        "asked AS MATERIALIZED (SELECT u.lexeme, cardinality(u.positions) AS times, quote_literal(u.lexeme)::tsquery "
        "AS query FROM unnest(to_tsvector(%s::regconfig, %s)) u), "
        "weighed AS MATERIALIZED (SELECT a.lexeme, a.times * 2.2 * greatest(1e-6::float8, "
        "ln(greatest(m.chunks - f.found, 0) + 0.5::float8) - ln(f.found + 0.5::float8)) AS weight "
        "FROM asked a CROSS JOIN mirror m "
        f"CROSS JOIN LATERAL (SELECT count(*) AS found FROM {table} c WHERE c.words @@ a.query) f), "
        f"hits AS (SELECT c.row, c.length, a.lexeme, {_TIMES} AS times FROM asked a JOIN {table} c "
        f"ON c.words @@ a.query WHERE {condition}), "
        "best AS (SELECT h.row, round(sum(w.weight * h.times / (h.times + 1.2::float8 * (0.25::float8 + 0.75::float8 "
        "* h.length / greatest(m.mean, 1e-9::float8))))::numeric, 9)::float8 AS score "
        "FROM hits h JOIN weighed w USING (lexeme) CROSS JOIN mirror m GROUP BY h.row ORDER BY score DESC, h.row "
        "LIMIT %s), "
        "text AS (SELECT row, score, row_number() OVER (ORDER BY score DESC, row) AS rank FROM best)"
    )
    words = _plain(" ".join(ask.words))
    return sql, [ask.name, ask.language, words, *values, ask.pool]


def _dense(ask: Ask) -> tuple[str, list[Any]]:
    """near(row, distance), dense(row, score, rank): the pool by cosine."""
    condition, values = ask.condition
    exact = "round((c.embedding <#> %s)::numeric, 6), c.row"
    order = "c.embedding <#> %s" if ask.graph else exact
    near = (
        f'near AS MATERIALIZED (SELECT c.row, c.embedding <#> %s AS distance FROM "{ask.schema}"."{ask.name}" c '
        f"WHERE {condition} ORDER BY {order} LIMIT %s), "
        "dense AS (SELECT row, (-round(distance::numeric, 6))::float8 AS score, "
        "row_number() OVER (ORDER BY round(distance::numeric, 6), row) AS rank FROM near ORDER BY rank LIMIT %s)"
    )
    wanted = ask.pool + SPARE if ask.graph else ask.pool
    return near, [ask.vector, *values, ask.vector, wanted, ask.pool]
