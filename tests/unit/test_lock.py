"""One writer at a time, named in the error; readers are never in the way."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from rag.errors import IndexLockedError
from rag.store import Store
from tests.crash.entries import fill, make_entry

HOLD = """
import sys
from pathlib import Path
from rag.store import Store
with Store.create_or_open(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.readline()
"""


@pytest.fixture
def holder(tmp_path: Path):
    """Another process that holds the writer lock until its input ends."""
    child = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "held\n"
    yield child
    child.kill()
    child.wait()
    child.stdout.close()


def test_a_second_writer_is_told_who_holds_the_lock(holder: subprocess.Popen[str], tmp_path: Path) -> None:
    with pytest.raises(IndexLockedError, match=f"process {holder.pid} on .*, started 20") as caught:
        Store.create_or_open(tmp_path)
    assert caught.value.exit_code == 7
    with Store.open(tmp_path) as reader:
        assert reader.stats()["documents"] == 0


def test_a_killed_writer_frees_the_lock(holder: subprocess.Popen[str], tmp_path: Path) -> None:
    holder.kill()
    holder.wait()
    assert json.loads((tmp_path / "writer.json").read_text())["pid"] == holder.pid
    with Store.create_or_open(tmp_path):
        assert json.loads((tmp_path / "writer.json").read_text())["pid"] == os.getpid()
    assert not (tmp_path / "writer.json").exists()


def test_waiting_gets_the_lock_when_the_owner_ends(holder: subprocess.Popen[str], tmp_path: Path) -> None:
    assert holder.stdin is not None
    threading.Timer(0.2, holder.stdin.close).start()
    with Store.create_or_open(tmp_path, wait_seconds=60) as store:
        assert store.writable


def test_two_writers_in_one_process(tmp_path: Path) -> None:
    with Store.create_or_open(tmp_path) as first:
        with pytest.raises(IndexLockedError, match=f"process {os.getpid()}"):
            Store.create_or_open(tmp_path)
        first.commit(entries=[make_entry("the failed attempt took nothing away")])
    with Store.create_or_open(tmp_path) as second:
        assert second.stats()["documents"] == 1
        second.close()
        second.close()
        Store.create_or_open(tmp_path).close()


def test_a_failed_opening_gives_the_lock_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(Store, "_tidy", lambda self: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            Store.create_or_open(tmp_path)
    Store.create_or_open(tmp_path).close()


def test_a_damaged_owner_file_does_not_hide_the_reason(holder: subprocess.Popen[str], tmp_path: Path) -> None:
    for content in ("", "[]", '{"pid": 1}', "\x00"):
        (tmp_path / "writer.json").write_text(content)
        with pytest.raises(IndexLockedError, match="another process"):
            Store.create_or_open(tmp_path)


def test_the_lock_is_given_back_by_another_thread(tmp_path: Path) -> None:
    store = Store.create_or_open(tmp_path)
    thread = threading.Thread(target=store.close)
    thread.start()
    thread.join()
    Store.create_or_open(tmp_path).close()
