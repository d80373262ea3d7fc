"""One table of ours against theirs, as JSON with claims and as Markdown; a row that is lost says so."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from eval._reports import cell, table, write_report
from eval.bench._report import claim, machine
from eval.peers.reading import places_of
from eval.peers.run import OURS, PLAIN, Compared
from eval.report import markdown as results_markdown
from eval.report import write_html
from eval.runs.results import dump, rounded

__all__ = ["QUALITY", "markdown", "report_of", "write"]

QUALITY = {
    "recall_read": "evidence in the first {budget} tokens of the ranking",
    "span_recall": "evidence in the context",
    "answer_in_context": "answer is in the context",
    "f1": "F1 of the answer's words",
    "citation_recall": "evidence that is cited",
}
"""Measures that do not depend on how a framework cuts: all count characters or words. Higher is better."""
_COSTS: Mapping[str, tuple[str, Literal["higher", "lower"]]] = {
    "ingest_cpu_seconds": ("ingest, CPU s", "lower"),
    "again_cpu_seconds": ("ingest again, nothing changed, CPU s", "lower"),
    "question_cpu_ms": ("retrieval for a question, CPU ms", "lower"),
    "start_cpu_seconds": ("start (imports, weights), CPU s", "lower"),
    "peak_rss_mb": ("peak memory of ingest, MB", "lower"),
    "disk_mb": ("store, MB", "lower"),
    "kept_share": ("documents safe after kill -9 half-way", "higher"),
}
_BOTH = ("span_recall", "answer_in_context", "f1", "citation_recall")
_DIGITS = 4


def report_of(done: Compared) -> dict[str, Any]:
    """Figures only, nothing of the data: quality by set and budget, differences, costs, claims."""
    first = next(iter(done.results.values()))
    quality = [row for budget, results in done.results.items() for row in _quality(results, budget)]
    costs = _costs(done)
    report: dict[str, Any] = {
        "bench": "peers",
        "machine": {**machine(), "threads": done.settings.threads, "load_before": done.load[0],
                    "load_after": done.load[1]},
        "versions": first["versions"],
        "seed": done.settings.seed,
        "resamples": done.settings.resamples,
        "half": done.settings.half,
        "seconds": round(done.seconds),
        "sets": first["sets"],
        "configs": first["configs"],
        "absent": dict(done.absent),
        "quality": quality,
        "costs": costs,
        "claims": [*_quality_claims(quality), *_cost_claims(costs)],
    }  # fmt: skip
    made: dict[str, Any] = rounded(report)
    return made


def write(done: Compared, out: Path) -> dict[str, Any]:
    """peers.json and peers.md in `out`, and results.json, report.html and report.md of each budget in a folder."""
    report = report_of(done)
    write_report(out, "peers", report, markdown(report))
    for budget, results in done.results.items():
        folder = out / f"budget-{budget}"
        folder.mkdir(parents=True, exist_ok=True)
        dump(results, folder / "results.json")
        (folder / "report.md").write_text(results_markdown(results), encoding="utf-8")
        write_html(results, folder / "report.html")
    return report


def markdown(report: Mapping[str, Any]) -> str:
    """Quality and costs of every set, a column each, and whether ours is best."""
    labels = [OURS, PLAIN, *(name for name in report["configs"] if name not in (OURS, PLAIN))]
    lost = sum(not one["holds"] for one in report["claims"])
    parts = [
        "# Ours against other frameworks",
        f"{len(report['claims']) - lost} of {len(report['claims'])} comparisons with the best peer are won or even, "
        f"{lost} lost. Written by `rag eval peers`.",
        _how(report),
    ]
    for name, facts in report["sets"].items():
        parts.append(f"## {name}: {facts['questions']} questions, {facts['documents']} documents ({facts['half']})")
        rows = [row for row in report["quality"] if row["set"] == name]
        header = ["", *labels, f"{OURS} - best peer", OURS, PLAIN]
        parts.append(table(header, (_quality_cells(row, labels) for row in rows), 3))
        parts.append(table(["", *labels[:1], *labels[2:], ""], _cost_cells(report, name, labels)))
    missing = [f"- {name}: {reason}" for name, reason in report["absent"].items()]
    parts += ["Absent:\n\n" + "\n".join(missing)] if missing else []
    return "\n\n".join(parts) + "\n"


def _quality(results: Mapping[str, Any], budget: int) -> Iterator[dict[str, Any]]:
    for name in results["sets"]:
        runs = {run["config"]: run["measures"] for run in results["runs"] if run["set"] == name}
        for key, words in QUALITY.items():
            measure = f"recall@{budget}" if key == "recall_read" else key
            found = {
                label: {part: measures[measure][part] for part in ("mean", "low", "high")}
                for label, measures in runs.items()
                if measure in measures
            }
            peers = [label for label in found if label not in (OURS, PLAIN)]
            if OURS not in found or not peers:
                continue
            best = max(peers, key=lambda label: found[label]["mean"])
            yield {
                "set": name, "budget": budget, "measure": key, "words": words.format(budget=budget),
                "configs": found, "best_peer": best,
                "differences": {label: _difference(results, name, measure, label, best) for label in (OURS, PLAIN)},
            }  # fmt: skip


def _difference(results: Mapping[str, Any], name: str, measure: str, label: str, peer: str) -> dict[str, float] | None:
    """Ours minus the peer's; results have b minus a."""
    for one in results["comparisons"]:
        if (one["set"], one["measure"], one["a"], one["b"]) == (name, measure, label, peer):
            return {"mean": -one["difference"], "low": -one["high"], "high": -one["low"], "p_holm": one["p_holm"]}
    return None


