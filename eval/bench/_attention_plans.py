"""The selections that `rag bench attention` compares, each at a share of the context, and how a config says them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import MISSING, dataclass, fields
from typing import TYPE_CHECKING, Any

from rag.errors import UsageError

if TYPE_CHECKING:
    from rag.engine.attention import Selection

__all__ = ["AROUND", "NAMES", "Plan", "plans", "selection_at", "spec_of"]

NAMES = (
    "sink-recent", "quest", "quest-64", "tokenselect", "chunk-block", "dhsa", "flexprefill", "hip", "hisa",
    "longheads", "dma", "compact", "share", "mac",
)  # fmt: skip
"""`quest-64` is quest with pages of 64."""
AROUND = ("compact", "share", "mac")
"""Around a quest: no candidates of a calibration."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A selection whose rows may read about `budget` slots."""

    name: str
    density: float
    budget: int
    selection: Selection

    @property
    def key(self) -> str:
        return f"{self.name}@{self.density:g}"


def plans(
    tokens: int, densities: Sequence[float], names: Sequence[str] | None = None, heads: Sequence[Sequence[int]] = ()
) -> list[Plan]:
    """For a prompt of `tokens`, every selection at every density. One that has no parameters so small is left out.
    `heads` are the model's retrieval heads, for chunk-block."""
    if unknown := sorted(set(names or ()) - set(NAMES)):
        raise UsageError(f"attention: no selection {', '.join(unknown)}; there are {', '.join(NAMES)}")
    found = []
    for density in densities:
        budget = int(density * tokens)
        for name in names or NAMES:
            selection = selection_at(name, budget, density, heads)
            if selection is not None:
                found.append(Plan(name=name, density=density, budget=budget, selection=selection))
    return found


def selection_at(name: str, budget: int, density: float, heads: Sequence[Sequence[int]] = ()) -> Selection | None:
    """None where the selection cannot read so little."""
    from rag.engine.errors import EngineError

    try:
        return _selection(name, budget, density, heads)
    except EngineError:
        return None


def _selection(name: str, budget: int, density: float, heads: Sequence[Sequence[int]]) -> Selection:
    """Rows choose together in blocks of at most a quarter of the budget, which is what their own block takes of it."""
    from rag.engine.attention.chunk_block import ChunkBlock
    from rag.engine.attention.compact import Compact
    from rag.engine.attention.dhsa import Dhsa
    from rag.engine.attention.dma import Dma
    from rag.engine.attention.mac import Mac
    from rag.engine.attention.quest import Quest
    from rag.engine.attention.share import Share
    from rag.engine.attention.sink_recent import SinkRecent

    rows = max(16, min(256, budget // 4 // 16 * 16))
    quest = Quest(budget=budget, prefill=True, q_block=rows)
    if name == "sink-recent":
        return SinkRecent(budget=budget, sink=min(64, budget // 8), q_block=rows)
    if name == "quest":
        return quest
    if name == "quest-64":
        return Quest(budget=budget, prefill=True, q_block=rows, page_size=64)
    if name == "chunk-block":
        return ChunkBlock(density=density, heads=tuple((layer, head) for layer, head in heads))
    if name == "dhsa":
        return Dhsa(budget_prefill=budget, budget_decode=budget, sink=min(64, budget // 8), q_block=rows)
    if name == "dma":
        return Dma(keep_window_size=budget, q_block=min(64, rows))
    if name == "compact":
        return Compact(inner=quest, q_block=4 * rows)
    if name == "share":
        return Share(inner=quest)
    if name == "mac":
        return Mac(inner=quest)
    return _searching(name, budget, rows)


def _searching(name: str, budget: int, rows: int) -> Selection:
    """Those whose parts have sizes of their own."""
    from rag.engine.attention.flexprefill import FlexPrefill
    from rag.engine.attention.hip import Hip
    from rag.engine.attention.hisa import Hisa
    from rag.engine.attention.longheads import LongHeads
    from rag.engine.attention.tokenselect import TokenSelect

    if name == "tokenselect":
        init, recent = min(128, budget // 8), max(rows, budget // 4)
        return TokenSelect(top_k=budget - init - recent, n_init=init, n_local=recent, q_block=rows)
    if name == "flexprefill":
        return FlexPrefill(min_budget=max(128, budget // 2))
    if name == "hip":
        sink, window = budget // 8 // 64 * 64, budget // 4
        last = budget - sink - window
        return Hip(sink=sink, window=window, keeps=(4 * budget, 2 * budget, last), q_block=min(64, rows))
    if name == "hisa":
        block = min(128, rows)
        return Hisa(top_k=budget, top_m=max(4, 2 * budget // block), block_size=block, q_block=block)
    chunk = max(rows, 1)
    return LongHeads(attention_length=max(budget, 4 * chunk), chunk_size=chunk, q_block=chunk)


def spec_of(selection: Selection) -> dict[str, Any]:
    """As a config names it: `use`, and the parameters that are not the default ones."""
    found: dict[str, Any] = {"use": selection.name}
    for one in fields(selection):
        value = getattr(selection, one.name)
        default = one.default if one.default is not MISSING else None
        if value != default:
            found[one.name] = spec_of(value) if hasattr(value, "select") else value
    return found
