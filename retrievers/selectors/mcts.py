"""Monte Carlo tree search for the set of chunks that is worth most together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from rag.errors import ConfigError
from rag.protocols import Corpus, Embedder, Selector, TokenCounter, nested, service
from rag.spans.features import Pool, pool_of
from rag.spans.filling import Filling
from rag.spans.units import Units, units_of
from rag.text import SEPARATOR
from rag.types import Bubble, Hit
from retrievers._rerank import Reranker
from retrievers.selectors._swap import greedy_swap
from retrievers.selectors._tree import Tree, Utility, Worth
from retrievers.selectors._worth import Reranked

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

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

    `scorer`: a reranker (rule-rerank, late-interaction, cross-encoder, query-likelihood; its own retriever is not
    used), whose score of the joined texts of a set is then what it is worth, scaled by question. Chunks that copy the
    question raise no such score. What the reranker cuts off a long text does not count. `search: swap` is lazy greedy
    and swaps with the same number of evaluations. Measured with rule-rerank, 21 questions of the development half of
    chroma_chunking, 400 tokens (2026-11-22): worth of lazy greedy .511 (223 calls), of tree .520 (356) and swap .515
    (342); recall .720 with each of them, and .817 without `scorer`, which is why there is none by default.

    Deviations: without `scorer` no model scores the texts of sets, and their order does not count. A node opens few
    children, the best first, instead of all; the reward of a path is that of its greedy completion. All are taken that
    fit, also where a `scorer` gives less for more text.
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
    scorer: Any = nested("retriever", ())
    search: Literal["tree", "swap"] = "tree"

    def __post_init__(self) -> None:
        for name in ("budget", "level", "evaluations", "pool", "width"):
            if getattr(self, name) < 1:
                raise ConfigError(f"mcts: {name} must be >= 1, not {getattr(self, name)}")
        for name in ("alpha", "sharpness", "c", "lam"):
            if not 0.0 <= getattr(self, name) <= 100.0:
                raise ConfigError(f"mcts: {name} must be between 0 and 100, not {getattr(self, name)}")
        if self.search not in ("tree", "swap"):
            raise ConfigError(f"mcts: search must be tree or swap, not {self.search!r}")
        if self.scorer and not isinstance(self.scorer, Reranker):
            raise ConfigError(
                "mcts: scorer must be one reranker (rule-rerank, late-interaction, cross-encoder, query-likelihood), "
                f"not a {type(self.scorer).__name__}"
            )

    def select(self, question: str, hits: Sequence[Hit], corpus: Corpus) -> Bubble:
        import numpy as np

        units = units_of(hits, corpus, None)
        pool = pool_of(question, units, corpus, self.embedder, _WEIGHTS, self.pool, whole=True)
        twins = {number: twin for number, twin in enumerate(units.twins) if twin >= 0}
        filling = Filling(units, [*pool.numbers, *twins], self.counter, self.budget)
        relevance = np.clip(pool.parts @ np.asarray(_WEIGHTS), 0.0, None)
        utility = self._utility(question, units, pool, relevance, corpus)
        separator = self.counter.count(SEPARATOR)
        costs = [filling.tokens[number] + separator for number in pool.numbers]
        values = [round(float(one), 6) for one in relevance]
        _fill(filling, pool, values, self._order(utility, costs, values))
        for number, twin in twins.items():
            where = units.hits[units.units[twin].owner].chunk.id
            filling.note(number, "skip-duplicate", f"its text is in {where}", redundancy=1.0)
        filling.trim()
        return filling.bubble(question)

    def _utility(
        self, question: str, units: Units, pool: Pool, relevance: NDArray[np.float64], corpus: Corpus
    ) -> Worth:
        if self.scorer:
            texts = [units.units[number].text for number in pool.numbers]
            return Reranked(question, texts, self.scorer.scorer(corpus), self.evaluations)
        largest = float(relevance.max(initial=0.0)) or 1.0
        weights = (relevance / largest) ** self.sharpness
        return Utility(pool.said, pool.share, weights, pool.similarity, self.alpha)

    def _order(
        self, utility: Worth, costs: Sequence[int], relevance: Sequence[float]
    ) -> Iterator[tuple[int, float, str]]:
        """(item, gain, reason) of every item once; what is not asked for is not searched."""
        levels = 1
        while self.level * 2 ** (levels - 1) < sum(costs):
            levels += 1
        chosen: frozenset[int] = frozenset()
        for number in range(levels):
            budget, limit = self.level * 2**number, self.evaluations * (number + 1) // levels
            if self.search == "swap":
                found = greedy_swap(utility, costs, root=chosen, budget=budget, limit=limit)
            else:
                tree = Tree(
                    utility,
                    costs,
                    root=chosen,
                    budget=budget,
                    limit=limit,
                    c=self.c,
                    lam=self.lam,
                    width=self.width,
                )
                found = tree.search()
            for at in found:
                grown = chosen | {at}
                known = utility.knows(chosen) and utility.knows(grown)  # a set before a swap may not have been scored
                gain = round(utility(grown) - utility(chosen), 6) if known else 0.0
                chosen = grown
                yield at, gain, f"in the set for {budget} tokens"
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
