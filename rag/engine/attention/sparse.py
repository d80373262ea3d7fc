"""Sparse attention in any model of transformers: registered once, under one name, for attention and for masks.

Under the name a pass is dense unless it is given a `Sparse`, as `model(..., sparse=...)` or by `read_sparsely`. A name
that is registered for attention alone would get no mask at all, and read padding.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask
from transformers.modeling_utils import AttentionInterface

from rag.engine.attention._base import Kept, Memory, Selection, Step
from rag.engine.attention.executors import EXECUTORS, ExecutorName, executor_for, ran_as
from rag.engine.attention.executors.gather import in_tiles
from rag.engine.attention.units import Units
from rag.engine.errors import EngineError
from rag.engine.tiles import attend_in_tiles

__all__ = ["NAME", "AttentionStats", "Sparse", "read_sparsely"]

NAME = "chunkwise-sparse"


@dataclass(frozen=True, slots=True)
class AttentionStats:
    """What was read, summed over passes, layers, sequences and kv heads. Pairs are of a query and a slot; `read_bytes`
    are of the keys and values that a pass read at all, out of `held_bytes` that it could have.

    `executor` is what was asked for; `prefill_executor` and `decode_executor` (passes of one token) name what ran, the
    one that read most layers first: "dense" where a selection kept all, or a mask could not be read; "" without a pass.
    """

    selection: str
    executor: str
    kept_pairs: int = 0
    causal_pairs: int = 0
    read_bytes: int = 0
    held_bytes: int = 0
    unread_masks: int = 0
    """Passes of one layer that were dense because their mask was not causal, with padding at the ends or without."""
    prefill_executor: str = ""
    decode_executor: str = ""

    @property
    def ran(self) -> str:
        """The executors that ran in prefill and in decoding, in words."""
        if not self.decode_executor or self.prefill_executor in ("", self.decode_executor):
            return self.prefill_executor or self.decode_executor
        return f"{self.prefill_executor} in prefill, {self.decode_executor} in decoding"

    @property
    def density(self) -> float:
        """The share of the causal pairs that was computed; 1 before the first pass."""
        return self.kept_pairs / self.causal_pairs if self.causal_pairs else 1.0


@dataclass(eq=False)
class Sparse:
    """How one sequence, or one batch, is read: make one for each cache. `units` are the chunks of its prompt, for a
    batch those of each sequence. A pass over fewer than `min_length` slots is dense.

    A cache that is truncated, or in which a pass overwrites slots, is noticed; one that is written without a pass in
    slots that a pass has read is not: call `forget` then.
    """

    selection: Selection
    executor: ExecutorName = "auto"
    units: Units | Sequence[Units] | None = None
    min_length: int = 0
    _memories: dict[tuple[int, int], Memory] = field(default_factory=dict, init=False)
    _across: dict[int, dict[str, Any]] = field(default_factory=dict, init=False)
    _mask: tuple[Tensor, list[_Part] | None] | None = field(default=None, init=False)
    _pairs: list[Any] = field(default_factory=lambda: [0, 0, 0, 0, 0], init=False)
    """Whole numbers, on the device where they were counted: a sum of float32 loses pairs beyond 2^24."""
    _ran: tuple[Counter[str], Counter[str]] = field(default_factory=lambda: (Counter(), Counter()), init=False)

    def __post_init__(self) -> None:
        if self.executor != "auto" and self.executor not in EXECUTORS:
            raise EngineError(f"executor must be auto or one of {', '.join(EXECUTORS)}, not {self.executor!r}")
        if self.min_length < 0:
            raise EngineError(f"min_length must be >= 0, not {self.min_length}")

    def forget(self) -> None:
        """What was remembered of keys is gone; the counts stay."""
        self._memories.clear()
        self._across.clear()

    @property
    def stats(self) -> AttentionStats:
        prefill, decode = (" and ".join(name for name, _ in one.most_common()) for one in self._ran)
        kept, causal, read, held, masks = (int(one) for one in self._pairs)
        return AttentionStats(
            self.selection.label, self.executor, kept, causal, read, held, masks, prefill, decode
        )  # fmt: skip

    def attend(
        self, module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float | None
    ) -> Tensor:
        """As transformers calls it; (batch, queries, heads, d)."""
        scale = scaling if scaling is not None else query.shape[-1] ** -0.5
        parts = self._parts(mask, query, key)
        if parts is None:
            self._pairs[4] += 1
            self.forget()  # which slots it wrote is not known
            self._count_dense(query, key)
            return _plain(module, query, key, value, mask, scale)
        if len(parts) == 1:
            step = Step(module.layer_idx, query, key, value, parts[0].places, scale, self._units(-1), module)
            kept = self._select(step, -1)
            if kept is None and step.queries > 1:
                self._count_dense(query, key)
                if step.batch == 1 and in_tiles(step):
                    return attend_in_tiles(query, key, value, step.places, scale)
                return _plain(module, query, key, value, mask, scale)
            return self._run(step, kept).transpose(1, 2).contiguous()
        out = torch.zeros_like(query)
        for number, part in enumerate(parts):
            if part.rows.stop > part.rows.start:
                q, k, v = query[:, :, part.rows], key[:, :, part.slots], value[:, :, part.slots]
                q, k, v = (one[number : number + 1] for one in (q, k, v))
                step = Step(module.layer_idx, q, k, v, part.places, scale, self._units(number), module)
                out[number : number + 1, :, part.rows] = self._run(step, self._select(step, number))
        return out.transpose(1, 2).contiguous()

    def _select(self, step: Step, sequence: int) -> Kept | None:
        shared = self._across.setdefault(sequence, {})
        memory = self._memories.setdefault((step.layer, sequence), Memory(across=shared))
        memory.begin(step.first)
        kept = self.selection.select(step, memory) if step.slots >= self.min_length else None
        memory.valid = step.slots
        return kept

    def _run(self, step: Step, kept: Kept | None) -> Tensor:
        name = "gather" if kept is None else executor_for(self.executor, step)
        self._ran[step.queries == 1]["dense" if kept is None else ran_as(name, step)] += 1
        kept = kept or _everything(step)
        self._count(step, kept.pairs(step), kept.read_slots(step))
        return EXECUTORS[name](step if kept.bias is None else step.biased(kept.bias), kept)

    def _units(self, sequence: int) -> Units | None:
        units = self.units
        if units is not None and not isinstance(units, Units):
            units = units[max(0, sequence)]
        return units

    def _parts(self, mask: Tensor | None, query: Tensor, key: Tensor) -> list[_Part] | None:
        """One part if the batch can be read as one; None for a mask that is not understood."""
        batch, queries, slots = query.shape[0], query.shape[2], key.shape[2]
        own = self.units is not None and not isinstance(self.units, Units)
        if own and len(self.units) != batch:  # type: ignore[arg-type]
            raise EngineError(f"units are given for {len(self.units)} sequences, not {batch}")  # type: ignore[arg-type]
        if mask is None:
            whole = _Part(slice(0, queries), slice(0, slots), torch.arange(slots - queries, slots))
            return [whole] * (batch if own else 1)
        if self._mask is None or self._mask[0] is not mask:
            self._mask = (mask, _parts_of(mask))
        parts = self._mask[1]
        if parts is not None and not own and all(one.same(parts[0], queries, slots) for one in parts):
            return parts[:1]
        return parts * batch if parts is not None and len(parts) < batch else parts

    def _count_dense(self, query: Tensor, key: Tensor) -> None:
        queries, slots = query.shape[2], key.shape[2]
        pairs = queries * slots - queries * (queries - 1) // 2
        self._ran[queries == 1]["dense"] += 1
        self._add(key, pairs * key.shape[0] * key.shape[1], None, slots * key.shape[0] * key.shape[1])

    def _count(self, step: Step, kept: Tensor | int, read: Tensor | int) -> None:
        heads = step.batch * step.kv_heads
        self._add(step.key, step.causal_pairs * heads, (kept, read), step.slots * heads)

    def _add(self, key: Tensor, causal: int, kept: tuple[Tensor | int, Tensor | int] | None, held: int) -> None:
        width = 2 * key.shape[3] * key.element_size()
        pairs, read = kept if kept is not None else (causal, held)
        for at, more in enumerate((pairs, causal, read * width, held * width)):
            self._pairs[at] = self._pairs[at] + more


@dataclass(frozen=True, eq=False, slots=True)
class _Part:
    """The rows and slots of one sequence without its padding, and the slots of the rows counted from its first."""

    rows: slice
    slots: slice
    places: Tensor

    def same(self, other: _Part, queries: int, slots: int) -> bool:
        whole = (self.rows, self.slots) == (slice(0, queries), slice(0, slots))
        return whole and torch.equal(self.places, other.places)


def _parts_of(mask: Tensor) -> list[_Part] | None:
    """Of a mask (batch, 1, queries, slots), True where a row reads: what each sequence is without padding. None if one
    reads otherwise than every slot up to some slot."""
    if mask.dtype != torch.bool or mask.shape[1] != 1:
        return None
    parts = []
    for seen in mask[:, 0].cpu():
        used = seen.any(0).nonzero()[:, 0].tolist()
        start, stop = (used[0], used[-1] + 1) if used else (0, 0)
        last = seen.sum(-1) - 1
        if not torch.equal(seen[:, start:stop], torch.arange(stop - start) <= last[:, None]):
            return None
        real = last.diff(prepend=torch.tensor([-1])) > 0  # padding behind reads what the last token did
        rows = real.nonzero()[:, 0].tolist()
        first, end = (rows[0], rows[-1] + 1) if rows else (0, 0)
        if len(rows) != end - first:
            return None
        parts.append(_Part(slice(first, end), slice(start, stop), last[first:end]))
    return parts


def _everything(step: Step) -> Kept:
    none = torch.zeros(1, 1, 1, 0, dtype=torch.bool, device=step.device)
    return Kept(Units.pages(0, 1, step.device), (0, step.queries), (0,), none)


@contextmanager
def read_sparsely(model: Any, sparse: Sparse) -> Iterator[None]:
    """Inside, every pass of the transformers `model` is read by `sparse`, whoever calls it, `generate` too. Not for
    several threads of one model, and not with a cache that asks for another attention."""
    before = model.config._attn_implementation

    def give(module: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        asked = module.config._attn_implementation
        if asked != NAME:
            raise EngineError(f"this pass asks for the attention {asked!r}: it cannot be sparse at the same time")
        return args, {**kwargs, "sparse": sparse}

    hook = model.register_forward_pre_hook(give, with_kwargs=True)
    model.config._attn_implementation = NAME
    try:
        yield
    finally:
        model.config._attn_implementation = before
        hook.remove()


def _plain(module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    out: Tensor = sdpa_attention_forward(module, query, key, value, mask, scaling=scale)[0]
    return out


def _attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    sparse: Sparse | None = None,
    **given: Any,
) -> tuple[Tensor, None]:
    if sparse is None:
        dense: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, **given
        )
        return dense
    return sparse.attend(module, query, key, value, attention_mask, scaling), None


AttentionInterface.register(NAME, _attend)
AttentionMaskInterface.register(NAME, sdpa_mask)
