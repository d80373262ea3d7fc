"""The convex combination of `hybrid` against TM2C2 worked out by hand, and its laws."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rag.protocols import Retriever
from retrievers.hybrid import HybridRetriever
from tests.corpora import MemoryCorpus, topic_corpus
from tests.unit.test_retrievers_hybrid import ListRetriever

ROWS = 12


@dataclass(frozen=True, kw_only=True)
class Cosines(ListRetriever):
    """Reads vectors, so that its scores are cosines and it has the weight `alpha`."""

    needs_vectors = True


@lru_cache(maxsize=1)
def _corpus() -> MemoryCorpus:
    return topic_corpus(Path(tempfile.mkdtemp()), None)


def fused(parts: tuple[Retriever, ...], k: int = 2 * ROWS, **options: Any) -> dict[int, float]:
    """Row -> score, best first."""
    hits = HybridRetriever(parts=parts, **options).open(_corpus()).search("?", k)
    return dict(zip(_corpus().rows_of([hit.chunk.id for hit in hits]), [hit.score for hit in hits], strict=True))


def best_first(scores: dict[int, float]) -> tuple[tuple[int, float], ...]:
    return tuple(sorted(scores.items(), key=lambda pair: (-pair[1], pair[0])))


def cosines(scores: dict[int, float]) -> Cosines:
    return Cosines(name="dense", found=best_first(scores))


def counts(scores: dict[int, float]) -> ListRetriever:
    return ListRetriever(name="words", found=best_first(scores))


def drawn(low: float, high: float, least: int = 1) -> st.SearchStrategy[dict[int, float]]:
    """Scores of some rows with 3 digits, as retrievers round theirs."""
    values = st.integers(round(low * 1000), round(high * 1000)).map(lambda one: one / 1000)
    return st.dictionaries(st.integers(0, ROWS - 1), values, min_size=least, max_size=ROWS)


def every(low: float, high: float) -> st.SearchStrategy[dict[int, float]]:
    return drawn(low, high, ROWS)


def test_by_hand() -> None:
    """Cosines from -1, words from 0: (s + 1) / (.6 + 1) and s / 8, weights .8 and .2."""
    found = fused((cosines({3: 0.6, 1: 0.2, 2: -0.2}), counts({1: 8.0, 5: 2.0})), pool=50)
    expected = {3: 0.8 * 1.0, 1: 0.8 * 1.2 / 1.6 + 0.2, 2: 0.8 * 0.8 / 1.6, 5: 0.2 * 2 / 8}
    assert found == pytest.approx(expected, abs=1e-12)
    assert list(found) == [1, 3, 2, 5]  # rows 1 and 3 tie, and the row decides


def test_outside_of_a_full_pool_a_chunk_counts_as_its_last() -> None:
    words = counts({row: float(10 - row) for row in range(6)})
    dense = cosines({row: (row + 1) / 10 for row in range(6)})
    found = fused((dense, words), k=2, pool=2, alpha=0.5)  # words: 0, 1; dense: 5, 4
    assert found == pytest.approx({5: 0.5 + 0.45, 0: 0.5 * 1.5 / 1.6 + 0.5}, abs=1e-12)


def test_alpha_is_shared_by_the_parts_that_use_vectors() -> None:
    dense, words = cosines({1: 0.5}), counts({2: 3.0})
    assert fused((dense, words), alpha=0.6) == pytest.approx({1: 0.6, 2: 0.4})
    assert fused((words, dense), alpha=0.6) == pytest.approx({1: 0.6, 2: 0.4})
    both = fused((dense, cosines({1: 0.5, 4: 0.2}), words), alpha=0.6)
    assert both == pytest.approx({1: 0.6, 2: 0.4, 4: 0.3 * 1.2 / 1.5})
    assert fused((words, counts({4: 7.0})), alpha=0.6) == pytest.approx({2: 0.5, 4: 0.5})  # nothing to share
    assert fused((dense, words), alpha=0.6, weights=(1.0, 3.0)) == pytest.approx({1: 0.25, 2: 0.75})


def test_minima_are_what_a_part_may_fall_to() -> None:
    logits = ListRetriever(name="logits", found=((1, 4.0), (2, -1.0)))
    assert fused((logits,), minima=(-6.0,)) == pytest.approx({1: 1.0, 2: 0.5})
    assert fused((logits,)) == pytest.approx({1: 1.0, 2: 0.0})  # below what is taken for the least: that becomes 0


@given(dense=every(-1, 1), words=every(0, 30), alpha=st.sampled_from([0.0, 0.3, 0.5, 0.8, 1.0]))
def test_with_every_score_known_it_is_the_formula(
    dense: dict[int, float], words: dict[int, float], alpha: float
) -> None:
    top, most = max(dense.values()), max(words.values())
    found = fused((cosines(dense), counts(words)), alpha=alpha)
    for row in range(ROWS):
        phi = (dense[row] + 1) / (top + 1) if top > -1 else 1.0
        psi = words[row] / most if most else 1.0
        assert found[row] == pytest.approx(alpha * phi + (1 - alpha) * psi, abs=1e-9)
    assert all(0.0 <= score <= 1.0 for score in found.values())
    assert list(found.values()) == sorted(found.values(), reverse=True)


@given(dense=every(-1, 1), words=every(0, 30), pool=st.integers(1, ROWS))
def test_a_smaller_pool_never_takes_from_a_score(dense: dict[int, float], words: dict[int, float], pool: int) -> None:
    """And a chunk that both parts found has the very score of the largest pool: only what is unknown changes."""
    parts = (cosines(dense), counts(words))
    full, some = fused(parts), fused(parts, k=pool, pool=pool)
    known = [{row for row, _ in part.found[:pool]} for part in parts]
    for row, score in some.items():
        assert score >= full[row] - 1e-9
        if all(row in rows for rows in known):
            assert score == full[row]


@given(dense=drawn(-1, 1), words=drawn(0, 30), factor=st.sampled_from([0.25, 2.0, 64.0]))
def test_the_scale_of_words_does_not_matter(dense: dict[int, float], words: dict[int, float], factor: float) -> None:
    """Powers of two are exact in floating point, so the scores are the very same ones."""
    scaled = {row: score * factor for row, score in words.items()}
    assert fused((cosines(dense), counts(words))) == fused((cosines(dense), counts(scaled)))


@given(dense=drawn(-1, 1), words=drawn(0, 30))
def test_the_order_of_the_parts_does_not_matter(dense: dict[int, float], words: dict[int, float]) -> None:
    one, other = fused((cosines(dense), counts(words))), fused((counts(words), cosines(dense)))
    assert one == pytest.approx(other, abs=1e-9)


@given(scores=drawn(-1, 1), other=drawn(0, 30))
def test_with_alpha_at_its_ends_one_part_decides(scores: dict[int, float], other: dict[int, float]) -> None:
    found = fused((cosines(scores), counts(other)), alpha=1.0)
    mine = [row for row in found if row in scores]
    assert [scores[row] for row in mine] == sorted(scores.values(), reverse=True)


@given(dense=drawn(-1, 1), words=drawn(0, 30), raised=st.integers(0, ROWS - 1))
def test_a_better_score_below_the_best_never_costs_a_place(
    dense: dict[int, float], words: dict[int, float], raised: int
) -> None:
    """Monotone: what a part likes more, short of its best, stands no lower."""
    top = max(words.values())
    better = {**words, raised: max(words.get(raised, 0.0), top)}
    before, after = list(fused((cosines(dense), counts(words)))), list(fused((cosines(dense), counts(better))))
    if raised in before:
        assert after.index(raised) <= before.index(raised)
