"""A disk that is full, broken or read-only: a clear error, nothing acknowledged lost, and the next run goes on.

Every change of the disk that an ingestion makes is counted by a preloaded library (tests/crash/faults.c), and made to
fail in turn: each write, fsync, rename, truncation and removal below the index directory.
"""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from resource import RLIMIT_FSIZE, setrlimit
from typing import Any

import pytest
import yaml

from rag.pipeline import Pipeline
from rag.store import failpoints, verify
from rag.store.failpoints import POINTS
from tests.crash.conftest import quick_folder
from tests.crash.entries import dump
from tests.crash.papers import Papers
from tests.crash.power import Disk, acknowledged, read_record
from tests.crash.supervisor import Steps, difference, state, undisturbed
from tests.crash.victim import Faults, Outcome, Runner, compiled

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="needs LD_PRELOAD")]

EVERY = int(os.environ.get("CHUNKWISE_FAULT_STEP", "47"))
"""Only every n-th operation is made to fail; CHUNKWISE_FAULT_STEP=1 is the whole sweep (some 4,000 failures)."""

CONFIG = {
    "embedder": {"use": "hashing", "buckets": 32},
    "retriever": {"use": "faiss-dense", "index": "hnsw"},
    "chunker": {"use": "recursive", "max_tokens": 60},
    "generator": "extractive",
}


@dataclass(frozen=True, kw_only=True)
class Ground:
    """A corpus of two batches, an index of its first state, and what an ingestion of its second state does."""

    runner: Runner
    folder: Path
    start: Path | None
    steps: Steps
    operations: tuple[tuple[str, str, int], ...] = ()
    """(name, file, batches acknowledged before) of every change of the disk that the whole run makes."""

    def ingest(self, index: Path, *, real: bool = False, **options: Any) -> Outcome:
        run = self.runner.command if real else self.runner.warm
        names = ("ingest", str(self.folder / "papers"), "--delete-missing", "--events", "-q")
        return run(*names, "--index", str(index), "--config", str(self.folder / "rag.yaml"), **options)

    def copy(self, name: str = "index") -> Path:
        """A new index directory in the starting state."""
        index = self.folder / name
        shutil.rmtree(index, ignore_errors=True)
        if self.start is not None:
            shutil.copytree(self.start, index)
        return index

    def fail(self, faults: Faults) -> tuple[Path, Outcome]:
        """An ingestion on a disk with these faults, into a new copy."""
        index = self.copy()
        return index, self.ingest(index, faults=faults, below=index)

    def check(self, index: Path, outcome: Outcome) -> str:
        """What is wrong after a failure: something acknowledged is lost, half there, or cannot be completed."""
        if "Traceback" in outcome.output:
            return f"a traceback: {outcome.output[-1500:]}"
        if outcome.code not in (1, 2, self.steps.code, -9):  # 2: there can be no directory
            return f"exit code {outcome.code}: {outcome.output}"
        if outcome.code in (1, 2) and f"error: {index}" not in outcome.output:
            return f"an unclear error: {outcome.output}"
        left = state(index)
        allowed = self.steps.after(outcome.done) if outcome.code != self.steps.code else self.steps.states[-1:]
        if left not in allowed:
            return f"exit code {outcome.code}, {outcome.done} files acknowledged: {difference(left, allowed[-1])}"
        if left and (problems := verify(index).problems):
            return f"verify: {problems}"
        again = self.ingest(index)
        if again.code != self.steps.code or dump(index) != self.steps.states[-1]:
            return f"resumed: {again.code} {again.output} {difference(dump(index), self.steps.states[-1])}"
        leftovers = [path.name for path in index.rglob("*") if path.name.endswith((".tmp", ".new", "-journal"))]
        return f"{verify(index).problems} {leftovers}" if leftovers or verify(index).problems else ""

    def sweep(self, faults: Faults, first: int, every: int) -> list[str]:
        """The problems after a failure of each operation in turn."""
        problems = []
        for at in range(first, len(self.operations) + 1, every):
            index, outcome = self.fail(replace(faults, at=at))
            found = self.check(index, outcome)
            if found:
                problems.append(f"operation {at} {self.operations[at - 1]}: {found}")
        return problems


