"""What is evicted goes into what stays: every evicted slot to the kept one whose key is most like its own."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

__all__ = ["Evicted", "evicted_of", "weighed_in"]


@dataclass(frozen=True, slots=True)
class Evicted:
    """Each (kv heads, evicted): `slots` that go, ascending; `nearest`, the place among the kept slots whose key has the
    highest cosine with the key that goes; and that cosine."""

    slots: Tensor
    nearest: Tensor
    cosine: Tensor


def evicted_of(keys: Tensor, kept: Tensor) -> Evicted:
    """From `keys` (kv heads, length, d), of which `kept` (kv heads, kept) stay."""
    heads, length, width = keys.shape
    going = torch.ones(heads, length, dtype=torch.bool, device=keys.device).scatter(1, kept, False)
    slots = going.nonzero()[:, 1].reshape(heads, -1)
    unit = normalize(keys.float(), dim=-1)
    gone, stay = (unit.gather(1, one[..., None].expand(-1, -1, width)) for one in (slots, kept))
    cosine, nearest = (gone @ stay.transpose(1, 2)).max(-1)
    return Evicted(slots, nearest, cosine)


def weighed_in(held: Tensor, kept: Tensor, own: Tensor, evicted: Evicted, weights: Tensor) -> Tensor:
    """(kv heads, kept, d): every kept row of `held` (kv heads, length, d) averaged with the evicted rows that are
    nearest to it; `own` (kv heads, kept), above 0, and `weights` (kv heads, evicted), 0 for what is lost."""
    wide = held.float()
    stay, gone = (wide.gather(1, one[..., None].expand(-1, -1, wide.shape[-1])) for one in (kept, evicted.slots))
    total = own.scatter_add(1, evicted.nearest, weights)
    places = evicted.nearest[..., None].expand_as(gone)
    mixed = (stay * own[..., None]).scatter_add(1, places, gone * weights[..., None]) / total[..., None]
    touched = total > own  # a row that got nothing stays bit for bit
    return torch.where(touched[..., None], mixed, stay).to(held.dtype)
