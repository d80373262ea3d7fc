"""Moves keys to other positions: rotary positions are rotations, so a move by delta is one more rotation.

RoFormer, arXiv 2104.09864. In the half-split layout of Llama, Qwen and Mistral, dimension i turns with i + d/2.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["rotate"]


def rotate(keys: Tensor, delta: int, frequencies: Tensor) -> Tensor:
    """`keys` (..., d) as they would be `delta` positions later; computed in float32, returned in their own type.

    `frequencies` (d/2) are radians per position. A model's attention scaling stays as it is: a rotation keeps lengths.
    """
    if delta == 0:
        return keys
    angles = frequencies.double() * delta  # thousands of radians lose digits in float32
    cos, sin = (part.float().to(keys.device) for part in (angles.cos(), angles.sin()))
    with torch.no_grad():
        first, second = keys.float().chunk(2, dim=-1)
        turned = torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
    return turned.to(keys.dtype)
