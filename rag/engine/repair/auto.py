"""The cheapest policy whose deviation, as measured on prompts of that length, stays within bounds.

The table is measured for one model with one way of making blocks; without a row that will do, everything is repaired.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from rag.engine.cache import KvCache
from rag.engine.errors import EngineError
from rag.engine.layout import Layout
from rag.engine.model import EngineModel
from rag.engine.prefill import KeepGoing, Prefill
from rag.engine.repair._base import RepairPolicy
from rag.engine.repair.all import All

__all__ = ["Auto", "Calibrated"]


@dataclass(frozen=True, slots=True)
class Calibrated:
    """On prompts of `tokens` tokens `policy` cost `cost`, a share of full prefill, with a mean divergence `kl` and the
    same first token at `agreement` of the places."""

    policy: str
    tokens: int
    cost: float
    kl: float
    agreement: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Auto(RepairPolicy):
    """Chooses among `policies`, by name, those of `table` with a KL of at most `bound` and an agreement of at least
    `floor`.

    Between two lengths of a policy the worse of both counts, beyond the table's ends the nearest; beyond its own last
    length, short of the table's, a policy is not taken. Policies that place blocks
    in their own way may be among them.
    """

    bound: float = 0.05
    floor: float = 0.95
    table: tuple[Calibrated, ...] = ()
    policies: Mapping[str, RepairPolicy] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.bound < 0 or not 0 <= self.floor <= 1:
            raise EngineError(f"auto: bound must be >= 0 and floor in [0, 1], not {self.bound} and {self.floor}")
        unknown = {row.policy for row in self.table} - set(self.policies)
        if unknown:
            known = ", ".join(sorted(self.policies)) or "none"
            raise EngineError(f"auto: the table names {', '.join(sorted(unknown))}; policies given: {known}")

    def choose(self, tokens: int) -> tuple[str, float]:
        """(name of the policy, its predicted KL) for a prompt of `tokens` tokens; "" is full repair."""
        fits: list[tuple[float, float, str]] = []
        longest = max((row.tokens for row in self.table), default=0)
        for name in self.policies:
            rows = [row for row in self.table if row.policy == name]
            # a policy that was not measured at lengths at which others were may fail there
            if tokens > max((row.tokens for row in rows), default=0) < longest:
                continue
            near = _around(rows, tokens)
            if near and all(row.kl <= self.bound and row.agreement >= self.floor for row in near):
                fits.append((max(row.cost for row in near), max(row.kl for row in near), name))
        if not fits:
            return "", 0.0
        _, kl, name = min(fits)
        return name, kl

    def chosen(self, layout: Layout) -> RepairPolicy:
        name, _ = self.choose(len(layout))
        return self.policies[name] if name else All()

    def assemble(self, model: EngineModel, cache: KvCache, layout: Layout) -> None:
        self.chosen(layout).assemble(model, cache, layout)

    def finish(
        self,
        model: EngineModel,
        cache: KvCache,
        layout: Layout,
        *,
        chunk_tokens: int = 512,
        keep_going: KeepGoing | None = None,
    ) -> Prefill:
        policy = self.chosen(layout)
        return policy.finish(model, cache, layout, chunk_tokens=chunk_tokens, keep_going=keep_going)


def _around(rows: list[Calibrated], tokens: int) -> list[Calibrated]:
    """The last row at most as long and the first at least as long, of those there are."""
    rows = sorted(rows, key=lambda row: row.tokens)
    return [*[row for row in rows if row.tokens <= tokens][-1:], *[row for row in rows if row.tokens >= tokens][:1]]
