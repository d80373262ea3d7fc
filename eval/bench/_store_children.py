"""Store contenders as processes: one server each with its imports done, one fork of it for every job."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from eval.bench._children import Contender, child_environment

__all__ = ["DRIVER", "Job", "Server", "run_fresh"]

DRIVER = Path(__file__).parent / "peers" / "_store.py"
_PATIENCE_SECONDS = 300.0
Event = dict[str, Any]


def run_fresh(contender: Contender, job: Mapping[str, Any], threads: int) -> Event:
    """One job in a process of its own, from its imports on; its last event."""
    command = [contender.python, str(DRIVER), str(contender.module), json.dumps(dict(job))]
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            errors="replace",
            env=child_environment(threads),
            timeout=_PATIENCE_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return {"event": "failed", "reason": str(error)[:400]}
    last = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"event"')]
    return _settled(last, done.returncode)


def _settled(events: list[Event], code: int) -> Event:
    """The event that says how a job ended; a death is `crashed` with the signal."""
    last = next((one for one in reversed(events) if one["event"] in ("done", "failed")), None)
    if last is not None:
        return last
    if code < 0:
        return {"event": "crashed", "reason": f"killed by {signal.Signals(-code).name}"}
    return {"event": "failed", "reason": f"exit code {code}"}


class Server:
    """A contender's process. Jobs may run side by side; closing it does not end jobs that still run."""

    def __init__(self, contender: Contender, threads: int) -> None:
        self.contender = contender
        self._folder = tempfile.TemporaryDirectory(prefix="rag-bench-pipes-")
        self._count = 0
        self._process = subprocess.Popen(
            [contender.python, str(DRIVER), str(contender.module), "serve"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            text=True,
            env=child_environment(threads),
        )

    def start(self, job: Mapping[str, Any]) -> Job:
        """Start a job and return at once."""
        self._count += 1
        pipe = Path(self._folder.name) / str(self._count)
        os.mkfifo(pipe)
        running = Job(pipe)
        assert self._process.stdin is not None  # noqa: S101  a pipe was asked for
        try:
            self._process.stdin.write(json.dumps({**job, "out": str(pipe)}) + "\n")
            self._process.stdin.flush()
        except OSError as error:
            raise RuntimeError(f"the server of {self.contender.name} has ended: {error}") from error
        return running

    def run(self, job: Mapping[str, Any]) -> Event:
        """A job from start to end: its last event, `done`, `failed` or `crashed`."""
        return self.start(job).finish()

    def __enter__(self) -> Server:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None  # noqa: S101  a pipe was asked for
        self._process.stdin.close()
        self._process.wait(timeout=30)
        self._folder.cleanup()


class Job:
    """A running job: events as they come, and the power to kill it."""

    def __init__(self, pipe: Path) -> None:
        self.events: list[Event] = []
        self.pid: int | None = None
        self.code: int | None = None
        self._deadline = time.monotonic() + _PATIENCE_SECONDS
        self._file = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
        self._rest = b""

    def follow(self) -> Iterator[Event]:
        """Events until the worker has ended; a worker that takes too long is killed."""
        while self.code is None:
            yield from self.poll()

    def kill(self) -> None:
        """kill -9, as soon as the worker is known; nothing when it has ended."""
        while self.pid is None and self.code is None:
            self.poll()
        if self.pid is not None and self.code is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)

    def finish(self) -> Event:
        """Wait for the end: the last event, `done`, `failed` or `crashed`."""
        for _ in self.follow():
            pass
        return _settled(self.events, self.code or 0)

    def poll(self, seconds: float = 0.5) -> list[Event]:
        """The events that came by now, or within `seconds`; none when the worker has ended."""
        fresh = []
        for event in self._read(seconds) if self.code is None else []:
            if event["event"] == "worker":
                self.pid = event["pid"]
            elif event["event"] == "exit":
                self.code = event["code"]
                os.close(self._file)
            else:
                fresh.append(event)
        self.events += fresh
        return fresh

    def _read(self, seconds: float) -> list[Event]:
        wait = self._deadline - time.monotonic()
        ready = select.select([self._file], [], [], max(0.0, min(wait, seconds)))[0]
        if not ready and wait <= 0:
            self._give_up()
        data = os.read(self._file, 1 << 16) if ready else b""
        if ready and not data:
            time.sleep(0.002)  # nobody has opened the other end yet
            if wait <= 0:
                self._give_up()
        *lines, self._rest = (self._rest + data).split(b"\n")
        return [event for line in lines if (event := _parsed(line)) is not None]

    def _give_up(self) -> None:
        if self.pid is None:
            raise RuntimeError("a job did not start in time")
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        self._deadline = time.monotonic() + 10


def _parsed(line: bytes) -> Event | None:
    """None for an empty line, and for one that its writer did not live to end."""
    try:
        event: Event | None = json.loads(line) if line.strip() else None
    except ValueError:
        return None
    return event
