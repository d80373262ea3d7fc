"""What storing costs: the first ingestion, the same again, one document changed, one deleted; interleaved."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from eval.bench._children import Contender
from eval.bench._report import medians
from eval.bench._store_children import run_fresh
from eval.bench._store_corpus import StoreCorpus

__all__ = ["cost_rows"]

_TICK = 1e-6  # seconds that a clock can tell apart


def cost_rows(
    contenders: Sequence[Contender],
    corpus: StoreCorpus,
    folder: Path,
    *,
    rounds: int,
    threads: int,
    tell: Callable[[str], None],
) -> list[dict[str, Any]]:
    """One row a contender. Every round starts with an empty store and a fresh copy of the documents."""
    vectors = corpus.write_vectors(folder / "vectors")
    measured: dict[str, list[dict[str, Any]]] = {contender.name: [] for contender in contenders}
    for number in range(1, rounds + 1):
        for contender in contenders:
            tell(f"costs, round {number} of {rounds}: {contender.name}")
            place = folder / "round"
            measured[contender.name].append(_round(contender, corpus, place, vectors, threads))
            shutil.rmtree(place)
    rows = [_row(contender, corpus, measured[contender.name]) for contender in contenders]
    _add_ratios(rows)
    return rows


def _round(contender: Contender, corpus: StoreCorpus, place: Path, vectors: Path, threads: int) -> dict[str, Any]:
    """The last events of the two processes and the size on disk between them."""
    documents, store = corpus.write(place / "documents"), place / "store"
    job: dict[str, Any] = {
        "store": str(store),
        "documents": str(documents),
        "vectors": str(vectors),
        "options": {**corpus.options(), **contender.options},
    }
    first = run_fresh(contender, {**job, "task": "first"}, threads)
    disk = sum(path.stat().st_size for path in store.rglob("*") if path.is_file()) if store.exists() else 0
    if first["event"] != "done":
        return {"bad": first}
    gone = corpus.texts[corpus.deleted].split("\n\n")
    extra = {"changed": corpus.changed, "deleted": corpus.deleted, "marker": corpus.marker, "questions": gone}
    later = run_fresh(contender, {**job, **extra, "task": "later"}, threads)
    return {"bad": later} if later["event"] != "done" else {"first": first, "later": later, "disk": disk}


def _row(contender: Contender, corpus: StoreCorpus, rounds: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    row: dict[str, Any] = {"name": contender.name, "measure": "costs", "role": contender.role, "note": contender.note}
    bad = next((one["bad"] for one in rounds if "bad" in one), None)
    if bad is not None:
        return {**row, "status": bad["event"], "reason": bad["reason"]}
    wanted = sorted(pair for name in corpus.texts for pair in corpus.rows(name))
    if contender.role != "extra" and rounds[0]["first"]["found"]["rows"] != wanted:
        return {**row, "status": "failed", "reason": "it stored other rows than the paragraphs that it was given"}
    figures = [_figures(one, len(corpus.texts)) for one in rounds]
    facts = _facts(rounds[0], corpus)
    if contender.role == "extra":  # it cuts as it likes, so its rows are not the paragraphs
        facts |= {"stale_rows_after_change": None, "missing_rows_after_change": None}
    versions = rounds[0]["first"]["versions"]
    return {**row, "status": "ok", **facts, "rounds": figures, "median": medians(figures), "versions": versions}


def _figures(one: Mapping[str, Any], documents: int) -> dict[str, float]:
    """Seconds on the wall tell of other programs too, so what a step costs is compared in CPU seconds."""
    first, later = one["first"]["ingest"], one["later"]
    share = max(first["cpu_seconds"], _TICK) / documents
    return {
        "documents_per_second": documents / max(first["wall_seconds"], _TICK),
        "wall_seconds": first["wall_seconds"],
        "cpu_seconds": first["cpu_seconds"],
        "peak_rss_mb": one["first"]["peak_rss_mb"],
        "disk_bytes": one["disk"],
        "unchanged_wall_seconds": later["unchanged"]["wall_seconds"],
        "unchanged_cpu_seconds": later["unchanged"]["cpu_seconds"],
        "unchanged_times_cheaper": first["cpu_seconds"] / max(later["unchanged"]["cpu_seconds"], _TICK),
        "unchanged_times_faster": first["wall_seconds"] / max(later["unchanged"]["wall_seconds"], _TICK),
        "changed_wall_seconds": later["changed"]["wall_seconds"],
        "changed_cpu_seconds": later["changed"]["cpu_seconds"],
        "changed_over_its_share": later["changed"]["cpu_seconds"] / share,
        "delete_wall_seconds": later["delete"]["wall_seconds"],
    }


def _facts(one: Mapping[str, Any], corpus: StoreCorpus) -> dict[str, Any]:
    """Counts that do not vary from round to round."""
    first, later = one["first"], one["later"]
    rows = [first["found"]["rows"], later["after_unchanged"]["rows"], later["after_change"]["rows"]]
    name = corpus.changed[0]
    wanted = corpus.rows(*corpus.changed)
    now = [row for row in rows[2] if row[0] == name]
    left = [row for row in later["after_delete"]["rows"] if row[0] == corpus.deleted]
    hits = [hit for answer in later["after_delete"]["answers"] for hit in answer if hit[0] == corpus.deleted]
    return {
        "documents": len(corpus.texts),
        "rows": len(rows[0]),
        "embedded": first["ingest"]["embedded"],
        "unchanged_embedded": later["unchanged"]["embedded"],
        "rows_after_unchanged": len(rows[1]),
        "duplicate_rows_after_unchanged": len(rows[1]) - len({tuple(row) for row in rows[1]}),
        "changed_embedded": later["changed"]["embedded"],
        "stale_rows_after_change": sum(1 for row in now if row not in wanted),
        "missing_rows_after_change": sum(1 for row in wanted if row not in now),
        "rows_after_delete": len(left),
        "hits_after_delete": len(hits),
        "deleted_text_on_disk": {"before": later["marker_before"], "after": later["marker_after"]},
    }


def _add_ratios(rows: list[dict[str, Any]]) -> None:
    """Ours over each peer, paired by round: above 1 is better for `documents_per_second`, below 1 for the others."""
    ours = next((row for row in rows if row["role"] == "ours" and row["status"] == "ok"), None)
    for row in rows:
        if ours is None or row is ours or row["status"] != "ok":
            continue
        names = ("documents_per_second", "disk_bytes", "peak_rss_mb", "unchanged_wall_seconds", "changed_wall_seconds")
        pairs = list(zip(ours["rounds"], row["rounds"], strict=True))
        row["ours_over_this"] = {name: median(a[name] / max(b[name], _TICK) for a, b in pairs) for name in names}
