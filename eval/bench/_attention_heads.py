"""Which heads of a model look at the chunks that hold the evidence, for `rag bench attention`.

A head alone ranks the chunks of a prompt by what the question gives to a slot of each in it; its figure is the share of
the evidence among the first chunks up to a quarter of the slots. What the best few add to the prior is measured on
cases that they were not chosen on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Any, ClassVar

import torch
from torch import Tensor

from eval.bench._attention_prompts import Case
from eval.bench._kv_prompts import Loaded
from rag.engine.attention import Kept, Memory, Selection, Sparse, Step, read_sparsely
from rag.engine.attention._choose import standardised
from rag.engine.attention._heads import Head, vote, voted
from rag.engine.attention.chunk_block import ChunkBlock
from rag.engine.errors import EngineError

__all__ = ["heads_part"]

DENSITY, HEADS, VOTERS, FOLDS, SHOWN = 0.25, 3, 32, 5, 12


@dataclass(frozen=True, kw_only=True, eq=False)
class _Watcher(Selection):
    """Lets every head of every layer vote, and is dense."""

    name: ClassVar[str] = "watcher"
    heads: Sequence[Head]
    memory: Memory

    def select(self, step: Step, memory: Memory) -> Kept | None:
        layout = self.memory.across.get("layout")
        if step.units is not None and layout is None:
            layout = self.memory.across["layout"] = ChunkBlock(anchor=0).layout(step.units)
        if layout is not None and int(step.places[-1]) >= layout.stop:
            first = int((step.places < layout.stop).sum())
            vote(step, self.memory, layout, first, self.heads, VOTERS)
        return None


@dataclass(frozen=True, kw_only=True, eq=False)
class _Seen:
    """Of one case: what the heads told, the prior's z scores (chunks), and the chunks with evidence."""

    memory: Memory
    prior: Tensor
    lengths: Tensor
    evidence: tuple[int, ...]

    def scores(self, heads: Sequence[Head]) -> Tensor:
        """(chunks), z scores of these heads together."""
        found = voted(self.memory, self.memory.across["layout"], heads)
        if found is None:
            raise EngineError("the model has not read the question")
        return found[0]

    def recall(self, scores: Tensor) -> float:
        """The share of the slots of each chunk with evidence that is read, where chunks are read in the order of
        `scores` until a share DENSITY of all slots is."""
        order = scores.argsort(descending=True, stable=True)
        lengths = self.lengths[order].double()
        read = ((DENSITY * lengths.sum() - lengths.cumsum(0)) / lengths + 1).clamp(0, 1)
        return float(torch.zeros_like(lengths).scatter(0, order, read)[list(self.evidence)].mean())


def heads_part(
    loaded: Loaded, cases: Iterator[Case], *, tell: Callable[[str], None] = lambda _: None
) -> dict[str, Any]:
    """`heads`: the best, with their evidence recall; `recall`: that of the prior, of the best HEADS together and of
    both, heads chosen on other cases than they are judged on; nothing of fewer than FOLDS cases."""
    every = [(layer, head) for layer in range(loaded.model.layers) for head in range(loaded.model.kv_heads)]
    seen = []
    for number, case in enumerate(cases):
        tell(f"heads {number + 1}: {len(case.ids)} tokens")
        seen.append(_seen(loaded, case, every))
    recalls = {head: [one.recall(one.scores([head])) for one in seen] for head in every}
    best = _best(recalls, range(len(seen)))
    told = [{"layer": head[0], "head": head[1], "recall": mean(recalls[head])} for head in best[:SHOWN]]
    figures: dict[str, list[float]] = {"prior": [], "heads": [], "both": []}
    for number, one in enumerate(seen if len(seen) >= FOLDS else ()):
        chosen = _best(recalls, [at for at in range(len(seen)) if at % FOLDS != number % FOLDS])[:HEADS]
        scores = one.scores(chosen)
        for name, ranked in (("prior", one.prior), ("heads", scores), ("both", one.prior + scores)):
            figures[name].append(one.recall(ranked))
    means = {name: mean(one) for name, one in figures.items() if one}
    return {"cases": len(seen), "density": DENSITY, "heads": told, "recall": means}


def _best(recalls: Mapping[Head, Sequence[float]], of: Sequence[int]) -> list[Head]:
    """The best first by the mean over these cases, of equals the earlier."""
    return sorted(recalls, key=lambda head: (-round(mean(recalls[head][at] for at in of), 9), head))


def _seen(loaded: Loaded, case: Case, heads: Sequence[Head]) -> _Seen:
    memory, units = Memory(), case.units()
    watcher = _Watcher(heads=heads, memory=memory)
    with torch.inference_mode(), read_sparsely(loaded.model.model, Sparse(watcher, "gather", units)):
        loaded.model.run(case.ids, loaded.model.new_cache(len(case.ids)), keep=1)
    prior = torch.zeros(len(units)) if units.priors is None else standardised(units.priors)
    return _Seen(memory=memory, prior=prior, lengths=units.lengths, evidence=case.evidence)
