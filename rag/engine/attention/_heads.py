"""Retrieval heads: a few heads of a model in which the question looks at the chunks that hold its answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rag.engine.attention._base import Memory, Step
from rag.engine.attention._choose import products, standardised
from rag.engine.attention._chunk_layout import ChunkLayout
from rag.engine.errors import EngineError

__all__ = ["Head", "checked_head", "head_scores", "vote", "voted"]

Head = tuple[int, int]
"""Layer and kv head."""
_VOTES = "head votes"


@dataclass(frozen=True, eq=False, slots=True)
class _Votes:
    """`mass` (batch, heads, chunks) of the rows before slot `stop`, of `heads` of one layer."""

    layout: ChunkLayout
    heads: tuple[int, ...]
    mass: Tensor
    stop: int


def checked_head(given: Sequence[int]) -> Head:
    """EngineError unless it is two numbers from 0 on."""
    head = tuple(given)
    if len(head) != 2 or not all(isinstance(one, int) and one >= 0 for one in head):
        raise EngineError(f"a head is a layer and a kv head, two numbers from 0 on, not {list(head)}")
    return head[0], head[1]


def vote(step: Step, memory: Memory, layout: ChunkLayout, start: int, heads: Sequence[Head], voters: int) -> None:
    """Remembers what the rows from `start` on, up to `voters` slots behind the last chunk, give to each chunk in the
    heads of this layer. Rows that go on where the last ones ended are added to them; others begin anew."""
    mine = tuple(head for layer, head in heads if layer == step.layer)
    if mine and max(mine) >= step.kv_heads:
        raise EngineError(f"layer {step.layer} has {step.kv_heads} kv heads, numbered from 0 on: no head {max(mine)}")
    places = step.places[start:]
    rows = int((places < layout.stop + voters).sum())
    if not mine or not rows:
        return
    query = step.grouped[:, list(mine), :, start : start + rows]
    scores = products(query.flatten(2, 3), step.key[:, list(mine)]).float() * step.scaling
    later = torch.arange(step.slots) > places[:rows, None]
    scores = scores.reshape(*query.shape[:4], -1).masked_fill(later.to(scores.device), -torch.inf)
    given = scores.softmax(-1)[..., : layout.stop].sum((2, 3))
    units = layout.given
    mass = given.new_zeros(*given.shape[:2], len(units) + 1)
    mass.index_add_(2, units.of_slots(layout.stop), given)
    known: dict[int, _Votes] = memory.across.setdefault(_VOTES, {})
    before = known.get(step.layer)
    if before is not None and (before.layout, before.heads, before.stop) == (layout, mine, int(places[0])):
        mass[..., :-1] += before.mass
    known[step.layer] = _Votes(layout, mine, mass[..., :-1], int(places[rows - 1]) + 1)


def voted(memory: Memory, layout: ChunkLayout, heads: Sequence[Head]) -> Tensor | None:
    """(batch, chunks), z scores; None until the rows of one question have been through the layers of all `heads`."""
    known: dict[int, _Votes] = memory.across.get(_VOTES, {})
    found = [(known.get(layer), head) for layer, head in heads]
    mass = [
        one.mass[:, one.heads.index(head)]
        for one, head in found
        if one is not None and one.layout is layout and head in one.heads
    ]
    if not mass or len(mass) < len(heads) or len({one.stop for one, _ in found if one is not None}) > 1:
        return None
    return head_scores(torch.stack(mass, dim=1), layout.given.lengths)


def head_scores(mass: Tensor, lengths: Tensor) -> Tensor:
    """(..., chunks), z scores, from the attention (..., heads, chunks) to chunks of `lengths` slots: of each head the
    share of a slot of the chunk, the mean over the heads, and the log of it."""
    each = mass / lengths
    share = each / each.sum(-1, keepdim=True).clamp(min=torch.finfo(each.dtype).tiny)
    return standardised((share.mean(-2) + 1e-6).log())
