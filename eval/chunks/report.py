"""The report of an evaluation as JSON and as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from eval._reports import cell, table, write_report
from eval.bench._report import machine
from eval.chunks.conformance import LAWS
from eval.chunks.run import Settings

__all__ = ["dressed", "markdown", "write"]

_PACKAGES = ("chunkwise", "numpy", "torch", "tokenizers", "sentencex", "langchain-text-splitters")
_SCORES = {
    "recall@200tokens": "r@200t", "recall@400tokens": "r@400t", "recall@800tokens": "r@800t",
    "recall@1000chars": "r@1000c", "recall@2000chars": "r@2000c", "recall@4000chars": "r@4000c",
    "area": "area", "recall": "recall", "precision": "prec.", "iou": "IoU", "precision_omega": "PΩ",
    "contained@1": "cont.@1", "contained@5": "cont.@5",
}  # fmt: skip
_COSTS = {
    "value": "knob", "mean_chars": "mean", "p95_chars": "p95", "max_chars": "max", "max_tokens": "max tokens",
    "over_limit": "over limit", "not_found": "not found", "chunks": "chunks", "encoder_passes": "passes",
    "index_passes": "index passes",
    "chunks_per_cpu_second": "chunks/CPU s",
}  # fmt: skip


def dressed(report: Mapping[str, Any], settings: Settings) -> dict[str, Any]:
    """The report with what one needs to run it again."""
    return {
        "kind": "chunk-evaluation",
        "machine": machine(),
        "versions": {name: _version(name) for name in _PACKAGES} | dict(report.get("peer_versions", {})),
        "half": settings.half,
        "baseline": settings.baseline,
        "resamples": settings.resamples,
        "seed": settings.seed,
        "chunkers": [spec if isinstance(spec, str) else dict(spec) for spec in settings.chunkers],
        **report,
    }


def write(report: Mapping[str, Any], folder: Path) -> None:
    """`chunks.json` and `chunks.md` in `folder`."""
    write_report(folder, "chunks", report, markdown(report))


def markdown(report: Mapping[str, Any]) -> str:
    """The report for people: one table of scores, differences and costs per size, then structure and laws."""
    parts = [_head(report)]
    rows: Sequence[Mapping[str, Any]] = report.get("rows", [])
    for size in dict.fromkeys(row["size"] for row in rows):
        here = [row for row in rows if row["size"] == size]
        compared = [one for one in report["comparisons"] if one["size"] == size]
        parts += [f"## {size}", *_size(here, compared, report["baseline"])]
    if report.get("size_alone"):
        alone = ", ".join(f"{name} {cell(report['size_alone'].get(key))}" for key, name in _SCORES.items())
        parts += ["## What size alone explains", f"Rank correlation with mean length over all rows: {alone}."]
    if "structure" in report:
        parts += ["## Structure (CLAIR)", *_structure(report["structure"])]
    if "laws" in report:
        parts += ["## Laws on hard texts", *_laws(report["laws"])]
    if report.get("absent"):
        parts += ["## Absent", *[f"- {name}: {reason}" for name, reason in report["absent"].items()]]
    return "\n\n".join(parts) + "\n"


def _head(report: Mapping[str, Any]) -> str:
    sets = ", ".join(f"{name} ({found})" for name, found in report["sets"].items())
    box = report["machine"]
    versions = ", ".join(f"{name} {found}" for name, found in report["versions"].items() if found)
    return "\n".join(
        [
            "# Chunk evaluation",
            "",
            f"{report['questions']} questions ({report['half']} half) over {report['documents']} documents: {sets}.",
            f"Embedder {report['embedder']['fingerprint']}, exact search; tokens of {report['embedder']['tokens']}.",
            f"Differences to `{report['baseline']}`: paired bootstrap over questions, {report['resamples']} resamples, "
            f"seed {report['seed']}; p after Holm's correction over the chunkers of a table.",
            "A size knob is set on documents alone. CPU seconds are without the encoder's.",
            f"{box['cpu']}, {box['cores']} cores, Python {box['python']}; {versions}.",
        ]
    )


def _size(rows: Sequence[Mapping[str, Any]], compared: Sequence[Mapping[str, Any]], baseline: str) -> list[str]:
    done = [row for row in rows if row["status"] == "ok"]
    failed = [f"- {row['chunker']} failed: {row['reason']}" for row in rows if row["status"] != "ok"]
    lines = [table(["chunker", *_SCORES.values()], ([_name(row), *_scores(row)] for row in done))]
    by_measure: dict[str, dict[str, Mapping[str, Any]]] = {}
    for one in compared:
        by_measure.setdefault(one["chunker"], {})[one["measure"]] = one
    if by_measure:
        shown = [name for name in _SCORES if name in next(iter(by_measure.values()))]
        header = [f"minus {baseline}", *(_SCORES[name] for name in shown)]
        body = ([chunker, *(_difference(found[name]) for name in shown)] for chunker, found in by_measure.items())
        lines.append(table(header, body) + "\n\nPoints of a hundred, 95 % interval; * p < 0.05 after Holm.")
    lines.append(table(["chunker", *_COSTS.values()], ([_name(row), *(row[key] for key in _COSTS)] for row in done)))
    return [*lines, "\n".join(failed)] if failed else lines


def _structure(found: Mapping[str, Any]) -> list[str]:
    rows = [row for row in found["rows"] if row["status"] == "ok"]
    body = ([row["size"], _name(row), row["mean_chars"], 100 * row["BI"], 100 * row["RC"]] for row in rows)
    alone = ", ".join(f"{name} {cell(value)}" for name, value in found["size_alone"].items())
    return [table(["size", "chunker", "mean", "BI", "RC"], body), f"Rank correlation with mean length: {alone}."]


def _laws(verdicts: Sequence[Mapping[str, Any]]) -> list[str]:
    body = ([one["name"], *(len(one["failed"][law]) for law in LAWS), one["cells"]] for one in verdicts)
    failing = [
        f"- {one['name']}, {law}: {', '.join(cells)}"
        for one in verdicts
        for law, cells in one["failed"].items()
        if cells
    ]
    meaning = "; ".join(f"*{law}*: {text}" for law, text in LAWS.items())
    counts = table(["chunker", *LAWS, "cells"], body)
    return [f"Failing cells (a text at a size). {meaning}.", counts, "\n".join(failing)]


def _name(row: Mapping[str, Any]) -> str:
    return f"{row['chunker']} (size not matched)" if row["matched"] is False else str(row["chunker"])


def _scores(row: Mapping[str, Any]) -> list[float]:
    return [100 * row["scores"][name] for name in _SCORES]


def _difference(one: Mapping[str, Any]) -> str:
    star = " *" if one["p_holm"] < 0.05 else ""
    return f"{100 * one['mean']:+.1f} [{100 * one['low']:+.1f}, {100 * one['high']:+.1f}]{star}"


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
