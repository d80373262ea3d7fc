"""`rag bench serve`: many clients of several tenants on loopback, against the bare engine called in a loop.

Every tenant has documents about the same topics, and each of them holds a canary: a word that is nowhere else. A client
asks about its own documents; an answer without its canary is wrong, one with a canary of somebody else is a leak. The
server runs in a process of its own and the clients in this one, so they share the machine's cores; the bare engine has
them alone, in one thread, before and after.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import random
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import quantiles
from typing import Any

from eval.bench._children import child_environment
from eval.bench._report import Settings, claim, load_average, machine, table
from rag.config import PipelineConfig
from rag.errors import RagError
from rag.pipeline import Pipeline

__all__ = ["run"]

TENANTS = 4
SECONDS = 60
CLIENTS = 50
_BARE_SECONDS = 10.0
_SEARCHES = 0.5
"""Share of searches; the others are asked, half of them as a stream."""
_WORDS = ("travel", "holiday", "parking", "invoice", "training", "safety", "visitor", "contract", "archive", "laptop")
_ACTS = ("approved", "signed", "planned", "counted", "checked", "filed", "printed", "renewed", "closed", "opened")


@dataclass(frozen=True)
class Task:
    """One request: a question of a tenant, its canary, and how it is asked: search, ask or stream."""

    tenant: int
    question: str
    canary: str
    way: str


@dataclass
class Tally:
    """What the clients saw. `seconds` are those of answered requests."""

    seconds: dict[str, list[float]] = field(default_factory=lambda: {"search": [], "ask": [], "stream": []})
    busy: int = 0
    failed: int = 0
    wrong: int = 0
    leaks: int = 0
    samples: list[str] = field(default_factory=list)

    @property
    def answered(self) -> int:
        return sum(len(one) for one in self.seconds.values())


def run(settings: Settings, *, seconds: int = SECONDS, clients: int = CLIENTS) -> dict[str, Any]:
    """The report. `documents` are those of all tenants together; RagError when the server does not start."""
    config = PipelineConfig.from_yaml(settings.config) if settings.config else PipelineConfig.default()
    with tempfile.TemporaryDirectory(prefix="rag-bench-") as name:
        home = Path(name)
        topics = _write(home, max(1, settings.documents // TENANTS))
        (home / "rag.yaml").write_text(config.to_yaml(), encoding="utf-8")
        Pipeline(config).index(home / "docs", home / "idx").close()
        bare = [_bare(home, topics, settings, settings.seed)]
        with _server(home, settings.threads) as port:
            started = time.perf_counter()
            tally = _load(port, topics, seconds, clients, settings.seed)
            took = time.perf_counter() - started
        bare.append(_bare(home, topics, settings, settings.seed + 1))
    report = _report(settings, tally, bare, took, clients)
    if not settings.quiet:
        print(table(("", "per second", "p50 ms", "p95 ms", "p99 ms"), _lines(report["results"])), file=sys.stderr)
    return report


def _report(settings: Settings, tally: Tally, bare: list[dict[str, Any]], took: float, clients: int) -> dict[str, Any]:
    every = [value for values in tally.seconds.values() for value in values]
    results = [
        {"name": f"bare engine, one loop ({when})", **one} for when, one in zip(("before", "after"), bare, strict=True)
    ]
    results.append({"name": f"rag serve, {clients} clients", **_figures(every, took)})
    results += [{"name": f"rag serve: {way}", **_figures(values, took)} for way, values in tally.seconds.items()]
    alone = sum(one["per_second"] for one in bare) / len(bare)
    counts = {name: getattr(tally, name) for name in ("answered", "busy", "failed", "wrong", "leaks", "samples")}
    return {
        "bench": "serve",
        "machine": {**machine(), "load": load_average()},
        "seed": settings.seed,
        "clients": clients,
        "seconds": round(took, 1),
        "results": results,
        "counts": counts,
        "claims": [
            claim("wrong or mixed-up answers", tally.wrong, 0, "lower"),
            claim("answers with something of another tenant", tally.leaks, 0, "lower"),
            claim("requests that failed (429 is none)", tally.failed, 0, "lower"),
            claim("throughput over that of the bare loop", len(every) / took / alone, 0.5, "higher"),
        ],
    }


def _lines(results: list[dict[str, Any]]) -> Iterator[tuple[Any, ...]]:
    for row in results:
        yield (row["name"], row["per_second"], row["p50_ms"], row["p95_ms"], row["p99_ms"])


def _figures(seconds: list[float], took: float) -> dict[str, float]:
    """Requests per second, and milliseconds that half, 95 and 99 of 100 stayed below."""
    cuts = [1000 * one for one in quantiles(seconds, n=100)] if len(seconds) > 1 else [0.0] * 99
    rounded = {f"p{at}_ms": round(cuts[at - 1], 2) for at in (50, 95, 99)}
    return {"count": len(seconds), "per_second": round(len(seconds) / took, 2), **rounded}


# ---------------------------------------------------------------------- documents and tasks


def _topic(number: int) -> str:
    return f"{_WORDS[number % len(_WORDS)]} form {number:03d}"


def _canary(tenant: int, number: int) -> str:
    return f"CANARY{tenant}X{number:03d}"


def _write(home: Path, topics: int) -> int:
    """docs/ and tokens.yaml; the number of topics, which every tenant has a document about."""
    for tenant in range(TENANTS):
        folder = home / "docs" / f"tenant{tenant}"
        folder.mkdir(parents=True)
        for number in range(topics):
            draw = random.Random(f"{tenant} {number}")  # noqa: S311  (text, no secret)
            days = [(draw.choice(_WORDS), draw.choice(_ACTS), draw.randrange(1, 29)) for _ in range(20)]
            filler = " ".join(f"The {word} list is {act} on day {day}." for word, act, day in days)
            fact = f"The {_topic(number)} is approved by office {_canary(tenant, number)}."
            (folder / f"{number:03d}.md").write_text(f"# About {_topic(number)}\n\n{fact}\n\n{filler}\n")
    lines = [
        f'"{hashlib.sha256(_token(tenant).encode()).hexdigest()}": '
        f'{{tenant: tenant{tenant}, where: {{source: {{contains: "docs/tenant{tenant}/"}}}}}}\n'
        for tenant in range(TENANTS)
    ]
    (home / "tokens.yaml").write_text("".join(lines), encoding="utf-8")
    return topics


def _token(tenant: int) -> str:
    return f"bench-token-{tenant}"


def _tasks(topics: int, seed: int) -> Iterator[Task]:
    draw = random.Random(seed)  # noqa: S311
    while True:
        tenant, number = draw.randrange(TENANTS), draw.randrange(topics)
        way = "search" if draw.random() < _SEARCHES else draw.choice(("ask", "stream"))
        yield Task(tenant, f"Which office approves the {_topic(number)}?", _canary(tenant, number), way)


# ---------------------------------------------------------------------- the bare engine


def _bare(home: Path, topics: int, settings: Settings, seed: int) -> dict[str, Any]:
    """In a process of its own with as many threads as the server has for its numerics; RagError when it fails."""
    command = [sys.executable, "-m", "eval.bench.serve", str(home), str(topics), str(seed)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=child_environment(settings.threads))
    if done.returncode:
        raise RagError(f"the bare engine failed: {done.stderr.strip()[-300:]}")
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return figures


def bare_loop(home: Path, topics: int, seed: int) -> dict[str, Any]:
    """The same mix of tasks, one after the other, with the same filters; runs are kept as the server keeps them."""
    from rag.index import Index

    pipeline, seconds = Pipeline(PipelineConfig.from_yaml(home / "rag.yaml")), []
    with Index.open(home / "idx") as index:
        pipeline.ask("Which office approves forms?", index)  # loads the models
        began = time.perf_counter()
        for task in _tasks(topics, seed):
            if time.perf_counter() - began > _BARE_SECONDS:
                break
            where = {"source": {"contains": f"docs/tenant{task.tenant}/"}}
            at = time.perf_counter()
            if task.way == "search":
                pipeline.search(task.question, index, k=5, where=where)
            else:
                pipeline.ask(task.question, index, where=where)
            seconds.append(time.perf_counter() - at)
        return _figures(seconds, time.perf_counter() - began)


# ---------------------------------------------------------------------- the server and its clients


@contextmanager
def _server(home: Path, threads: int) -> Iterator[int]:
    """The port of a server process; it is ended by its own id."""
    command = [sys.executable, "-m", "rag", "serve", "--index", "idx", "--config", "rag.yaml"]
    command += ["--tokens", "tokens.yaml", "--port", "0"]
    variables = child_environment(threads)
    process = subprocess.Popen(command, cwd=home, stderr=subprocess.PIPE, text=True, env=variables)
    try:
        line = process.stderr.readline() if process.stderr else ""
        found = re.search(r":(\d+)/v1", line)
        if not found:
            raise RagError(f"rag serve did not start: {line.strip()}")
        port = int(found[1])
        _wait(port)
        yield port
        process.terminate()
        process.wait(60)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait(10)


def _wait(port: int) -> None:
    for _ in range(1200):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        try:
            connection.request("GET", "/readyz")
            if connection.getresponse().status == 200:
                return
        except OSError:
            pass
        finally:
            connection.close()
        time.sleep(0.1)
    raise RagError("rag serve is not ready after two minutes")


def _load(port: int, topics: int, seconds: float, clients: int, seed: int) -> Tally:
    tally, lock, end = Tally(), threading.Lock(), time.monotonic() + seconds

    def client(number: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=180)
        for task in _tasks(topics, seed * 1000 + number):
            if time.monotonic() > end:
                break
            at = time.perf_counter()
            try:
                status, text, retry = _send(connection, task)
            except (OSError, http.client.HTTPException) as error:
                connection.close()
                status, text, retry = 0, repr(error), 0.0
            with lock:
                _judge(tally, task, status, text, time.perf_counter() - at)
            time.sleep(retry)
        connection.close()

    threads = [threading.Thread(target=client, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return tally


def _send(connection: http.client.HTTPConnection, task: Task) -> tuple[int, str, float]:
    """(status, body, seconds to wait) of one request."""
    body: Mapping[str, Any] = {"question": task.question, "k": 5}
    path = "/search"
    if task.way != "search":
        path, said = "/v1/chat/completions", [{"role": "user", "content": task.question}]
        body = {"model": "default", "messages": said, "stream": task.way == "stream"}
    headers = {"Authorization": f"Bearer {_token(task.tenant)}", "Content-Type": "application/json"}
    connection.request("POST", path, json.dumps(body), headers)
    answer = connection.getresponse()
    text = answer.read().decode()
    return answer.status, text, float(answer.headers.get("Retry-After", 0))


def _judge(tally: Tally, task: Task, status: int, text: str, seconds: float) -> None:
    if status == 429:
        tally.busy += 1
        return
    if status != 200:
        tally.failed += 1
        tally.samples[5:] = []
        tally.samples.append(f"{status} {text[:200]}")
        return
    tally.seconds[task.way].append(seconds)
    own = {one for one in re.findall(r"CANARY(\d)X", text) if one != str(task.tenant)}
    tally.leaks += bool(own)
    is_wrong = task.canary not in text or (task.way == "stream" and not text.endswith("data: [DONE]\n\n"))
    tally.wrong += is_wrong
    if own or is_wrong:
        tally.samples[5:] = []
        tally.samples.append(f"{task}: {text[:300]}")


if __name__ == "__main__":
    print(json.dumps(bare_loop(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))))
