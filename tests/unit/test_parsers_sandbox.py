"""The child process: whatever happens in it, the parent gets a document or an InputError, and nobody is left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from io import BytesIO
from pathlib import Path

import pytest

from rag.errors import ConfigError, InputError
from rag.limits import Limits
from rag.parsers._frames import read_frame, to_document, write_frame
from rag.parsers._sandbox import ParserPool, parse_isolated
from rag.parsers._worker import serve

EVIL = '''
"""A parser room that misbehaves as its input says."""
import ctypes, os, sys, time
from rag.errors import InputError, MissingError
from rag.types import Document

def parse(data, *, source):
    word = data.decode()
    if word == "segfault": ctypes.string_at(0)
    if word == "exit": os._exit(3)
    if word == "hang": time.sleep(600)
    if word == "spin":
        while True: pass
    if word == "memory": return [bytearray(10_000_000) for _ in range(1000)]
    if word == "bug": raise ZeroDivisionError("oops")
    if word == "input": raise InputError(f"{source}: bad")
    if word == "missing": raise MissingError("install it")
    if word == "noise": print("x" * 10_000); sys.stdout.flush(); os.write(1, b"y" * 1000)
    return Document(text=word, source=source)
'''


@pytest.fixture
def pool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ParserPool:
    """A pool whose worker has the parser above in place of every other."""
    (tmp_path / "evil.py").write_text(EVIL, "utf-8")
    patch = "import rag.parsers._choose as c, evil\nc.make_parser = lambda name, limits: evil\n"
    (tmp_path / "sitecustomize.py").write_text(patch, "utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return ParserPool(Limits(max_seconds=2.0, max_address_bytes=300_000_000))


def ask(pool: ParserPool, word: str) -> str:
    return pool.parse_isolated("text", word.encode(), "a.txt").text


@pytest.mark.parametrize(
    ("word", "why"),
    [
        ("segfault", "SIGSEGV"),
        ("exit", "exit code 3"),
        ("hang", r"limits.max_seconds = 2\.0"),
        pytest.param("spin", r"limits.max_seconds = 2\.0", marks=pytest.mark.slow),
        ("memory", "limits.max_address_bytes = 300,000,000"),
        ("bug", "ZeroDivisionError: oops"),
        ("input", "^a.txt: bad$"),
    ],
)
@pytest.mark.skipif(sys.platform == "win32", reason="limits and signals are POSIX")
def test_every_end_is_an_input_error(pool: ParserPool, word: str, why: str) -> None:
    with pool:
        assert ask(pool, "first") == "first"
        with pytest.raises(InputError, match=why) as caught:
            ask(pool, word)
        assert str(caught.value).startswith("a.txt: ")
        assert ask(pool, "after") == "after"
        assert pool.starts == (1 if word in ("bug", "input") else 2)


def test_other_errors_keep_their_kind(pool: ParserPool) -> None:
    from rag.errors import MissingError

    with pool, pytest.raises(MissingError, match="install it"):
        ask(pool, "missing")


def test_prints_do_not_garble_the_answer(pool: ParserPool) -> None:
    with pool:
        assert ask(pool, "noise") == "noise"
        assert ask(pool, "next") == "next"
        assert pool.starts == 1


def test_one_worker_serves_many_files_and_threads(pool: ParserPool) -> None:
    results: list[str] = []
    with pool:
        threads = [threading.Thread(target=lambda n=n: results.append(ask(pool, f"word {n}"))) for n in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert pool.starts == 1
    assert sorted(results) == sorted(f"word {n}" for n in range(20))


def test_close_ends_the_worker_and_may_be_called_twice(pool: ParserPool) -> None:
    ask(pool, "x")
    worker = pool._worker
    assert worker is not None
    pool.close()
    pool.close()
    assert worker.returncode == 0  # it left by itself when its pipe closed
    assert ask(pool, "again") == "again"
    pool.close()


PARENT = """
import sys, time
from rag.parsers._sandbox import ParserPool
pool = ParserPool()
pool.parse_isolated("text", b"x", "a.txt")
print(pool._worker.pid, flush=True)
time.sleep(600)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="kill -9 is POSIX")
def test_no_orphan_after_kill_9() -> None:
    parent = subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True)
    assert parent.stdout
    child = int(parent.stdout.readline())
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
    for _ in range(200):
        if not _lives(child):
            return
        time.sleep(0.05)
    os.kill(child, signal.SIGKILL)
    pytest.fail("the worker outlived its parent")


def _lives(pid: int) -> bool:
    """False for a process that has gone, also one that nobody has waited for yet."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    status = Path(f"/proc/{pid}/stat")
    return not (status.exists() and status.read_text().rpartition(")")[2].split()[0] == "Z")


def test_parse_isolated_once() -> None:
    assert parse_isolated("markdown", b"# Head", "a.md").title == "Head"


def test_unknown_parser() -> None:
    with ParserPool() as pool, pytest.raises(ConfigError):
        pool.parse("nonsense", b"x", "a.txt")


def test_frames_survive_a_cut_stream() -> None:
    stream = BytesIO()
    write_frame(stream, {"a": 1}, b"body")
    whole = stream.getvalue()
    assert read_frame(BytesIO(whole), max_bytes=100) == ({"a": 1}, b"body")
    assert all(read_frame(BytesIO(whole[:cut]), max_bytes=100) is None for cut in range(len(whole)))
    with pytest.raises(ValueError, match="at most 5"):
        read_frame(BytesIO(whole), max_bytes=5)


def test_a_block_outside_of_the_text_is_refused() -> None:
    header = {"source": "a", "title": "", "blocks": [(0, 9, "row", 0)], "pages": [], "meta": {}}
    with pytest.raises(ValueError, match="outside"):
        to_document(header, b"short")


def test_worker_answers_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rag.parsers._worker._limit", lambda **_: None)
    requests, answers = BytesIO(), BytesIO()
    for name in ("a.txt", "b.txt"):
        write_frame(requests, {"parser": "text", "source": name, "limits": {}}, b"words")
    serve(BytesIO(requests.getvalue()), answers)
    stream = BytesIO(answers.getvalue())
    frames = [read_frame(stream, max_bytes=10_000) for _ in range(3)]
    assert [frame and frame[0]["source"] for frame in frames] == ["a.txt", "b.txt", None]
