"""kill -9 loses nothing that was acknowledged. A smoke test: the long suite kills many more times."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from rag.store import Store, verify
from rag.store.failpoints import POINTS
from tests.crash.writer import model

ROOT = Path(__file__).resolve().parents[2]


def run_writer(directory: Path, first: int, *, kill_after: int | None = None, failpoint: str = "") -> int:
    """Commits acknowledged, in all, when the writer was dead."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    if failpoint:
        environment["CHUNKWISE_FAILPOINT"] = failpoint
    child = subprocess.Popen(
        [sys.executable, "-m", "tests.crash.writer", str(directory), str(first)],
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
        cwd=ROOT,
    )
    assert child.stdout is not None
    acknowledged = first
    for line in child.stdout:
        acknowledged = int(line) + 1
        if kill_after is not None and acknowledged - first >= kill_after:
            child.kill()  # what stands in the pipe after this line was acknowledged too
            kill_after = None
    child.stdout.close()
    assert child.wait() == -9
    return acknowledged


def check(directory: Path, acknowledged: int) -> int:
    """The index holds what was acknowledged, or one commit more, and agrees with itself; commits it holds."""
    with Store.open(directory) as store:
        held = {origin: record.doc_id for origin, record in store.files().items()}
    assert held in (model(acknowledged), model(acknowledged + 1))
    report = verify(directory)
    assert report.problems == []
    return acknowledged if held == model(acknowledged) else acknowledged + 1


def test_five_kills_at_any_moment(tmp_path: Path) -> None:
    moments = random.Random(4)
    done = 0
    for _ in range(5):
        done = check(tmp_path, run_writer(tmp_path, done, kill_after=moments.randrange(1, 25)))
    assert done > 5


@pytest.mark.parametrize("point", [point for point in POINTS if point.startswith(("commit", "derived"))])
def test_a_death_at_every_failpoint(tmp_path: Path, point: str) -> None:
    done = check(tmp_path, run_writer(tmp_path, 0, failpoint=f"{point}:2"))
    with Store.create_or_open(tmp_path) as store, store.corpus() as corpus:
        path = corpus.publish("rows", lambda path: path.write_bytes(b"x"))
        assert path is not None
        assert list(path.parent.iterdir()) == [path], "nothing of the dead publication is left"
    assert check(tmp_path, done) == done


@pytest.mark.parametrize("point", [point for point in POINTS if point.startswith("create")])
def test_a_death_while_the_index_is_made(tmp_path: Path, point: str) -> None:
    assert run_writer(tmp_path, 0, failpoint=point) == 0
    with Store.create_or_open(tmp_path) as store:
        assert store.stats()["documents"] == 0
        assert verify(store).ok
