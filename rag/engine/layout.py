"""Where everything of a prompt stands: the exact prefix, the blocks that are reused, the tokens that are new."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

from rag.engine.blocks import KvBlock
from rag.engine.errors import EngineError

__all__ = ["Layout", "Placed", "lay_out"]


@dataclass(frozen=True, slots=True)
class Placed:
    """`block` at the positions [start, stop) of a prompt."""

    start: int
    block: KvBlock

    @property
    def stop(self) -> int:
        return self.start + len(self.block)


@dataclass(frozen=True, slots=True)
class Layout:
    """A prompt of `ids`: the first `prefix` are exact, `placed` blocks follow in order, and `fresh` positions are new.

    The last position is fresh: it is the question's last token, after which the model answers.
    """

    ids: tuple[int, ...]
    prefix: int
    placed: tuple[Placed, ...]
    fresh: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.ids)


def lay_out(prefix: Sequence[int], parts: Sequence[KvBlock | Sequence[int]]) -> Layout:
    """Positions for `prefix` and then every part: a block is reused, plain ids are computed."""
    ids = list(prefix)
    placed: list[Placed] = []
    fresh: list[range] = []
    for part in parts:
        if isinstance(part, KvBlock):
            placed.append(Placed(len(ids), part))
            ids += part.ids
        else:
            fresh.append(range(len(ids), len(ids) + len(part)))
            ids += part
    if not parts or isinstance(parts[-1], KvBlock) or not len(parts[-1]):
        raise EngineError("the last part of a prompt must be new ids: the model answers after them")
    return Layout(tuple(ids), len(prefix), tuple(placed), tuple(chain.from_iterable(fresh)))
