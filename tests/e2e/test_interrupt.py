"""Ctrl-C and SIGTERM in the middle of a real `rag ingest`: saved, said, and nothing left running."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.contracts.test_executor import children
from tests.crash.entries import dump

FILES = 300
pytestmark = [pytest.mark.slow, pytest.mark.skipif(os.name == "nt", reason="POSIX signals")]


@pytest.fixture(autouse=True)
def ctrl_c_is_heard() -> Iterator[None]:
    """A job that a shell starts with `&` ignores SIGINT, and so would every child."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number in range(FILES):
        path = tmp_path / "docs" / f"{number:03}.txt"
        path.parent.mkdir(exist_ok=True)
        path.write_text("".join(f"Sentence {line} of report {number} has its own words. " for line in range(40)))
        os.utime(path, (1_600_000_000, 1_600_000_000))
    (tmp_path / "rag.yaml").write_text("embedder: hashing\nretriever: bm25\n")
    return tmp_path


def start(folder: Path, index: str, *more: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "rag", "ingest", "docs", "--index", index, "--workers", "2", "--events", *more]
    return subprocess.Popen(
        command, cwd=folder, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, process_group=0
    )


def stop_in_the_middle(folder: Path, index: str, number: int) -> tuple[int, str, int]:
    """Exit code, what stood on stderr after the signal, files done before it. The whole group gets the signal, as
    from a terminal."""
    process = start(folder, index)
    assert process.stderr is not None
    done = 0
    for line in process.stderr:
        done = json.loads(line)["done"]
        if done >= 32:
            break
    os.killpg(process.pid, number)
    _, errors = process.communicate(timeout=30)
    return process.returncode, errors, done


def left_over(before: set[int]) -> set[int]:
    deadline = time.monotonic() + 10
    while (more := children() - before) and time.monotonic() < deadline:
        time.sleep(0.1)
    return more


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_says_and_leaves_nothing_running(folder: Path, number: int, code: int) -> None:
    before = children()
    returned, errors, done = stop_in_the_middle(folder, "idx", number)
    assert returned == code, errors
    assert "Run the same command again to go on" in errors
    assert "Traceback" not in errors
    assert not left_over(before)
    resumed = start(folder, "idx", "--json")
    out, errors = resumed.communicate(timeout=120)
    assert resumed.returncode == 0, errors
    report = json.loads(out)
    assert report["skipped"] >= done
    assert report["documents"] + report["skipped"] == FILES
    assert report["documents"] > 0
    whole = start(folder, "whole")
    whole.communicate(timeout=120)
    assert dump(folder / "idx") == dump(folder / "whole")


def test_events_tell_how_long_it_takes(folder: Path) -> None:
    process = start(folder, "idx")
    _, errors = process.communicate(timeout=120)
    events = [json.loads(line) for line in errors.splitlines() if line.startswith("{")]
    assert events[-1]["done"] == events[-1]["total"] == FILES
    assert events[-1]["eta_seconds"] == 0
    assert [event["seconds"] for event in events] == sorted(event["seconds"] for event in events)
    assert all(event["failed"] == 0 for event in events)


def test_a_killed_parent_takes_its_workers_along(folder: Path) -> None:
    process = start(folder, "idx")
    assert process.stderr is not None
    process.stderr.readline()
    workers = children(process.pid)
    assert len(workers) >= 2
    process.kill()
    process.communicate(timeout=30)
    deadline = time.monotonic() + 10
    while (alive := {pid for pid in workers if Path(f"/proc/{pid}").exists()}) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not alive


def test_a_second_signal_ends_at_once(tmp_path: Path) -> None:
    code = (
        "import time\n"
        "from rag.cli._common import stop_signals\n"
        "with stop_signals('saved'):\n"
        "    try:\n"
        "        print('ready', flush=True); time.sleep(60)\n"
        "    finally:\n"
        "        print('closing', flush=True); time.sleep(60)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for line in ("ready", "closing"):
        assert process.stdout.readline().strip() == line
        process.send_signal(signal.SIGINT)
    assert process.wait(timeout=10) == -signal.SIGINT
    process.stdout.close()
