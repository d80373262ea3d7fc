"""How far each selection strays from dense attention, for `rag bench attention`.

Attention mass and evidence recall are those of one dense pass, in which every selection is asked and none is followed.
Likelihoods and divergence are of passes that follow one: the prompt in one pass, then the gold tokens one by one.
"""

from __future__ import annotations

import json
import random
import time
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, median
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from eval.bench._attention_plans import Plan
from eval.bench._attention_prompts import Case
from eval.bench._kv_prompts import Loaded
from eval.bench._kv_reuse import interval
from rag.engine.attention import Kept, Memory, Selection, Sparse, Step, read_sparsely

if TYPE_CHECKING:
    from rag.engine.cache import KvCache

__all__ = ["DENSE", "quality", "ranked", "row_reads", "summary"]

DENSE = "dense"
SAMPLED = 12
"""Rows of a pass whose attention mass is measured, of all heads and layers."""
Row = dict[str, Any]


@dataclass(frozen=True, eq=False)
class _Seen:
    """Of one plan: attention mass by layer and sampled row, and the share of the evidence that a token could read."""

    mass: dict[int, list[float]] = field(default_factory=dict)
    evidence: dict[int, list[float]] = field(default_factory=dict)
    memories: dict[int, Memory] = field(default_factory=dict)
    across: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Probe(Selection):
    """Asks every plan in every layer of a pass and follows none."""

    name: ClassVar[str] = "probe"
    plans: Sequence[Plan]
    evidence: Sequence[tuple[int, int]] = ()
    seen: dict[str, _Seen] = field(default_factory=dict)

    def select(self, step: Step, memory: Memory) -> Kept | None:
        rows = sorted({round(step.queries * (at + 1) / SAMPLED) - 1 for at in range(SAMPLED)} - {-1})
        weights = _weights(step, rows)
        for plan in self.plans:
            seen = self.seen.setdefault(plan.key, _Seen())
            own = seen.memories.setdefault(step.layer, Memory(across=seen.across))
            own.begin(step.first)
            kept = plan.selection.select(step, own)
            own.valid = step.slots
            reads = None if kept is None else [row_reads(step, kept, row) for row in rows]
            if step.queries > 1:
                told = [1.0 if reads is None else _share(weights[:, :, :, n], reads[n]) for n in range(len(rows))]
                seen.mass.setdefault(step.layer, []).extend(told)
            elif self.evidence:
                read = torch.ones(1, 1, step.slots) if reads is None else reads[-1].float()
                found = [float(read[..., start:stop].mean()) for start, stop in self.evidence]
                seen.evidence.setdefault(step.layer, []).append(mean(found))
        return None


def _weights(step: Step, rows: Sequence[int]) -> Tensor:
    """(batch, kv heads, group, rows, slots), float32: the dense attention of these rows."""
    scores = (step.grouped[:, :, :, list(rows)] @ step.key[:, :, None].transpose(-1, -2)).float() * step.scaling
    later = torch.arange(step.slots) > step.places[list(rows)][:, None]
    return scores.masked_fill(later, -torch.inf).softmax(-1)


def _share(weights: Tensor, reads: Tensor) -> float:
    return float((weights * reads[:, :, None]).sum(-1).mean())


def row_reads(step: Step, kept: Kept, row: int) -> Tensor:
    """(batch or 1, kv heads or 1, slots): what the row reads."""
    block = bisect_right(kept.rows, row) - 1
    slots = torch.arange(step.slots)
    return kept.past(block, step.slots) | ((slots >= kept.local[block]) & (slots <= int(step.places[row])))


@dataclass(frozen=True, kw_only=True)
class _Run:
    """`logits` (gold tokens, vocabulary) before each gold token; CPU seconds of the prompt and of a token behind it."""

    logits: Tensor
    seconds: float
    step_seconds: float | None
    density: float