@pytest.fixture(scope="module", params=["new index", "changes"])
def ground(request: pytest.FixtureRequest) -> Iterator[Ground]:
    with quick_folder() as folder:
        yield from _ground(folder, request.param)


def _ground(folder: Path, kind: str) -> Iterator[Ground]:
    shim = compiled(folder)
    if shim is None:
        pytest.skip("no C compiler `cc` here, so no faulty disk can be made")
    (folder / "rag.yaml").write_text(yaml.safe_dump(CONFIG))
    papers = Papers(folder / "papers", 5, files=20, html=False)
    papers.advance(0)
    calm, start = folder / "calm", None
    steps = undisturbed(papers.folder, calm, folder / "rag.yaml")
    if kind == "changes":
        start = Path(shutil.copytree(calm, folder / "start"))
        papers.advance(1)
        steps = undisturbed(papers.folder, calm, folder / "rag.yaml")
    with Runner(folder, shim) as runner:
        ground = Ground(runner=runner, folder=folder, start=start, steps=steps)
        yield replace(ground, operations=_traced(ground))


def _traced(ground: Ground) -> tuple[tuple[str, str, int], ...]:
    index, log = ground.copy(), ground.folder / "log"
    outcome = ground.ingest(index, real=True, faults=Faults(), below=index, extra={"FAULTS_LOG": str(log)})
    assert (outcome.code, outcome.output) == (ground.steps.code, "")
    assert dump(index) == ground.steps.states[-1]
    operations, said = [], 0
    for line in log.read_text().splitlines():
        number, name, path = line.split(" ", 2)
        said += name == "said"
        if number != "0":
            operations.append((name, Path(path).name, said))
    assert said == len(outcome.events) >= 2
    assert len(operations) > 100
    return tuple(operations)


SWEEPS = {
    "full disk": Faults(error=errno.ENOSPC, sticky=True),
    "one error": Faults(error=errno.EIO),
    "half written, then an error": Faults(error=errno.EIO, half=True),
    "half written, then a full disk": Faults(error=errno.ENOSPC, half=True, sticky=True),
    "half written, then killed": Faults(kill=True, half=True),
    "partly written, as a system call may": Faults(half=True),
}


@pytest.mark.parametrize("kind", SWEEPS)
def test_every_change_of_the_disk_may_fail(ground: Ground, kind: str) -> None:
    first = 1 + list(SWEEPS).index(kind) * 5 % EVERY
    assert ground.sweep(SWEEPS[kind], first, EVERY) == []


def test_a_failed_sync_is_never_reported_as_success(ground: Ground) -> None:
    """After it, nobody knows what the disk holds: the batch must not be acknowledged, then or later."""
    last = max(said for _, _, said in ground.operations)
    syncs = [
        (at, said)
        for at, (name, file, said) in enumerate(ground.operations, start=1)
        if name in ("fsync", "fdatasync") and file == "index.sqlite-wal" and said < last
    ]
    assert syncs
    for at, said in syncs:
        _, outcome = ground.fail(Faults(at=at, error=errno.EIO))
        assert (outcome.code, len(outcome.events)) == (1, said), outcome.output


@pytest.mark.parametrize("point", POINTS)
def test_a_step_that_fails_and_a_death_at_every_failpoint(ground: Ground, point: str) -> None:
    for failure in ("", "=EIO"):
        index = ground.copy()
        outcome = ground.ingest(index, failpoint=point + failure)
        if ground.start is None or not point.startswith("create"):
            courtesy = point.startswith("lock") and failure  # who holds the lock is told, but nobody depends on it
            assert outcome.code == (ground.steps.code if courtesy else 1 if failure else -9), outcome.output
        assert ground.check(index, outcome) == ""


def test_a_limit_on_the_size_of_files(ground: Ground) -> None:
    """The oldest way to a full disk: no library needed."""
    for kilobytes in (1, 40, 100):
        index = ground.copy()
        limit = (kilobytes * 1024,) * 2
        outcome = ground.ingest(index, real=True, before=lambda limit=limit: setrlimit(RLIMIT_FSIZE, limit))
        assert outcome.code == 1, outcome.output
        assert ground.check(index, outcome) == ""


