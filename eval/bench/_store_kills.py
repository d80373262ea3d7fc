"""What is left after kill -9: of one writer at a random moment or while it persists, and of two writers at once.

Every kill has its own store. Afterwards a fresh process opens it and reports, then another one ingests the rest.
"""

from __future__ import annotations

import random
import shutil
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from eval.bench._children import Contender
from eval.bench._store_children import Event, Job, Server
from eval.bench._store_corpus import StoreCorpus

__all__ = ["KILL_DOCUMENTS", "kill_rows"]

KILL_DOCUMENTS = 64
"""Four batches: enough moments to die in, and a persist that still takes its time."""
_QUESTIONS = 20
_HEAD_START = 0.5  # seconds in which two writers load what they need
_SETUP = 3  # writers that may end before the kill arrives, for one that does not


@dataclass(frozen=True, kw_only=True)
class _Scene:
    """A contender at work: its server, what it stores and where, the events that a step of it starts with, and how
    long a step and all of them take undisturbed."""

    server: Server
    corpus: StoreCorpus
    folder: Path
    job: dict[str, Any]
    draw: random.Random
    starts: frozenset[str]
    step_seconds: float
    whole_seconds: float

    def clear(self) -> None:
        shutil.rmtree(self.folder / "store", ignore_errors=True)


