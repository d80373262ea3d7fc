"""The attention operation alone, for `rag bench attention`: states of a real text, dense against every selection.

The queries, keys and values are those of one layer of the bundled model. Times are CPU times of one layer; contenders
run in turns, in an order that changes every round, and ratios are taken inside a round.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from statistics import median
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from eval.bench._attention_plans import NAMES, plans
from eval.bench._kv_prompts import Loaded
from rag.engine.attention import Kept, Memory, Selection, Sparse, Step, Units, read_sparsely
from rag.engine.attention.executors.gather import gather, in_tiles
from rag.engine.tiles import attend_in_tiles

__all__ = ["KEPT", "interleaved", "op_rows", "states_of"]

KEPT = 1024
TILES = "dense, tiles"
"""How our engine reads densely where that is faster than torch's kernel."""
LAYER = 4
STEPS = 16
"""Tokens that are decoded one after the other in a turn."""
CHUNK = 200
Contenders = Mapping[str, Callable[[], object]]


class _CapturedError(Exception):
    """Ends a pass when the layer was seen."""


@dataclass(frozen=True, kw_only=True, eq=False)
class _Capture(Selection):
    name: ClassVar[str] = "capture"
    layer: int
    held: list[Step] = field(default_factory=list)

    def select(self, step: Step, memory: Memory) -> Kept | None:
        if step.layer == self.layer:
            self.held.append(step)
            raise _CapturedError
        return None


def states_of(loaded: Loaded, ids: Sequence[int]) -> Step:
    """What attention is asked in layer LAYER (the last, if there are fewer) when the model reads `ids` in one pass."""
    capture = _Capture(layer=min(LAYER, loaded.model.layers - 1))
    with torch.inference_mode(), read_sparsely(loaded.model.model, Sparse(capture)), suppress(_CapturedError):
        loaded.model.run(ids, loaded.model.new_cache(len(ids)))
    return capture.held[0]


def op_rows(states: Step, *, kept: int = KEPT, rounds: int = 3, names: Sequence[str] = NAMES) -> list[dict[str, Any]]:
    """Of both stages and every selection: milliseconds of dense, of gathering and attending, and with the selection's
    own cost; their ratios; and the density."""
    with torch.inference_mode():
        return [*_prefill(states, kept, rounds, names), *_decode(states, kept, rounds, names)]


def interleaved(contenders: Contenders, rounds: int) -> dict[str, list[float]]:
    """CPU seconds of each in each round, after one that does not count."""
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(rounds + 1):
        at = number % len(contenders)
        for name in [*contenders][at:] + [*contenders][:at]:
            begin = time.process_time()
            contenders[name]()
            if number:
                times[name].append(time.process_time() - begin)
    return times


def _selections(slots: int, kept: int, names: Sequence[str]) -> dict[str, Selection]:
    return {one.name: one.selection for one in plans(slots, [min(1.0, kept / slots)], names)}


def _prefill(states: Step, kept: int, rounds: int, names: Sequence[str]) -> list[dict[str, Any]]:
    step = replace(states, units=_chunks(states.slots))
    key, value = (one.repeat_interleave(step.group, dim=1) for one in (step.key, step.value))

    def dense() -> Tensor:
        return scaled_dot_product_attention(step.query, key, value, is_causal=True, scale=step.scaling)

    def grouped() -> Tensor:
        return scaled_dot_product_attention(
            step.query, step.key, step.value, is_causal=True, scale=step.scaling, enable_gqa=True
        )

    contenders: dict[str, Callable[[], object]] = {"dense": dense, "dense, grouped": grouped}
    if in_tiles(step):
        contenders[TILES] = lambda: attend_in_tiles(step.query, step.key, step.value, step.places, step.scaling)
    densities: dict[str, float] = {}
    for name, selection in _selections(step.slots, kept, names).items():
        found = selection.select(step, _memory(0))
        if found is None:
            continue
        densities[name] = float(found.pairs(step)) / (step.causal_pairs * step.batch * step.kv_heads)
        contenders[name] = lambda found=found: gather(step, found)  # type: ignore[misc]
        contenders[f"{name}, selection"] = lambda one=selection: one.select(step, _memory(0))  # type: ignore[misc]
    return _rows("prefill", step, interleaved(contenders, rounds), densities, 1)


