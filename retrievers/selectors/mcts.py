"""Monte Carlo tree search for the set of chunks that is worth most together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rag.errors import ConfigError
from rag.protocols import Corpus, Embedder, Selector, TokenCounter, service
from rag.text import SEPARATOR
from rag.types import Bubble, Hit
from retrievers.selectors._features import Pool, pool_of
from retrievers.selectors._greedy import Filling
from retrievers.selectors._tree import Tree, Utility
from retrievers.selectors._units import units_of

_WEIGHTS = (1.0, 0.0, 0.0, 0.5, 0.0, 0.5)
"""Relevance: cosine of the chunk + BM25 / 2 + scaled score of the retriever / 2, as the columns of a feature matrix."""


@dataclass(frozen=True, kw_only=True)
class MctsSelector(Selector):
    """Cost-constrained tree search (CORAG, arXiv 2411.00744) over whole chunks, cut at borders where they overlap.

    What a set is worth: the IDF share of the question's words in it + `alpha` * how well its chunks stand for the
    relevant ones of the best `pool`; a chunk weighs (relevance / largest) ** `sharpness`, so that many chunks of little
    relevance do not outweigh few of much. The search is seeded with the greedy path, so its set is never worth less. At
    most `evaluations` sets are scored. `c`, `lam`: weights of exploration and of cost; `width`: children of a node.

    The set is searched for `level` tokens, then extended to the best one for twice as many, and so on. These sets do
    not depend on the budget, and chunks are taken in the order in which the sets grow: so a larger budget never covers
    less. Only a budget of `level` tokens has the best set found for it: set both to the same number.

    Deviations: no cross-encoder scores the texts of sets, and their order does not count. A node opens few children,
    the best first, instead of all; the reward of a path is that of its greedy completion. All are taken that fit: the
    worth never falls with more text.
    """

    counter: TokenCounter = service()
    embedder: Embedder | None = service(default=None)
    budget: int = 1200
    level: int = 1200
    evaluations: int = 1000
    pool: int = 40
    alpha: float = 4.0
    sharpness: float = 12.0
    c: float = 1.41
    lam: float = 0.1
    width: int = 8

    def __post_init__(self) -> None:
        for name in ("budget", "level", "evaluations", "pool", "width"):
            if getattr(self, name) < 1:
                raise ConfigError(f"mcts: {name} must be >= 1, not {getattr(self, name)}")
        for name in ("alpha", "sharpness", "c", "lam"):
            if not 0.0 <= getattr(self, name) <= 100.0:
                raise ConfigError(f"mcts: {name} must be between 0 and 100, not {getattr(self, name)}")

    def select(self, question: str, hits: Sequence[Hit], corpus: Corpus) -> Bubble:
        import numpy as np

        units = units_of(hits, corpus, None)
        pool = pool_of(question, units, corpus, self.embedder, _WEIGHTS, self.pool, whole=True)
        twins = {number: twin for number, twin in enumerate(units.twins) if twin >= 0}
        filling = Filling(units, [*pool.numbers, *twins], self.counter, self.budget)
        relevance = np.clip(pool.parts @ np.asarray(_WEIGHTS), 0.0, None)
        largest = float(relevance.max(initial=0.0)) or 1.0
        weights = (relevance / largest) ** self.sharpness
        utility = Utility(pool.said, pool.share, weights, pool.similarity, self.alpha)
        separator = self.counter.count(SEPARATOR)
        costs = [filling.tokens[number] + separator for number in pool.numbers]
        values = [round(float(one), 6) for one in relevance]
        _fill(filling, pool, values, self._order(utility, costs, values))
        for number, twin in twins.items():
            where = units.hits[units.units[twin].owner].chunk.id
            filling.note(number, "skip-duplicate", f"its text is in {where}", redundancy=1.0)
        filling.trim()
        return filling.bubble(question)

    def _order(
        self, utility: Utility, costs: Sequence[int], relevance: Sequence[float]
    ) -> Iterator[tuple[int, float, str]]:
        """(item, gain, reason) of every item once; what is not asked for is not searched."""
        levels = 1
        while self.level * 2 ** (levels - 1) < sum(costs):
            levels += 1
        chosen: frozenset[int] = frozenset()
        for number in range(levels):
            tree = Tree(
                utility,
                costs,
                root=chosen,
                budget=self.level * 2**number,
                limit=self.evaluations * (number + 1) // levels,
                c=self.c,
                lam=self.lam,
                width=self.width,
            )
            for at in tree.search():
                gain = round(utility(chosen | {at}) - utility(chosen), 6)
                chosen |= {at}
                yield at, gain, f"in the set for {self.level * 2**number} tokens"
        for at in sorted(range(len(costs)), key=lambda at: (-relevance[at], at)):
            if at not in chosen:
                yield at, 0.0, f"not reached by {self.evaluations} evaluations"


def _fill(filling: Filling, pool: Pool, relevance: Sequence[float], order: Iterator[tuple[int, float, str]]) -> None:
    """Takes what fits, until the filling is closed; the ledger has a line for every unit of the pool."""
    open_at = dict.fromkeys(range(len(pool.numbers)))
    while open_at and not filling.closed:
        at, gain, reason = next(order)
        number = pool.numbers[at]
        del open_at[at]
        fits = filling.fits(number)
        action, why = ("take", reason) if fits else ("skip-budget", "does not fit into the budget")
        filling.note(number, action, why, relevance=relevance[at], gain=gain)
        if fits:
            filling.take(number)
    for at in open_at:
        reason = "the budget was reached before it"
        filling.note(pool.numbers[at], "skip-budget", reason, relevance=relevance[at])
