"""The dynamic program gives what trying all segmentations gives, and atoms tile every text within the limits."""

from __future__ import annotations

from itertools import combinations, pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chunkers._pack import Ruler
from chunkers._segment import Atoms, best_cuts, checked, coherence_gain, reach_back, size_penalty
from rag.embedders.hashing import HashingEmbedder
from rag.tokens import WordCounter
from rag.types import Document
from tests.texts import NASTY

COUNTER = WordCounter(limit=254)


def atoms_of(text: str, max_tokens: int = 64) -> Atoms:
    document = Document(text=text, source="x")
    ruler = Ruler(document, COUNTER, max_tokens=max_tokens, max_chars=12 * max_tokens)
    return Atoms.of(document, ruler, HashingEmbedder())


def all_segmentations(count: int):
    for size in range(count):
        for inner in combinations(range(1, count), size):
            yield [*inner, count]


def unit(rng: np.random.Generator, count: int, dimension: int = 5) -> np.ndarray:
    matrix = rng.normal(size=(count, dimension)) + 0.6
    return matrix / np.linalg.norm(matrix, axis=1, keepdims=True)


def prefix(matrix: np.ndarray) -> np.ndarray:
    return np.vstack([np.zeros(matrix.shape[1]), np.cumsum(matrix, axis=0)])


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), count=st.integers(1, 10), longest=st.integers(1, 10))
def test_best_cuts_equals_brute_force(seed: int, count: int, longest: int) -> None:
    rng = np.random.default_rng(seed)
    table, prior = rng.normal(size=(count + 1, count + 1)), rng.normal(size=count)
    low = np.array([max(0, i - longest) for i in range(count + 1)])

    def total(cuts: list[int]) -> float:
        score = 0.0
        for j, i in pairwise([0, *cuts]):
            if j < low[i]:
                return -np.inf
            score += table[j, i] + (prior[j] if j else 0.0)
        return score

    found = best_cuts(low, lambda i, first: table[first:i, i], prior)
    assert found[-1] == count
    assert total(found) == pytest.approx(max(map(total, all_segmentations(count))))


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), count=st.integers(2, 9))
def test_coherence_is_the_sum_over_pairs(seed: int, count: int) -> None:
    matrix = unit(np.random.default_rng(seed), count)
    cosines = matrix @ matrix.T
    mean = cosines[np.triu_indices(count, 1)].mean()
    gain = coherence_gain(prefix(matrix))
    for i in range(1, count + 1):
        slow = [sum(cosines[a, b] - mean for a, b in combinations(range(j, i), 2)) for j in range(i)]
        assert gain(i, 0) == pytest.approx(slow)


def test_ties_go_to_the_smallest_start() -> None:
    low = np.zeros(5, dtype=int)
    assert best_cuts(low, lambda i, first: np.zeros(i - first)) == [4]


def test_size_penalty_wants_the_target() -> None:
    sizes = np.full(12, 10)
    low = np.zeros(13, dtype=int)
    assert best_cuts(low, size_penalty(sizes, 30.0)) == [3, 6, 9, 12]


@pytest.mark.parametrize("text", NASTY)
@pytest.mark.parametrize("max_tokens", [8, 64])
def test_atoms_tile_the_text_and_keep_the_limits(text: str, max_tokens: int) -> None:
    atoms = atoms_of(NASTY[text], max_tokens)
    assert "".join(atoms.texts) == NASTY[text]
    low = reach_back(atoms)
    for i in range(1, len(atoms) + 1):
        j = int(low[i])
        assert j < i
        for first in range(j, i - 1):
            assert atoms.ruler.fits(atoms.starts[first], atoms.ends[i - 1])
    cuts = checked(atoms, [len(atoms)])
    assert cuts[-1] == len(atoms)
    for start, end in pairwise([0, *cuts]):
        assert end - start == 1 or atoms.ruler.fits(atoms.starts[start], atoms.ends[end - 1])


def test_every_distinct_sentence_is_embedded_once() -> None:
    seen: list[str] = []

    class Recording(HashingEmbedder):
        def embed(self, texts):
            seen.extend(texts)
            return super().embed(texts)

    document = Document(text="One thing here. Another there. One thing here. Another there. A third.", source="x")
    ruler = Ruler(document, COUNTER, max_tokens=64, max_chars=800)
    atoms = Atoms.of(document, ruler, Recording())
    assert atoms.vectors.shape == (len(atoms), atoms.vectors.shape[1])
    assert atoms.sums.shape[0] == len(atoms) + 1
    assert sorted(seen) == sorted(set(atoms.texts))


def test_paragraphs_and_sections_are_seen() -> None:
    from rag.parsers.markdown import MarkdownParser

    text = "# Title\n\nFirst one. Second one.\n\nThird one.\n\n## Part\n\nFourth one.\n"
    document = MarkdownParser().parse(text.encode(), source="x.md")
    atoms = Atoms.of(document, Ruler(document, COUNTER, max_tokens=64, max_chars=800))
    opened = [text.strip().split("\n")[0] for text, is_open in zip(atoms.texts, atoms.sections, strict=True) if is_open]
    assert opened == ["## Part"]  # the first atom opens everything, and is not counted
    first = [text for text, is_open in zip(atoms.texts, atoms.paragraphs, strict=True) if is_open]
    assert any(text.startswith("Third") for text in first)
    assert not any(text.startswith("Second") for text in first)