def _decode(states: Step, kept: int, rounds: int, names: Sequence[str]) -> list[dict[str, Any]]:
    count = min(STEPS, states.slots // 4)
    units = _chunks(states.slots - count)
    steps = [_row(states, states.slots - count + at, units) for at in range(count)]

    def dense() -> None:
        for one in steps:
            query = one.grouped[:, :, :, 0]
            scaled_dot_product_attention(query, one.key, one.value, scale=one.scaling)

    def grouped() -> None:
        for one in steps:
            scaled_dot_product_attention(one.query, one.key, one.value, scale=one.scaling, enable_gqa=True)

    contenders: dict[str, Callable[[], object]] = {"dense": dense, "dense, grouped": grouped}
    densities: dict[str, float] = {}
    for name, selection in _selections(states.slots, kept, names).items():
        memory = _memory(steps[0].first)
        selection.select(steps[0], memory)  # what is held of the prompt is there before the first token
        found = _choices(steps, selection, memory)
        if any(one is None for one in found):
            continue
        pairs = [float(one.pairs(step)) / step.slots for step, one in zip(steps, found, strict=True) if one]
        densities[name] = sum(pairs) / len(pairs) / (steps[0].batch * steps[0].kv_heads)
        contenders[name] = lambda found=found: [gather(a, b) for a, b in zip(steps, found, strict=True) if b]  # type: ignore[misc]
        contenders[f"{name}, selection"] = lambda one=selection, held=memory: _choices(steps, one, held)  # type: ignore[misc]
    return _rows("decode", steps[-1], interleaved(contenders, rounds), densities, count)


def _choices(steps: Sequence[Step], selection: Selection, memory: Memory) -> list[Kept | None]:
    found = []
    for step in steps:
        memory.begin(step.first)
        found.append(selection.select(step, memory))
        memory.valid = step.slots
    return found


def _memory(valid: int) -> Memory:
    return Memory(valid=valid)


def _row(states: Step, place: int, units: Units) -> Step:
    """The token at `place` when it is the last one."""
    key, value = (one[:, :, : place + 1] for one in (states.key, states.value))
    places = torch.tensor([place])
    return Step(states.layer, states.query[:, :, place : place + 1], key, value, places, states.scaling, units)


def _chunks(slots: int) -> Units:
    """Chunks of CHUNK slots behind a short head; the last 64 slots are the question's."""
    head = min(32, slots // 8)
    body = (slots - head - min(64, slots // 8)) // CHUNK
    spans = [(head + at * CHUNK, head + (at + 1) * CHUNK) for at in range(body)]
    return Units.of_spans(spans or [(head, slots // 2)])


def _rows(
    stage: str, step: Step, times: Mapping[str, Sequence[float]], densities: Mapping[str, float], count: int
) -> list[dict[str, Any]]:
    base = min(("dense", "dense, grouped"), key=lambda name: median(times[name]))
    rows = []
    for name, density in densities.items():
        both = [a + b for a, b in zip(times[name], times[f"{name}, selection"], strict=True)]
        rows.append(
            {
                "stage": stage, "tokens": step.slots, "dtype": str(step.key.dtype).removeprefix("torch."),
                "selection": name, "density": density, "dense": base, "dense_ms": _ms(times[base], count),
                "stock_ms": _ms(times["dense, grouped"], count), "gather_ms": _ms(times[name], count),
                "selection_ms": _ms(times[f"{name}, selection"], count),
                "gather_ratio": _ratio(times[base], times[name]), "ratio": _ratio(times[base], both),
            }
        )  # fmt: skip
        if TILES in times:
            rows[-1] |= {"tiles_ms": _ms(times[TILES], count), "over_tiles": _ratio(times[TILES], both)}
    return rows


def _ms(times: Sequence[float], count: int) -> float:
    return 1000 * median(times) / count


def _ratio(dense: Sequence[float], ours: Sequence[float]) -> float:
    return median(a / max(1e-9, b) for a, b in zip(dense, ours, strict=True))
