"""The reference: what is read as a boolean mask over all pairs, and torch's attention. O(queries x slots) memory."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from rag.engine.attention._base import Kept, Step

__all__ = ["dense_mask", "pair_mask"]


def pair_mask(step: Step, kept: Kept) -> Tensor:
    """(batch or 1, kv heads or 1, queries, slots): who reads what."""
    slots = torch.arange(step.slots, device=step.device)
    places = step.places.to(step.device)
    parts = []
    for block, (start, stop) in enumerate(pairwise(kept.rows)):
        near = (slots >= kept.local[block]) & (slots <= places[start:stop, None])
        parts.append(kept.past(block, step.slots)[:, :, None] | near)
    return torch.cat(parts, dim=2)


def dense_mask(step: Step, kept: Kept) -> Tensor:
    mask = pair_mask(step, kept)
    mask = mask.repeat_interleave(step.group, dim=1) if mask.shape[1] > 1 else mask
    key, value = (one.repeat_interleave(step.group, dim=1) for one in (step.key, step.value))
    return scaled_dot_product_attention(step.query, key, value, attn_mask=mask, scale=step.scaling)