def kill_rows(
    contenders: Sequence[Contender],
    corpus: StoreCorpus,
    folder: Path,
    *,
    kills: int,
    threads: int,
    seed: int,
    tell: Callable[[str], None],
) -> list[dict[str, Any]]:
    """Two rows a contender: one writer killed `kills` times, two writers killed a quarter as often."""
    corpus = corpus.first(KILL_DOCUMENTS)
    vectors = corpus.write_vectors(folder / "vectors")
    rows: list[dict[str, Any]] = []
    for number, contender in enumerate(contenders):
        tell(f"kills: {contender.name}")
        place = folder / f"kills-{number}"
        with Server(contender, threads) as server:
            scene = _rehearsed(server, corpus, place, vectors, random.Random(f"{seed}/{contender.name}"))  # noqa: S311
            same = {"name": contender.name, "role": contender.role}
            if scene is None:
                rows.append({**same, "measure": "kills", "status": "failed", "reason": "does not work unharmed either"})
                continue
            records = [_one_kill(scene, during_persist=bool(turn % 2)) for turn in range(kills)]
            rows.append({**same, "measure": "kills", "status": "ok", **_summary(records, scene)})
            pairs = [_two_writers(scene) for _ in range(max(1, kills // 4))]
            rows.append({**same, "measure": "two writers", "status": "ok", **_pair_summary(pairs)})
    return rows


def _rehearsed(server: Server, corpus: StoreCorpus, place: Path, vectors: Path, draw: random.Random) -> _Scene | None:
    """One ingestion that nobody kills tells when to kill the others; None when it fails or stores other rows."""
    documents = corpus.write(place / "documents")
    contender = server.contender
    job = {
        "store": str(place / "store"),
        "documents": str(documents),
        "vectors": str(vectors),
        "options": {**corpus.options(), **contender.options},
    }
    running = server.start({**job, "task": "write"})
    if running.finish()["event"] != "done":
        return None
    found = server.run({**job, "task": "inspect"})
    if found["event"] != "done" or _missing(found, corpus, list(corpus.texts)):
        return None
    events = [event for event in running.events if event["event"] in ("begin", "persist", "stored")]
    starts = frozenset({"persist"} if any(event["event"] == "persist" for event in events) else {"begin", "stored"})
    steps = [b["at"] - a["at"] for a, b in pairwise(events) if a["event"] in starts]
    return _Scene(
        server=server,
        corpus=corpus,
        folder=place,
        job=job,
        draw=draw,
        starts=starts,
        step_seconds=median(steps),
        whole_seconds=events[-1]["at"] - events[0]["at"],
    )


# ---------------------------------------------------------------------- one writer


def _one_kill(scene: _Scene, *, during_persist: bool) -> dict[str, Any]:
    for _ in range(_SETUP):
        scene.clear()
        running = scene.server.start({**scene.job, "task": "write"})
        _strike(scene, running, during_persist=during_persist)
        end = running.finish()
        if end["event"] == "crashed":
            break
    acknowledged = list(scene.corpus.texts)[: _stored(running)]
    record: dict[str, Any] = {
        "during": "persist" if during_persist else "random moment",
        "killed": end["event"] == "crashed",
        "acknowledged": len(acknowledged),
    }
    return {**record, **_aftermath(scene, acknowledged)}


def _strike(scene: _Scene, running: Job, *, during_persist: bool) -> None:
    """Kill at a random moment of the whole run, or a random part of one step after the step began."""
    if during_persist:
        starts, number = scene.starts, scene.draw.randrange(_batches(scene))
        wait = scene.draw.uniform(0, 1.1) * scene.step_seconds
    else:
        starts, number = frozenset({"begin"}), 0
        wait = scene.draw.uniform(0, 1) * scene.whole_seconds
    for _ in running.follow():
        if sum(event["event"] in starts for event in running.events) > number:
            break
    time.sleep(wait)
    running.kill()


def _aftermath(scene: _Scene, acknowledged: list[str]) -> dict[str, Any]:
    """What a reader finds, then what is there when the ingestion was run to its end."""
    texts = scene.corpus.texts
    asked = scene.draw.sample(acknowledged, min(_QUESTIONS, len(acknowledged)))
    questions = [texts[name].split("\n\n")[0] for name in asked]
    found = scene.server.run({**scene.job, "task": "inspect", "questions": questions})
    record: dict[str, Any] = {"opened": found["event"], "reason": found.get("reason", "")}
    nothing_there = not acknowledged and found["event"] == "failed"  # an index that was never acknowledged
    record["failed_to_open"] = found["event"] != "done" and not nothing_there
    lost = _missing(found, scene.corpus, acknowledged)
    record["lost"] = len(lost)
    record["not_found_by_search"] = _unanswered(found, [name for name in asked if name not in lost], asked)
    record["parts_disagree"] = found["event"] == "done" and len(set(found["parts"].values())) > 1
    after = scene.server.run({**scene.job, "task": "resume"})
    record |= {"resumed": after["event"] == "done", "resume_reason": after.get("reason", "")}
    record["missing_after_resume"] = len(_missing(after, scene.corpus, list(texts)))
    record["duplicated_after_resume"] = len(_duplicated(after))
    return record


def _stored(running: Job) -> int:
    return max((event["done"] for event in running.events if event["event"] == "stored"), default=0)


def _missing(found: Event, corpus: StoreCorpus, names: Sequence[str]) -> set[str]:
    """Those of `names` whose rows are not all there; all of them when the store cannot be opened."""
    there = {tuple(row) for row in found["rows"]} if found["event"] == "done" else set()
    return {name for name in names if any(tuple(row) not in there for row in corpus.rows(name))}


def _duplicated(found: Event) -> set[str]:
    rows = Counter(tuple(row) for row in found["rows"]) if found["event"] == "done" else Counter()
    return {name for (name, _), count in rows.items() if count > 1}


def _unanswered(found: Event, expected: Sequence[str], asked: Sequence[str]) -> int:
    """Documents whose rows are there and which their own first paragraph does not find."""
    if found["event"] != "done":
        return 0
    answers = dict(zip(asked, found["answers"], strict=True))
    return sum(1 for name in expected if name not in [hit[0] for hit in answers[name][:1]])


def _summary(records: list[dict[str, Any]], scene: _Scene) -> dict[str, Any]:
    reasons = Counter(one["reason"] for one in records if one["failed_to_open"])
    reasons.update(one["resume_reason"] for one in records if not one["resumed"])
    return {
        "documents": len(scene.corpus.texts),
        "kills": sum(one["killed"] for one in records),
        "ended_before_the_kill": sum(not one["killed"] for one in records),
        "documents_acknowledged": sum(one["acknowledged"] for one in records),
        "failed_to_open": sum(one["failed_to_open"] for one in records),
        "crashed_on_open": sum(one["opened"] == "crashed" for one in records),
        "documents_lost": sum(one["lost"] for one in records),
        "kills_that_lost": sum(one["lost"] > 0 for one in records),
        "not_found_by_search": sum(one["not_found_by_search"] for one in records),
        "parts_disagree": sum(one["parts_disagree"] for one in records),
        "failed_to_resume": sum(not one["resumed"] for one in records),
        "missing_after_resume": sum(one["missing_after_resume"] for one in records if one["resumed"]),
        "duplicated_after_resume": sum(one["duplicated_after_resume"] for one in records),
        "reasons": dict(reasons.most_common(5)),
        "records": records,
    }


# ---------------------------------------------------------------------- two writers


def _two_writers(scene: _Scene) -> dict[str, Any]:
    """Both ingest a half into one store at the same time, and both are killed."""
    scene.clear()
    halves = _halves(scene)
    job = {**scene.job, "task": "write", "not_before": time.time() + _HEAD_START}
    running = [scene.server.start({**job, "documents": str(half)}) for half, _ in halves]
    _await_stored(running, scene.draw.randint(1, max(1, _batches(scene) - 1)))
    time.sleep(scene.draw.uniform(0, 1) * scene.step_seconds)
    for writer in running:
        writer.kill()
    ends = [writer.finish() for writer in running]
    acknowledged = [
        name for writer, (_, names) in zip(running, halves, strict=True) for name in names[: _stored(writer)]
    ]
    errors = [
        (end["reason"], _stored(writer)) for end, writer in zip(ends, running, strict=True) if end["event"] == "failed"
    ]
    found = scene.server.run({**scene.job, "task": "inspect"})
    # A store without its first batch is no index yet: that it does not open is no failure then.
    opened = found["event"] == "done" or (not acknowledged and found["event"] == "failed")
    return {
        "ends": [end["event"] for end in ends],
        "acknowledged": len(acknowledged),
        "refused": [reason for reason, stored in errors if not stored],
        "failed_later": [reason for reason, stored in errors if stored],
        "opened": opened,
        "reason": found.get("reason", ""),
        "crashed": found["event"] == "crashed",
        "lost": len(_missing(found, scene.corpus, acknowledged)),
        "parts_disagree": found["event"] == "done" and len(set(found["parts"].values())) > 1,
    }


def _await_stored(running: Sequence[Job], batches: int) -> None:
    """Until so many batches are acknowledged by the writers together, or both have ended."""
    while any(job.code is None for job in running):
        for job in running:
            job.poll(0.01)
        if sum(event["event"] == "stored" for job in running for event in job.events) >= batches:
            return


def _batches(scene: _Scene) -> int:
    return int(-(-len(scene.corpus.texts) // scene.corpus.options()["batch"]))


def _halves(scene: _Scene) -> list[tuple[Path, list[str]]]:
    names = list(scene.corpus.texts)
    parts = [names[: len(names) // 2], names[len(names) // 2 :]]
    halves = []
    for number, part in enumerate(parts):
        folder = scene.folder / f"half-{number}"
        folder.mkdir(exist_ok=True)
        for name in part:
            (folder / name).write_text(scene.corpus.texts[name], encoding="utf-8")
        halves.append((folder, part))
    return halves


def _pair_summary(records: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "runs": len(records),
        "refused": sum(bool(one["refused"]) for one in records),
        "failed_later": sum(bool(one["failed_later"]) for one in records),
        "documents_acknowledged": sum(one["acknowledged"] for one in records),
        "documents_lost": sum(one["lost"] for one in records),
        "runs_that_lost": sum(one["lost"] > 0 for one in records),
        "failed_to_open": sum(not one["opened"] for one in records),
        "crashed_on_open": sum(one["crashed"] for one in records),
        "parts_disagree": sum(one["parts_disagree"] for one in records),
        "reasons": dict(
            Counter(text for one in records for text in (*one["refused"], *one["failed_later"], one["reason"]) if text)
        ),
        "records": records,
    }