def _costs(done: Compared) -> list[dict[str, Any]]:
    texts = {one.name: one.texts for one in done.settings.datasets}
    rows = []
    for (name, config), one in done.measured.items():
        row: dict[str, Any] = {"set": name, "config": config, "failed": one.failed, **dict(one.costs or {})}
        row["altered"] = sum(place is None for place in places_of(one.entries, texts[name]))
        rows.append(row)
    return rows


def _quality_claims(rows: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    for row in rows:
        for label in (OURS, PLAIN) if row["measure"] in _BOTH else (OURS,):
            ours, best = row["configs"][label]["mean"], row["configs"][row["best_peer"]]["mean"]
            text = f"{row['set']}, {row['budget']} tokens, {label}: {row['words']}, against {row['best_peer']}"
            yield claim(text, round(ours, _DIGITS), round(best, _DIGITS), "higher")


def _cost_claims(rows: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    for name in dict.fromkeys(row["set"] for row in rows):
        here = {row["config"]: row for row in rows if row["set"] == name}
        for key, (words, better) in _COSTS.items():
            peers = {label: row[key] for label, row in here.items() if label != OURS and row.get(key) is not None}
            if not peers:
                continue
            best = (max if better == "higher" else min)(peers, key=lambda label: float(peers[label]))
            ours = here.get(OURS, {}).get(key)  # not measured, and theirs was: lost
            value = None if ours is None else round(ours, _DIGITS)
            yield claim(f"{name}: {words}, against {best}", value, round(peers[best], _DIGITS), better)


def _how(report: Mapping[str, Any]) -> str:
    box = report["machine"]
    settings = [
        f"- {label}: {about['config']['settings']}"
        for label, about in report["configs"].items()
        if "settings" in about["config"]
    ]
    return "\n\n".join(
        [
            "Everybody has the same encoder (all-MiniLM-L6-v2, in bfloat16 where the processor has it). Chunks of the "
            f"peers are read by our reader: whole chunks by rank into the budget, then quoted sentences; {PLAIN!r} is "
            f"our ranking read in the same way, {OURS!r} our default pipeline. In brackets: 95 % interval from "
            f"{report['resamples']:,} resamples of the questions. **lost**: the best peer has the higher mean; chance, "
            "where the interval of the difference holds zero.",
            f"Costs are CPU seconds with {box['threads']} thread(s) on {box['cpu']}, {box['cores']} cores, load "
            f"{box['load_before']} to {box['load_after']}. kill -9 comes when half of the CPU seconds of the ingest "
            "are used; a document is safe when all of its chunks are in the store afterwards. Altered: chunks whose "
            "text the document does not have; they count as not found.",
            "\n".join([f"- {OURS}: the default pipeline", *settings]),
        ]
    )


def _quality_cells(row: Mapping[str, Any], labels: Sequence[str]) -> list[str]:
    cells = [f"{row['budget']}: {row['words']}"]
    for label in labels:
        found = row["configs"].get(label)
        cells.append(f"{found['mean']:.3f} [{found['low']:.3f}, {found['high']:.3f}]" if found else "-")
    gap = row["differences"][OURS]
    cells.append(f"{gap['mean']:+.3f} [{gap['low']:+.3f}, {gap['high']:+.3f}] ({row['best_peer']})" if gap else "-")
    return [*cells, _verdict(row, OURS), _verdict(row, PLAIN)]


def _verdict(row: Mapping[str, Any], label: str) -> str:
    if label not in row["configs"]:
        return "-"
    ours, best = (round(row["configs"][one]["mean"], _DIGITS) for one in (label, row["best_peer"]))
    gap = row["differences"][label]
    chance = ", chance" if gap and gap["low"] <= 0 <= gap["high"] else ""
    if ours == best:
        return "even"
    return f"won{chance}" if ours > best else f"**lost**{chance}"


def _cost_cells(report: Mapping[str, Any], name: str, labels: Sequence[str]) -> Iterator[list[str]]:
    here = {row["config"]: row for row in report["costs"] if row["set"] == name}
    shown = [label for label in labels if label != PLAIN]
    for key, (words, better) in _COSTS.items():
        values = [here.get(label, {}).get(key) for label in shown]
        if any(value is not None for value in values):
            yield [words, *(cell(value) for value in values), _cheaper(values, better)]
    kept = [(row or {}).get("again_entries") for row in map(here.get, shown)]
    if any(value is not None for value in kept):
        yield ["entries after ingesting again", *(cell(_whole(value)) for value in kept), ""]
    yield ["entries", *(cell(_whole(here.get(label, {}).get("entries"))) for label in shown), ""]
    yield ["altered", *(cell(here.get(label, {}).get("altered")) for label in shown), ""]
    failed = [here.get(label, {}).get("failed") for label in shown]
    if any(failed):
        yield ["failed", *(cell(value) for value in failed), ""]


def _cheaper(values: Sequence[float | None], better: str) -> str:
    ours, peers = values[0], [value for value in values[1:] if value is not None]
    if ours is None or not peers:
        return "-" if not peers else "**lost**"
    ours, best = round(ours, _DIGITS), round(max(peers) if better == "higher" else min(peers), _DIGITS)
    if ours == best:
        return "even"
    return "won" if (ours > best) == (better == "higher") else "**lost**"


def _whole(value: float | None) -> int | None:
    return None if value is None else int(value)
