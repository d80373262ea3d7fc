"""Triton kernels for what was kept: block-sparse attention for several rows, pages split over the device for one token.

Rows: every program reads the list of tiles of its row block, whole ones without a mask; the slots from the block's
local one on need no list. One token: the query heads of a kv head share each page that is loaded, and the slots are
split so that one sequence fills the device (as in Flash-Decoding); a second kernel merges the parts.

Compiled at the first call on a GPU. With TRITON_INTERPRET=1 in the environment Triton's interpreter runs the same
kernels on a CPU, for tests of small shapes. Nothing is learnt through them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from rag.engine.attention._base import Kept, Step
from rag.engine.attention.executors._tiles import far_tiles, segments
from rag.engine.errors import EngineError

__all__ = ["Launch", "decode", "kernels", "launch_for", "prefill", "triton"]

_LOG2_E = math.log2(math.e)
_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
_SMALLEST = 16
"""Sides of a product that the tensor cores take."""
_BIG = 160_000
"""Bytes of shared memory with which three tiles can be under way: 131,072 of them at d = 128 in bfloat16."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Launch:
    """A program's rows (query heads times queries) and slots at a time, powers of two; how it is run; and among how
    many programs for each of the device's processors the slots of one token are split."""

    rows: int = 128
    slots: int = 64
    warps: int = 8
    stages: int = 3
    waves: int = 2

    def __post_init__(self) -> None:
        for name in ("rows", "slots"):
            size = getattr(self, name)
            if size < _SMALLEST or size & (size - 1):
                raise EngineError(f"triton: {name} must be a power of two >= {_SMALLEST}, not {size}")


def triton(step: Step, kept: Kept) -> Tensor:
    launch = launch_for(step)
    return decode(step, kept, launch) if step.queries == 1 else prefill(step, kept, launch)


def launch_for(step: Step) -> Launch:
    """So that a program's tiles fit in the shared memory of the device, whatever the head's width."""
    wide, exact = _room(step.key.shape[3]), step.key.dtype == torch.float32
    if step.queries == 1:
        return Launch(slots=64 if wide <= 128 and not exact else 32, warps=4, stages=3 if wide <= 128 else 2)
    if exact:
        return (
            Launch(rows=64, slots=32, warps=4, stages=1)
            if wide <= 128
            else Launch(rows=32, slots=16, warps=4, stages=1)
        )
    if wide > 128:
        return Launch(rows=64, slots=32, warps=4, stages=2)
    return Launch(stages=3 if _properties(step.device)[1] >= _BIG else 2)


def kernels(step: Step) -> Any:
    """The module of kernels; EngineError where they cannot run."""
    try:
        runtime = import_module("triton")
    except ImportError as why:
        raise EngineError(
            "the executor triton needs the package triton: install it, or use the executor gather"
        ) from why
    if step.device.type != "cuda" and not _interpreted(runtime):
        raise EngineError(f"the executor triton runs on a GPU, not on {step.device.type}: use the executor gather")
    if step.query.dtype not in _DTYPES:
        raise EngineError(
            f"the executor triton reads float32, float16 and bfloat16, not {step.query.dtype}: use gather"
        )
    if torch.is_grad_enabled() and any(one.requires_grad for one in (step.query, step.key, step.value)):
        raise EngineError("the executor triton has no gradients: use the executor gather to train")
    return import_module("rag.engine.attention.executors._triton_kernels")


def _interpreted(runtime: Any) -> bool:
    return bool(runtime.knobs.runtime.interpret)