def test_read_only_media_can_be_read_and_searched(ground: Ground) -> None:
    index = ground.copy()
    assert ground.ingest(index).code == ground.steps.code
    before = {path: path.read_bytes() for path in sorted(index.rglob("*")) if path.is_file()}
    frozen = {"FAULTS_ROOT": str(index), "FAULTS_FROZEN": "1"}

    def run(*arguments: str) -> Outcome:
        return ground.runner.command(*arguments, "--index", str(index), extra=frozen)

    assert run("verify").code == 0
    assert run("stats").code == 0
    found = run("search", "travel policy", "--json")
    assert found.code == 0, found.output
    assert json.loads(found.output.splitlines()[-1])["hits"]
    outcome = run("ingest", str(ground.folder / "papers"))
    assert outcome.code == 2
    assert outcome.output.startswith(f"error: {index} cannot be written (Read-only file system)")
    assert {path: path.read_bytes() for path in sorted(index.rglob("*")) if path.is_file()} == before


def test_read_only_media_with_an_unfinished_log(ground: Ground) -> None:
    """The log is read where its index is beside it; else nobody could without writing: say so, show no older state."""
    index = ground.copy()
    assert ground.ingest(index, failpoint="derived.written").killed  # everything is committed, in the log
    assert (index / "index.sqlite-wal").stat().st_size
    frozen = {"FAULTS_ROOT": str(index), "FAULTS_FROZEN": "1"}
    arguments = ("search", "travel harbour", "--json", "--index", str(index))
    outcome = ground.runner.command(*arguments, extra=frozen)
    assert outcome.code == 0, outcome.output
    assert json.loads(outcome.output.splitlines()[-1])["hits"]
    (index / "index.sqlite-shm").unlink()
    outcome = ground.runner.command(*arguments, extra=frozen)
    assert outcome.code == 2
    assert "unfinished log" in outcome.output
    assert "Copy the directory" in outcome.output


def test_every_failpoint_is_reached(ground: Ground) -> None:
    """A name that no run comes by proves nothing."""
    failpoints.arm(failpoints.TRACE)
    try:
        index = ground.folder / "traced"
        config = ground.folder / "rag.yaml"
        Pipeline.from_yaml(config).index(ground.folder / "papers", index).close()
        assert set(POINTS) - set(failpoints.reached()) == set(), "these are never reached"
        assert set(failpoints.reached()) - set(POINTS) - set(failpoints.UPKEEP_POINTS) == set(), "these have no name"
    finally:
        failpoints.arm(None)


@pytest.mark.parametrize("share", [0.0, 0.5, 0.9])
def test_the_power_may_fail_at_any_moment(ground: Ground, share: float) -> None:
    """Unlike a killed process, a dead machine loses what was not synced: every sync of ours is in its place."""
    index, record = ground.copy(), ground.folder / f"record-{share}"
    outcome = ground.ingest(index, real=True, faults=Faults(), below=index, extra={"FAULTS_RECORD": str(record)})
    assert (outcome.code, outcome.output) == (ground.steps.code, "")
    operations, chances, disk = list(read_record(record)), random.Random(17), Disk(index)
    if ground.start is not None:
        disk.load(ground.start)
    assert acknowledged(operations) == outcome.done
    moments = {at for at, operation in enumerate(operations, 1) if operation.name in ("sync", "said", "rename")}
    moments |= set(chances.sample(range(len(operations)), 20)) | {len(operations)}
    for at, operation in enumerate(operations, 1):
        disk.do(operation)
        if at in moments:
            left = ground.folder / "left"
            shutil.rmtree(left, ignore_errors=True)
            left.mkdir()
            disk.fail(left, chances, share)
            where = f"after {at} of {len(operations)} operations, {operation.name} {Path(operation.path).name}"
            now, allowed = state(left), ground.steps.after(acknowledged(operations[:at]))
            assert now in allowed, f"{where}: {difference(now, allowed[-1])}"
            assert not now or verify(left).problems == [], where
    assert ground.ingest(left).code == ground.steps.code
    assert dump(left) == ground.steps.states[-1]
