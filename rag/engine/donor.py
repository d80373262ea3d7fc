"""Donor-mean blocks: a chunk's KV averaged over several unrelated texts that may stand before it.

A chunk prefilled alone makes its first tokens an attention sink and has seen nothing before it; in a prompt it is never
first. Here it is prefilled behind the prompt's real prefix and each of a few donor passages; keys are rotated back to
position 0, and keys and values are averaged. How much they vary over the donors says, before any question is known,
which tokens depend on what precedes the chunk. Texts that are likely to stand before it, such as its neighbours in an
index, may follow the donor passages: the passages keep what is before a chunk as long as in a prompt.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rag.engine.blocks import KvBlock, cut_block
from rag.engine.cache import KvCache
from rag.engine.errors import EngineError
from rag.engine.model import EngineModel
from rag.engine.prefill import prefill

__all__ = ["DonorMean"]


class DonorMean:
    """Makes the blocks of many chunks; `prefix` and each donor are computed once, here, and kept in memory."""

    def __init__(self, model: EngineModel, prefix: Sequence[int], donors: Sequence[Sequence[int]]) -> None:
        if not donors or not all(donors):
            raise EngineError("donor-mean needs at least one donor passage, and none of them empty")
        self.model = model
        self._before = [[*prefix, *donor] for donor in donors]
        self._caches = [prefill(model, before).cache for before in self._before]

    def block(self, ids: Sequence[int], between: Sequence[Sequence[int]] = ()) -> KvBlock:
        """`ids` computed behind every donor, averaged, with the variance of every token. `between` has a text for every
        donor, which stands behind it, or none at all. Not for several threads."""
        if between and len(between) != len(self._caches):
            raise EngineError(f"{len(between)} texts to stand behind {len(self._caches)} donors: one for each, or none")
        texts = between or [()] * len(self._caches)
        runs = [
            self._run([*before, *text], len(before), cache, ids)
            for before, text, cache in zip(self._before, texts, self._caches, strict=True)
        ]
        keys = torch.stack([run.k.float() for run in runs])
        values = torch.stack([run.v.float() for run in runs])
        return KvBlock(
            tuple(ids),
            keys.mean(0).to(self.model.dtype),
            values.mean(0).to(self.model.dtype),
            self.model.fingerprint,
            variance=_token_variance(keys) + _token_variance(values),
        )

    def _run(self, before: list[int], held: int, cache: KvCache, ids: Sequence[int]) -> KvBlock:
        """`cache` holds the first `held` tokens of `before`, and again at the end."""
        try:
            prefill(self.model, [*before, *ids], cache)
            return cut_block(self.model, cache, len(before), ids)
        finally:
            cache.truncate(held)


def _token_variance(runs: Tensor) -> Tensor:
    """(tokens) from (runs, layers, kv heads, tokens, d): summed over heads and dimensions, relative to its layer's mean
    over the tokens, summed over layers, so that layers with large numbers do not decide alone.

    Without the first layer: what it keeps depends on the token alone, so all that varies there is rounding.
    """
    later = runs[:, 1:]
    by_layer = (later - later.mean(0)).square().mean(0).sum(dim=(1, 3))
    return (by_layer / by_layer.mean(dim=1, keepdim=True).clamp_min(1e-12)).sum(0).cpu()
