"""The steps of `rag bench gpu-attention`: right or wrong, prefill, decoding, and the prefill of a whole model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache, partial
from typing import TYPE_CHECKING, Any

from eval.bench._gpu_timing import PAGE, Run, Shape, Watch, figures, states

if TYPE_CHECKING:
    from rag.engine.attention import Kept, Step

__all__ = ["BATCHES", "DENSITIES", "KEPT", "decode", "errors", "launches", "prefill", "whole"]

DENSITIES = {8192: (0.25,), 32768: (0.25, 0.1), 131072: (0.1,)}
BATCHES = {8192: (1, 16), 32768: (1, 16), 131072: (1, 4)}
KEPT = 2048
SETS = 8
"""Layers with keys of their own that are decoded one after the other: more of them than a cache holds."""
NAIVE_UP_TO = 32768
"""Slots up to which the pairs of a naive mask fit."""
LAUNCHES = ((128, 64, 8, 3), (128, 64, 8, 2), (128, 128, 8, 2), (64, 64, 4, 3), (64, 128, 4, 2), (128, 32, 8, 4))
"""Rows, slots, warps and stages of the prefill kernel that are compared."""


def errors(shape: Shape) -> list[dict[str, Any]]:
    """Of every executor and selection, the distance from the reference over its norm, prefill and decoding."""
    from rag.engine.attention import Memory
    from rag.engine.attention.executors.dense_mask import dense_mask

    length, found = 1024 if shape.on_gpu else 256, []
    for queries in (length, length // 2, 1):
        step = states(shape, length, queries, batch=1 if queries == length else 2)
        for selection in _chosen(length // 4):
            kept = selection.select(step, Memory())
            if kept is None:
                continue
            wide = replace(step, query=step.query.float(), key=step.key.float(), value=step.value.float())
            right = dense_mask(wide, kept)
            for name, run in _executors(shape, step):
                row = {"executor": name, "selection": selection.label, "queries": queries}
                try:
                    away = float((run(step, kept).float() - right).norm() / right.norm())
                except Exception as why:
                    found.append(row | {"error": None, "right": False, "why": f"{type(why).__name__}: {why}"[:400]})
                else:
                    found.append(row | {"error": away, "right": away < 1e-2})
    return found


def _executors(shape: Shape, step: Step) -> Iterator[tuple[str, Any]]:
    from rag.engine.attention.executors import EXECUTORS

    yield "gather", EXECUTORS["gather"]
    if step.queries > 1:
        yield "flex", EXECUTORS["flex"]
    if triton_runs(shape):
        yield "triton", EXECUTORS["triton"]


def triton_runs(shape: Shape) -> bool:
    """On a GPU it has to; on a CPU where its interpreter is asked for and there."""
    import os
    from importlib.util import find_spec

    return shape.on_gpu or (find_spec("triton") is not None and os.environ.get("TRITON_INTERPRET") == "1")


def _chosen(budget: int) -> list[Any]:
    from rag.engine.attention.quest import Quest
    from rag.engine.attention.sink_recent import SinkRecent

    rows = min(128, budget // 2)
    pages = min(PAGE, budget // 8)
    quest = Quest(budget=budget, prefill=True, page_size=pages, q_block=rows, dense_layers=0)
    return [quest, SinkRecent(budget=budget, sink=min(64, budget // 4), q_block=rows)]


def prefill(shape: Shape, length: int, rounds: int, ceilings: Mapping[str, float]) -> list[dict[str, Any]]:
    """Ours make their lists of blocks or tiles anew every time; that of a naive mask is made once and not timed."""
    step, rows = states(shape, length, length), []
    for density in DENSITIES.get(length, (0.25,)):
        selection, watch = _chosen(int(density * length))[0], Watch(shape)
        kept = _select(selection, step)
        contenders = {**_dense_contenders(step, causal=True), **_sparse_contenders(shape, step, kept)}
        contenders["selection"] = partial(_select, selection, step)
        times = watch.interleaved(watch.able(contenders), rounds)
        pairs = int(kept.pairs(step)) / (step.batch * step.kv_heads)
        floor = 4 * shape.heads * shape.width * pairs / ceilings["flops"]
        told = figures(times, ("flex, with its mask", "triton", "gather"), _DENSE, floor=floor)
        head = {"stage": "prefill", "tokens": length, "batch": 1, "asked": density}
        rows.append(head | {"density": pairs / step.causal_pairs, **told, "failed": watch.failed})
    return rows


def _select(selection: Any, step: Step) -> Any:
    from rag.engine.attention import Memory

    return selection.select(step, Memory())


_DENSE = ("dense", "dense, cudnn", "dense, flex")


def _sparse_contenders(shape: Shape, step: Step, kept: Kept) -> dict[str, Run]:
    from rag.engine.attention.executors import EXECUTORS
    from rag.engine.attention.executors.flex import block_mask

    mask = block_mask(step, kept)
    found: dict[str, Run] = {
        "flex": partial(_flexed, step, mask),
        "flex, with its mask": lambda: EXECUTORS["flex"](step, replace(kept)),  # nothing that it remembers
        "gather": lambda: EXECUTORS["gather"](step, replace(kept)),
    }
    if step.slots <= NAIVE_UP_TO:
        naive = cache(partial(_naive_mask, step, mask))
        found["flex, naive mask"] = lambda: _flexed(step, naive())
    if triton_runs(shape):
        found["triton"] = lambda: EXECUTORS["triton"](step, replace(kept))
    return found


def _flexed(step: Step, mask: Any) -> Any:
    from rag.engine.attention.executors.flex import _kernel

    attend = _kernel(step.device.type)
    return attend(step.query, step.key, step.value, block_mask=mask, scale=step.scaling, enable_gqa=step.group > 1)


def _naive_mask(step: Step, mask: Any) -> Any:
    """The same pairs, blocks found by asking the mask for each."""
    from torch.nn.attention.flex_attention import create_block_mask

    return create_block_mask(
        mask.mask_mod, step.batch, step.query.shape[1], step.queries, step.slots, device=str(step.device),
        _compile=step.device.type == "cuda",  # else all pairs of all heads are held at a time
    )  # fmt: skip


def _dense_contenders(step: Step, *, causal: bool) -> dict[str, Run]:
    """torch's own flash kernel, cuDNN's, and FlexAttention over all that is causal."""
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.nn.functional import scaled_dot_product_attention

    from rag.engine.attention import Kept, Units
    from rag.engine.attention.executors.flex import block_mask

    def attend(backend: SDPBackend | None) -> Any:
        if backend is None or step.device.type != "cuda":
            return scaled_dot_product_attention(
                step.query, step.key, step.value, is_causal=causal, scale=step.scaling, enable_gqa=True
            )
        with sdpa_kernel(backend):
            return attend(None)

    found: dict[str, Run] = {"dense": partial(attend, SDPBackend.FLASH_ATTENTION)}
    if step.device.type == "cuda":
        found["dense, cudnn"] = partial(attend, SDPBackend.CUDNN_ATTENTION)
    if causal:
        none = step.query.new_zeros(1, 1, 1, 0, dtype=torch.bool)
        everything = Kept(Units.pages(0, 1, step.device), (0, step.queries), (0,), none)
        found["dense, flex"] = partial(_flexed, step, block_mask(step, everything))
    return found


def launches(shape: Shape, length: int, rounds: int) -> list[dict[str, Any]]:
    """Milliseconds of the prefill kernel by rows, slots, warps and stages of a program."""
    from rag.engine.attention.executors.triton import Launch
    from rag.engine.attention.executors.triton import prefill as attend

    if not triton_runs(shape):
        return []
    step, watch = states(shape, length, length), Watch(shape)
    kept = _select(_chosen(length // 4)[0], step)
    tried = LAUNCHES if shape.on_gpu else LAUNCHES[:2]
    runs: dict[str, Run] = {
        f"{rows}/{slots}/{warps}/{stages}": partial(
            attend, step, kept, Launch(rows=rows, slots=slots, warps=warps, stages=stages)
        )
        for rows, slots, warps, stages in tried
    }
    times = watch.interleaved(watch.able(runs, needed=""), rounds)
    told = [{"launch": name, "ms": 1000 * sorted(own)[len(own) // 2]} for name, own in times.items()]
    return told + [{"launch": name, "ms": None, "why": why} for name, why in watch.failed.items()]


def decode(shape: Shape, length: int, rounds: int, ceilings: Mapping[str, float]) -> list[dict[str, Any]]:
    """One token through SETS layers, each with keys of its own, as one CUDA graph; figures are of one layer."""
    rows = []
    for batch in BATCHES.get(length, (1,)):
        steps = [states(shape, length, 1, batch, seed) for seed in range(SETS if shape.on_gpu else 2)]
        rows.append(_decoded(shape, steps, rounds, ceilings))
    return rows


def _decoded(shape: Shape, steps: Sequence[Step], rounds: int, ceilings: Mapping[str, float]) -> dict[str, Any]:
    from rag.engine.attention import Memory
    from rag.engine.attention.executors import EXECUTORS
    from rag.engine.attention.quest import Quest

    one, watch = steps[0], Watch(shape)
    selection = Quest(budget=min(KEPT, one.slots // 2), page_size=16, dense_layers=0)
    memories = [Memory() for _ in steps]
    chosen = [selection.select(step, memory) for step, memory in zip(steps, memories, strict=True)]
    kept = [each for each in chosen if each is not None]

    def each(run: Any, *more: Sequence[Any]) -> Run:
        return lambda: [run(*given) for given in zip(steps, *more, strict=True)]

    dense = [_dense_contenders(step, causal=False) for step in steps]
    runs: dict[str, Run] = {
        name: lambda name=name: [of[name]() for of in dense] for name in dense[0]  # type: ignore[misc]
    }  # fmt: skip
    runs |= {"gather": each(EXECUTORS["gather"], kept), "selection": each(selection.select, memories)}
    if triton_runs(shape):
        runs["triton"] = each(EXECUTORS["triton"], kept)
    able = watch.replayed(watch.able(runs))
    times = watch.interleaved(able, 10 * rounds if shape.on_gpu else rounds)
    of_one = {name: [spent / len(steps) for spent in own] for name, own in times.items()}
    read = int(kept[0].read_slots(one)) * 2 * shape.width * one.key.element_size()
    density = int(kept[0].pairs(one)) / (one.slots * one.batch * one.kv_heads)
    head = {"stage": "decode", "tokens": one.slots, "batch": one.batch, "asked": KEPT / one.slots, "density": density}
    told = figures(of_one, ("gather", "triton"), _DENSE, floor=read / ceilings["bytes"])
    return head | {"graphs": watch.captured, **told, "failed": watch.failed}


def whole(shape: Shape, lengths: Sequence[int], rounds: int) -> Iterator[dict[str, Any]]:
    """A model with random weights: torch's attention against quest at a quarter of the context, by each executor."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from rag.engine.attention import Sparse, read_sparsely

    config = LlamaConfig(
        hidden_size=shape.hidden, intermediate_size=shape.inner, num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads, num_key_value_heads=shape.kv_heads, vocab_size=4096,
        max_position_embeddings=2 * max(lengths),
    )  # fmt: skip
    torch.manual_seed(0)
    with torch.device(shape.device):
        model: Any = LlamaForCausalLM(config).to(getattr(torch, shape.dtype)).eval()
    for length in lengths:
        ids = torch.randint(0, 4096, (1, length), device=shape.device)

        def dense(ids: Any = ids) -> None:
            model(input_ids=ids, use_cache=True, logits_to_keep=1)

        def sparse(executor: Any, ids: Any = ids) -> None:
            with read_sparsely(model, Sparse(_chosen(ids.shape[1] // 4)[0], executor)):
                dense(ids)

        names = ["flex", "gather", *(["triton"] if triton_runs(shape) else [])]
        runs: dict[str, Run] = {"dense": dense, **{name: partial(sparse, name) for name in names}}
        watch = Watch(shape)
        times = watch.interleaved(watch.able(runs), rounds)
        head = {"stage": "whole prefill", "tokens": length, "batch": 1, "asked": 0.25}
        yield head | {**figures(times, names), "failed": watch.failed}
