"""torch's FlexAttention: a block-sparse kernel that is compiled on a GPU. On the CPU it runs as written, for tests.

The list of blocks is made from what was kept, never from all pairs. Blocks that are kept whole for all their rows are
read without a mask; those kept in part are read with one that looks pairs up.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from rag.engine.attention._base import Kept, Step
from rag.engine.errors import EngineError

__all__ = ["block_mask", "flex"]

BLOCK = 128


def flex(step: Step, kept: Kept) -> Tensor:
    try:
        attend = _kernel(step.device.type)
    except ImportError as why:
        raise EngineError(f"this torch ({torch.__version__}) has no FlexAttention: use the executor gather") from why
    out: Tensor = attend(
        step.query,
        step.key,
        step.value,
        block_mask=block_mask(step, kept),
        scale=step.scaling,
        enable_gqa=step.group > 1,
    )
    return out


@cache
def _kernel(device: str) -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention) if device == "cuda" else flex_attention


def block_mask(step: Step, kept: Kept) -> Any:
    """A BlockMask of blocks of BLOCK rows and BLOCK slots."""
    from torch.nn.attention.flex_attention import BlockMask

    device, group = step.device, step.group
    places = step.places.to(device)
    local = torch.tensor(kept.local, device=device)
    bounds = torch.tensor(kept.rows, device=device)
    of_row = torch.searchsorted(bounds[1:], torch.arange(step.queries, device=device), right=True)
    opened, of_slot = kept.opened, kept.units.of_slots(step.slots)
    alike = [one == 1 for one in opened.shape[:2]]
    slots = torch.arange(step.slots, device=device)
    far = opened[..., of_slot] & (slots < local[:, None])  # (batch, kv heads, row blocks, slots)

    def reads(b: Tensor, h: Tensor, row: Tensor, slot: Tensor) -> Tensor:
        block = of_row[row]
        past = opened[b * (not alike[0]), (h // group) * (not alike[1]), block, of_slot[slot]]
        return torch.where(slot < local[block], past, slot <= places[row])

    whole, some = _tiles(far, of_row, local, places)
    whole, some = (one.repeat_interleave(1 if alike[1] else group, dim=1) for one in (whole, some & ~whole))
    return BlockMask.from_kv_blocks(
        *_listed(some),
        *_listed(whole),
        BLOCK_SIZE=(BLOCK, BLOCK),
        mask_mod=reads,
        seq_lengths=(step.queries, step.slots),
    )


def _tiles(far: Tensor, of_row: Tensor, local: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
    """(batch, kv heads, blocks of rows, blocks of slots) twice: whether all of its pairs, and whether any, are read."""
    slots = far.shape[-1]
    tail = -slots % BLOCK
    tiled = pad(far, (0, tail)).reshape(*far.shape[:-1], -1, BLOCK)
    all_far, any_far = tiled.all(-1), tiled.any(-1)
    starts = torch.arange(0, slots, BLOCK, device=far.device)
    whole, some = [], []
    for rows in torch.split(torch.arange(len(of_row), device=far.device), BLOCK):
        blocks = torch.unique(of_row[rows])
        first, last = places[rows[0]], places[rows[-1]]
        near_some = (starts + BLOCK > local[blocks].min()) & (starts <= last)
        near_whole = (starts >= local[blocks].max()) & (starts + BLOCK - 1 <= first)
        whole.append(all_far[:, :, blocks].all(2) | near_whole)
        some.append(any_far[:, :, blocks].any(2) | near_some)
    return torch.stack(whole, dim=2), torch.stack(some, dim=2)


def _listed(tiles: Tensor) -> tuple[Tensor, Tensor]:
    """(counts, indices): the blocks that are set come first, ascending; int32."""
    indices = tiles.int().argsort(dim=-1, descending=True, stable=True)
    return tiles.sum(-1, dtype=torch.int32), indices.int()
