"""The span choice that ends by itself: once more text is not worth its tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rag.spans.choice import SpanChoice
from rag.spans.features import Pool
from rag.spans.filling import Filling
from rag.spans.units import Units

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Values = NDArray[np.float64]

__all__ = ["AutoChoice"]


class AutoChoice(SpanChoice):
    """Ends at the first unit whose gain is under `theta`; of the best hit all units are taken nonetheless.

    `per_token`: a gain is divided by the mean tokens of the chosen units and itself. Divided by its own tokens, one
    long sentence would end the choice before better ones. A larger theta takes a part of what a smaller one takes.
    """

    def __init__(
        self,
        units: Units,
        pool: Pool,
        values: Values,
        filling: Filling,
        *,
        theta: float,
        per_token: bool,
        **options: Any,
    ) -> None:
        super().__init__(units, pool, values, filling, **options)
        self._theta, self._per_token = theta, per_token
        self._ended = False
        self._taken = 0
        self._tokens = 0

    def _offer(self, at: int, gain: float) -> bool | None:
        number = self._pool.numbers[at]
        if at not in self._done and not self._filling.closed:
            tokens = self._filling.tokens[number]
            mean = (self._tokens + tokens) / (self._taken + 1)
            worth = round(gain / max(mean, 1.0), 6) if self._per_token else gain
            self._ended = self._ended or worth < self._theta
            if self._ended and not self._of_best_hit(number):
                reason = (
                    f"gain of {worth:.4f}{' a token' * self._per_token}, and the choice ended under {self._theta:g}"
                )
                return self._skip(at, "skip-gain", reason, gain)
        return super()._offer(at, gain)

    def _take(self, at: int, gain: float, action: str, reason: str) -> None:
        super()._take(at, gain, action, reason)
        self._taken += 1
        self._tokens += self._filling.tokens[self._pool.numbers[at]]

    def _of_best_hit(self, number: int) -> bool:
        unit, best = self._units.units[number], self._units.hits[0].chunk
        return unit.doc_id == best.doc_id and unit.span.overlaps(best.span)