def prefill(step: Step, kept: Kept, launch: Launch) -> Tensor:
    """(batch, heads, queries, d)."""
    run, device, heads = kernels(step), step.device, (step.batch, step.kv_heads)
    if step.group > launch.rows:
        raise EngineError(f"triton: {launch.rows} rows cannot hold {step.group} query heads of a kv head: use gather")
    cut = torch.tensor(segments(kept.rows, launch.rows // step.group), dtype=torch.int32).T.contiguous().to(device)
    far = far_tiles(kept, launch.slots)
    numbers, whole, some, opened = (
        one.expand(*heads, *one.shape[2:]) for one in (far.numbers, far.whole, far.some, kept.opened.to(torch.uint8))
    )
    query, key, value = (_dense_rows(one) for one in (step.query, step.key, step.value))
    made = _made(query, value)
    run.attend_tiles[(cut.shape[1], step.batch * step.kv_heads)](
        query, key, value, made, step.places.to(device, torch.int32), cut, kept.edges.int(), numbers, whole, some,
        kept.units.of_slots(max(1, max(kept.local))).int(), opened,
        *query.stride()[:3], *key.stride()[:3], *value.stride()[:3], *made.stride()[:3], *numbers.stride()[:3],
        *whole.stride()[:2], *opened.stride()[:3], step.kv_heads, cut.shape[1], step.scaling * _LOG2_E,
        group=step.group, rows=launch.rows, **_sizes(key, value, launch),
    )  # fmt: skip
    return made


def decode(step: Step, kept: Kept, launch: Launch) -> Tensor:
    """(batch, heads, 1, d). Nothing waits for the device, so that a CUDA graph can hold it."""
    run, stop = kernels(step), step.first + 1
    size, index, counts, rest = _pages(kept)
    most = index.shape[-1] * size + stop - rest
    splits = _splits(step, most, launch)
    query, key, value = (_dense_rows(one) for one in (step.query, step.key, step.value))
    made = _made(query, value)
    shape = (step.batch * step.kv_heads, splits, step.group)
    parts = torch.empty(*shape, value.shape[3], dtype=torch.float32, device=step.device)
    tops, sums = (torch.empty(shape, dtype=torch.float32, device=step.device) for _ in range(2))
    index = index.expand(step.batch, step.kv_heads, -1)
    told = index if counts is None else counts.expand(step.batch, step.kv_heads)
    rows = max(_SMALLEST, _power(step.group))
    sizes = _sizes(key, value, launch)
    run.attend_pages[(splits, shape[0])](
        query, key, value, parts, tops, sums, index, told,
        *query.stride()[:2], *key.stride()[:3], *value.stride()[:3], *index.stride()[:2], *told.stride()[:2],
        step.kv_heads, index.shape[-1], rest, stop, step.scaling * _LOG2_E,
        counted=counts is not None, size=size, group=step.group, rows=rows, **sizes,
    )  # fmt: skip
    run.merge_parts[(shape[0], step.group)](
        parts, tops, sums, made, *made.stride()[:2], step.kv_heads, splits,
        group=step.group, v_width=value.shape[3], v_room=sizes["v_room"], many=_power(splits), num_warps=4,
    )  # fmt: skip
    return made


def _pages(kept: Kept) -> tuple[int, Tensor, Tensor | None, int]:
    """(size, index (batch or 1, kv heads or 1, pages), how many of them count or None for all, rest): what is read
    before slot `rest`; from there on all is."""
    units, local = kept.units, kept.local[0]
    if kept.index is not None and units.size is not None and units.size * len(units) <= local:
        return units.size, kept.index[:, :, 0], None, units.size * len(units)
    past = kept.past(0)
    place = torch.where(past, past.cumsum(-1) - 1, local)
    index = torch.zeros(*past.shape[:-1], local + 1, dtype=torch.int32, device=past.device)
    index.scatter_(-1, place, torch.arange(local, dtype=torch.int32, device=past.device).expand(past.shape))
    return 1, index[..., : max(1, local)], past.sum(-1, dtype=torch.int32), local


def _splits(step: Step, most: int, launch: Launch) -> int:
    """Enough programs for the device, none of them without a tile to read."""
    wanted = -(-launch.waves * _properties(step.device)[0] // (step.batch * step.kv_heads))
    return max(1, min(wanted, -(-most // launch.slots)))


@cache
def _properties(device: torch.device) -> tuple[int, int]:
    """Processors, and bytes of shared memory that one program may have."""
    if device.type != "cuda":
        return 4, 0
    found: Any = torch.cuda.get_device_properties(device)
    return int(found.multi_processor_count), int(getattr(found, "shared_memory_per_block_optin", 0))


def _sizes(key: Tensor, value: Tensor, launch: Launch) -> dict[str, Any]:
    """Of a head, of a tile and of the run, as both kernels take them. Products of float32 are three of TF32, which
    keeps their precision; the option says nothing of others."""
    exact = "tf32x3" if key.dtype == torch.float32 else "tf32"
    width, v_width = key.shape[3], value.shape[3]
    sides = {"width": width, "room": _room(width), "v_width": v_width, "v_room": _room(v_width)}
    sides["wide"] = key.device.type == "cpu" and key.dtype == torch.bfloat16
    return {**sides, "slots": launch.slots, "exact": exact, "num_warps": launch.warps, "num_stages": launch.stages}


def _room(width: int) -> int:
    return max(_SMALLEST, _power(width))


def _power(number: int) -> int:
    return 1 << max(0, number - 1).bit_length()


def _made(query: Tensor, value: Tensor) -> Tensor:
    return value.new_empty(*query.shape[:-1], value.shape[-1])


def _dense_rows(states: Tensor) -> Tensor:
    """With the numbers of a head side by side, as every model has them."""
    return states if states.stride(3) == 1 else states.contiguous()
