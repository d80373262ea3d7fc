"""Which heads of a model look at the chunks that hold the evidence, for `rag bench attention`.

A head alone ranks the chunks of a prompt by what the question gives to a slot of each in it; its figure is the share of
the evidence among the first chunks up to a quarter of the slots. What the best few add to the prior is measured on
cases that they were not chosen on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Any, ClassVar

import torch
from torch import Tensor

from eval.bench._attention_prompts import Case
from eval.bench._kv_prompts import Loaded
from rag.engine.attention import Kept, Memory, Selection, Sparse, Step, Units, read_sparsely
from rag.engine.attention._choose import fill, standardised
from rag.engine.attention._heads import Head, head_scores, vote, voted
from rag.engine.attention.chunk_block import ChunkBlock

__all__ = ["best_heads", "heads_part"]

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
    """Of one case: z scores (heads, chunks) of every head, the prior's (chunks), and where the evidence is."""

    set: str
    alone: Tensor
    mass: Tensor
    prior: Tensor
    lengths: Tensor
    evidence: Tensor


def heads_part(loaded: Loaded, cases: Iterator[Case], *, tell: Callable[[str], None] = lambda _: None) -> dict[str, Any]:
    """`heads`: the best, with their evidence recall; `recall`: of the prior, of the heads and of both, heads chosen on
    other cases than they are judged on."""
    config = loaded.model.config
    heads = [(layer, head) for layer in range(loaded.model.layers) for head in range(config.num_key_value_heads)]
    seen = []
    for number, case in enumerate(cases):
        tell(f"heads {number + 1}: {len(case.ids)} tokens")
        seen.append(_seen(loaded, case, heads))
    order, figures = best_heads([one.alone for one in seen], [one.lengths for one in seen], [one.evidence for one in seen])
    told = [{"layer": heads[at][0], "head": heads[at][1], "recall": figures[at]} for at in order[:SHOWN]]
    return {"cases": len(seen), "density": DENSITY, "heads": told, "recall": _recalls(seen)}


def best_heads(
    scores: Sequence[Tensor], lengths: Sequence[Tensor], evidence: Sequence[Tensor]
) -> tuple[list[int], list[float]]:
    """The places of the heads, the best first, and the mean evidence recall of each, from `scores` (heads, chunks) of
    every case."""
    each = torch.stack([_recall(*one) for one in zip(scores, lengths, evidence, strict=True)])
    figures = each.double().mean(0)
    return figures.round(decimals=9).argsort(descending=True, stable=True).tolist(), figures.tolist()


def _seen(loaded: Loaded, case: Case, heads: Sequence[Head]) -> _Seen:
    memory, units = Memory(), case.units()
    watcher = _Watcher(heads=heads, memory=memory)
    with torch.inference_mode(), read_sparsely(loaded.model.model, Sparse(watcher, "gather", units)):
        loaded.model.run(case.ids, loaded.model.new_cache(len(case.ids)), keep=1)
    layout = memory.across["layout"]
    alone = [voted(memory, layout, [head]) for head in heads]
    mass = memory.across
    assert all(one is not None for one in alone)  # noqa: S101  # for the type checker: every layer has run
    return _Seen(
        set=case.name, alone=torch.cat([one for one in alone if one is not None]), mass=_masses(mass),
        prior=standardised(_priors(units)), lengths=units.lengths, evidence=torch.tensor(case.evidence),
    )  # fmt: skip
