"""Runs the jobs of one store contender: `python _store.py CONTENDER.py JOB_AS_JSON`, or `... CONTENDER.py serve`.

Standard library and numpy only, and nothing of ours, so that it runs in the environment of any framework. A contender
is a file with `PACKAGES`, `MODULES`, `SETTINGS`, `ACKNOWLEDGED` (what it means that a document is stored) and

    load(vectors, options) -> encoder             `vectors.embed(texts)` gives the vectors, one list a text
    ingest(encoder, documents, store, tell)       a folder of .txt -> durable store, in batches: `tell.stored(n)` when
                                                  the first n documents are durable, `tell.persist()` before a step that
                                                  writes what was in memory; the number of texts embedded, None to count
    delete(encoder, documents, store, name)       `documents` does not hold the file any more
    rows(encoder, store) -> {"parts": {part: count}, "rows": [(document, text)]}     the parts should be equal
    search(encoder, store, questions, k) -> [[(document, text, score)]]
    verify(encoder, store) -> [problem]                   may be missing: the library has no such check

Every function opens the store from disk. With `serve` the imports are done once and every job (a line on stdin, with
`out`: a named pipe for its events) runs in a fork, which can be killed or crash without anybody else noticing.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import json
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import ModuleType
from typing import Any

SCORE_DIGITS = 4
Job = dict[str, Any]


def digest(text: str) -> str:
    """Names a text, whatever white space a splitter left around it."""
    return hashlib.blake2b(text.strip().encode(), digest_size=8).hexdigest()


class Vectors:
    """The vectors made beforehand, looked up by text; `count` texts were asked for so far."""

    def __init__(self, folder: Path) -> None:
        import numpy as np

        names = json.loads((folder / "vectors.json").read_text(encoding="utf-8"))
        self._found = dict(zip(names, np.load(folder / "vectors.npy").tolist(), strict=True))
        self.dimension = len(next(iter(self._found.values())))
        self.count = 0

    def embed(self, texts: list[str]) -> list[list[float]]:
        """KeyError when a splitter cut elsewhere than it was asked to."""
        self.count += len(texts)
        return [self._found[digest(text)] for text in texts]


class Tell:
    """Events, one line of JSON each, as soon as they happen."""

    def __init__(self, file: int) -> None:
        self._file = file

    def event(self, name: str, **values: Any) -> None:
        line = f"\n{json.dumps({'event': name, 'at': time.time(), **values})}\n".encode()
        while line:
            line = line[os.write(self._file, line) :]

    def stored(self, done: int) -> None:
        """The first `done` documents, in the order of their names, are durable."""
        self.event("stored", done=done)

    def persist(self) -> None:
        """A write that is not atomic by itself may begin now."""
        self.event("persist")


# ---------------------------------------------------------------------- jobs


def run(contender: ModuleType, job: Job, tell: Tell) -> None:
    """One job; its last event is `done` or `failed`."""
    try:
        encoder = _Loaded(contender, job)
        tell.event("done", **_JOBS[job["task"]](encoder, job, tell))
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:400]
        tell.event("failed", reason=reason)
        raise SystemExit(1) from error


class _Loaded:
    """A contender with its encoder loaded, and its calls measured."""

    def __init__(self, contender: ModuleType, job: Job) -> None:
        self.contender = contender
        self.vectors = Vectors(Path(job["vectors"]))
        self.store = Path(job["store"])
        self.documents = Path(job["documents"])
        self.encoder = contender.load(self.vectors, job.get("options", {}))
        self.questions: list[str] = job.get("questions", [])

    def warm_up(self) -> None:
        """Store one document elsewhere, so that what a library loads at its first use is not measured."""
        with tempfile.TemporaryDirectory(prefix="rag-bench-warm-") as folder:
            place = Path(folder) / "documents"
            place.mkdir()
            shutil.copy(min(self.documents.glob("*.txt")), place)
            with open(os.devnull, "wb") as nowhere:
                self.contender.ingest(self.encoder, place, Path(folder) / "store", Tell(nowhere.fileno()))

    def ingest(self, tell: Tell) -> dict[str, Any]:
        before, embedded = self.vectors.count, None

        def call() -> None:
            nonlocal embedded
            embedded = self.contender.ingest(self.encoder, self.documents, self.store, tell)

        cost = measured(call)
        return {**cost, "embedded": self.vectors.count - before if embedded is None else embedded}

    def inspect(self) -> dict[str, Any]:
        """What a reader finds: the rows by document, counts of the parts, and the answers to the questions."""
        found = self.contender.rows(self.encoder, self.store)
        rows = sorted([name, digest(text)] for name, text in found["rows"])
        hits = self.contender.search(self.encoder, self.store, self.questions, 5) if self.questions else []
        answers = [
            [(name, digest(text), round(float(score), SCORE_DIGITS)) for name, text, score in one] for one in hits
        ]
        return {"parts": found["parts"], "rows": rows, "answers": answers}

    def verify(self) -> list[str] | None:
        check = getattr(self.contender, "verify", None)
        return None if check is None else list(check(self.encoder, self.store))


def _first(it: _Loaded, job: Job, tell: Tell) -> dict[str, Any]:
    it.warm_up()
    cost = it.ingest(tell)
    return {"ingest": cost, "peak_rss_mb": peak_rss_mb(), "found": it.inspect(), "versions": _versions(it.contender)}


def _later(it: _Loaded, job: Job, tell: Tell) -> dict[str, Any]:
    """Unchanged, then one document changed, then one deleted; each step sees what the one before it left."""
    it.warm_up()
    report: dict[str, Any] = {"unchanged": it.ingest(tell), "after_unchanged": it.inspect()}
    changed, text = job["changed"]
    (it.documents / changed).write_text(text, encoding="utf-8")
    report |= {"changed": it.ingest(tell), "after_change": it.inspect()}
    marker = job["marker"].encode()
    held = _files_with(it.store, marker)
    (it.documents / job["deleted"]).unlink()
    report["delete"] = measured(lambda: it.contender.delete(it.encoder, it.documents, it.store, job["deleted"]))
    report |= {"after_delete": it.inspect(), "marker_before": held, "marker_after": _files_with(it.store, marker)}
    return report


def _write(it: _Loaded, job: Job, tell: Tell) -> dict[str, Any]:
    time.sleep(max(0.0, job.get("not_before", 0.0) - time.time()))  # two writers start together
    tell.event("begin")
    return it.ingest(tell)


def _inspect(it: _Loaded, job: Job, tell: Tell) -> dict[str, Any]:
    return it.inspect()


def _resume(it: _Loaded, job: Job, tell: Tell) -> dict[str, Any]:
    it.ingest(tell)
    return it.inspect()


def _verify(it: _Loaded, job: Job, tell: Tell) -> dict[str, Any]:
    return {"problems": it.verify()}


_JOBS: dict[str, Callable[[_Loaded, Job, Tell], dict[str, Any]]] = {
    "first": _first,
    "later": _later,
    "write": _write,
    "inspect": _inspect,
    "resume": _resume,
    "verify": _verify,
}


def measured(call: Callable[[], Any]) -> dict[str, float]:
    """CPU seconds (children that ended included) and wall seconds of a call."""
    cpu, wall = _cpu_seconds(), time.perf_counter()
    call()
    return {"cpu_seconds": _cpu_seconds() - cpu, "wall_seconds": time.perf_counter() - wall}


def _cpu_seconds() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def peak_rss_mb() -> float:
    """Peak memory of this process plus that of its largest child; Linux counts in KiB, macOS in bytes."""
    used = [resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(used) / (2**20 if sys.platform == "darwin" else 2**10)


def _files_with(store: Path, marker: bytes) -> list[str]:
    files = sorted(path for path in store.rglob("*") if path.is_file())
    return [str(path.relative_to(store)) for path in files if marker in path.read_bytes()]


def _versions(contender: ModuleType) -> dict[str, str | None]:
    found: dict[str, str | None] = {}
    for name in contender.PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


# ---------------------------------------------------------------------- processes


def serve(contender: ModuleType) -> None:
    """Fork for every job line; a monitor between server and worker reports how the worker ended."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # monitors are nobody's zombies
    for line in sys.stdin:
        job = json.loads(line)
        if os.fork() == 0:
            _monitor(contender, job)


def _monitor(contender: ModuleType, job: Job) -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    tell = Tell(os.open(job["out"], os.O_WRONLY))
    os.close(0)
    worker = os.fork()
    if worker == 0:
        code = 1
        try:
            run(contender, job, tell)
            code = 0
        finally:
            os._exit(code)
    tell.event("worker", pid=worker)
    code = os.waitstatus_to_exitcode(os.waitpid(worker, 0)[1])
    tell.event("exit", code=code)
    os._exit(0)


def main(path: str, job: str) -> None:
    """Libraries may talk on stdout: their lines go to stderr, the events to what stdout was."""
    sys.path.pop(0)  # this folder: langchain.py in it must not stand in for the package langchain
    out = Tell(os.dup(1))
    os.dup2(2, 1)
    spec = importlib.util.spec_from_file_location("contender", path)
    if spec is None or spec.loader is None:
        raise SystemExit(f"{path} is no Python file")
    contender = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(contender)
    for name in contender.MODULES:
        importlib.import_module(name)
    if job == "serve":
        serve(contender)
    else:
        run(contender, json.loads(job), out)


if __name__ == "__main__":
    main(*sys.argv[1:])
