"""For `rag bench gpu-attention`: planted states, ceilings of the device, and times by CUDA events."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from rag.engine.attention import Step

__all__ = ["PAGE", "Run", "Shape", "Watch", "ceilings", "figures", "states"]

PAGE = 64
FLUSHED = 2**28
"""Bytes that are written before each timed run, so that what the last one read is in no cache."""
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

    @property
    def on_gpu(self) -> bool:
        return self.device == "cuda"


def states(shape: Shape, length: int, queries: int, batch: int = 1, seed: int = 0) -> Step:
    """The last `queries` of `length` slots. Key = topic of its page + noise; query = three topics + noise."""
    import torch

    from rag.engine.attention import Step

    made = torch.Generator(device=shape.device).manual_seed(seed)
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


def ceilings(shape: Shape) -> dict[str, float]:
    """Bytes a second of a copy, read and written, and FLOPs a second of a matrix product."""
    import torch

    dtype, size = getattr(torch, shape.dtype), 8192 if shape.on_gpu else 64
    a = torch.randn(size, size, device=shape.device, dtype=dtype)
    big = torch.randn(size * size * 4, device=shape.device, dtype=dtype)
    room = torch.empty_like(big)
    times = Watch(shape).interleaved({"copy": lambda: room.copy_(big), "matmul": lambda: a @ a}, 5)
    moved = 2 * big.numel() * big.element_size()
    return {"bytes": moved / median(times["copy"]), "flops": 2 * size**3 / median(times["matmul"])}


@dataclass(eq=False)
class Watch:
    """Times contenders in turns. One that cannot run is left out, and why is in `failed`."""

    shape: Shape
    failed: dict[str, str] = field(default_factory=dict)
    captured: dict[str, bool] = field(default_factory=dict)
    _room: Tensor | None = None

    def able(self, contenders: Mapping[str, Run], needed: str = "dense") -> dict[str, Run]:
        """Those that ran once, which compiles them too; `needed` has to."""
        found: dict[str, Run] = {}
        for name, run in contenders.items():
            try:
                run()
                self._wait()
            except Exception as why:
                if name == needed:
                    raise
                self.failed[name] = f"{type(why).__name__}: {why}"[:400]
                self._free()
            else:
                found[name] = run
        return found

    def replayed(self, contenders: Mapping[str, Run]) -> dict[str, Run]:
        """Each as a CUDA graph where it can be captured, and as it is where not; `captured` says which."""
        return {name: self._replayed(name, run) for name, run in contenders.items()}

    def _replayed(self, name: str, run: Run) -> Run:
        import torch

        self.captured[name] = False
        if not self.shape.on_gpu:
            return run
        side: Any = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream())
        try:
            with torch.cuda.stream(side):
                for _ in range(3):
                    run()
            torch.cuda.current_stream().wait_stream(side)
            self._wait()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                run()
        except RuntimeError as why:
            self.failed[f"{name}, as a graph"] = str(why)[:400]
            self._wait()
            return run
        self.captured[name] = True
        return graph.replay

    def interleaved(self, contenders: Mapping[str, Run], rounds: int) -> dict[str, list[float]]:
        """Seconds of each in each round, after one that does not count."""
        times: dict[str, list[float]] = {name: [] for name in contenders}
        for number in range(rounds + 1):
            at = number % len(contenders)
            for name in [*contenders][at:] + [*contenders][:at]:
                spent = self._seconds(contenders[name])
                if number:
                    times[name].append(spent)
        return times

    def _seconds(self, run: Run) -> float:
        import torch

        if not self.shape.on_gpu:
            begin = time.perf_counter()
            run()
            return time.perf_counter() - begin
        if self._room is None:
            self._room = torch.empty(FLUSHED, dtype=torch.int8, device="cuda")
        event: Any = torch.cuda.Event
        start, stop = (event(enable_timing=True) for _ in range(2))
        self._room.zero_()  # the launches below are queued while it runs
        start.record()
        run()
        stop.record()
        torch.cuda.synchronize()
        return float(start.elapsed_time(stop)) / 1000

    def _free(self) -> None:
        import torch

        if self.shape.on_gpu:
            torch.cuda.empty_cache()

    def _wait(self) -> None:
        import torch

        if self.shape.on_gpu:
            torch.cuda.synchronize()


def figures(
    times: Mapping[str, Sequence[float]], ours: Sequence[str], dense: Sequence[str] = ("dense",), *, floor: float = 0.0
) -> dict[str, Any]:
    """Medians in milliseconds; the fastest of `ours`, named, as ratios inside each round over "dense" and over the
    fastest of the `dense`. `floor`: seconds that the device needs at least for what is read or multiplied."""
    middle = {name: median(own) for name, own in times.items()}
    found: dict[str, Any] = {f"{name} ms": 1000 * spent for name, spent in middle.items()}
    here = [name for name in ours if name in middle]
    if not here:
        return found | {"executor": None, "ratio": None}
    best, base = min(here, key=middle.__getitem__), min((one for one in dense if one in middle), key=middle.__getitem__)

    def over(name: str, *parts: str) -> float:
        sums = [sum(both) for both in zip(*(times[part] for part in parts), strict=True)]
        return float(median(a / b for a, b in zip(times[name], sums, strict=True)))

    found |= {"executor": best, "ratio": over("dense", best), "best dense": base, "over best dense": over(base, best)}
    if "flex, naive mask" in times:
        found["over naive"] = over("flex, naive mask", best)
    if "selection" in times:
        found["selection share"] = middle["selection"] / middle[best]
        found["ratio with selection"] = over("dense", best, "selection")
    return found | {"floor share": floor / middle[best]} if floor else found
