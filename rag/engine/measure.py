"""What reuse costs and how far it strays: for benchmarks and calibration. Times are process CPU seconds."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from rag.engine.blobs import KvType
from rag.engine.blocks import make_block
from rag.engine.cache import KvCache
from rag.engine.chunks import assemble
from rag.engine.errors import EngineError
from rag.engine.layout import lay_out
from rag.engine.model import EngineModel
from rag.engine.store import KvStore

__all__ = ["Divergence", "LoadCost", "divergence", "forced_logits", "load_cost"]


@dataclass(frozen=True, slots=True)
class LoadCost:
    """Medians: `load` is opening, checking, moving and copying a stored block into a cache, `compute` prefilling it."""

    tokens: int
    dtype: KvType
    load: float
    compute: float
    load_wall: float
    stored_bytes: int

    @property
    def ratio(self) -> float:
        return self.load / self.compute


def load_cost(
    model: EngineModel, ids: Sequence[int], folder: Path, *, dtype: KvType = "bf16", repeats: int = 9
) -> LoadCost:
    """Loads a block of `ids` from a store in `folder` and computes it, in turns. The file is in the system's cache."""
    loads: list[float] = []
    walls: list[float] = []
    computes: list[float] = []
    place = 512  # anywhere but 0, so that its keys are rotated
    with KvStore(folder, max_bytes=1 << 34) as store:
        store.put(make_block(model, ids), "alone", ["measure"], dtype=dtype)
        size = store.size_bytes
        for _ in range(repeats):
            start = time.process_time()
            make_block(model, ids)
            computes.append(time.process_time() - start)
            cache = model.new_cache(place + len(ids) + 1)
            held = torch.zeros(model.layers, model.kv_heads, place, model.head_dim, dtype=model.dtype)
            cache.append(held, held)
            start, wall = time.process_time(), time.perf_counter()
            block = store.get(ids, model.fingerprint, "alone", dtype=dtype)
            if block is None:
                raise EngineError(f"the store in {folder} lost a block: use a folder of its own")
            assemble(model, cache, lay_out([0] * place, [block, [0]]))
            loads.append(time.process_time() - start)
            walls.append(time.perf_counter() - wall)
    middle = statistics.median
    return LoadCost(len(ids), dtype, middle(loads), middle(computes), middle(walls), size)


@dataclass(frozen=True, slots=True)
class Divergence:
    """Over the forced tokens: mean KL from full prefill in nats, that of the first alone, share of equal top tokens."""

    kl: float
    first_kl: float
    agreement: float


def forced_logits(model: EngineModel, cache: KvCache, logits: Tensor, forced: Sequence[int]) -> Tensor:
    """(tokens, vocabulary): `logits` after the prompt, then those after each of `forced` but the last."""
    rows = [logits[None]]
    if len(forced) > 1:
        rows.append(model.run(forced[:-1], cache, keep=len(forced) - 1))
    return torch.cat(rows)


def divergence(full: Tensor, ours: Tensor) -> Divergence:
    """Of the distributions `ours` from `full`, both as `forced_logits` gives them."""
    reference, log = full.double().log_softmax(-1), ours.double().log_softmax(-1)
    kl = (reference.exp() * (reference - log)).sum(-1)
    same = (full.argmax(-1) == ours.argmax(-1)).double()
    return Divergence(float(kl.mean()), float(kl[0]), float(same.mean()))
