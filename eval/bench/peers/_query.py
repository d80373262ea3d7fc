"""Asks one contender questions in this fresh process and prints the times: `python _query.py CONTENDER.py JOB_AS_JSON`.

Standard library only, and nothing of ours, so that it runs in the environment of any framework. A contender is a file
as `_rag.py` says. One that does more than search has a function beside `searcher`, which is taken instead:

    asker(encoder, store) -> (question, k) -> {stage: (wall seconds, CPU seconds)}      with one stage for each part

Imports, loading, opening and the first question are a cold start. Then come the other questions, each for the first
time (`new`), and all questions once more (`again`).
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

Ask = Callable[[str, int], dict[str, tuple[float, float]]]


def loaded(path: Path) -> ModuleType:
    """The module in that file."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise SystemExit(f"{path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


_rag = loaded(Path(__file__).with_name("_rag.py"))


def run(peer: ModuleType, job: dict[str, Any]) -> dict[str, Any]:
    """The seconds of a cold start, and of every question by stage: {"new" or "again": {stage: [[wall, CPU], ..]}}."""
    report: dict[str, Any] = {"status": "ok"}
    try:
        _rag._measured(report, "imports", lambda: [importlib.import_module(name) for name in peer.MODULES])
    except ImportError as error:
        return {"status": "absent", "reason": str(error)}
    report["versions"] = {name: _rag._version(name) for name in peer.PACKAGES}
    questions = json.loads(Path(job["questions"]).read_text(encoding="utf-8"))
    encoder = _rag._measured(report, "load", lambda: peer.load(job["model"], job.get("options", {})))
    ask: Ask = _rag._measured(report, "open", lambda: _asker(peer, encoder, Path(job["store"])))
    _rag._measured(report, "first", lambda: ask(questions[0], int(job["k"])))
    for name, asked in (("new", questions[1:]), ("again", questions)):
        stages: dict[str, list[tuple[float, float]]] = {}
        for question in asked:
            for stage, spent in ask(question, int(job["k"])).items():
                stages.setdefault(stage, []).append(spent)
        report[name] = stages
    report["peak_rss_mb"] = _rag.peak_rss_mb()
    return report


def _asker(peer: ModuleType, encoder: Any, store: Path) -> Ask:
    if hasattr(peer, "asker"):
        ask: Ask = peer.asker(encoder, store)
        return ask
    search = peer.searcher(encoder, store)

    def retrieve(question: str, k: int) -> dict[str, tuple[float, float]]:
        wall, cpu = time.perf_counter(), _rag.cpu_seconds()
        search(question, k)
        return {"retrieve": (time.perf_counter() - wall, _rag.cpu_seconds() - cpu)}

    return retrieve


def main(path: str, job: str) -> None:
    """Load the contender from its file and print the report as the last line."""
    sys.path.pop(0)  # this folder: haystack.py in it must not stand in for the package haystack
    print("\n" + json.dumps(run(loaded(Path(path)), json.loads(job))))


if __name__ == "__main__":
    main(*sys.argv[1:])
