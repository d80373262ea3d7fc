"""The claims of benchmark reports, read from their JSON files and checked against their own figures."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rag.errors import UsageError

__all__ = ["RESULTS", "Claim", "Report", "read_reports"]

RESULTS = Path(__file__).parent / "results"
"""Where reports lie whose figures the README states."""
_KEYS = {"claim", "value", "goal", "better", "holds"}


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A goal and what was measured; `value` is None where nothing could be measured, which never holds."""

    claim: str
    value: float | None
    goal: float
    better: str
    holds: bool


@dataclass(frozen=True, kw_only=True)
class Report:
    """A file of the folder: its name without the ending, its claims, and on what and how it was run."""

    name: str
    claims: tuple[Claim, ...]
    setting: str

    @property
    def lost(self) -> tuple[Claim, ...]:
        return tuple(one for one in self.claims if not one.holds)


def read_reports(folder: Path = RESULTS) -> dict[str, Report]:
    """Name -> report, for every JSON file of `folder`, sorted.

    UsageError names the file and the row when a file has no claims, a row lacks a key, or `holds` is not what value
    and goal say: a table must not show as held what was lost.
    """
    return {path.stem: _report(path) for path in sorted(folder.glob("*.json"))}


def _report(path: Path) -> Report:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UsageError(f"{path.name}: not JSON ({error}); write it again with rag bench --out") from None
    if not isinstance(data, dict) or not isinstance(data.get("claims"), list):
        raise UsageError(f"{path.name}: no list of claims; a report has {sorted(_KEYS)} in each row of `claims`")
    claims = tuple(_claim(path.name, at, row) for at, row in enumerate(data["claims"]))
    return Report(name=path.stem, claims=claims, setting=_setting(data))


def _claim(name: str, at: int, row: Any) -> Claim:
    if not isinstance(row, dict) or not row.keys() >= _KEYS:
        raise UsageError(f"{name}: claim {at} is {row!r}; a claim has {sorted(_KEYS)}")
    value, goal, better = row["value"], row["goal"], row["better"]
    if better not in ("higher", "lower"):
        raise UsageError(f"{name}: claim {at} has better = {better!r}; allowed: higher, lower")
    holds = value is not None and math.isfinite(value) and (value >= goal if better == "higher" else value <= goal)
    if row["holds"] is not holds:
        raise UsageError(
            f"{name}: claim {at} says holds = {row['holds']}, but {value} against {goal} ({better}) is {holds}"
        )
    return Claim(claim=str(row["claim"]), value=value, goal=goal, better=better, holds=holds)


def _setting(data: Mapping[str, Any]) -> str:
    """Machine, seed and versions, as far as the report has them."""
    box = data.get("machine") or {}
    said = [str(box["cpu"])] if box.get("cpu") else []
    said += [f"{box[key]} {key[:-1] if box[key] == 1 else key}" for key in ("cores", "threads") if box.get(key)]
    said += [f"seed {data['seed']}"] if data.get("seed") is not None else []
    said += [f"{name} {found}" for name, found in sorted((data.get("versions") or {}).items()) if found]
    return ", ".join(said)
