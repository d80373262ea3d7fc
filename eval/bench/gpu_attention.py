"""`rag bench gpu-attention`: sparse attention on a CUDA device, one script and one table.

The shape is that of an 8B model: 32 query heads, 8 kv heads, d = 128, bfloat16. Steps: ceilings of the device (a copy,
a matrix product); every executor against the boolean-mask reference; prefill, dense (torch's own flash, cuDNN's,
FlexAttention) against FlexAttention with a mask built naively, and against ours by every executor; the prefill kernel
by its sizes; decoding, dense against pages of quest, as CUDA graphs; prefill of a whole model with random weights.
Contenders run once before, then in turns; figures are medians of CUDA events, and caches are flushed before each.

Keys are planted: each page has a topic, and a query reads a few topics, so that selections have something to find.
Without a device nothing is measured, and the report says so. `--dry` goes through every step at a tiny shape on the
CPU instead, to see that it runs; with TRITON_INTERPRET=1 through Triton's interpreter too. Its times mean nothing.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from eval.bench._gpu_steps import decode, errors, launches, prefill, whole
from eval.bench._gpu_timing import Shape, ceilings
from eval.bench._report import Settings, claim, machine, table

__all__ = ["DRY", "NO_DEVICE", "Shape", "measure", "run"]

NO_DEVICE = "not measured: no CUDA device"
DRY = "not measured: a dry run at a tiny shape on the CPU"
LENGTHS = (8192, 32768, 131072)
WHOLE_UP_TO = 32768
LAUNCHED_AT = 32768
BUDGET = 540.0
TINY = Shape(heads=4, kv_heads=2, width=16, layers=2, hidden=64, inner=64, dtype="float32", device="cpu")
GOALS = {("prefill", 32768, 0.25): 2.5, ("prefill", 131072, 0.1): 6.0}
DECODE_GOALS = {(32768, 1): 1.5, (131072, 1): 5.0, (32768, 16): 8.0}
Save = Callable[[Mapping[str, Any]], None]


def run(
    settings: Settings, *, lengths: Sequence[int] = LENGTHS, dry: bool = False, budget: float = BUDGET,
    save: Save | None = None,
) -> dict[str, Any]:  # fmt: skip
    """The report; {"measured": False, ...} without a device. `save` gets it after every step."""
    import torch

    if not dry and not torch.cuda.is_available():
        print(NO_DEVICE, file=sys.stderr)
        return {"bench": "gpu-attention", "measured": False, "why": NO_DEVICE, "machine": machine(), "claims": []}
    shape, lengths = (TINY, (512,)) if dry else (Shape(), lengths)
    report = measure(
        shape, lengths=lengths, rounds=settings.rounds, tell=not settings.quiet, budget=budget, save=save
    )  # fmt: skip
    if dry:
        report |= {"measured": False, "why": DRY, "claims": []}
    if not settings.quiet:
        print(_table(report), file=sys.stderr)
    return report


def measure(
    shape: Shape, *, lengths: Sequence[int], rounds: int = 3, tell: bool = False, budget: float = BUDGET,
    save: Save | None = None,
) -> dict[str, Any]:  # fmt: skip
    """All steps on the device of `shape`. None begins when `budget` seconds are over: those are in `left_out`."""
    import torch

    begin = time.perf_counter()
    report: dict[str, Any] = {"bench": "gpu-attention", "measured": True, "torch": torch.__version__, "rows": []}
    report |= {"device": torch.cuda.get_device_name() if shape.on_gpu else shape.device, "launches": [], "left_out": []}
    report |= {"triton": _version_of("triton"), "machine": machine(), "seconds": {}}
    _allow_many_graphs()
    with torch.no_grad():
        report["ceilings"] = ceilings(shape)
        report["errors"] = errors(shape)
        for name, key, step in _steps(shape, lengths, rounds, report["ceilings"]):
            spent = time.perf_counter() - begin
            if spent > budget:
                report["left_out"].append(name)
                continue
            if tell:
                print(f"{spent:.0f} s: {name}", file=sys.stderr, flush=True)
            try:
                report[key] += list(step())
            except Exception as why:
                report["left_out"].append(f"{name}: {type(why).__name__}: {why}"[:400])
            if shape.on_gpu:
                torch.cuda.empty_cache()
            report["seconds"][name] = time.perf_counter() - begin - spent
            report["claims"] = _claims(report)
            if save is not None:
                save(report)
    return report


def _steps(
    shape: Shape, lengths: Sequence[int], rounds: int, limits: Mapping[str, float]
) -> Iterator[tuple[str, str, Callable[[], Iterable[dict[str, Any]]]]]:
    """(name, where its rows go, what makes them): what the goals are about comes first."""
    for length in lengths:
        yield f"prefill, {length}", "rows", partial(prefill, shape, length, rounds, limits)
        yield f"decode, {length}", "rows", partial(decode, shape, length, rounds, limits)
    tuned = [length for length in lengths if length <= LAUNCHED_AT]
    if tuned:
        yield "launches", "launches", partial(launches, shape, max(tuned), rounds)
    for length in (length for length in lengths if length <= WHOLE_UP_TO):
        yield f"whole prefill, {length}", "rows", partial(whole, shape, [length], rounds)


def _version_of(package: str) -> str | None:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _allow_many_graphs() -> None:
    """Every length may compile FlexAttention anew; past its limit torch would run it uncompiled."""
    import torch

    settings: Any = torch._dynamo.config
    for name in ("recompile_limit", "cache_size_limit"):
        if hasattr(settings, name):
            setattr(settings, name, 64)


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
    keys = ("tokens", "batch", "density", "dense ms", "executor", "ratio", "over best dense", "over naive",
            "selection share", "floor share")  # fmt: skip
    rows = [[row["stage"], *(row.get(key) for key in keys)] for row in report["rows"]]
    claims = [
        [one["claim"], one["value"], one["goal"], "holds" if one["holds"] else "FAILS"] for one in report["claims"]
    ]
    failed = [
        f"{row['stage']}, {row['tokens']}: {name}: {why}"
        for row in report["rows"]
        for name, why in row["failed"].items()
    ]
    notes = [*failed, *(f"left out: {one}" for one in report["left_out"])]
    parts = [table(["", *keys], rows), table(["claim", "value", "goal", ""], claims), "\n".join(notes)]
    return "\n\n".join([report["why"], *parts] if "why" in report else parts)


def _main(
    out: Annotated[Path, typer.Option("--out", "-o", help="Where the JSON report goes, after every step.")],
    lengths: Annotated[str, typer.Option(help="Slots, with commas between.")] = ",".join(map(str, LENGTHS)),
    rounds: Annotated[int, typer.Option(min=1)] = 5,
    budget: Annotated[float, typer.Option(min=1, help="Seconds after which no step begins.")] = BUDGET,
    dry: Annotated[bool, typer.Option("--dry", help="Every step at a tiny shape on the CPU.")] = False,
) -> None:
    def save(report: Mapping[str, Any]) -> None:
        out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")

    asked = [int(one) for one in lengths.split(",")]
    save(run(Settings(rounds=rounds), lengths=asked, dry=dry, budget=budget, save=save))


if __name__ == "__main__":
    typer.run(_main)
