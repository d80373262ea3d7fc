"""Traces lie beside the index: never in its way, never lost with it."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from rag.errors import IndexDamagedError, UsageError
from rag.store import Store, verify
from rag.store.repair import repair
from rag.store.runs import RUNS_NAME
from tests.crash.entries import dump, fill, make_entry


@pytest.fixture
def index(tmp_path: Path) -> Path:
    fill(tmp_path, make_entry("text of the only document " * 9))
    return tmp_path


def foreign(path: Path) -> None:
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE other(x)")
    connection.close()


def newer(path: Path) -> None:
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version=9")
    connection.close()


def test_asking_does_not_touch_the_index_file(index: Path) -> None:
    with Store.open(index) as store:
        before, facts = dump(index), (index / "index.sqlite").stat().st_mtime_ns
        assert store.runs() == []
        assert store.stats()["runs"] == 0
        assert not (index / RUNS_NAME).exists(), "reading makes no file"
        run_id = store.add_run({"question": "q"})
        assert store.run(run_id)["question"] == "q"
        assert store.stats()["runs"] == 1
        with pytest.raises(UsageError, match="no run"):
            store.run("ffffffff")
        assert (dump(index), (index / "index.sqlite").stat().st_mtime_ns) == (before, facts)
        assert verify(store).checked["runs"] == 1


def test_a_writer_in_a_transaction_does_not_hold_up_a_trace(index: Path) -> None:
    with Store.create_or_open(index) as writer, Store.open(index) as reader, writer._db.writing():
        assert reader.add_run({"question": "q"})


@pytest.mark.parametrize(
    "spoil",
    [lambda path: path.write_bytes(b"no database " * 500), foreign, newer, lambda path: path.write_bytes(b"\0" * 5000)],
)
def test_a_bad_file_of_traces_blocks_nothing_and_is_put_aside(index: Path, spoil) -> None:
    with Store.open(index) as store:
        store.add_run({"question": "q"})
        if spoil is foreign:
            (index / RUNS_NAME).unlink()
        spoil(index / RUNS_NAME)
        content = (index / RUNS_NAME).read_bytes()
        assert store.add_run({"question": "q"}) == ""
        assert store.stats()["runs"] == 0
        with pytest.raises(IndexDamagedError, match=r"index itself is not touched.*rag repair"):
            store.runs()
        with store.corpus() as corpus:
            assert corpus.lexical(["document"], 3)
        (problem,) = verify(store).problems
        assert RUNS_NAME in problem
    assert (index / RUNS_NAME).read_bytes() == content
    report = repair(index)
    assert "traces" in report.fixed[0]
    assert verify(index).ok
    assert (index / f"{RUNS_NAME}.damaged-1").read_bytes() == content
    with Store.open(index) as store:
        assert store.add_run({"question": "again"})


def test_traces_outlive_a_restore(index: Path) -> None:
    with Store.create_or_open(index) as store:
        store.snapshot_create("first")
        run_id = store.add_run({"question": "q"})
        store.snapshot_restore("first")
        assert store.run(run_id)["question"] == "q"


def test_a_journal_of_a_killed_writer_is_rolled_back_by_the_next_reader(index: Path) -> None:
    with Store.open(index) as store:
        kept = store.add_run({"question": "before"})
    died = """
import os, sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("PRAGMA cache_size=1")
connection.execute("BEGIN IMMEDIATE")
for number in range(200):
    connection.execute("UPDATE runs SET run = run || ?", ("x" * 4000,))
os._exit(9)
"""
    subprocess.run([sys.executable, "-c", died, str(index / RUNS_NAME)], check=False)
    assert (index / f"{RUNS_NAME}-journal").stat().st_size, "the writer must have died with a journal"
    with Store.open(index) as store:
        assert store.run(kept)["question"] == "before"
        assert not verify(store).problems
