"""Runs one contender in this fresh process and prints what it cost: `python _drive.py CONTENDER.py JOB_AS_JSON`.

Standard library only, and nothing of ours, so that it runs in the environment of any framework. A contender is a
file with `PACKAGES` (whose versions are reported), `MODULES` (imported first; ImportError means that the contender
is absent) and these functions, each measured on its own:

    load(model, options) -> encoder                  load the weights and embed one text, so that nothing stays lazy
    ingest(encoder, documents, store) -> int         folder of .txt -> chunks -> vectors -> durable files; chunk count
    retrieve(encoder, documents, store, questions, k) -> {"chunks": [[document, text] or [document, start, end]],
                                                     "hits": {ranking: [[chunk number, ..], ..]}}
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import resource
import sys
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import ModuleType
from typing import Any


def cpu_seconds() -> float:
    """User and system time of this process and of the children that it waited for."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def peak_rss_mb() -> float:
    """Peak memory of this process plus that of its largest child; Linux counts in KiB, macOS in bytes."""
    used = [resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(used) / (2**20 if sys.platform == "darwin" else 2**10)


def measured(report: dict[str, Any], phase: str, call: Callable[[], Any]) -> Any:
    """What `call` returns; its CPU and wall seconds go into the report."""
    cpu, wall = cpu_seconds(), time.perf_counter()
    result = call()
    report[phase] = {"cpu_seconds": cpu_seconds() - cpu, "wall_seconds": time.perf_counter() - wall}
    return result


def run(contender: ModuleType, job: dict[str, Any]) -> dict[str, Any]:
    """The phases of one job. `task` is probe (imports only), ingest or retrieve."""
    report: dict[str, Any] = {"status": "ok"}
    try:
        measured(report, "imports", lambda: [importlib.import_module(name) for name in contender.MODULES])
    except ImportError as error:
        return {"status": "absent", "reason": str(error)}
    report["versions"] = {name: _version(name) for name in contender.PACKAGES}
    if job["task"] == "probe":
        return report
    encoder = measured(report, "load", lambda: contender.load(job["model"], job.get("options", {})))
    documents, store = Path(job["documents"]), Path(job["store"])
    if job["task"] == "ingest":
        report["chunks"] = measured(report, "work", lambda: contender.ingest(encoder, documents, store))
    else:
        questions = json.loads(Path(job["questions"]).read_text(encoding="utf-8"))
        found = measured(
            report, "work", lambda: contender.retrieve(encoder, documents, store, questions, int(job["k"]))
        )
        report["found"] = found
    report["peak_rss_mb"] = peak_rss_mb()
    return report


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def main(path: str, job: str) -> None:
    """Load the contender from its file and print the report as the last line."""
    sys.path.pop(0)  # this folder: haystack.py in it must not stand in for the package haystack
    spec = importlib.util.spec_from_file_location("contender", path)
    if spec is None or spec.loader is None:
        raise SystemExit(f"{path} is no Python file")
    contender = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(contender)
    print("\n" + json.dumps(run(contender, json.loads(job))))


if __name__ == "__main__":
    main(*sys.argv[1:])
