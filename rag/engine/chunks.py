"""Chunk reuse: blocks moved to where they stand in this prompt, and one sparse pass over what must be computed.

The blocks never saw what now stands before them. `positions` of theirs that are worth it are computed again together
with the new tokens: all of them run through all layers at once, attend to the cache by position, and overwrite their
slots. With every position repaired the result is that of a full prefill.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from rag.engine.blocks import KvBlock
from rag.engine.cache import KvCache
from rag.engine.errors import EngineError, InterruptedPrefillError
from rag.engine.layers import LayerPass
from rag.engine.layout import Layout, Placed, lay_out
from rag.engine.model import EngineModel
from rag.engine.prefill import KeepGoing, PartCount, Prefill
from rag.engine.rotate import turn, turns

if TYPE_CHECKING:
    from rag.engine.repair import RepairPolicy

__all__ = ["assemble", "complete", "open_at_prefix", "prefill_chunks"]


def assemble(model: EngineModel, cache: KvCache, layout: Layout) -> None:
    """Writes the blocks of `layout` into `cache`, which holds at least its prefix; anything after that is dropped."""
    open_at_prefix(model, cache, layout)
    for placed in _stretches(layout.placed):
        moves = turns(((one.start, len(one.block)) for one in placed), model.frequencies, model.device)
        keys = [one.block.k.to(model.device) for one in placed]
        values = [one.block.v.to(model.device) for one in placed]
        for layer in range(model.layers):  # all chunks at once: what each of many calls costs is more than the copying
            k, v = cache.room(layer, placed[0].start, placed[-1].stop, keys[0][layer])
            turn(torch.cat([one[layer] for one in keys], dim=1), *moves, k[0])
            torch.cat([one[layer] for one in values], dim=1, out=v[0])


def _stretches(placed: Sequence[Placed]) -> list[list[Placed]]:
    """Blocks that stand one right after the other."""
    found: list[list[Placed]] = []
    for one in placed:
        if found and found[-1][-1].stop == one.start:
            found[-1].append(one)
        else:
            found.append([one])
    return found


def open_at_prefix(model: EngineModel, cache: KvCache, layout: Layout) -> None:
    """Cuts `cache` to the prefix and makes room; refuses blocks of other models."""
    if cache.length < layout.prefix:
        raise EngineError(f"the cache holds {cache.length} tokens of a prefix of {layout.prefix}")
    if cache.moved:
        raise EngineError("this cache was assembled with its prefix at other positions: start again from the prefix")
    for place in layout.placed:
        if place.block.fingerprint != model.fingerprint:
            raise EngineError(
                f"a block was made by the model {place.block.fingerprint}, not by this one ({model.fingerprint}): "
                "make it again"
            )
    cache.truncate(layout.prefix)
    cache.reserve(len(layout))
    cache.attention = {}


def complete(
    model: EngineModel,
    cache: KvCache,
    layout: Layout,
    repair: Iterable[int] = (),
    *,
    chunk_tokens: int = 512,
    keep_going: KeepGoing | None = None,
    leaving: Collection[int] = (),
    layers: int = 0,
) -> Prefill:
    """Computes the fresh positions and those in `repair` behind an assembled cache, in ascending order.

    `repair` names positions of blocks; those of them that are also `leaving` run through the first `layers` layers
    only, and stay as they were in all others. Chunks of the pass change nothing, since no token reads a later one.
    """
    if chunk_tokens < 1:
        raise EngineError(f"chunk_tokens must be >= 1, not {chunk_tokens}")
    held = {position for place in layout.placed for position in range(place.start, place.stop)}
    wanted = set(repair)
    if wanted - held:
        raise EngineError(f"position {min(wanted - held)} is in no block: only reused tokens can be repaired")
    slots = sorted(wanted.union(layout.fresh))
    for start in range(0, len(slots), chunk_tokens):
        if start and keep_going is not None and not keep_going(start, len(slots)):
            raise InterruptedPrefillError(start, len(slots))
        step = slots[start : start + chunk_tokens]
        run = LayerPass(model, cache, [layout.ids[i] for i in step], step)
        if leaving:
            _leave(run, frozenset(leaving), layers)
        run.finish()
    reused = len(layout) - len(slots)
    return Prefill(
        cache, run.logits(), computed=len(slots), reused=reused, repaired=len(wanted), repaired_at=tuple(sorted(wanted))
    )


def _leave(run: LayerPass, leaving: Collection[int], layers: int) -> None:
    for _ in range(layers):
        run.step()
    last = len(run.slots) - 1  # of a chunk of the pass: it stays, as the one that the model answers after
    stay = [row for row, slot in enumerate(run.slots.tolist()) if row == last or slot not in leaving]
    run.keep(torch.tensor(stay, device=run.slots.device))


def prefill_chunks(
    model: EngineModel,
    cache: KvCache,
    prefix: Sequence[int],
    parts: Sequence[KvBlock | Sequence[int]],
    policy: RepairPolicy,
    *,
    chunk_tokens: int = 1024,
    keep_going: KeepGoing | None = None,
) -> Prefill:
    """A prompt of `prefix`, which `cache` holds exactly, and `parts`: blocks are reused, plain ids computed."""
    layout = lay_out(prefix, parts)
    policy.assemble(model, cache, layout)
    done = policy.finish(model, cache, layout, chunk_tokens=chunk_tokens, keep_going=keep_going)
    return replace(done, parts=_counted(layout, parts, done))


def _counted(layout: Layout, parts: Sequence[KvBlock | Sequence[int]], done: Prefill) -> tuple[PartCount, ...]:
    """What became of the prefix and of every part."""
    told = len(done.repaired_at) == done.repaired
    counts = [PartCount(layout.prefix, layout.prefix)]
    start = layout.prefix
    for part in parts:
        if isinstance(part, KvBlock):
            stop = start + len(part)
            again = bisect_left(done.repaired_at, stop) - bisect_left(done.repaired_at, start)
            counts.append(PartCount(len(part), len(part) - again, again if told else None))
            start = stop
        else:
            counts.append(PartCount(len(part)))
            start += len(part)
    return tuple(counts)
