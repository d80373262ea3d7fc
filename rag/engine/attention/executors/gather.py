"""The kept slots copied together and read without a mask, for each block of rows; slots of the block itself apart.

Right on every device; the fast path on CPU, where a boolean mask alone makes torch's attention half as fast as dense,
and for one token. What is before a block is read by all its rows, so it needs no mask; the block itself is plain causal
attention; both are merged by their log-sum-exp. Query heads that share a kv head are rows of one matrix product.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from rag.engine.attention._base import Kept, Step
from rag.engine.tiles import ROWS, faster_in_tiles, tile

__all__ = ["gather"]

Partial = tuple[Tensor, Tensor]
"""(batch, heads, rows, d) and the log-sum-exp (batch, heads, rows) of their scores, float32."""


def gather(step: Step, kept: Kept) -> Tensor:
    if step.queries == 1:
        return _one(step, kept)
    return torch.cat([_block(step, kept, at) for at in range(len(kept.local))], dim=2)


def _one(step: Step, kept: Kept) -> Tensor:
    """Decoding: its past, its recent slots and itself in one softmax."""
    query = step.grouped[:, :, :, 0]
    stop = step.first + 1
    out = _room(query, step.value)
    for which, key, value in _read(step, kept, 0, stop):
        out[which] = scaled_dot_product_attention(query[which], key, value, scale=step.scaling)
    return out.flatten(1, 2)[:, :, None]


def _block(step: Step, kept: Kept, at: int) -> Tensor:
    start, stop = kept.rows[at], kept.rows[at + 1]
    first, last = int(step.places[start]), int(step.places[stop - 1])
    if last - first != stop - start - 1:  # its rows are not neighbours: others stand between them
        return torch.cat([_one(_row(step, row), _alone(kept, at)) for row in range(start, stop)], dim=2)
    if in_tiles(step):
        return _in_tiles(step, kept, at)
    query = step.query[:, :, start:stop]
    key, value = (one[:, :, first : last + 1].repeat_interleave(step.group, dim=1) for one in (step.key, step.value))
    own, own_sum = attend_partly(query, key, value, step.scaling, causal=True)
    folded = step.grouped[:, :, :, start:stop].flatten(2, 3)
    far, far_sum = _room(folded, step.value), own_sum.new_full(folded.shape[:-1], -torch.inf)
    for which, key, value in _read(step, kept, at, first):
        if key.shape[2]:
            far[which], far_sum[which] = attend_partly(folded[which], key, value, step.scaling)
        else:
            far[which] = 0
    share = torch.sigmoid(far_sum.reshape(own_sum.shape) - own_sum)[..., None]
    return torch.lerp(own.float(), far.reshape(own.shape).float(), share).to(own.dtype)


def in_tiles(step: Step) -> bool:
    """Whether its blocks are read in tiles, which learn nothing."""
    return faster_in_tiles(step.device, step.query.dtype) and not step.query.requires_grad


def _in_tiles(step: Step, kept: Kept, at: int) -> Tensor:
    """As `_block`: what the block reads and its own slots side by side, in one softmax for some rows at a time."""
    start, stop = kept.rows[at], kept.rows[at + 1]
    first = int(step.places[start])
    out = _room(step.grouped[:, :, :, start:stop], step.value)
    later = torch.ones(stop - start, stop - start, dtype=torch.bool).triu(1)
    for (batch, heads), far, far_value in _read(step, kept, at, first):
        own = slice(first, first + stop - start)
        keys = torch.cat((far, step.key[batch, heads, own]), dim=2).flatten(0, 1)
        values = torch.cat((far_value, step.value[batch, heads, own]), dim=2).flatten(0, 1)
        query = step.grouped[batch, heads, :, start:stop].flatten(0, 1) * step.scaling
        for row in range(0, stop - start, ROWS):
            rows, end = slice(row, row + ROWS), far.shape[2] + min(row + ROWS, stop - start)
            made = tile(
                query[:, :, rows], keys[:, :end].transpose(1, 2), values[:, :end], later[rows, row : row + ROWS]
            )
            out[batch, heads, :, rows] = made.reshape(out[batch, heads, :, rows].shape)
    return out.flatten(1, 2)


def _room(query: Tensor, value: Tensor) -> Tensor:
    return value.new_empty(*query.shape[:-1], value.shape[-1])


def _row(step: Step, row: int) -> Step:
    query = step.query[:, :, row : row + 1]
    return Step(step.layer, query, step.key, step.value, step.places[row : row + 1], step.scaling)


def _alone(kept: Kept, at: int) -> Kept:
    """One block of one row."""
    return Kept(kept.units, (0, 1), kept.local[at : at + 1], mask=kept.keep[:, :, at : at + 1])


Which = tuple[slice, slice]


def _read(step: Step, kept: Kept, at: int, stop: int) -> list[tuple[Which, Tensor, Tensor]]:
    """What the block reads before slot `stop`: for parts of the batch and kv heads that read equally many slots, their
    keys and values (batch, kv heads, read, d)."""
    everyone = (slice(None), slice(None))
    near = slice(kept.local[at], stop)
    pages = _paged(step, kept, at, near)
    if pages is not None:
        return [(everyone, *pages)]
    past = kept.past(at)
    slots = [[torch.cat((row.nonzero()[:, 0], _range(near, row))) for row in one] for one in past]
    if past.shape[:2] == (1, 1):
        index = slots[0][0]
        if index.shape[0] == stop:
            return [(everyone, step.key[:, :, :stop], step.value[:, :, :stop])]
        return [(everyone, step.key.index_select(2, index), step.value.index_select(2, index))]
    parts = []
    for b in range(step.batch):
        for h in range(step.kv_heads):
            index = slots[b if len(slots) > 1 else 0][h if len(slots[0]) > 1 else 0]
            key, value = (one[b, h].index_select(0, index)[None, None] for one in (step.key, step.value))
            parts.append(((slice(b, b + 1), slice(h, h + 1)), key, value))
    return parts


def _range(slots: slice, like: Tensor) -> Tensor:
    return torch.arange(slots.start, slots.stop, device=like.device)


def _paged(step: Step, kept: Kept, at: int, near: slice) -> tuple[Tensor, Tensor] | None:
    """Equally many pages of one size for all: copied page by page. None where that is not so."""
    size = kept.units.size
    if kept.index is None or size is None or not len(kept.units) or size * len(kept.units) > near.start:
        return None
    if kept.index.shape[-1] == len(kept.units):
        return step.key[:, :, : near.stop], step.value[:, :, : near.stop]
    pages = kept.index[:, :, at].expand(step.batch, step.kv_heads, -1)
    rest = slice(size * len(kept.units), near.stop)  # open slots, and the near ones behind them
    return _copied(step.key, pages, size, rest), _copied(step.value, pages, size, rest)


def _copied(source: Tensor, pages: Tensor, size: int, rest: slice) -> Tensor:
    batch, heads, count = pages.shape
    width, far = source.shape[3], count * size
    out = source.new_empty(batch, heads, far + rest.stop - rest.start, width)
    out[:, :, far:] = source[:, :, rest]
    whole = source[:, :, : source.shape[2] // size * size]
    if source.device.type != "cpu":  # one launch for all heads; on CPU a copy for each is faster
        out[:, :, :far] = _picked(whole.reshape(batch, heads, -1, size, width), pages).flatten(2, 3)
        return out
    for b in range(batch):
        for h in range(heads):
            rows, room = whole[b, h].reshape(-1, size * width), out[b, h, :far].view(count, size * width)
            if torch.is_grad_enabled() and source.requires_grad:
                room.copy_(rows.index_select(0, pages[b, h]))
            else:
                torch.index_select(rows, 0, pages[b, h], out=room)
    return out


def _picked(paged: Tensor, pages: Tensor) -> Tensor:
    """(batch, heads, count, size, d): of `paged` (batch, heads, pages, size, d) the `pages` (batch, heads, count)."""
    sequences = torch.arange(paged.shape[0], device=paged.device)[:, None, None]
    heads = torch.arange(paged.shape[1], device=paged.device)[:, None]
    return paged[sequences, heads, pages]


def attend_partly(query: Tensor, key: Tensor, value: Tensor, scaling: float, *, causal: bool = False) -> Partial:
    """Attention with its log-sum-exp. Heads of query and key are the same; causal means equally many rows and keys."""
    on_cpu = query.device.type == "cpu" and query.dtype in (torch.float32, torch.bfloat16)
    if on_cpu and not (torch.is_grad_enabled() and query.requires_grad) and query.shape[-1] == value.shape[-1]:
        out, total = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            query, key, value, 0.0, causal, scale=scaling
        )
        return out, total
    scores = (query @ key.transpose(-1, -2)).float() * scaling
    if causal:
        seen = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
        scores = scores.masked_fill(~seen, -torch.inf)
    return scores.softmax(-1).to(value.dtype) @ value, scores.logsumexp(-1)
