"""What both forms of the report say: order, marks of significance, verdicts, losses by stage, failure classes."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = [
    "ALPHA",
    "CLASSES",
    "COST",
    "Cell",
    "Loss",
    "Pair",
    "absences",
    "chance",
    "compared",
    "groups",
    "interval",
    "letters",
    "losses",
    "measure_name",
    "natural",
    "number",
    "ordered_runs",
    "pairs",
    "sets_of",
    "table_of",
    "versions",
]

ALPHA = 0.05
"""A comparison counts where its p after Holm's correction lies below this."""
CLASSES = ("none", "parse", "chunk", "retrieve", "select", "compress", "generate", "error")
"""Failure classes in the order of the pipeline; `none` is a question without a failure."""

COST = "Cost, lower is better"

Row = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One measure of one configuration: its mean and interval, and the letters of those it is better than."""

    mean: str
    interval: str
    n: int
    best: bool
    beats: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two configurations on one set: the measures on which each is better, and how many stay open."""

    a: str
    b: str
    a_better: tuple[str, ...]
    b_better: tuple[str, ...]
    open: int


@dataclass(frozen=True, kw_only=True)
class Loss:
    """Share of the evidence there after a stage, its interval, and the share lost in it."""

    stage: str
    value: float
    low: float | None
    high: float | None
    lost: float
    most: bool


def letters(results: Row) -> dict[str, str]:
    """Label of a configuration -> A, B, C, ...; by name, so that any order of the runs gives the same letters."""
    labels = sorted(set(results["configs"]) | {run["config"] for run in results["runs"]})
    return {label: chr(65 + at) if at < 26 else f"C{at + 1}" for at, label in enumerate(labels)}


def sets_of(results: Row) -> list[str]:
    """The names of the sets that were run, sorted."""
    return sorted({run["set"] for run in results["runs"]})


def ordered_runs(results: Row, name: str | None = None) -> list[Row]:
    """All runs, or those on one set, by set and label."""
    runs = [run for run in results["runs"] if name in (None, run["set"])]
    return sorted(runs, key=lambda run: (run["set"], run["config"]))


def versions(results: Row) -> list[tuple[str, str]]:
    """Package and version, sorted."""
    return sorted((str(name), str(found)) for name, found in results.get("versions", {}).items())


def number(value: float | None) -> str:
    """Three decimals below 10, one below 1,000, none above; a hyphen for what is absent or not finite."""
    if value is None or not math.isfinite(value):
        return "-"
    places = 3 if abs(value) < 10 else 1 if abs(value) < 1000 else 0
    return f"{value + 0.0:,.{places}f}".replace("-0.000", "0.000")


def chance(value: float | None) -> str:
    """A p-value; below a thousandth only that it is."""
    return "<0.001" if value is not None and value < 0.001 else number(value)


