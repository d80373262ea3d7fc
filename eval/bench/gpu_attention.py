"""`rag bench gpu-attention`: sparse attention on a CUDA device, one script and one table.

The shape is that of an 8B model: 32 query heads, 8 kv heads, d = 128, bfloat16. Steps: ceilings of the device (a copy,
a matrix product); every executor against the boolean-mask reference; prefill, dense (torch's own flash) against
FlexAttention with a mask built naively and with ours; decoding, dense against pages of quest, replayed as CUDA graphs;
prefill of a whole model with random weights. Contenders run in turns; figures are medians of CUDA events.

Keys are planted: each page has a topic, and a query reads a few topics, so that selections have something to find.
Without a device nothing is measured, and the report says so.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Annotated, Any

import typer

from eval.bench._report import Settings, claim, machine, table

if TYPE_CHECKING:
    from rag.engine.attention import Step

__all__ = ["NO_DEVICE", "Shape", "measure", "run"]

NO_DEVICE = "not measured: no CUDA device"
LENGTHS = (8192, 32768, 131072)
DENSITIES = {8192: (0.25,), 32768: (0.25, 0.1), 131072: (0.1,)}
KEPT = 2048
PAGE = 64
GOALS = {("prefill", 32768, 0.25): 2.5, ("prefill", 131072, 0.1): 6.0}
DECODE_GOALS = {(32768, 1): 1.5, (131072, 1): 5.0, (32768, 16): 8.0}
BATCHES = {8192: (1, 16), 32768: (1, 16), 131072: (1, 4)}
Run = Callable[[], Any]


@dataclass(frozen=True, kw_only=True)
class Shape:
    heads: int = 32
    kv_heads: int = 8
    width: int = 128
    layers: int = 32
    hidden: int = 4096
    inner: int = 14336
    dtype: str = "bfloat16"
    device: str = "cuda"


def run(settings: Settings, *, lengths: Sequence[int] = LENGTHS) -> dict[str, Any]:
    """The report; {"measured": False, ...} without a device."""
    import torch

    if not torch.cuda.is_available():
        print(NO_DEVICE, file=sys.stderr)
        return {"bench": "gpu-attention", "measured": False, "why": NO_DEVICE, "machine": machine(), "claims": []}
    report = measure(Shape(), lengths=lengths, rounds=settings.rounds, tell=not settings.quiet)
    if not settings.quiet:
        print(_table(report), file=sys.stderr)
    return report


def measure(
    shape: Shape, *, lengths: Sequence[int], rounds: int = 3, tell: bool = False, whole: bool = True
) -> dict[str, Any]:
    """All steps on the device of `shape`; `whole` runs the model with random weights too."""
    import torch

    begin = time.perf_counter()
    report: dict[str, Any] = {"bench": "gpu-attention", "measured": True, "torch": torch.__version__, "rows": []}
    report["device"] = torch.cuda.get_device_name() if shape.device == "cuda" else shape.device
    with torch.inference_mode():
        report["ceilings"] = _ceilings(shape)
        report["errors"] = _errors(shape)
        for length in lengths:
            for step in (_prefill, _decode):
                if tell:
                    print(f"{time.perf_counter() - begin:.0f} s: {step.__name__[1:]}, {length}", file=sys.stderr)
                report["rows"] += step(shape, length, rounds, report["ceilings"])
        if whole:
            report["rows"] += [row for length in lengths if length <= 32768 for row in _end(shape, length, rounds)]
    report["machine"] = machine()
    report["claims"] = _claims(report)
    return report


# ---------------------------------------------------------------------- steps


def _states(shape: Shape, length: int, queries: int, batch: int = 1) -> Step:
    """The last `queries` of `length` slots. Key = topic of its page + noise; query = three topics + noise."""
    import torch

    from rag.engine.attention import Step

    made = torch.Generator(device=shape.device).manual_seed(0)
    dtype = getattr(torch, shape.dtype)

    def drawn(*size: int) -> Any:
        return torch.randn(*size, generator=made, device=shape.device, dtype=dtype)

    topics = drawn(shape.kv_heads, -(-length // PAGE), shape.width)
    key = drawn(batch, shape.kv_heads, length, shape.width) + topics.repeat_interleave(PAGE, dim=1)[:, :length]
    value = drawn(batch, shape.kv_heads, length, shape.width)
    read = torch.randint(0, topics.shape[1], (3, max(1, queries // PAGE)), generator=made, device=shape.device)
    wanted = topics[:, read].sum(1).repeat_interleave(-(-queries // read.shape[1]), dim=1)[:, :queries]
    query = drawn(batch, shape.heads, queries, shape.width)
    query = query + wanted.repeat_interleave(shape.heads // shape.kv_heads, dim=0)
    return Step(8, query, key, value, torch.arange(length - queries, length), shape.width**-0.5)


def _ceilings(shape: Shape) -> dict[str, float]:
    """Bytes a second of a copy, read and written, and FLOPs a second of a matrix product."""
    import torch

    dtype, size = getattr(torch, shape.dtype), 8192 if shape.device == "cuda" else 64
    a = torch.randn(size, size, device=shape.device, dtype=dtype)
    big = torch.randn(size * size * 4, device=shape.device, dtype=dtype)
    room = torch.empty_like(big)
    times = _interleaved(shape, {"copy": lambda: room.copy_(big), "matmul": lambda: a @ a}, 5)
    moved = 2 * big.numel() * big.element_size()
    return {"bytes": moved / median(times["copy"]), "flops": 2 * size**3 / median(times["matmul"])}


def _errors(shape: Shape) -> list[dict[str, Any]]:
    """Of every executor and selection, the distance from the reference over its norm, prefill and decoding."""
    from rag.engine.attention import Memory
    from rag.engine.attention.executors import EXECUTORS
    from rag.engine.attention.executors.dense_mask import dense_mask

    length, found = 1024 if shape.device == "cuda" else 256, []
    for queries in (length, length // 2, 1):
        step = _states(shape, length, queries)
        for selection in _chosen(length // 4):
            kept = selection.select(step, Memory())
            if kept is None:
                continue
            wide = replace(step, query=step.query.float(), key=step.key.float(), value=step.value.float())
            right = dense_mask(wide, kept)
            for name in sorted(EXECUTORS.keys() - {"dense_mask"}):
                if name == "flex" and queries == 1:
                    continue
                away = float((EXECUTORS[name](step, kept).float() - right).norm() / right.norm())
                row = {"executor": name, "selection": selection.label, "queries": queries, "error": away}
                found.append(row | {"right": away < 1e-2})
    return found


def _chosen(budget: int) -> list[Any]:
    from rag.engine.attention.quest import Quest
    from rag.engine.attention.sink_recent import SinkRecent

    rows = min(128, budget // 2)
    pages = min(PAGE, budget // 8)
    quest = Quest(budget=budget, prefill=True, page_size=pages, q_block=rows, dense_layers=0)
    return [quest, SinkRecent(budget=budget, sink=min(64, budget // 4), q_block=rows)]


def _prefill(shape: Shape, length: int, rounds: int, ceilings: Mapping[str, float]) -> list[dict[str, Any]]:
    """A mask that is built naively asks every pair; ours lists blocks."""
    from rag.engine.attention import Memory
    from rag.engine.attention.executors.flex import _kernel, block_mask
    from rag.engine.attention.executors.gather import gather

    step, rows, attend = _states(shape, length, length), [], _kernel(shape.device)

    def flexed(mask: Any) -> Any:
        return attend(step.query, step.key, step.value, block_mask=mask, scale=step.scaling, enable_gqa=True)

    def masked(kept: Any) -> Any:
        return flexed(block_mask(step, kept))

    def select(one: Any) -> Any:
        return one.select(step, Memory())

    for density in DENSITIES.get(length, (0.25,)):
        selection = _chosen(int(density * length))[0]
        kept = selection.select(step, Memory())
        mask = block_mask(step, kept)
        contenders: dict[str, Run] = {
            "dense": _dense(step, causal=True),
            "flex": partial(flexed, mask),
            "flex, with its mask": partial(masked, kept),
            "selection": partial(select, selection),
            "gather": partial(gather, step, kept),
        }
        if length <= 32768:  # the pairs of more do not fit
            naive = _naive_mask(step, mask)
            contenders["flex, naive mask"] = partial(flexed, naive)
        times = _interleaved(shape, contenders, rounds)
        pairs = float(kept.pairs(step)) / step.kv_heads
        floor = 4 * shape.heads * shape.width * pairs / ceilings["flops"]
        head = {"stage": "prefill", "tokens": length, "batch": 1, "asked": density}
        rows.append(head | {"density": pairs / step.causal_pairs, **_figures(times, floor, "flex")})
    return rows


def _naive_mask(step: Step, mask: Any) -> Any:
    """The same pairs, blocks found by asking the mask for each."""
    from torch.nn.attention.flex_attention import create_block_mask

    return create_block_mask(
        mask.mask_mod, step.batch, step.query.shape[1], step.queries, step.slots, device=str(step.device)
    )


def _decode(shape: Shape, length: int, rounds: int, ceilings: Mapping[str, float]) -> list[dict[str, Any]]:
    from rag.engine.attention import Memory
    from rag.engine.attention.executors.gather import gather
    from rag.engine.attention.quest import Quest

    rows = []
    for batch in BATCHES.get(length, (1,)):
        step, memory = _states(shape, length, 1, batch), Memory()
        selection = Quest(budget=min(KEPT, length // 2), page_size=16, dense_layers=0)
        kept = selection.select(step, memory)
        if kept is None:
            continue
        runs: dict[str, Run] = {
            "dense": _dense(step, causal=False),
            "gather": partial(gather, step, kept),
            "selection": partial(selection.select, step, memory),
        }
        graphs = {name: _replayed(shape, one) for name, one in runs.items()}
        times = _interleaved(shape, {name: one for name, (one, _) in graphs.items()}, 10 * rounds)
        read = float(kept.read_slots(step)) * 2 * shape.width * step.key.element_size()
        head = {"stage": "decode", "tokens": length, "batch": batch, "asked": KEPT / length}
        head["graphs"] = all(captured for _, captured in graphs.values())
        density = float(kept.pairs(step)) / (step.slots * batch * step.kv_heads)
        rows.append(head | {"density": density, **_figures(times, read / ceilings["bytes"], "gather")})
    return rows


def _end(shape: Shape, length: int, rounds: int) -> list[dict[str, Any]]:
    """A model with random weights: torch's attention against quest at a quarter of the context."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from rag.engine.attention import Sparse, read_sparsely

    config = LlamaConfig(
        hidden_size=shape.hidden, intermediate_size=shape.inner, num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads, num_key_value_heads=shape.kv_heads, vocab_size=4096,
        max_position_embeddings=2 * length,
    )  # fmt: skip
    torch.manual_seed(0)
    with torch.device(shape.device):
        model: Any = LlamaForCausalLM(config).to(getattr(torch, shape.dtype)).eval()
    ids = torch.randint(0, 4096, (1, length), device=shape.device)

    def sparse() -> None:
        with read_sparsely(model, Sparse(_chosen(length // 4)[0])):
            model(input_ids=ids, use_cache=True, logits_to_keep=1)

    dense: Run = lambda: model(input_ids=ids, use_cache=True, logits_to_keep=1)  # noqa: E731
    times = _interleaved(shape, {"dense": dense, "sparse": sparse}, rounds)
    return [{"stage": "whole prefill", "tokens": length, "batch": 1, "asked": 0.25, **_figures(times, 0.0, "sparse")}]


# ---------------------------------------------------------------------- figures


def _dense(step: Step, *, causal: bool) -> Run:
    from torch.nn.functional import scaled_dot_product_attention

    return lambda: scaled_dot_product_attention(
        step.query, step.key, step.value, is_causal=causal, scale=step.scaling, enable_gqa=True
    )


def _replayed(shape: Shape, run: Run) -> tuple[Run, bool]:
    """`run` as a CUDA graph, and whether it could be captured."""
    import torch

    if shape.device != "cuda":
        return run, False
    side: Any = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    try:
        with torch.cuda.stream(side):
            for _ in range(3):
                run()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            run()
    except RuntimeError:
        torch.cuda.synchronize()
        return run, False
    return graph.replay, True


def _interleaved(shape: Shape, contenders: Mapping[str, Run], rounds: int) -> dict[str, list[float]]:
    """Seconds of each in each round, after one that does not count."""
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(rounds + 1):
        at = number % len(contenders)
        for name in [*contenders][at:] + [*contenders][:at]:
            spent = _seconds(shape, contenders[name])
            if number:
                times[name].append(spent)
    return times


def _seconds(shape: Shape, run: Run) -> float:
    import torch

    if shape.device != "cuda":
        begin = time.perf_counter()
        run()
        return time.perf_counter() - begin
    event: Any = torch.cuda.Event
    start, stop = (event(enable_timing=True) for _ in range(2))
    start.record()
    run()
    stop.record()
    torch.cuda.synchronize()
    return float(start.elapsed_time(stop)) / 1000


def _figures(times: Mapping[str, Sequence[float]], floor: float, ours: str) -> dict[str, Any]:
    """`floor`: seconds that the device needs at least for what is read or multiplied."""
    middle = {name: median(own) for name, own in times.items()}
    found: dict[str, Any] = {f"{name} ms": 1000 * spent for name, spent in middle.items()}
    found["ratio"] = median(a / b for a, b in zip(times["dense"], times[ours], strict=True))
    if "flex, naive mask" in times:
        found["over naive"] = median(a / b for a, b in zip(times["flex, naive mask"], times[ours], strict=True))
    if "selection" in times:
        found["selection share"] = middle["selection"] / middle[ours]
    return found | {"floor share": floor / middle[ours]} if floor else found


def _claims(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    found = [claim("executors right to 1e-2", sum(not row["right"] for row in report["errors"]), 0, "lower")]
    for row in report["rows"]:
        head = f"{row['stage']}, {row['tokens']} tokens, batch {row['batch']}"
        goal = GOALS.get((row["stage"], row["tokens"], row["asked"]))
        if row["stage"] == "decode":
            goal = DECODE_GOALS.get((row["tokens"], row["batch"]))
        if goal is not None:
            found.append(claim(f"{head}, asked {row['asked']:g}: over dense", row["ratio"], goal, "higher"))
        if "over naive" in row:
            found.append(claim(f"{head}: over flex with a naive mask", row["over naive"], 1.0, "higher"))
        if "selection share" in row:
            found.append(claim(f"{head}: selection, share of attention", row["selection share"], 0.15, "lower"))
    return found


def _table(report: Mapping[str, Any]) -> str:
    keys = ("tokens", "batch", "density", "dense ms", "ratio", "over naive", "selection share", "floor share")
    rows = [[row["stage"], *(row.get(key) for key in keys)] for row in report["rows"]]
    claims = [
        [one["claim"], one["value"], one["goal"], "holds" if one["holds"] else "FAILS"] for one in report["claims"]
    ]
    return table(["", *keys], rows) + "\n\n" + table(["claim", "value", "goal", ""], claims)


def _main(
    out: Annotated[Path, typer.Option("--out", "-o", help="Where the JSON report goes.")],
    lengths: Annotated[str, typer.Option(help="Slots, with commas between.")] = ",".join(map(str, LENGTHS)),
    rounds: Annotated[int, typer.Option(min=1)] = 3,
) -> None:
    report = run(Settings(rounds=rounds), lengths=[int(one) for one in lengths.split(",")])
    out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(_main)
