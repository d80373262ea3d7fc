"""One choice for several layers, as cross-layer sparse attention shares its index (CLSA, arXiv 2606.06467).

Deviations: the paper trains a model whose later layers share keys and one indexer; this is its shadow without training:
any selection chooses in one layer, and the next ones read the same slots of their own keys.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from rag.engine.attention._around import Around
from rag.engine.attention._base import Kept, Memory, Step
from rag.engine.errors import EngineError

__all__ = ["Share"]


@dataclass(frozen=True, kw_only=True)
class Share(Around):
    """`inner` chooses in the layer `start` and every `layers`-th from there, and each time for the ones up to the next;
    before `start` for every layer alone. A bias of the chosen is not shared: it is of one layer's keys."""

    name: ClassVar[str] = "share"
    layers: int = 2
    start: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.layers < 1 or self.start < 0:
            raise EngineError(f"share: layers must be >= 1 and start >= 0, not {self.layers} and {self.start}")

    @property
    def label(self) -> str:
        return f"{self.name}({self.inner.label}, {self.layers})"

    def select(self, step: Step, memory: Memory) -> Kept | None:
        leader = max(0, step.layer - self.start) // self.layers * self.layers + self.start
        if step.layer <= leader:
            kept = self.inner.select(step, memory)
            if step.layer == leader:
                memory.across["share"] = _Shared(leader, step.first, step.queries, kept)
            return kept
        shared: _Shared | None = memory.across.get("share")
        if shared is None or (shared.layer, shared.first, shared.queries) != (leader, step.first, step.queries):
            return self.inner.select(step, memory)  # the leader was not asked in this pass
        return shared.kept


@dataclass(frozen=True, eq=False, slots=True)
class _Shared:
    """Chosen in `layer`, in the pass of so many `queries` that began at slot `first`."""

    layer: int
    first: int
    queries: int
    kept: Kept | None

    def __post_init__(self) -> None:
        if self.kept is not None and self.kept.bias is not None:
            object.__setattr__(self, "kept", replace(self.kept, bias=None))
