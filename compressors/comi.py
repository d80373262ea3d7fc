"""COMI (ICLR 2026, arXiv 2602.01719): marginal information gain shares out the budget and chooses within."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from compressors._lumps import fitted_whole
from compressors._nearness import head_vectors, softmax
from compressors._words import Part, kept_spans, ledger, parts_of, whole_sentences
from rag.errors import ConfigError
from rag.protocols import Compressor, Corpus, Embedder, TokenCounter, service
from rag.spans.pieces import aim, check_size, context_of, unchanged
from rag.text import assemble
from rag.types import Bubble, CompressedContext

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class ComiCompressor(Compressor):
    """Keeps whole sentences by gain = alpha * cosine with the question - beta * largest cosine with another.

    Coarse: groups of `group_tokens` tokens, each stood for by its sentence nearest to the question; a group's share of
    the target goes with exp(gain / temperature) of those and with its size. Fine: group by group, best first, the
    sentence with the highest gain over those already chosen, until the share is used; what is over goes to the next.

    `temperature` 1 is the paper's, with which the shares hardly differ: cosines do not differ by much. Token vectors
    merged for a model in this process are `merged_tokens` of compressors/_merging.py.

    Deviations: sentences of the text instead of trained soft tokens; redundancy is that with what is more relevant
    (coarse) or chosen (fine), since with the paper's two copies of the answer push each other out; budgets instead of
    group sizes, which comes to the same without borders that shift.
    """

    target: int | None = None
    rate: float = 0.5
    alpha: float = 1.0
    beta: float = 1.0
    temperature: float = 0.1
    group_tokens: int = 128
    counter: TokenCounter = service()
    embedder: Embedder | None = service(default=None)

    def __post_init__(self) -> None:
        check_size("comi", self.target, self.rate)
        if self.alpha < 0 or self.beta < 0 or not 0 < self.temperature < float("inf") or self.group_tokens < 1:
            raise ConfigError(
                "comi: alpha and beta must be >= 0, temperature > 0 and finite, group_tokens >= 1, not "
                f"{self.alpha}, {self.beta}, {self.temperature} and {self.group_tokens}"
            )

    def compress(self, bubble: Bubble, corpus: Corpus) -> CompressedContext:
        size = self.counter.count(assemble(bubble.texts))
        goal = aim(size, self.target, self.rate)
        if goal >= size:
            return unchanged(bubble, self.counter, "comi")
        if self.embedder is None:
            raise ConfigError("comi compares sentences with the question by vectors, and there is no embedder")
        parts = whole_sentences(parts_of(bubble, corpus, self.counter))
        vectors = head_vectors(self.embedder, [part.text for part in parts], corpus).astype("float64")
        question = self.embedder.embed_question(bubble.question).astype("float64")
        order, score = self._order(parts, vectors, question, goal)
        chosen = fitted_whole(bubble, parts, order, goal, self.counter)
        decisions = ledger(bubble, parts, chosen, score, "marginal information gain")
        return context_of(bubble, kept_spans(parts, chosen, len(bubble.hits)), self.counter, "comi", decisions)

    def _order(
        self, parts: Sequence[Part], vectors: Floats, question: Floats, goal: int
    ) -> tuple[list[int], list[float]]:
        """(all sentences, those within their group's share first; the gain of each when it was placed)."""
        groups = _groups(parts, self.group_tokens)
        near = [int(group[int((vectors[group] @ question).argmax())]) for group in groups]
        gain = _gains_in_turn(vectors[near], question, self.alpha, self.beta)
        sizes = [sum(parts[number].size for number in group) for group in groups]
        budgets = _shares(softmax(gain, self.temperature), sizes, goal)
        greedy = _Greedy(vectors, self.alpha * (vectors @ question), self.beta)
        over = 0.0
        for at in sorted(range(len(groups)), key=lambda at: (-round(float(gain[at]), 6), at)):
            room, left = budgets[at] + over, list(groups[at])
            while left:
                number = greedy.best(left)
                if parts[number].size > room:
                    break
                room -= parts[number].size
                greedy.take(number)
                left.remove(number)
            over = room
        rest = [number for number in range(len(parts)) if number not in greedy.scores]
        while rest:
            number = greedy.best(rest)
            greedy.take(number)
            rest.remove(number)
        return list(greedy.scores), [greedy.scores[number] for number in range(len(parts))]


def _gains_in_turn(vectors: Floats, question: Floats, alpha: float, beta: float) -> Floats:
    """(n,) gains where a row is redundant with more relevant rows only: of two copies one keeps its gain."""
    import numpy as np

    relevance = vectors @ question
    order = np.lexsort((np.arange(len(vectors)), -relevance.round(6)))
    made = alpha * relevance
    for at, number in enumerate(order[1:], start=1):
        made[number] -= beta * (vectors[order[:at]] @ vectors[number]).max()
    gained: Floats = made
    return gained


class _Greedy:
    """Sentences one by one, each with its gain over those taken before it: `scores`, in the order of taking."""

    def __init__(self, vectors: Floats, relevance: Floats, beta: float) -> None:
        import numpy as np

        self._vectors, self._relevance, self._beta = vectors, relevance, beta
        self._nearest = np.zeros(len(vectors))
        self.scores: dict[int, float] = {}

    def best(self, numbers: Sequence[int]) -> int:
        return min(numbers, key=lambda number: (-round(self._gain(number), 6), number))

    def take(self, number: int) -> None:
        import numpy as np

        self.scores[number] = self._gain(number)
        self._nearest = np.maximum(self._nearest, self._vectors @ self._vectors[number])

    def _gain(self, number: int) -> float:
        return float(self._relevance[number] - self._beta * self._nearest[number])


def _groups(parts: Sequence[Part], tokens: int) -> list[list[int]]:
    """Consecutive sentences of about so many tokens."""
    groups: list[list[int]] = []
    filled = tokens
    for number, part in enumerate(parts):
        if filled >= tokens:
            groups.append([])
            filled = 0
        groups[-1].append(number)
        filled += part.size
    return groups


def _shares(weights: Floats, sizes: Sequence[int], goal: int) -> list[float]:
    """Tokens for each group, by weight times size, none over its size; what is over goes to the others."""
    budgets, free, left = [0.0] * len(sizes), set(range(len(sizes))), float(goal)
    while free and left > 1e-9:
        total = sum(weights[at] * sizes[at] for at in free)
        full = [at for at in free if total <= 0 or left * weights[at] * sizes[at] / total >= sizes[at]]
        if not full:
            for at in free:
                budgets[at] = float(left * weights[at] * sizes[at] / total)
            break
        for at in full:
            budgets[at] = min(float(sizes[at]), left)
            left -= budgets[at]
        free -= set(full)
    return budgets