def natural(name: str) -> list[tuple[int, str]]:
    """Sorts names with numbers in them by the numbers: 200 before 1600."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name.casefold())]


def interval(row: Row) -> str:
    """The interval in brackets, nothing where there is none."""
    low, high = row.get("low"), row.get("high")
    return "" if low is None or high is None else f"[{number(low)}, {number(high)}]"


def measure_name(name: str, found: Row) -> str:
    """A proxy is never printed under the name of the thing it stands for."""
    return f"{name} (proxy)" if found.get("proxy") and "proxy" not in name.lower() else name


def _measures(results: Row, name: str) -> dict[str, Row]:
    """Measure -> one of its rows, over all runs on a set: direction and whether it is a proxy."""
    found: dict[str, Row] = {}
    for run in ordered_runs(results, name):
        for measure, row in run["measures"].items():
            found.setdefault(measure, row)
    return found


def groups(results: Row, name: str) -> list[tuple[str, list[tuple[str, Row]]]]:
    """The measures of a set in three groups: quality, proxies, costs (in older results: what is better when lower)."""
    found = sorted(_measures(results, name).items(), key=lambda one: natural(one[0]))
    titles = ("Quality", "Proxies, computed without a judge", COST)
    made: dict[str, list[tuple[str, Row]]] = {title: [] for title in titles}
    for measure, row in found:
        cost = row.get("cost", row.get("better") == "lower")
        made[titles[1 if row.get("proxy") else 2 if cost else 0]].append((measure, row))
    return [(title, rows) for title, rows in made.items() if rows]


def absences(results: Row, name: str) -> list[tuple[str, str, str]]:
    """(measures, letters of the configurations, why): what could not be measured on a set."""
    marks = letters(results)
    found: dict[tuple[str, str], list[str]] = {}
    for run in ordered_runs(results, name):
        for measure, why in run.get("absent", {}).items():
            found.setdefault((why, marks[run["config"]]), []).append(measure)
    made: dict[tuple[str, str], list[str]] = {}
    for (why, letter), measures in found.items():
        made.setdefault((", ".join(sorted(measures, key=natural)), why), []).append(letter)
    return sorted((measures, ", ".join(sorted(who, key=natural)), why) for (measures, why), who in made.items())


def table_of(results: Row, name: str, measure: str) -> list[Cell | None]:
    """A measure on a set, one cell per configuration in the order of `letters`; None where it was not measured."""
    marks = letters(results)
    rows = {run["config"]: run["measures"].get(measure) for run in ordered_runs(results, name)}
    better = _measures(results, name)[measure].get("better", "higher")
    means = [row["mean"] for row in rows.values() if row is not None and row["mean"] is not None]
    best = (max if better == "higher" else min)(means, default=None)
    best = None if len(set(means)) < 2 else best
    beaten = _beaten(results, name, measure, better)
    return [
        None
        if (row := rows.get(label)) is None
        else Cell(
            mean=number(row["mean"]),
            interval=interval(row),
            n=row.get("n", 0),
            best=best is not None and row["mean"] == best,
            beats=tuple(sorted(marks[one] for one in beaten.get(label, ()))),
        )
        for label in marks
    ]


def _winner(row: Row, better: str) -> str | None:
    """Which of the two a comparison speaks for, None unless Holm's p says so; the difference is that of b minus a."""
    p, difference = row.get("p_holm"), row.get("difference")
    if p is None or not difference or p >= ALPHA:
        return None
    ahead: str = row["b"] if (difference > 0) == (better == "higher") else row["a"]
    return ahead


def _beaten(results: Row, name: str, measure: str, better: str) -> dict[str, list[str]]:
    """Label -> the labels that it is better than on a measure."""
    found: dict[str, list[str]] = {}
    for row in results.get("comparisons", ()):
        if row["set"] == name and row["measure"] == measure and (ahead := _winner(row, better)):
            found.setdefault(ahead, []).append(row["b"] if ahead == row["a"] else row["a"])
    return found


def compared(results: Row, name: str) -> list[dict[str, Any]]:
    """The comparisons on a set, sorted, under the names of `measure_name`, with `holds` by Holm's p."""
    measures = _measures(results, name)
    rows = sorted(results.get("comparisons", ()), key=lambda one: (one["a"], one["b"], natural(one["measure"])))
    return [
        {
            **row,
            "measure": measure_name(row["measure"], measures.get(row["measure"], {})),
            "holds": row.get("p_holm") is not None and row["p_holm"] < ALPHA,
        }
        for row in rows
        if row["set"] == name
    ]


def pairs(results: Row, name: str) -> list[Pair]:
    """Every compared pair on a set, with the measures that speak for either side."""
    measures = _measures(results, name)
    found: dict[tuple[str, str], list[tuple[str, str | None]]] = {}
    for row in sorted(results.get("comparisons", ()), key=lambda one: (one["a"], one["b"], natural(one["measure"]))):
        if row["set"] == name:
            kind = measures.get(row["measure"], {})
            said = (measure_name(row["measure"], kind), _winner(row, kind.get("better", "higher")))
            found.setdefault((row["a"], row["b"]), []).append(said)
    return [
        Pair(
            a=a,
            b=b,
            a_better=tuple(measure for measure, ahead in said if ahead == a),
            b_better=tuple(measure for measure, ahead in said if ahead == b),
            open=sum(ahead is None for _, ahead in said),
        )
        for (a, b), said in found.items()
    ]


def losses(waterfall: Sequence[Row]) -> list[Loss]:
    """The stages of a run with what each lost; the stage that lost most is marked, unless none lost any."""
    before, steps = 1.0, []
    for row in waterfall:
        value = float(row["value"])
        steps.append((row, value, max(0.0, before - value)))
        before = value
    top = max((lost for _, _, lost in steps), default=0.0)
    return [
        Loss(
            stage=str(row["stage"]),
            value=value,
            low=row.get("low"),
            high=row.get("high"),
            lost=lost,
            most=0 < lost == top,
        )
        for row, value, lost in steps
    ]
