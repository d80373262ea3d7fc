"""Scores into kept units, bounds of scores from the extremes of keys, and scores on one scale."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from rag.engine.attention._base import Memory, Step
from rag.engine.attention.units import Units

__all__ = [
    "fill",
    "page_extremes",
    "page_summaries",
    "products",
    "standardised",
    "unit_extremes",
    "upper_bound",
    "whole_extremes",
]

FEW = 16
"""Rows, those of one token's heads: in decoding."""


def fill(scores: Tensor, lengths: Tensor, budget: int | Tensor, forced: Tensor | None = None) -> Tensor:
    """(..., units) bool: units from the highest score down while they fit in `budget` slots; of equals the earlier.

    Stops at the first that does not fit, so that more budget never drops a unit. `forced` units come first and stay
    whatever they need. Units with a score of -inf are never kept.
    """
    order_by = scores if forced is None else scores.masked_fill(forced, torch.inf)
    order = order_by.argsort(dim=-1, descending=True, stable=True)
    used = lengths.expand_as(scores).gather(-1, order).cumsum(-1)
    fits = torch.zeros_like(scores, dtype=torch.bool).scatter_(-1, order, used <= budget)
    kept = fits & (order_by > -torch.inf)
    return kept if forced is None else kept | forced


def standardised(scores: Tensor) -> Tensor:
    """z scores over the last dimension; all equal: zeros."""
    centred = scores - scores.mean(-1, keepdim=True)
    spread = centred.square().mean(-1, keepdim=True).sqrt()
    return torch.where(spread > 1e-12, centred / spread.clamp(min=1e-12), 0.0)


@dataclass(eq=False, slots=True)
class _Pages:
    """`rows` of the first `done` pages, with room for more."""

    size: int
    rows: Tensor
    done: int = 0

    def rewind(self, slots: int) -> None:
        self.done = min(self.done, slots // self.size)


def page_summaries(
    step: Step, memory: Memory, name: str, size: int, pages: int, width: int, of: Callable[[Tensor], Tensor]
) -> Tensor:
    """(batch, kv heads, pages, width): `of` the keys (batch, kv heads, new pages, size, d) of the first `pages` full
    pages, held under `name`. Only pages that are new since the last pass are computed."""
    held = memory.held.setdefault(
        f"{name}/{size}", _Pages(size, step.key.new_empty(step.batch, step.kv_heads, 0, width))
    )
    if held.rows.shape[2] < pages:
        grown = step.key.new_empty(step.batch, step.kv_heads, max(64, pages, 2 * held.done), width)
        grown[:, :, : held.done] = held.rows[:, :, : held.done]
        held.rows = grown
    if pages > held.done:
        fresh = step.key[:, :, held.done * size : pages * size].detach()
        held.rows[:, :, held.done : pages] = of(fresh.reshape(step.batch, step.kv_heads, -1, size, fresh.shape[-1]))
        held.done = pages
    rows: Tensor = held.rows[:, :, :pages]
    return rows


def page_extremes(step: Step, memory: Memory, size: int, pages: int) -> Tensor:
    """(batch, kv heads, pages, 2 d): the largest and the smallest key of each of the first `pages` full pages, side by
    side."""
    width = 2 * step.key.shape[3]
    return page_summaries(
        step, memory, "extremes", size, pages, width, lambda keys: torch.cat((keys.amax(3), keys.amin(3)), dim=-1)
    )


def unit_extremes(key: Tensor, units: Units) -> Tensor:
    """As `page_extremes`, for units of any length: (batch, kv heads, units, 2 d)."""
    stop = units.stop
    read = key[:, :, :stop]
    index = units.of_slots(stop)[:, None].expand_as(read)
    room = key.new_zeros(*key.shape[:2], len(units) + 1, key.shape[3])
    ends = [room.scatter_reduce(2, index, read, how, include_self=False)[:, :, :-1] for how in ("amax", "amin")]
    return torch.cat(ends, dim=-1)


@dataclass(eq=False, slots=True)
class _Whole:
    """`rows` of the first `done` units of `of`."""

    of: Units
    rows: Tensor
    done: int = 0

    def rewind(self, slots: int) -> None:
        self.done = min(self.done, int((self.of.stops <= slots).sum()))


def whole_extremes(step: Step, memory: Memory, units: Units, slots: int) -> Tensor:
    """As `unit_extremes`, of the units that are whole among the first `slots`, held from pass to pass."""
    count = int((units.stops <= slots).sum())
    held: _Whole | None = memory.held.get("whole extremes")
    if held is None or held.of is not units:
        room = step.key.new_empty(step.batch, step.kv_heads, len(units), 2 * step.key.shape[3])
        held = memory.held["whole extremes"] = _Whole(units, room)
    if count > held.done:
        first, stop = int(units.starts[held.done]), int(units.stops[count - 1])
        fresh = Units(units.starts[held.done : count] - first, units.stops[held.done : count] - first, units.parents)
        held.rows[:, :, held.done : count] = unit_extremes(step.key[:, :, first:stop].detach(), fresh)
        held.done = count
    return held.rows[:, :, :count]


def upper_bound(query: Tensor, extremes: Tensor) -> Tensor:
    """(batch, kv heads, rows, units): no key of the unit has a larger product with the row. `query` (batch, kv heads,
    rows, d)."""
    return products(torch.cat((query.clamp(min=0), query.clamp(max=0)), dim=-1), extremes)


def products(query: Tensor, key: Tensor) -> Tensor:
    """(..., rows, keys), of (..., rows, d) and (..., keys, d)."""
    if query.shape[-2] > FEW:
        return query @ key.transpose(-1, -2)
    # the same the other way round: what is held is a view of more room, which a product of few bfloat16 rows copies
    return (key @ query.transpose(-1, -2)).transpose(-1, -2)
