"""Moves keys to other positions: rotary positions are rotations, so a move by delta is one more rotation.

RoFormer, arXiv 2104.09864. In the half-split layout of Llama, Qwen and Mistral, dimension i turns with i + d/2.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

__all__ = ["rotate", "turn", "turns"]


def rotate(keys: Tensor, delta: int, frequencies: Tensor) -> Tensor:
    """`keys` (..., d) as they would be `delta` positions later; computed in float32, returned in their own type.

    `frequencies` (d/2) are radians per position. A model's attention scaling stays as it is: a rotation keeps lengths.
    """
    if delta == 0:
        return keys
    out = torch.empty_like(keys)
    turn(keys, *turns([(delta, 1)], frequencies, keys.device), out)
    return out


def turns(moves: Iterable[tuple[int, int]], frequencies: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
    """Cosines and sines (tokens, d/2), float32, that move the tokens by `moves`: (positions, number of tokens)."""
    cosines, sines = [], []
    for delta, count in moves:
        angles = frequencies.double() * delta  # thousands of radians lose digits in float32
        cosines.append(angles.cos().float().expand(count, -1))
        sines.append(angles.sin().float().expand(count, -1))
    return torch.cat(cosines).to(device), torch.cat(sines).to(device)


def turn(keys: Tensor, cos: Tensor, sin: Tensor, out: Tensor) -> None:
    """Writes `keys` (..., tokens, d), turned by what `turns` gives, to `out`; computed in float32."""
    half = keys.shape[-1] // 2
    with torch.no_grad():
        first, second = keys.float().chunk(2, dim=-1)
        out[..., :half] = first * cos - second * sin
        out[..., half:] = second * cos + first * sin