def _run(loaded: Loaded, case: Case, selection: Selection | None, *, first: bool = False) -> _Run:
    """None is dense, with the cache that is written in place. With `first` only one gold token is given to the model,
    also where it is the last one."""
    whole = case.kind == "text"
    gold = case.gold[:1] * 2 if first else case.gold
    ids = [*case.ids, *gold[:-1]] if whole else case.ids
    cache: KvCache = loaded.model.new_cache(len(case.ids) + len(gold))
    sparse = None if selection is None else Sparse(selection, "gather", case.units())
    with torch.inference_mode(), nullcontext() if sparse is None else read_sparsely(loaded.model.model, sparse):
        begin = time.process_time()
        rows = [loaded.model.run(ids, cache, keep=len(gold) if whole else 1)]
        seconds = time.process_time() - begin
        begin = time.process_time()
        forced = () if whole else gold[:-1]
        rows += [loaded.model.run([token], cache) for token in forced]
        spent = time.process_time() - begin
    density = 1.0 if sparse is None else sparse.stats.density
    return _Run(
        logits=torch.cat(rows), seconds=seconds, step_seconds=spent / len(forced) if forced else None, density=density
    )  # fmt: skip


def quality(
    loaded: Loaded,
    cases: Iterator[Case],
    make: Callable[[int], Sequence[Plan]],
    *,
    seed: int = 0,
    rows_file: Path | None = None,
    tell: Callable[[str], None] = lambda _: None,
) -> list[Row]:
    """A row for every case and plan, and one for dense. `make` gives the plans for a prompt of so many tokens. What
    `rows_file` tells of already is not run again."""
    rows = _told(rows_file)
    done = {(row["kind"], row["case"], row["plan"]) for row in rows}
    wanted: set[tuple[str, str]] = set()
    for number, case in enumerate(cases):
        wanted.add((case.kind, case.name))
        left = [one for one in make(len(case.ids)) if (case.kind, case.name, one.key) not in done]
        if not left and (case.kind, case.name, DENSE) in done:
            continue
        tell(f"{case.kind} {number + 1}: {len(case.ids)} tokens, {len(left)} selections")
        for row in _case(loaded, case, left, random.Random(f"{seed} {case.name}")):  # noqa: S311
            if (row["kind"], row["case"], row["plan"]) in done:
                continue  # dense, which the others are compared with
            rows.append(row)
            if rows_file is not None:
                with rows_file.open("a", encoding="utf-8") as out:
                    out.write(json.dumps(row) + "\n")
    return [row for row in rows if (row["kind"], row["case"]) in wanted]


def _told(rows_file: Path | None) -> list[Row]:
    if rows_file is None or not rows_file.exists():
        return []
    return [json.loads(line) for line in rows_file.read_text(encoding="utf-8").splitlines()]


def _case(loaded: Loaded, case: Case, left: Sequence[Plan], draw: random.Random) -> Iterator[Row]:
    from rag.engine.measure import divergence

    head: Row = {"kind": case.kind, "case": case.name, "tokens": len(case.ids)}
    reference = _run(loaded, case, None)
    likely = _likely(reference.logits, case.gold)
    yield head | {
        "plan": DENSE, "density": 1.0, "kept": 1.0, "gold": likely, "found": _found(reference.logits, case.gold),
        "seconds": reference.seconds, "step_seconds": reference.step_seconds,
    }  # fmt: skip
    seen = _probed(loaded, case, left) if case.kind in ("text", "asked") else {}
    for plan in draw.sample(list(left), len(left)):
        ours = _run(loaded, case, plan.selection)
        told = divergence(reference.logits, ours.logits)
        yield head | {
            "plan": plan.key, "density": plan.density, "kept": ours.density, "kl": told.kl, "first_kl": told.first_kl,
            "agreement": told.agreement, "gold": _likely(ours.logits, case.gold) - likely,
            "found": _found(ours.logits, case.gold), "seconds": ours.seconds / max(1e-9, reference.seconds),
            "step_seconds": _over(ours.step_seconds, reference.step_seconds), **seen.get(plan.key, {}),
        }  # fmt: skip


