"""The first tokens of every chunk, and those that flow most into the question: `epic` and `info-flow` in one pass.

Our own. Only the beginning of the question runs alone before: what comes after it, the end of a chat template, takes
of the context what the question takes, and costs as much again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from rag.engine.cache import KvCache
from rag.engine.errors import EngineError
from rag.engine.layout import Layout
from rag.engine.repair._asking import QuestionRepair, check_asking
from rag.engine.repair._base import first_tokens
from rag.engine.repair.info_flow import InfoFlow

__all__ = ["Asked"]


@dataclass(frozen=True, kw_only=True)
class Asked(QuestionRepair):
    """Repairs the first `k` tokens of each block but the first and, beside them, the `share` of the reused tokens of
    which the first `head` new tokens after the last block (0: all of them) take most in the first `depth` of the
    layers, a share.

    Of the chosen tokens only the `late` share of which the question takes most runs through the other layers too; those
    that do not count as repaired all the same."""

    k: int = 4
    share: float = 0.15
    head: int = 32
    depth: float = 1.0
    late: float = 1.0

    def __post_init__(self) -> None:
        check_asking("asked", self.share, self.head)
        if self.k < 0 or not 0 < self.depth <= 1:
            raise EngineError(f"asked: k must be >= 0 and depth in (0, 1], not {self.k} and {self.depth}")
        if not 0 <= self.late <= 1:
            raise EngineError(f"asked: late must lie in [0, 1], not {self.late}")

    def asking(self, new: Sequence[int]) -> Sequence[int]:
        return new[: self.head or len(new)]

    def always(self, layout: Layout) -> set[int]:
        return set(first_tokens(layout.placed[1:], self.k))

    def weigh(self, votes: Tensor, cache: KvCache, layer: int) -> Tensor:
        return InfoFlow().weigh(votes, cache, layer)
