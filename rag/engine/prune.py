"""A part of a block: the keys and values of some tokens, which saw the whole chunk, moved to stand side by side.

What is left of a pruned chunk is not computed again without its context: its tokens keep what they took from the tokens
that are dropped. Keys are turned so that positions have no gaps.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from rag.engine.blocks import AttentionBefore, KvBlock
from rag.engine.errors import EngineError
from rag.engine.rotate import rotate

__all__ = ["prune_block", "runs"]


def runs(rows: Sequence[int]) -> list[tuple[int, int]]:
    """[start, stop) of every stretch of `rows`, which ascend, without a gap."""
    made: list[tuple[int, int]] = []
    for row in rows:
        if made and made[-1][1] == row:
            made[-1] = (made[-1][0], row + 1)
        else:
            made.append((row, row + 1))
    return made


def prune_block(block: KvBlock, rows: Sequence[int], frequencies: Tensor) -> KvBlock:
    """The block of the tokens at `rows` (ascending, at least one) of `block`; with all of them, `block` itself.

    `frequencies` are the model's, in radians per position. A token that keeps its place keeps its bits; keys of the
    others are turned once, in float32. Variance and attention go with their tokens: both were measured in the chunk.
    """
    if not rows or rows[0] < 0 or rows[-1] >= len(block) or any(b <= a for a, b in pairwise(rows)):
        raise EngineError(
            f"a part of a block has at least one of its {len(block)} tokens, in ascending order, not {list(rows)[:20]}"
        )
    if len(rows) == len(block):
        return block
    parts: list[Tensor] = []
    place = 0
    for start, stop in runs(rows):
        parts.append(rotate(block.k[:, :, start:stop], place - start, frequencies))
        place += stop - start
    at = torch.tensor(list(rows), device=block.k.device)
    seen = block.seen
    return KvBlock(
        tuple(block.ids[row] for row in rows),
        torch.cat(parts, dim=2),
        block.v.index_select(2, at),
        block.fingerprint,
        variance=None if block.variance is None else block.variance[at.to(block.variance.device)],
        seen=None if seen is None else AttentionBefore(seen.behind, seen.inter[at.cpu()], seen.intra[at.cpu()]),
    )
