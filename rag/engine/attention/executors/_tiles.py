"""What was kept as lists of tiles, for kernels: counted from the units, never from all pairs of a row and a slot."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from rag.engine.attention._base import Kept, Step

__all__ = ["FarTiles", "Segment", "far_tiles", "listed", "segments", "tile_reads"]

Segment = tuple[int, int, int]
"""First row, row behind the last, and the row block that all of them are in."""


def segments(rows: Sequence[int], size: int, *, aligned: bool = False) -> list[Segment]:
    """Rows in parts of at most `size`, each in one of the row blocks that `rows` bounds; cut at multiples of `size` if
    `aligned`, else counted from the start of each block."""
    found = []
    for block, (start, stop) in enumerate(pairwise(rows)):
        cuts = range(start - start % size if aligned else start, stop, size)
        found += [(max(start, at), min(stop, at + size), block) for at in cuts]
    return found


def _far_counts(kept: Kept, size: int) -> Tensor:
    """(batch or 1, kv heads or 1, row blocks, tiles): how many slots of each tile a block reads before its local."""
    edges = kept.edges[:, None]
    marks = torch.arange(-(-max(kept.local) // size) + 1, device=edges.device) * size
    return kept.reads_before(marks.minimum(edges)).diff(dim=-1)


@dataclass(frozen=True, eq=False, slots=True)
class FarTiles:
    """Of each row block, the numbers of the tiles that it reads of before its local slots: the first `whole` of them in
    full, the rest of the `some` in part. numbers (batch or 1, kv heads or 1, row blocks, tiles), int32; and counts."""

    numbers: Tensor
    whole: Tensor
    some: Tensor


def far_tiles(kept: Kept, size: int) -> FarTiles:
    counts = _far_counts(kept, size)
    full, part = counts == size, (counts > 0) & (counts < size)
    before = full.cumsum(-1, dtype=torch.int32)
    whole = before[..., -1] if counts.shape[-1] else counts.new_zeros(counts.shape[:-1], dtype=torch.int32)
    behind = whole[..., None] + part.cumsum(-1, dtype=torch.int32)
    end = counts.shape[-1]  # what is not read goes there, and is cut off
    place = torch.where(full, before - 1, torch.where(part, behind - 1, end)).long()
    numbers = torch.zeros(*counts.shape[:-1], end + 1, dtype=torch.int32, device=counts.device)
    numbers.scatter_(-1, place, torch.arange(end, dtype=torch.int32, device=counts.device).expand(counts.shape))
    some = whole + part.sum(-1, dtype=torch.int32)
    return FarTiles(numbers[..., : max(1, end)], whole.contiguous(), some.contiguous())


def tile_reads(step: Step, kept: Kept, size: int) -> tuple[Tensor, Tensor]:
    """(batch or 1, kv heads or 1, tiles of rows, tiles of slots) twice: whether all of its pairs, and whether any, are
    read."""
    device, tiles = step.device, -(-step.slots // size)
    cut = segments(kept.rows, size, aligned=True)
    first, behind, block = (torch.tensor(one, device=device) for one in zip(*cut, strict=True))
    places = step.places.to(device)
    starts = torch.arange(tiles, device=device) * size
    local = kept.edges[block][:, None]

    def near(last: Tensor) -> Tensor:
        """How many slots of each tile lie between the local one and `last`."""
        stop = (starts + size).minimum(last[:, None] + 1)
        return (stop - starts.maximum(local)).clamp(min=0)

    counts = _far_counts(kept, size)
    far = torch.nn.functional.pad(counts, (0, tiles - counts.shape[-1]))[:, :, block]
    whole, some = far + near(places[first]) == size, far + near(places[behind - 1]) > 0
    of_segment = first // size
    if len(cut) == int(of_segment[-1]) + 1:
        return whole, some
    room = far.new_zeros(*far.shape[:2], -(-step.queries // size), tiles, dtype=torch.int32)
    parts = torch.bincount(of_segment)[:, None]
    return room.index_add(2, of_segment, whole.int()) == parts, room.index_add(2, of_segment, some.int()) > 0


def listed(tiles: Tensor) -> tuple[Tensor, Tensor]:
    """(counts, indices): the tiles that are set come first, ascending; int32."""
    indices = tiles.int().argsort(dim=-1, descending=True, stable=True)
    return tiles.sum(-1, dtype=torch.int32), indices.int()
