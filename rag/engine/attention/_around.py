"""What selections around another one have in common."""

from __future__ import annotations

from dataclasses import dataclass, field

from rag.engine.attention._base import Selection
from rag.engine.attention.quest import Quest

__all__ = ["Around"]

_FAR = ("none", "block", "pass")


@dataclass(frozen=True, kw_only=True)
class Around(Selection):
    """`inner` chooses, in its own blocks of rows, and its choice is used in another way. It looks ahead as far as
    `inner` does, or as the class says if that is further."""

    inner: Selection = field(default_factory=Quest)

    def __post_init__(self) -> None:
        furthest = max(type(self).foresight, self.inner.foresight, key=_FAR.index)
        object.__setattr__(self, "foresight", furthest)

    @property
    def q_block(self) -> int:
        return int(getattr(self.inner, "q_block", 1))

    @property
    def label(self) -> str:
        return f"{self.name}({self.inner.label})"
