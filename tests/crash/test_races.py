"""Several processes at once, and clocks that go wrong: one writes, the others wait or are told; nothing is doubled."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from rag.store import Store, verify
from rag.vectors import from_blob
from tests.crash.entries import dump
from tests.crash.papers import Papers
from tests.crash.supervisor import State, Steps, difference, state, undisturbed
from tests.crash.victim import Outcome, Runner, compiled, environment

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="needs Linux pipes")]

CONFIG = {
    "embedder": {"use": "hashing", "buckets": 32},
    "retriever": {"use": "faiss-dense", "index": "flat"},
    "chunker": {"use": "recursive", "max_tokens": 60},
    "generator": "extractive",
}


class Place:
    """A corpus, the index that an undisturbed run makes of it, and another one to fight over."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.index, self.calm = folder, folder / "index", folder / "calm"
        self.config = folder / "rag.yaml"
        self.config.write_text(yaml.safe_dump(CONFIG))
        self.papers = Papers(folder / "papers", 21, html=False)
        self.papers.advance(0)
        self.runner = Runner(folder)

    def calmly(self) -> Steps:
        return undisturbed(self.papers.folder, self.calm, self.config)

    def arguments(self, *more: str) -> list[str]:
        names = ["--delete-missing", "--events", "-q", "--index", str(self.index), "--config", str(self.config)]
        return ["ingest", str(self.papers.folder), *names, *more]

    def ingest(self, *more: str, **options: Any) -> Outcome:
        return self.runner.command(*self.arguments(*more), **options)

    def start(self, *more: str, stderr: int = subprocess.PIPE) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "rag", *self.arguments(*more)]
        return subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=stderr, env=environment(), cwd=self.folder, text=True
        )

    @contextmanager
    def halfway(self) -> Iterator[tuple[subprocess.Popen[str], Callable[[], None]]]:
        """A `rag ingest` that holds the lock and hangs where it acknowledges its first batch: nobody reads the
        pipe, which is full. The second value lets it go on."""
        import fcntl

        read, write = os.pipe()
        size = fcntl.fcntl(write, fcntl.F_SETPIPE_SZ, 4096)
        os.write(write, b" " * size)
        child = self.start(stderr=write)
        os.close(write)

        def drain() -> None:
            while os.read(read, 65536):
                pass

        drainer = threading.Thread(target=drain, daemon=True)
        try:
            owner = self.index / "writer.json"
            until(lambda: owner.exists() and json.loads(owner.read_text() or "{}").get("pid") == child.pid)
            yield child, drainer.start
        finally:
            child.kill()
            child.wait()
            if drainer.ident:
                drainer.join()
            os.close(read)


def until(condition: Callable[[], bool]) -> None:
    """Wait; the test's own time limit is the only one."""
    while not condition():
        time.sleep(0.01)


def without_times(values: State) -> State:
    """A dump but for the times of change, which say when a file was last looked at."""
    return {**values, "files": [tuple(row[:4]) + tuple(row[5:]) for row in values["files"]]}


@pytest.fixture
def place(quick: Path) -> Place:
    return Place(quick)


def test_the_second_writer_is_told_who_writes_and_may_wait(place: Place) -> None:
    steps = place.calmly()
    with place.halfway() as (first, go_on):
        second = place.ingest()
        assert second.code == 7
        assert f"is being written by process {first.pid} on " in second.output
        assert len(second.output.splitlines()) == 1
        third = place.start("--wait", "100")
        go_on()
        assert first.wait() == steps.code
        _, output = third.communicate()
        assert third.returncode == steps.code, output
        assert output.count('"done"') == len(steps.at) - 1
    assert state(place.index) == steps.states[-1]


def test_the_writer_before_dies_and_the_one_that_waits_goes_on(place: Place) -> None:
    steps = place.calmly()
    with place.halfway() as (first, _):
        second = place.start("--wait", "100")
        first.kill()
        _, output = second.communicate()
        assert second.returncode == steps.code, output
    assert state(place.index) == steps.states[-1]
    assert verify(place.index).ok


@pytest.mark.parametrize("wait", [True, False])
def test_many_starts_at_once_on_no_index(place: Place, wait: bool) -> None:
    steps = place.calmly()
    children = [place.start(*(("--wait", "100") if wait else ())) for _ in range(4)]
    outputs = [child.communicate()[1] for child in children]
    codes = [child.returncode for child in children]
    assert set(codes) <= ({steps.code} if wait else {steps.code, 7}), outputs
    assert steps.code in codes
    assert place.ingest().code == steps.code
    assert state(place.index) == steps.states[-1], difference(state(place.index), steps.states[-1])


def test_a_reader_during_ingestion_sees_whole_batches_only(place: Place) -> None:
    """One of the states after a commit, never anything between two; and a view that is open does not move."""
    steps = place.calmly()
    Store.create_or_open(place.index).close()
    seen: list[int] = []
    views: list[Any] = []
    over = threading.Event()

    def read() -> None:
        while not over.is_set():
            seen.append(next((at for at, known in enumerate(steps.states) if known == state(place.index)), -1))

    def view(event: dict[str, Any], kill: Callable[[], None]) -> None:
        with Store.open(place.index) as store:
            corpus = store.corpus()
        views.append((corpus, corpus.rows().tolist(), corpus.lexical(["travel"], 1000)))

    reader = threading.Thread(target=read)
    reader.start()
    try:
        outcome = place.ingest(watch=view)
    finally:
        over.set()
        reader.join()
    assert outcome.code == steps.code, outcome.output
    assert -1 not in seen, "a state that no commit made"
    assert seen == sorted(seen), "a reader went back in time"
    assert len(views) == len(steps.at) - 1
    for corpus, rows, hits in views:
        assert corpus.rows().tolist() == rows
        assert corpus.lexical(["travel"], 1000) == hits
        check_view(corpus)
        corpus.close()


