"""Runs one retrieval pipeline in this fresh process and prints JSON: `python _rag.py PEER.py JOB_AS_JSON`.

Standard library only, and nothing of ours, so that it runs in the environment of any framework. A peer is a file with
`PACKAGES` (whose versions are reported), `MODULES` (imported first), `SETTINGS` (in words) and these functions:

    load(model, options) -> encoder               load the weights and embed one text, so that nothing stays lazy
    ingest(encoder, documents, store)             folder of texts -> durable store. The same call brings a store that is
                                                  there up to date, as the framework's documentation says
    rows(encoder, store) -> [(document, text)]    all entries of the store, those of a document in reading order; the
                                                  place (document, start, end) where the framework keeps it exactly
    searcher(encoder, store) -> (question, k) -> [(document, text, score)], or rows with a score     best first
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from types import ModuleType
from typing import Any

_WATCH_SECONDS = 0.01


def cpu_seconds() -> float:
    """User and system time of this process and of the children that it waited for."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def peak_rss_mb() -> float:
    """Peak memory of this process plus that of its largest child; Linux counts in KiB, macOS in bytes."""
    used = [resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(used) / (2**20 if sys.platform == "darwin" else 2**10)


def run(peer: ModuleType, job: dict[str, Any]) -> dict[str, Any]:
    """The phases of one job. `task`: probe, ingest (costs, of a new store or of one that is there), search, rows."""
    report: dict[str, Any] = {"status": "ok"}
    try:
        _measured(report, "imports", lambda: [importlib.import_module(name) for name in peer.MODULES])
    except ImportError as error:
        return {"status": "absent", "reason": str(error)}
    report["versions"] = {name: _version(name) for name in peer.PACKAGES}
    report["settings"] = peer.SETTINGS
    if job["task"] == "probe":
        return report
    encoder = _measured(report, "load", lambda: peer.load(job["model"], job.get("options", {})))
    documents, store = Path(job["documents"]), Path(job["store"])
    if job["task"] == "ingest":
        if job.get("kill_after"):
            _kill_after(job["kill_after"])
        _measured(report, "work", lambda: peer.ingest(encoder, documents, store))
        report["peak_rss_mb"] = peak_rss_mb()
    if job["task"] == "search":
        report["found"] = _found(peer, encoder, store, job, report)
        report["peak_rss_mb"] = peak_rss_mb()
    if job["task"] == "rows" or job.get("then_rows"):
        report["rows"] = [row[0] for row in peer.rows(encoder, store)]
    return report


def _found(peer: ModuleType, encoder: Any, store: Path, job: dict[str, Any], report: dict[str, Any]) -> dict[str, Any]:
    """All entries once, and for each question the numbers and scores of those found; entries may be equal."""
    entries = [tuple(row) for row in peer.rows(encoder, store)]
    numbers: dict[tuple[Any, ...], int] = {}
    for number, entry in enumerate(entries):
        numbers.setdefault(entry, number)
    questions = json.loads(Path(job["questions"]).read_text(encoding="utf-8"))
    search = _measured(report, "open", lambda: peer.searcher(encoder, store))
    search(questions[0], int(job["k"]))  # what is loaded at the first question is not measured
    hits, seconds = [], []
    for question in questions:
        began = cpu_seconds()
        found = search(question, int(job["k"]))
        seconds.append(cpu_seconds() - began)
        hits.append([[numbers[tuple(row)], float(score)] for *row, score in found])
    report["question_cpu_seconds"] = median(seconds)
    return {"entries": entries, "hits": hits}


def _kill_after(seconds: float) -> None:
    """SIGKILL for this process when it has used so many more CPU seconds: no handler, no flush, no close."""
    limit = cpu_seconds() + seconds

    def watch() -> None:
        while cpu_seconds() < limit:
            time.sleep(_WATCH_SECONDS)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()


def _measured(report: dict[str, Any], phase: str, call: Callable[[], Any]) -> Any:
    cpu, wall = cpu_seconds(), time.perf_counter()
    result = call()
    report[phase] = {"cpu_seconds": cpu_seconds() - cpu, "wall_seconds": time.perf_counter() - wall}
    return result


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def main(path: str, job: str) -> None:
    """Load the peer from its file and print the report as the last line."""
    sys.path.pop(0)  # this folder: haystack.py in it must not stand in for the package haystack
    spec = importlib.util.spec_from_file_location("peer", path)
    if spec is None or spec.loader is None:
        raise SystemExit(f"{path} is no Python file")
    peer = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(peer)
    print("\n" + json.dumps(run(peer, json.loads(job))))


if __name__ == "__main__":
    main(*sys.argv[1:])
