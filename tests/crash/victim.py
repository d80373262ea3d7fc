"""Runs `rag` so that it can be killed: as the real command, or forked from a warm process (tests/crash/warm.py)."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
SOURCE = Path(__file__).with_name("faults.c")


@dataclass(frozen=True, kw_only=True)
class Faults:
    """What tests/crash/faults.c is told. `at` 0 only counts."""

    at: int = 0
    error: int = 0
    half: bool = False
    kill: bool = False
    sticky: bool = False

    def numbers(self) -> list[int]:
        return [self.at, self.error, int(self.half), int(self.kill), int(self.sticky)]

    def environment(self, directory: Path) -> dict[str, str]:
        names = ("AT", "ERRNO", "HALF", "KILL", "STICKY")
        pairs = {f"FAULTS_{name}": str(value) for name, value in zip(names, self.numbers(), strict=True)}
        return {"FAULTS_ROOT": str(directory), **pairs}


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a command ended: negative code = killed by that signal. `events` are the batches that it acknowledged."""

    code: int
    events: list[dict[str, Any]] = field(default_factory=list)
    output: str = ""

    @property
    def killed(self) -> bool:
        return self.code == -signal.SIGKILL

    @property
    def done(self) -> int:
        """Files acknowledged."""
        return int(self.events[-1]["done"]) if self.events else 0


def compiled(folder: Path) -> Path | None:
    """The preloadable library of faults.c, made in `folder`; None where there is no C compiler or no preloading."""
    compiler = shutil.which("cc")
    if compiler is None or not sys.platform.startswith("linux"):
        return None
    library = folder / "faults.so"
    command = [compiler, "-shared", "-fPIC", "-O1", "-o", str(library), str(SOURCE), "-ldl"]
    subprocess.run(command, check=True, capture_output=True)
    return library


def environment(shim: Path | None = None, extra: dict[str, str] | None = None) -> dict[str, str]:
    """Of a command: this tree's packages, no hub, few threads, and the faulty disk when there is one."""
    values = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
    }
    values.pop("CHUNKWISE_FAILPOINT", None)
    return {**values, **({"LD_PRELOAD": str(shim)} if shim else {}), **(extra or {})}


class Runner:
    """Runs `rag` commands in `folder`; a context manager."""

    def __init__(self, folder: Path, shim: Path | None = None, modules: Sequence[str] = ()) -> None:
        self.folder = folder
        self.shim = shim
        self._modules = tuple(modules)
        self._server: subprocess.Popen[bytes] | None = None
        self._channel: socket.socket | None = None

    def __enter__(self) -> Runner:
        return self

    def __exit__(self, *_: object) -> None:
        if self._channel is not None and self._server is not None:
            self._channel.close()  # the server ends when nobody can ask it any more
            self._server.wait()

    def command(
        self,
        *arguments: str,
        failpoint: str = "",
        faults: Faults | None = None,
        below: Path | None = None,
        seconds: float | None = None,
        watch: Callable[[dict[str, Any], Callable[[], None]], None] | None = None,
        extra: dict[str, str] | None = None,
        before: Callable[[], None] | None = None,
    ) -> Outcome:
        """The real command, `python -m rag`. It is killed after `seconds`, or by `watch(event, kill)`.

        `faults` hold for the directory `below`; `before` is called in the child first.
        """
        more = dict(extra or {})
        if failpoint:
            more["CHUNKWISE_FAILPOINT"] = failpoint
        if faults is not None and below is not None:
            more |= faults.environment(below)
        child = subprocess.Popen(
            [sys.executable, "-m", "rag", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=environment(self.shim, more),
            cwd=self.folder,
            preexec_fn=before,
        )
        assert child.stdout is not None
        with child.stdout:
            outcome = _follow(child.stdout.fileno(), child.kill, seconds, watch)
        return replace(outcome, code=child.wait())

    def warm(
        self,
        *arguments: str,
        failpoint: str = "",
        faults: Faults | None = None,
        below: Path | None = None,
        seconds: float | None = None,
        watch: Callable[[dict[str, Any], Callable[[], None]], None] | None = None,
    ) -> Outcome:
        """The same code in a process forked from one that has its imports done; killed in the same ways."""
        channel = self._started()
        read, write = os.pipe()
        armed = [str(below), *faults.numbers()] if faults is not None else None
        request = {"arguments": list(arguments), "failpoint": failpoint, "faults": armed}
        socket.send_fds(channel, [json.dumps(request).encode()], [write])
        os.close(write)
        answers = channel.makefile("r")
        child = int(json.loads(answers.readline())["pid"])

        def kill() -> None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)

        try:
            outcome = _follow(read, kill, seconds, watch)
        finally:
            os.close(read)
        status = int(json.loads(answers.readline())["status"])
        return replace(outcome, code=os.waitstatus_to_exitcode(status))

    def _started(self) -> socket.socket:
        if self._channel is None:
            ours, theirs = socket.socketpair()
            self._server = subprocess.Popen(
                [sys.executable, "-m", "tests.crash.warm", str(theirs.fileno()), *self._modules],
                pass_fds=[theirs.fileno()],
                env=environment(self.shim),
                cwd=self.folder,
            )
            theirs.close()
            self._channel = ours
        return self._channel


def _follow(
    output: int,
    kill: Callable[[], None],
    seconds: float | None,
    watch: Callable[[dict[str, Any], Callable[[], None]], None] | None,
) -> Outcome:
    """Read the output to its end. What stands in the pipe after the kill was acknowledged before it."""
    timer = threading.Timer(seconds, kill) if seconds is not None else None
    if timer is not None:
        timer.start()
    events, lines = [], []
    try:
        with os.fdopen(os.dup(output), encoding="utf-8", errors="replace") as stream:
            for line in stream:
                if line.startswith('{"done"') and line.endswith("}\n"):
                    events.append(json.loads(line))
                    if watch is not None:
                        watch(events[-1], kill)
                else:
                    lines.append(line)
    finally:
        if timer is not None:
            timer.cancel()
            timer.join()
    return Outcome(code=0, events=events, output="".join(lines))
