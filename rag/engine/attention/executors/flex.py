"""torch's FlexAttention: a block-sparse kernel that is compiled on a GPU. On the CPU it runs as written, for tests.

The list of blocks is made from what was kept, never from all pairs. Blocks that are kept whole for all their rows are
read without a mask; those kept in part are read with one that looks pairs up.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor

from rag.engine.attention._base import Kept, Step
from rag.engine.attention.executors._tiles import listed, tile_reads
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
    places, local = step.places.to(device), kept.edges
    bounds = torch.tensor(kept.rows, device=device)
    of_row = torch.searchsorted(bounds[1:], torch.arange(step.queries, device=device), right=True)
    opened, of_slot = kept.opened, kept.units.of_slots(step.slots)
    alike = [one == 1 for one in opened.shape[:2]]

    def reads(b: Tensor, h: Tensor, row: Tensor, slot: Tensor) -> Tensor:
        block = of_row[row]
        past = opened[b * (not alike[0]), (h // group) * (not alike[1]), block, of_slot[slot]]
        return torch.where(slot < local[block], past, slot <= places[row])

    whole, some = tile_reads(step, kept, BLOCK)
    whole, some = (one.repeat_interleave(1 if alike[1] else group, dim=1) for one in (whole, some & ~whole))
    return BlockMask.from_kv_blocks(
        *listed(some),
        *listed(whole),
        BLOCK_SIZE=(BLOCK, BLOCK),
        mask_mod=reads,
        seq_lengths=(step.queries, step.slots),
    )
