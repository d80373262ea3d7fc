"""Dense attention under the name of a selection: the reference, and the fallback of all others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from rag.engine.attention._base import Kept, Memory, Selection, Step

__all__ = ["Dense"]


@dataclass(frozen=True, kw_only=True)
class Dense(Selection):
    """Every row reads all slots up to its own."""

    name: ClassVar[str] = "dense"

    def select(self, step: Step, memory: Memory) -> Kept | None:
        return None
