"""The rows, claims and table of `rag bench query`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from eval.bench._children import Contender, Outcome
from eval.bench._report import claim, medians, table

__all__ = ["COLD", "STAGES", "claims_of", "row_of", "table_of"]

STAGES = ("retrieve", "select", "compress", "generate", "other", "ask")
COLD = ("imports", "load", "open", "first")
PASSES = ("new", "again")
_CLOCKS = ("wall_ms", "cpu_ms")
_ASK_MS = 100.0
"""What feels immediate to a person who waits."""


def row_of(contender: Contender, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """`cold`: ms of a cold start and of its phases. `new`, `again`: stage -> clock -> median, range and p95 in ms."""
    row: dict[str, Any] = {
        "name": contender.name, "role": contender.role, "note": contender.note,
        "options": {name: value for name, value in contender.options.items() if name != "config"},
    }  # fmt: skip
    bad = next((one for one in outcomes if one["status"] != "ok"), None)
    if bad is not None:
        return {**row, "status": bad["status"], "reason": bad["reason"]}
    cold = [_cold(one) for one in outcomes]
    passes = {
        name: {stage: _stage([one[name][stage] for one in outcomes]) for stage in STAGES if stage in outcomes[0][name]}
        for name in PASSES
    }
    return {
        **row, "status": "ok", "cold": {**medians(cold), "rounds": cold}, **passes,
        "peak_rss_mb": median(one["peak_rss_mb"] for one in outcomes), "versions": outcomes[0]["versions"],
    }  # fmt: skip


def claims_of(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Our first config against the best peer of each figure, ratios paired by round; and the whole ask alone."""
    ours = next(row for row in rows if row["role"] == "ours")
    peers = [row for row in rows if row["role"] == "peer" and row["status"] == "ok"]
    found = []
    for words, clock in (("CPU", "cpu_ms"), ("wall", "wall_ms")):
        text = f"{words} time of retrieval for a new question over the best peer's"
        found.append(_against(text, ours, peers, ("new", "retrieve", clock)))
        text = f"{words} time from a cold start to our first answer over the best peer's first hits"
        found.append(_against(text, ours, peers, ("cold", "rounds", clock)))
    for name, text in (("new", "a new question"), ("again", "a question asked again")):
        value = ours[name]["ask"]["wall_ms"]["median"]
        found.append(claim(f"wall ms of a whole ask, {text}, in an open process", value, _ASK_MS, "lower"))
    return found


def table_of(report: Mapping[str, Any]) -> str:
    """Milliseconds: cold start, then each stage of a new question, wall (CPU)."""
    rows = [row for row in report["results"] if row["status"] == "ok"]
    lost = [[row["name"], row["status"], row["reason"]] for row in report["results"] if row["status"] != "ok"]
    header = ["ms, wall (CPU)", "cold start", *STAGES, "ask, range", "ask again", "RSS MB"]
    claims = [
        [one["claim"], one["value"], one["goal"], "holds" if one["holds"] else "FAILS"] for one in report["claims"]
    ]
    parts = [table(header, [_cells(row) for row in rows]), table(["claim", "value", "goal", ""], claims)]
    return "\n\n".join([*parts, *([table(["not measured", "", ""], lost)] if lost else [])])


def _cold(outcome: Outcome) -> dict[str, float]:
    """Milliseconds of the whole start and of its phases."""
    clocks = {clock: clock.replace("_ms", "_seconds") for clock in _CLOCKS}
    whole = {clock: 1000 * sum(outcome[part][name] for part in COLD) for clock, name in clocks.items()}
    parts = {f"{part}_{clock}": 1000 * outcome[part][name] for part in COLD for clock, name in clocks.items()}
    return {**whole, **parts}


def _stage(rounds: Sequence[Sequence[Sequence[float]]]) -> dict[str, dict[str, Any]]:
    """`rounds`: for each, (wall, CPU) seconds of every question."""
    found = {}
    for at, clock in enumerate(_CLOCKS):
        values = [[1000 * one[at] for one in questions] for questions in rounds]
        middles = [median(one) for one in values]
        found[clock] = {
            "median": median(middles), "range": [min(middles), max(middles)], "rounds": middles,
            "p95": median(_p95(one) for one in values),
        }  # fmt: skip
    return found


def _p95(values: Sequence[float]) -> float:
    return sorted(values)[min(len(values) - 1, int(0.95 * len(values)))]


def _against(
    text: str, ours: Mapping[str, Any], peers: Sequence[Mapping[str, Any]], path: tuple[str, str, str]
) -> dict[str, Any]:
    ratios = {
        row["name"]: median(a / b for a, b in zip(_rounds(ours, path), _rounds(row, path), strict=True))
        for row in peers
    }
    name = max(ratios, key=lambda name: ratios[name], default=None)
    said = f"{text} ({name})" if name else text
    return claim(said, ratios[name] if name else None, 1.0, "lower")


def _rounds(row: Mapping[str, Any], path: tuple[str, str, str]) -> list[float]:
    first, second, clock = path
    if first == "cold":
        return [one[clock] for one in row["cold"]["rounds"]]
    rounds: list[float] = row[first][second][clock]["rounds"]
    return rounds


def _cells(row: Mapping[str, Any]) -> list[Any]:
    def cell(found: Mapping[str, Any] | None) -> str | None:
        return f"{found['wall_ms']['median']:.1f} ({found['cpu_ms']['median']:.1f})" if found else None

    cold = f"{row['cold']['wall_ms']:.0f} ({row['cold']['cpu_ms']:.0f})"
    whole = row["new"].get("ask")
    spread = "-".join(f"{value:.1f}" for value in whole["wall_ms"]["range"]) if whole else None
    stages = [cell(row["new"].get(stage)) for stage in STAGES]
    return [row["name"], cold, *stages, spread, cell(row["again"].get("ask")), row["peak_rss_mb"]]
