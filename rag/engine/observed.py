"""Blocks made behind other chunks, with the attention that their tokens gave to each of those."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate, pairwise

from rag.engine.attend import AttentionMass
from rag.engine.blocks import AttentionBefore, KvBlock, cut_block
from rag.engine.errors import EngineError
from rag.engine.model import EngineModel
from rag.engine.prefill import prefill

__all__ = ["chunk_name", "make_observed_block"]


def chunk_name(ids: Sequence[int]) -> str:
    """16 hex digits: what a block calls the chunks that stood before it."""
    return hashlib.blake2b(array("q", ids).tobytes(), digest_size=8).hexdigest()


def make_observed_block(
    model: EngineModel, ids: Sequence[int], prefix: Sequence[int], behind: Sequence[Sequence[int]]
) -> KvBlock:
    """Prefills `ids` behind `prefix` and the chunks `behind`; attention is the mean over layers and heads."""
    if not all(behind):
        raise EngineError("a chunk that stands before another has at least one token")
    before = [*prefix, *(token for chunk in behind for token in chunk)]
    cache = prefill(model, before).cache if before else model.new_cache(len(ids))
    ends = [len(prefix), *accumulate((len(chunk) for chunk in behind), initial=len(prefix))][1:]
    own = (len(before), len(before) + len(ids))
    mass = AttentionMass(len(before), [*pairwise(ends), own], len(ids))
    cache.attention = {"mass": mass}
    prefill(model, [*before, *ids], cache)
    cache.attention = {}
    mean = mass.total / model.layers
    seen = AttentionBefore(tuple(map(chunk_name, behind)), mean[:, :-1].contiguous(), mean[:, -1].contiguous())
    return replace(cut_block(model, cache, len(before), ids), seen=seen)
