"""The shape that every benchmark writes: settings in; machine, rows and claims out; a table for people."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Literal

__all__ = ["Settings", "claim", "load_average", "machine", "medians", "table"]

_CPUINFO = Path("/proc/cpuinfo")
_FLAGS = ("avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8", "asimd", "bf16")
"""CPU flags that decide how fast an encoder runs."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What the command line asks of a benchmark. `peer_pythons` are tried in order for every peer."""

    data: Path | None = None
    config: Path | None = None
    rounds: int = 3
    documents: int = 200
    threads: int = 1
    seed: int = 0
    kills: int = 20
    peer_pythons: tuple[str, ...] = ()
    quality: bool = True
    quiet: bool = False


def machine() -> dict[str, Any]:
    """Processor, cores, the flags that matter here, memory, system."""
    lines = _CPUINFO.read_text(encoding="utf-8", errors="replace").splitlines() if _CPUINFO.is_file() else []
    facts = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    found = facts.get("flags", facts.get("Features", "")).split()
    return {
        "cpu": facts.get("model name") or platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "flags": [flag for flag in _FLAGS if flag in found],
        "system": platform.system(),
        "python": platform.python_version(),
    }


def load_average() -> float | None:
    """Runnable processes over the last minute, None where the system does not tell."""
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None


def medians(rounds: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The median of every figure over the rounds."""
    return {name: median(one[name] for one in rounds) for name in rounds[0]} if rounds else {}


def claim(text: str, value: float | None, goal: float, better: Literal["higher", "lower"]) -> dict[str, Any]:
    """A goal and whether it holds; a value of None (nothing to compare with) never holds."""
    holds = value is not None and (value >= goal if better == "higher" else value <= goal)
    rounded = None if value is None else round(value, 4)
    return {"claim": text, "value": rounded, "goal": round(goal, 4), "better": better, "holds": holds}


def table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Columns side by side: the first flush left, the others flush right."""
    cells = [list(header), *([_cell(value) for value in row] for row in rows)]
    widths = [max(len(row[at]) for row in cells) for at in range(len(header))]
    lines = (
        "  ".join(cell.ljust(width) if at == 0 else cell.rjust(width) for at, (cell, width) in enumerate(pairs))
        for pairs in (list(zip(row, widths, strict=True)) for row in cells)
    )
    return "\n".join(line.rstrip() for line in lines)


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.2f}" if isinstance(value, float) else str(value)