def check_view(corpus: Any) -> None:
    """Every chunk is cut from its document, has its vector, and is found by its words."""
    rows, matrix = corpus.vectors()
    assert rows.tolist() == corpus.rows().tolist()
    for row, chunk in zip(rows.tolist(), corpus.chunks(rows.tolist()), strict=True):
        assert corpus.document(chunk.doc_id).text[chunk.span.start : chunk.span.end] == chunk.text
        words = chunk.text.split()[:1]
        hits = corpus.lexical(words, len(rows))
        assert not hits or row in [found for found, _ in hits]
    assert np.allclose(np.linalg.norm(matrix, axis=1), 1, atol=1e-5)


def test_a_view_of_a_server_outlives_the_death_of_the_writer(place: Place) -> None:
    place.calmly()
    place.ingest(failpoint="commit.done:3")
    with Store.open(place.index) as store, store.corpus() as corpus:
        before = corpus.rows().tolist()
        assert place.ingest(failpoint="commit.written:1").killed
        assert corpus.rows().tolist() == before
        check_view(corpus)


YEARS = 10 * 365 * 24 * 3600


@pytest.mark.parametrize("shift", [-YEARS, YEARS])
def test_a_clock_that_is_wrong_loses_and_doubles_nothing(place: Place, shift: int) -> None:
    shim = compiled(place.folder)
    if shim is None:
        pytest.skip("no C compiler `cc` here, so no clock can be faked")
    place.runner = Runner(place.folder, shim)
    place.calmly()
    assert place.ingest(extra={"FAULTS_CLOCK": str(shift)}).code == 4
    place.papers.advance(1)
    for name in place.papers.names()[::3]:  # the clock of the file server is wrong as well
        path = place.papers.folder / name
        os.utime(path, ns=(path.stat().st_mtime_ns - YEARS * 10**9,) * 2)
    for name in place.papers.names()[1::3]:
        path = place.papers.folder / name
        os.utime(path, ns=(path.stat().st_mtime_ns + 3 * YEARS * 10**9,) * 2)
    assert place.ingest(failpoint="commit.done:2", extra={"FAULTS_CLOCK": str(-shift)}).killed
    assert place.ingest(extra={"FAULTS_CLOCK": str(shift // 2)}).code == 4
    steps = place.calmly()
    now = state(place.index)
    assert without_times(now) == without_times(steps.states[-1]), difference(now, steps.states[-1])
    assert place.ingest().code == 4
    assert without_times(state(place.index)) == without_times(steps.states[-1])
    assert verify(place.index).ok


def test_an_owner_from_the_future_holds_nobody_up(place: Place) -> None:
    place.index.mkdir()
    owner = {"pid": 1, "host": "elsewhere", "since": "2999-01-01T00:00:00+00:00"}
    (place.index / "writer.json").write_text(json.dumps(owner))
    assert place.ingest().code == 4
    assert not (place.index / "writer.json").exists()


def test_a_change_right_after_ingestion_that_keeps_size_and_time_is_seen(place: Place) -> None:
    """Racily clean: the clock of a file system is coarse, so a file may change twice within one tick."""
    target = place.papers.folder / "now.md"
    target.write_text("the amount is 100 coins")
    facts = target.stat()
    assert place.ingest().code == 4
    target.write_text("the amount is 999 coins")
    os.utime(target, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    assert target.stat().st_size == facts.st_size
    assert place.ingest().code == 4
    with Store.open(place.index) as store, store.corpus() as corpus:
        texts = [chunk.text for chunk in corpus.chunks(corpus.rows().tolist()) if "amount is" in chunk.text]
    assert texts == ["the amount is 999 coins"]


def test_a_killed_command_leaves_no_process_behind(place: Place) -> None:
    """HTML is read in a child process, which must not outlive its parent, nor hold its lock."""
    for number in range(40):
        (place.papers.folder / f"page-{number}.html").write_text(f"<h1>{number}</h1><p>text</p>")
    outcome = place.ingest(failpoint="commit.written:2")  # returns when nobody holds its output any more
    assert outcome.killed
    assert place.ingest().code == 4


def vectors_of(values: State) -> list[np.ndarray]:
    return [from_blob(row[3]) for row in values["vectors"]]


def test_what_the_reference_compares_is_not_empty(place: Place) -> None:
    """The comparisons above would pass on empty tables."""
    steps = place.calmly()
    last = dump(place.calm)
    assert last == steps.states[-1]
    assert len(vectors_of(last)) > 50
    assert all(len(last[name]) > 50 for name in ("documents", "chunks", "files", "lexical"))
    assert len(steps.states) >= 5
    assert len({repr(known) for known in steps.states}) == len(steps.states)
