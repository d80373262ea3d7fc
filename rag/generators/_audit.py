"""How far a reading that reuses keys and values strays from full prefill: as predicted, and as measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from rag.answer import GenerationStats
from rag.engine.attend import SparseCache
from rag.engine.measure import Divergence, divergence, forced_logits
from rag.engine.prefill import prefill
from rag.engine.repair.auto import Auto
from rag.generators._decode import STEP, Reading

if TYPE_CHECKING:
    from rag.engine.model import EngineModel
    from rag.engine.repair import RepairPolicy

__all__ = ["audited", "measured", "predicted"]


def audited(
    stats: GenerationStats, engine: EngineModel, reading: Reading, ids: Sequence[int], new: Sequence[int]
) -> GenerationStats:
    """`stats` with the deviation that `measured` finds."""
    found = measured(engine, reading, ids, new)
    return replace(stats, measured_deviation=max(0.0, found.kl), measured_agreement=found.agreement)


def predicted(policy: RepairPolicy, tokens: int) -> float | None:
    """The divergence that the table of `auto` has for prompts of so many tokens; None for other policies."""
    return policy.choose(tokens)[1] if isinstance(policy, Auto) else None


def measured(engine: EngineModel, reading: Reading, ids: Sequence[int], new: Sequence[int]) -> Divergence:
    """Of the tokens `new` behind the prompt `ids`: one full prefill, and a forced pass behind it and behind `reading`,
    whose cache is cut to the prompt."""
    reading.cache.truncate(len(ids))
    if isinstance(reading.cache, SparseCache):  # which reads one token otherwise than several
        ours = torch.stack([reading.logits, *(engine.run([token], reading.cache)[-1] for token in new[:-1])])
    else:
        ours = forced_logits(engine, reading.cache, reading.logits, new)
    full = prefill(engine, ids, engine.new_cache(len(ids) + len(new)), chunk_tokens=STEP)
    return divergence(forced_logits(engine, full.cache, full.logits, new), ours)
