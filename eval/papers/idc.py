"""The SQuAD rows of IDC's table (arXiv 2602.14784): is the answer inside one of the first chunks of its article?"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from eval.chunks.data import Pool
from eval.papers._view import EmbeddedSentences, Unlimited
from eval.sets import Question
from rag.protocols import Embedder
from rag.registry import build
from rag.text import lexical_words
from rag.types import Document

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

__all__ = ["PAPER", "hybrid", "idc_table"]

PAPER: Mapping[str, Mapping[str, tuple[float, float, float]]] = {
    "IDC": {"SQuAD, 1 article, 12 questions": (0.917, 1.0, 0.958), "SQuAD, 2 articles, 293": (0.689, 0.952, 0.793)},
    "its best baseline": {
        "SQuAD, 1 article, 12 questions": (0.917, 0.917, 0.917),
        "SQuAD, 2 articles, 293": (0.655, 0.951, 0.752),
    },
}
"""R@1, R@5, MRR. The paper's intents for SQuAD are the test questions themselves (its converters store them)."""

DENSE, LEXICAL = 0.6, 0.4
_MOST = 12
"""Sentences in a chunk at most: the paper's L, 10 to 15."""

_Ranges = list[tuple[int, int]]


def idc_table(pool: Pool, embedder: Embedder, tell: Callable[[str], None]) -> dict[str, Any]:
    """R@1, R@5 and MRR of the answer lying inside one chunk, every question asked of its own article alone.

    All ways to cut are scored alike: the vector of a chunk is the mean of its sentences', as in the paper, and ranks
    are those of 0.6 dense + 0.4 BM25 after z-normalisation over the chunks of the article.
    """
    asked: dict[str, list[Question]] = {}
    for question in pool.questions:
        asked.setdefault(question.evidence[0][0], []).append(question)
    ranks: dict[str, list[int]] = {}
    counts: dict[str, list[int]] = {}
    chars: dict[str, int] = {}
    for name in sorted(asked):
        tell(f"IDC: {name}")
        view = EmbeddedSentences(pool.documents[name], embedder)
        for method, ranges in _cuts(view, embedder).items():
            ranks.setdefault(method, []).extend(_ranks(view, ranges, asked[name], embedder))
            counts.setdefault(method, []).append(len(ranges))
            chars[method] = chars.get(method, 0) + sum(end - start for start, end in ranges)
    rows = [
        {
            "method": method,
            "ours": _summary(found),
            "chunks": sum(counts[method]),
            "mean_chars": chars[method] / sum(counts[method]),
        }
        for method, found in ranks.items()
    ]
    return {"documents": len(asked), "questions": len(pool.questions), "rows": rows, "paper": PAPER}


def _cuts(view: EmbeddedSentences, embedder: Embedder) -> dict[str, _Ranges]:
    """The paper's baselines, and its method with intents that know no question."""
    edges = [*view.starts, len(view.document.text)]
    count = len(view.starts)
    services = {"counter": Unlimited(embedder.counter), "embedder": embedder}
    huge = {"max_tokens": 1_000_000, "max_chars": 10_000_000, "heading_header": False}

    def plugin(spec: Mapping[str, Any]) -> _Ranges:
        chunks = build("chunker", {**spec, **huge}, services=services).chunk(view.document)
        return [(chunk.span.start, chunk.span.end) for chunk in chunks]

    intents: dict[str, Any] = {"use": "intent-driven", "max_atoms": _MOST}
    return {
        "fixed, 6 sentences": [(edges[at], edges[min(at + 6, count)]) for at in range(0, count, 6)],
        "sliding, 6 sentences, step 3": [
            (edges[at], edges[min(at + 6, count)]) for at in range(0, max(1, count - 3), 3)
        ],
        "paragraphs": _paragraphs(view.document),
        "semantic, percentile 95": plugin({"use": "semantic"}),
        "IDC, paper's objective": plugin({**intents, "objective": "paper"}),
        "IDC, length-weighted": plugin({**intents, "target_chars": 800}),
    }


def _paragraphs(document: Document) -> _Ranges:
    text = document.text
    starts = [0]
    while (at := text.find("\n", starts[-1])) >= 0 and at + 1 < len(text):
        starts.append(at + 1)
    filled = [(a, b) for a, b in pairwise([*starts, len(text)]) if text[a:b].strip()]
    return filled or [(0, len(text))]


def _ranks(view: EmbeddedSentences, ranges: _Ranges, asked: Sequence[Question], embedder: Embedder) -> list[int]:
    """For each question the rank of the first chunk that holds its answer whole; 0 where none does."""
    import numpy as np

    starts, ends = np.array(view.starts), np.array(view.ends)
    matrix = np.stack([view.vectors[(starts < end) & (ends > start)].mean(axis=0) for start, end in ranges])
    matrix /= np.linalg.norm(matrix, axis=1, keepdims=True)
    texts = [view.document.text[start:end] for start, end in ranges]
    found = []
    for question in asked:
        scores = hybrid(matrix @ embedder.embed_question(question.text), bm25(texts, question.text))
        order = np.argsort(-scores, kind="stable").tolist()
        holds = [
            rank
            for rank, at in enumerate(order, 1)
            if any(ranges[at][0] <= start and end <= ranges[at][1] for _, start, end in question.evidence)
        ]
        found.append(holds[0] if holds else 0)
    return found


def hybrid(dense: Floats, lexical: Floats) -> Floats:
    """DENSE x dense + LEXICAL x lexical, each with mean 0 and standard deviation 1 over the chunks."""
    import numpy as np

    parts = [(part - part.mean()) / (part.std() or 1.0) for part in (np.asarray(dense), np.asarray(lexical))]
    total: Floats = DENSE * parts[0] + LEXICAL * parts[1]
    return total


def bm25(texts: Sequence[str], question: str) -> Floats:
    """(n,) BM25 scores of SQLite's FTS5 (k1 1.2, b 0.75; the paper has k1 1.5); 0 without a common word."""
    import numpy as np

    scores = np.zeros(len(texts))
    words = list(dict.fromkeys(lexical_words(question)))
    with closing(sqlite3.connect(":memory:")) as db:
        db.execute("CREATE VIRTUAL TABLE chunks USING fts5(text, tokenize='porter unicode61')")
        rows = [(at + 1, " ".join(lexical_words(text))) for at, text in enumerate(texts)]
        db.executemany("INSERT INTO chunks(rowid, text) VALUES (?, ?)", rows)
        asked = " OR ".join(f'"{word}"' for word in words)
        if asked:
            for row, score in db.execute("SELECT rowid, -bm25(chunks) FROM chunks WHERE chunks MATCH ?", (asked,)):
                scores[row - 1] = score
    return scores


def _summary(ranks: Sequence[int]) -> dict[str, float]:
    count = len(ranks)
    return {
        "R@1": sum(rank == 1 for rank in ranks) / count,
        "R@5": sum(0 < rank <= 5 for rank in ranks) / count,
        "MRR": sum(1 / rank for rank in ranks if rank) / count,
        "inside one chunk": sum(rank > 0 for rank in ranks) / count,
    }
