"""Child processes: all cores, and a crash of a reader or chunker there is no crash here."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar, cast

from rag.errors import ConfigError, RagError
from rag.executors._crew import Crew, Member, Request
from rag.executors._frames import Frame, refuse
from rag.jobs import Batch, Executor, Job, Outcome, Runner, Work
from rag.parsers._frames import read_frame, write_frame

if TYPE_CHECKING:
    from rag.protocols import Vectors

T = TypeVar("T")
_ANSWER_BYTES = 4_000_000_000
_THREAD_SETTINGS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS")


@dataclass(frozen=True, kw_only=True)
class ProcessesExecutor(Executor):
    """Several files at once in child processes, `workers` of them (0: one per usable core).

    A child is a fresh interpreter that is spoken to in JSON and bytes: nothing is pickled, the caller's script is
    not run again. One that dies is replaced and its file tried once more. With `embed` the chunks are embedded there
    too, and every child that does loads the model; else the caller embeds.
    """

    workers: int = 0
    embed: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.workers <= 256:
            raise ConfigError(f"processes: workers must be between 0 (one per core) and 256, not {self.workers}")

    def open(self, work: Work) -> Runner:
        return _ProcessesRunner(work, self.workers or usable_cores(), self.embed)


def usable_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class _ProcessesRunner(Runner):
    def __init__(self, work: Work, workers: int, embed: bool) -> None:
        work.close()  # nothing of it runs here
        described = work.describe()
        self._crew = Crew([_Child(described, workers) for _ in range(workers)], "rag-processes")
        self._embed = embed

    def run(self, jobs: Iterable[Job]) -> Iterator[Outcome]:
        return self._crew.run(jobs)

    @property
    def embeds(self) -> int:
        return len(self._crew) + 1 if self._embed else 0

    def embed(self, batch: Batch) -> Future[Mapping[str, Vectors]]:
        return self._crew.embed(batch)

    def close(self) -> None:
        self._crew.close()


class _Child(Member):
    """A worker process that is started when first asked, and anew after it died."""

    def __init__(self, work: dict[str, Any], workers: int) -> None:
        self.fate = ""
        self._work = work
        self._threads = max(1, usable_cores() // workers)
        self._process: subprocess.Popen[bytes] | None = None
        self._closed = False
        self._turn = threading.Lock()  # starting and closing; never held while a file is read

    def ask(self, request: Request[T]) -> T | None:
        process = self._running()
        answer = None
        with contextlib.suppress(OSError, ValueError):  # a broken pipe, a garbled answer
            frame = _exchange(process, {"verb": request.verb, "values": request.values})
            if frame is not None:
                refuse(frame[0])
                answer = request.read(*frame)
        if answer is None:
            self._end(process)
        return answer

    def close(self) -> None:
        with self._turn:
            self._closed = True
            process = self._process
        if process is not None:
            self._end(process)

    def _running(self) -> subprocess.Popen[bytes]:
        with self._turn:
            if self._closed:
                raise RagError("the executor was closed while files were still read")
            if self._process is not None:
                return self._process
            process = self._process = _start(self._threads)
        answer = None
        with contextlib.suppress(OSError, ValueError):
            answer = _exchange(process, self._work)
        if answer is None or "fatal" in answer[0]:
            self._end(process)
        if answer is None:
            raise RagError(f"executor processes: a worker process cannot be started ({self.fate})")
        refuse(answer[0])
        return process

    def _end(self, process: subprocess.Popen[bytes]) -> None:
        """Its parser's process is in its group, and ends with it."""
        with contextlib.suppress(OSError):
            os.killpg(process.pid, signal.SIGKILL) if hasattr(os, "killpg") else process.kill()
        process.wait()
        self.fate = _fate(process.returncode)
        for stream in (process.stdin, process.stdout):
            with contextlib.suppress(OSError):  # unsent bytes for a process that is gone
                if stream:
                    stream.close()
        with self._turn:
            if self._process is process:
                self._process = None


def _exchange(process: subprocess.Popen[bytes], header: dict[str, Any]) -> Frame | None:
    """Ask and wait for the answer; None when the process ended instead."""
    questions, answers = cast(BinaryIO, process.stdin), cast(BinaryIO, process.stdout)
    write_frame(questions, header, b"")
    return read_frame(answers, max_bytes=_ANSWER_BYTES)


def _start(threads: int) -> subprocess.Popen[bytes]:
    """A fresh interpreter in a process group of its own, so that Ctrl-C reaches the parent alone.

    -P keeps the working directory, where anything may lie, out of the search path.
    """
    here = str(Path(__file__).resolve().parents[2])
    paths = [here, *filter(None, [os.environ.get("PYTHONPATH")])]
    limits = {name: str(min(threads, _number(os.environ.get(name), threads))) for name in _THREAD_SETTINGS}
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "rag.executors._worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, **limits, "TOKENIZERS_PARALLELISM": "false", "PYTHONPATH": os.pathsep.join(paths)},
        process_group=0 if os.name != "nt" else None,
    )


def _number(text: str | None, default: int) -> int:
    return int(text) if text and text.isdecimal() and int(text) > 0 else default


def _fate(code: int) -> str:
    if code < 0:
        with contextlib.suppress(ValueError):
            return signal.Signals(-code).name
    return f"exit code {code}"
