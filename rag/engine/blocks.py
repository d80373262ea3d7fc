"""The keys and values of one chunk, kept as if the chunk stood at position 0, so that they fit anywhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rag.engine.cache import KvCache
from rag.engine.errors import EngineError
from rag.engine.model import EngineModel
from rag.engine.prefill import prefill
from rag.engine.rotate import rotate

__all__ = ["AttentionBefore", "KvBlock", "cut_block", "make_block"]


@dataclass(frozen=True, slots=True, eq=False)
class AttentionBefore:
    """What a block's tokens attended to when it was made: means over layers and heads, float32.

    `behind` names the chunks that stood before it, by `chunk_name`; `inter` (tokens, chunks before) and `intra`
    (tokens) are the attention that each token gave to each of those chunks and to its own.
    """

    behind: tuple[str, ...]
    inter: Tensor
    intra: Tensor

    def __post_init__(self) -> None:
        if self.inter.dim() != 2 or self.inter.shape != (len(self.intra), len(self.behind)):
            raise EngineError(
                f"inter is (tokens, chunks before), ({len(self.intra)}, {len(self.behind)}) here, "
                f"not {tuple(self.inter.shape)}"
            )


@dataclass(frozen=True, slots=True, eq=False)
class KvBlock:
    """`k` and `v` are (layers, kv heads, tokens, d); `k` is rotated as if the first token stood at position 0.

    `variance` (tokens), float32, says how much each token's KV depends on what stands before the chunk; None where
    that was not measured. `seen` is what Cache-Craft needs, where it was asked for. `fingerprint` names the model.
    """

    ids: tuple[int, ...]
    k: Tensor
    v: Tensor
    fingerprint: str
    variance: Tensor | None = None
    seen: AttentionBefore | None = None

    def __post_init__(self) -> None:
        if not self.ids or self.k.dim() != 4 or self.k.shape != self.v.shape or self.k.shape[2] != len(self.ids):
            raise EngineError(
                f"a block of {len(self.ids)} tokens cannot have keys {tuple(self.k.shape)} and values "
                f"{tuple(self.v.shape)}: both are (layers, kv heads, tokens, d), with at least one token"
            )
        if self.k.dtype != self.v.dtype:
            raise EngineError(f"keys and values of a block share one type, not {self.k.dtype} and {self.v.dtype}")
        if self.variance is not None and tuple(self.variance.shape) != (len(self.ids),):
            raise EngineError(f"variance has one number a token, {len(self.ids)}, not {tuple(self.variance.shape)}")
        if self.seen is not None and len(self.seen.intra) != len(self.ids):
            raise EngineError(f"attention is told for each of {len(self.ids)} tokens, not {len(self.seen.intra)}")

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def size_bytes(self) -> int:
        return self.k.nbytes + self.v.nbytes + (0 if self.variance is None else self.variance.nbytes)

    @property
    def dtype(self) -> torch.dtype:
        return self.k.dtype


def cut_block(model: EngineModel, cache: KvCache, start: int, ids: Sequence[int]) -> KvBlock:
    """The block of the `ids` that stand in `cache` from position `start` on."""
    keys, values = cache.read(start, start + len(ids))
    return KvBlock(tuple(ids), rotate(keys, -start, model.frequencies), values, model.fingerprint)


def make_block(model: EngineModel, ids: Sequence[int], before: Sequence[int] = ()) -> KvBlock:
    """Prefills `ids` behind `before`, and cuts them out."""
    cache = prefill(model, [*before, *ids]).cache
    return cut_block(model, cache, len(before), ids)
