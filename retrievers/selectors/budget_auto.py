"""As much context as a question needs: the budget is a limit, not a target."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from rag.errors import ConfigError
from rag.protocols import Corpus, Embedder, Selector, TokenCounter, service
from rag.spans.choice import boosted
from rag.spans.features import NAMES, pool_of
from rag.spans.filling import Filling
from rag.spans.units import units_of
from rag.types import Bubble, Hit
from retrievers.selectors._auto import AutoChoice


@dataclass(frozen=True, kw_only=True)
class BudgetAutoSelector(Selector):
    """Takes sentences as `bubble` does, until the gain of the next one falls under `theta`.

    `per`: the gain of the span objective as it is (`sentence`), or divided by the mean tokens of a chosen sentence
    (`token`). The latter ends too early in texts with long sentences and too late in those with short ones. Whatever
    theta says, the best hit is taken, as far as it fits into `budget`. The larger theta, the less is taken. The default
    of theta promises no recall, and is for `sentence`: `eval.select.calibrate.calibrated_theta` finds the one for a
    recall that is wanted, for one kind of documents, embedder and set of weights. For `token`, try .03 to .06.
    """

    counter: TokenCounter = service()
    embedder: Embedder | None = service(default=None)
    budget: int = 1200
    theta: float = 1.8
    per: Literal["sentence", "token"] = "sentence"
    weights: tuple[float, ...] = (1.0, 1.0, 1.0, 0.5, 0.5, 0.0)
    lam: float = 0.6
    kappa: float = 0.2
    pool: int = 160
    unit_chars: int = 600

    def __post_init__(self) -> None:
        if self.per not in ("sentence", "token"):
            raise ConfigError(f"budget-auto: per must be sentence or token, not {self.per!r}")
        for name, low in (("budget", 1), ("pool", 1), ("unit_chars", 20)):
            if getattr(self, name) < low:
                raise ConfigError(f"budget-auto: {name} must be >= {low}, not {getattr(self, name)}")
        for name, least, most in (("theta", -1e6, 1e6), ("lam", 0.0, 100.0), ("kappa", 0.0, 1.0)):
            if not least <= getattr(self, name) <= most:
                raise ConfigError(
                    f"budget-auto: {name} must be between {least:g} and {most:g}, not {getattr(self, name)}"
                )
        if len(self.weights) != len(NAMES):
            raise ConfigError(
                f"budget-auto: weights must be {len(NAMES)} numbers ({', '.join(NAMES)}), not {self.weights!r}"
            )

    def select(self, question: str, hits: Sequence[Hit], corpus: Corpus) -> Bubble:
        import numpy as np

        units = units_of(hits, corpus, self.unit_chars)
        pool = pool_of(question, units, corpus, self.embedder, self.weights, self.pool)
        twins = [number for number, twin in enumerate(units.twins) if twin >= 0]
        filling = Filling(units, [*pool.numbers, *twins], self.counter, self.budget)
        values = boosted(pool.parts @ np.asarray(self.weights), units, pool, self.kappa)
        choice = AutoChoice(units, pool, values, filling, theta=self.theta, per_token=self.per == "token", lam=self.lam)
        return choice.run(question)