def _probed(loaded: Loaded, case: Case, plans: Sequence[Plan]) -> dict[str, Row]:
    """Of every plan: mean attention mass, that of its worst layer, and the evidence read, layer by layer."""
    spans = case.spans
    probe = _Probe(plans=plans, evidence=[spans[at] for at in case.evidence])
    _run(loaded, case, probe, first=True)
    found = {}
    for key, seen in probe.seen.items():
        by_layer = [mean(told) for told in seen.mass.values()]
        one: Row = {"mass": mean(by_layer), "mass_worst": min(by_layer)}
        found[key] = one
        if seen.evidence:
            one["evidence"] = [round(mean(seen.evidence[at]), 4) for at in sorted(seen.evidence)]
    return found


def _over(ours: float | None, dense: float | None) -> float | None:
    return None if ours is None or dense is None else ours / max(1e-9, dense)


def _likely(logits: Tensor, gold: Sequence[int]) -> float:
    picked = logits.log_softmax(-1)[torch.arange(len(gold)), torch.tensor(list(gold))]
    return float(picked.mean())


def _found(logits: Tensor, gold: Sequence[int]) -> bool:
    return logits.argmax(-1).tolist() == list(gold)


# ---------------------------------------------------------------------- figures


def summary(rows: Sequence[Mapping[str, Any]]) -> list[Row]:
    """For every plan its means over the cases; dense first. `gold_*` are changes of the mean log-likelihood of a token
    from dense, `gold_asked_interval` the middle 95 % of one over resampled cases; found_* the share of the cases in
    which every gold token is the most likely one. Evidence recall, by layer: the share of the slots of each chunk that
    holds evidence which the tokens of the answer read, over chunks, tokens and cases; `evidence_worst` is that of the
    worst layer. Seconds are shares of dense."""
    found = []
    for plan in dict.fromkeys(["dense", *(row["plan"] for row in rows)]):
        own = [row for row in rows if row["plan"] == plan]
        if not own:
            continue
        one: Row = {"plan": plan, "density": own[0]["density"], "cases": len(own)}
        for key in ("kept", "mass", "mass_worst", "kl", "first_kl", "agreement"):
            one[key] = _mean([row[key] for row in own if key in row])
        layers = [row["evidence"] for row in own if "evidence" in row]
        each = [mean(layer) for layer in zip(*layers, strict=True)] if layers else []
        one["evidence"], one["evidence_worst"] = (mean(each), min(each)) if each else (None, None)
        for kind in ("needle", "kv", "asked", "text"):
            of_kind = [row for row in own if row["kind"] == kind]
            one[f"n_{kind}"] = len(of_kind)
            one[f"gold_{kind}"] = _mean([row["gold"] for row in of_kind])
            if kind == "asked":
                one["gold_asked_interval"] = interval([row["gold"] for row in of_kind]) if of_kind else None
            if kind != "text":
                one[f"found_{kind}"] = _mean([float(row["found"]) for row in of_kind])
        one["seconds"] = median(row["seconds"] for row in own)
        steps = [row["step_seconds"] for row in own if row["step_seconds"]]
        one["step_seconds"] = median(steps) if steps else None
        found.append(one)
    return ranked(found)


def _mean(values: Sequence[float]) -> float | None:
    return mean(values) if values else None


RANKED = ("mass", "gold_needle", "gold_asked")
"""By these together: perplexity alone rewards a plain recent window, which cannot retrieve."""


def ranked(told: Sequence[Row]) -> list[Row]:
    """With `rank`, the mean of a plan's places by RANKED among the plans of its density, the best first."""
    found: list[Row] = []
    for density in sorted({one["density"] for one in told}, reverse=True):
        own = [one for one in told if one["density"] == density]
        for one in own:
            places = [
                1 + sum(other[key] is not None and other[key] > one[key] for other in own)
                for key in RANKED
                if one.get(key) is not None
            ]
            one["rank"] = mean(places) if places else None
        found += sorted(own, key=lambda one: (one["rank"] is None, one["rank"] or 0.0, one["plan"]))
    return found
