"""`rag bench scale`: what the index costs at 10,000, 100,000 and 1,000,000 chunks, against FAISS and FTS5 themselves.

`--documents N` is the number of chunks here (rounded to documents of 20); smaller sizes of the curve are measured too.
A store is filled through `Store.commit`, indexed, opened, searched (dense, BM25, hybrid, filtered), one document in a
hundred is deleted, it is searched again, compacted and searched once more. Every step runs in a process of its own and
reports its peak of memory; text, vectors and the questions are described in `_scale_data.py`. The raw calls read the
same files in the same process, question by question in turn with ours, and look the same words up. Room: 4 GB on disk
for a million chunks, twice that while compacting.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from eval.bench._children import child_environment
from eval.bench._report import Settings, claim, load_average, machine, table
from eval.bench._scale_data import CHUNKS_PER_DOCUMENT, gather, save
from rag.errors import RagError

__all__ = ["run"]

_CURVE = (10_000, 100_000, 1_000_000)
_STEPS = ("fill", "index", "search", "delete", "search", "compact", "search")
_QUESTIONS = 200
_SECONDS = 3600
_ROOT = Path(__file__).resolve().parents[2]


def run(settings: Settings) -> dict[str, Any]:
    """The report, with one row per size."""
    largest = max(CHUNKS_PER_DOCUMENT, settings.documents // CHUNKS_PER_DOCUMENT * CHUNKS_PER_DOCUMENT)
    started = load_average()
    with tempfile.TemporaryDirectory(prefix="rag-bench-") as folder:
        _tell(settings, "gathering texts and vectors")
        material = gather(_data(settings), _QUESTIONS, settings.seed, **_base(largest))
        save(material, Path(folder) / "material")
        sizes = [size for size in _CURVE if size < largest] + [largest]
        rows = [_measure(settings, size, Path(folder)) for size in sizes]
    report = {
        "bench": "scale",
        "machine": {**machine(), "threads": settings.threads, "load_before": started, "load_after": load_average()},
        "versions": _versions(),
        "seed": settings.seed,
        "corpus": material.origin,
        "results": rows,
        "claims": _claims(rows[-1]),
    }
    _tell(settings, _table(rows))
    return report


def _base(chunks: int) -> dict[str, int]:
    """Fewer real vectors for a small store: embedding them is the dear part."""
    return {"base": max(100, min(6_000, chunks // 10))}


def _data(settings: Settings) -> Path | None:
    beside = _ROOT.parent / "shared" / "data"
    return settings.data or (beside if beside.is_dir() else None)


def _measure(settings: Settings, chunks: int, folder: Path) -> dict[str, Any]:
    """All steps at one size; the store is deleted afterwards."""
    with tempfile.TemporaryDirectory(dir=folder) as store:
        job = {"store": store, "material": str(folder / "material"), "chunks": chunks, "seed": settings.seed}
        row: dict[str, Any] = {"chunks": chunks}
        last = ""
        for step in _STEPS:
            name = f"search after {last}" if step == "search" and "search" in row else step
            _tell(settings, f"{chunks:,} chunks: {name}")
            row[name] = _step(step, job, settings.threads)
            last = step
    return row


def _step(step: str, job: dict[str, Any], threads: int) -> dict[str, Any]:
    command = [sys.executable, "-m", "eval.bench._scale_steps", step, json.dumps(job)]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        cwd=_ROOT,
        env=child_environment(threads),
        timeout=_SECONDS,
        check=False,
    )
    if done.returncode:
        raise RagError(f"bench scale: step {step} failed: {(done.stderr.strip().splitlines() or ['no message'])[-1]}")
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    if step == "search":
        spent = figures["milliseconds"]
        figures["hybrid_p95_over_raw"] = spent["hybrid"]["p95"] / max(spent["raw both"]["p95"], 1e-6)
    return figures


def _claims(row: dict[str, Any]) -> list[dict[str, Any]]:
    where = f"at {row['chunks']:,} chunks"
    found = []
    for name in ("search", "search after delete", "search after compact"):
        text = f"{name}, {where}: hybrid p95 over that of raw FAISS + FTS5"
        found.append(claim(text, row[name]["hybrid_p95_over_raw"], 1.5, "lower"))
        found.append(claim(f"{name}, {where}: recall@10 against exact", row[name]["recall_at_10"], 0.98, "higher"))
    return found


def _versions() -> dict[str, str]:
    import sqlite3
    from importlib.metadata import version

    return {"chunkwise": version("chunkwise"), "faiss-cpu": version("faiss-cpu"), "sqlite": sqlite3.sqlite_version}


def _table(rows: list[dict[str, Any]]) -> str:
    """One line per figure, one column per size."""
    lines: list[list[Any]] = [
        ["ingest, rows a second", *(row["fill"]["rows_per_second"] for row in rows)],
        ["store, MB", *(row["fill"]["bytes"] / 1e6 for row in rows)],
        ["dense index, MB", *(row["index"]["bytes"] / 1e6 for row in rows)],
        ["dense index, seconds", *(row["index"]["seconds"] for row in rows)],
        ["peak memory of building it, MB", *(row["index"]["peak_rss_mb"] for row in rows)],
        ["peak memory of opening, MB", *(row["search"]["peak_rss_mb_opened"] for row in rows)],
        ["peak memory of searching, MB", *(row["search"]["peak_rss_mb_ours"] for row in rows)],
        ["open, seconds", *(sum(row["search"]["open_seconds"][n] for n in ("corpus", "hybrid")) for row in rows)],
    ]
    for name in rows[0]["search"]["milliseconds"]:
        for mark in ("p50", "p95"):
            figures = [row["search"]["milliseconds"][name][mark] for row in rows]
            lines.append([f"{name}, {mark} ms", *figures])
    for name in ("search", "search after delete", "search after compact"):
        lines.append([f"{name}: hybrid p95 over raw", *(row[name]["hybrid_p95_over_raw"] for row in rows)])
        lines.append([f"{name}: recall@10", *(row[name]["recall_at_10"] for row in rows)])
    lines.append(["delete 1 %, seconds", *(row["delete"]["seconds"] for row in rows)])
    lines.append(["open after delete, seconds", *(row["delete"]["open_seconds"] for row in rows)])
    lines.append(["compact, seconds", *(row["compact"]["seconds"] for row in rows)])
    return table(["chunks", *(f"{row['chunks']:,}" for row in rows)], lines)


def _tell(settings: Settings, text: str) -> None:
    if not settings.quiet:
        print(text, file=sys.stderr, flush=True)
