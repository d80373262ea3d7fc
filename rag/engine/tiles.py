"""Causal attention of a bfloat16 model on a CPU, tile by tile: as exact as torch's kernel there, and twice as fast.

torch's fused kernel works through bfloat16 on the CPU at the pace of float32. Here a tile of queries meets all the keys
that any of them reads in one bfloat16 product, which the CPU's own instructions do, and only the last of them need a
mask. The query heads that share a key head are rows of one product: no key is copied. Scores are rounded to bfloat16
before the softmax; over full prompts the logits are no further from those of the float32 model than with torch's kernel
(docs/chunk-kv.md).
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["ROWS", "attend_in_tiles", "faster_in_tiles", "tile"]

ROWS = 64
_COLUMNS = 64
"""Key counts are rounded up to this, so that few shapes of products occur: each new one is compiled."""


def faster_in_tiles(device: torch.device, dtype: torch.dtype) -> bool:
    """Where products of bfloat16 are faster than torch's fused kernel, which a CPU runs at the pace of float32."""
    return device.type == "cpu" and dtype == torch.bfloat16


def attend_in_tiles(query: Tensor, key: Tensor, value: Tensor, places: Tensor, scaling: float) -> Tensor:
    """(1, queries, heads, d): query i reads the slots up to `places[i]` (queries), ascending.

    query (1, heads, queries, d); key and value (1, kv heads, slots, d).
    """
    _, heads, queries, width = query.shape
    kv_heads, slots = key.shape[1:3]
    out = query.new_empty(kv_heads, heads // kv_heads, queries, value.shape[-1])
    columns, last = torch.arange(slots), places.tolist()
    grouped = (query[0] * scaling).reshape(kv_heads, heads // kv_heads, queries, width)
    for start in range(0, queries, ROWS):
        stop = min(queries, start + ROWS)
        end = min(slots, _up(last[stop - 1] + 1))
        unseen = columns[last[start] + 1 : end] > places[start:stop, None]
        for head in range(kv_heads):
            part = grouped[head, :, start:stop]
            out[head, :, start:stop] = _head_tile(part, key[0, head, :end], value[0, head, :end], unseen)
    return out.reshape(1, heads, queries, -1).transpose(1, 2)


def _head_tile(query: Tensor, keys: Tensor, values: Tensor, unseen: Tensor) -> Tensor:
    """`tile` for one key head, (group, rows, d). Two plain products: torch copies the keys and values of a batched one,
    since those of a cache lie further apart than they are long."""
    group, rows, width = query.shape
    scores = torch.mm(query.reshape(group * rows, width), keys.T)
    if unseen.shape[-1]:
        scores.view(group, rows, -1)[..., -unseen.shape[-1] :].masked_fill_(unseen, -torch.inf)
    return torch.mm(scores.softmax(-1), values).view(group, rows, -1)


def tile(query: Tensor, keys: Tensor, values: Tensor, unseen: Tensor) -> Tensor:
    """(kv heads, group, rows, d) of queries of that shape; keys (kv heads, d, slots), values (kv heads, slots, d);
    `unseen` (rows, columns) covers the last of the slots."""
    heads, group, rows, width = query.shape
    scores = torch.bmm(query.reshape(heads, group * rows, width), keys).view(heads, group, rows, -1)
    if unseen.shape[-1]:
        scores[..., -unseen.shape[-1] :].masked_fill_(unseen, -torch.inf)
    weights = scores.softmax(-1).view(heads, group * rows, -1)
    return torch.bmm(weights, values).view(heads, group, rows, values.shape[-1])


def _up(count: int) -> int:
    return -(-count // _COLUMNS) * _COLUMNS
