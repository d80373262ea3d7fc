"""Reads the dangerous formats in a child process: a crash, a hang or a memory bomb there is an InputError here."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from types import TracebackType
from typing import IO, Any, BinaryIO, cast

from rag.errors import ConfigError, InputError, MissingError, RagError
from rag.limits import Limits
from rag.parsers._choose import is_isolated
from rag.parsers._frames import read_frame, to_document, write_frame
from rag.parsers._guard import parse_in_process
from rag.types import Document

__all__ = ["ParserPool", "parse_in_process", "parse_isolated"]

_IN_PROCESS_BYTES = 250_000
"""Up to here no file of plain text takes more than a few seconds (the worst Markdown: 14 s per MB). Larger ones are
read in the child process too, under its limits.
"""
_BLOCK_BYTES = 64
_HEADER_BYTES = 1_000_000
"""At most that much do the place of a block, and the rest of an answer's header, take."""
_WORN_BYTES = 500_000_000
"""A worker that has ever been this large is replaced, so that one huge file does not narrow the next one's limit."""

_ERRORS: dict[int, type[RagError]] = {error.exit_code: error for error in (ConfigError, InputError, MissingError)}


def parse_isolated(parser_name: str, data: bytes, source: str, limits: Limits | None = None) -> Document:
    """The document, read in a child process of its own. For more than one file use a ParserPool."""
    with ParserPool(limits) as pool:
        return pool.parse_isolated(parser_name, data, source)


class ParserPool:
    """One worker process for the formats that ask for it and for large files, started when first needed and anew
    after a failure.

    Safe to share between threads, which take turns. `limits` hold for each file. `peak_bytes` is the largest memory
    of any worker so far, `starts` how many there were.
    """

    def __init__(self, limits: Limits | None = None) -> None:
        self.limits = limits or Limits()
        self.starts = 0
        self.peak_bytes = 0
        self._worker: subprocess.Popen[bytes] | None = None
        self._turn = threading.Lock()

    def __enter__(self) -> ParserPool:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def parse(self, parser_name: str, data: bytes, source: str) -> Document:
        """The document; InputError names the reason when there is none."""
        if is_isolated(parser_name) or len(data) > _IN_PROCESS_BYTES:
            return self.parse_isolated(parser_name, data, source)
        return parse_in_process(parser_name, data, source, self.limits)

    def parse_isolated(self, parser_name: str, data: bytes, source: str) -> Document:
        """As `parse`, in the worker whatever the format."""
        if len(data) > self.limits.max_file_bytes:
            raise InputError(f"{source}: {self.limits.over('max_file_bytes', len(data))}")
        request = {"parser": parser_name, "source": source, "limits": self.limits.to_dict()}
        with self._turn:
            header, body = self._ask(request, data)
        if "error" in header:
            raise _ERRORS.get(header.get("exit_code", 0), InputError)(str(header["error"]))
        return _received(header, body, source)

    def close(self) -> None:
        """End the worker; the next file would start another."""
        with self._turn:
            self._end()

    def _ask(self, request: dict[str, Any], data: bytes) -> tuple[dict[str, Any], bytes]:
        """Header and body of the answer. Whatever goes wrong here, the worker is not used again."""
        worker = self._running()
        late = threading.Event()

        def stop() -> None:
            late.set()
            worker.kill()

        clock = threading.Timer(self.limits.max_seconds, stop)
        clock.start()
        answer, why = None, ""
        most = 4 * self.limits.max_characters + _BLOCK_BYTES * self.limits.max_blocks + _HEADER_BYTES
        try:
            write_frame(_pipe(worker.stdin), request, data)
            answer = read_frame(_pipe(worker.stdout), max_bytes=most)
        except OSError:
            pass  # a broken pipe: the worker is gone
        except (ValueError, RecursionError) as error:
            why = f"its reader's answer cannot be used: {error}"
        finally:
            clock.cancel()
            if answer is None:
                self._end(kill=True)
        if answer is None:
            raise InputError(f"{request['source']}: {why or self._fate(worker.returncode, late.is_set())}")
        peak = int(answer[0].get("peak_bytes", 0))
        self.peak_bytes = max(self.peak_bytes, peak)
        if late.is_set() or peak > _WORN_BYTES or "max_address_bytes" in str(answer[0].get("error", "")):
            self._end(kill=True)
        return answer

    def _fate(self, code: int | None, late: bool) -> str:
        if late or code == -getattr(signal, "SIGXCPU", 24):
            return self.limits.over("max_seconds")
        if code == -signal.SIGABRT:  # how native readers end when memory is refused
            return f"reading it made the reader give up (SIGABRT); as a rule: {self.limits.over('max_address_bytes')}"
        if code is not None and code < 0:
            with contextlib.suppress(ValueError):
                return f"reading it crashed the reader ({signal.Signals(-code).name})"
        return f"reading it crashed the reader (exit code {code})"

    def _running(self) -> subprocess.Popen[bytes]:
        if self._worker is None or self._worker.poll() is not None:
            self._end(kill=True)
            self._worker = _start()
            self.starts += 1
        return self._worker

    def _end(self, *, kill: bool = False) -> None:
        worker, self._worker = self._worker, None
        if worker is None:
            return
        if kill:
            worker.kill()
        for stream in (worker.stdin, worker.stdout):
            with contextlib.suppress(OSError):  # unsent bytes for a worker that is gone
                if stream:
                    stream.close()
        try:
            worker.wait(timeout=5)
        except subprocess.TimeoutExpired:
            worker.kill()
            worker.wait()


def _start() -> subprocess.Popen[bytes]:
    """A fresh interpreter: no fork of a process with threads and models in it, no second run of the caller's script.

    -P keeps the working directory, where anything may lie, out of the search path.
    """
    here = str(Path(__file__).resolve().parents[2])
    paths = [here, *filter(None, [os.environ.get("PYTHONPATH")])]
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "rag.parsers._worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
    )


def _pipe(stream: IO[bytes] | None) -> BinaryIO:
    if stream is None:
        raise ValueError("the worker was started without a pipe")
    return cast(BinaryIO, stream)


def _received(header: dict[str, Any], body: bytes, source: str) -> Document:
    try:
        return to_document(header, body)
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{source}: the reader gave a garbled answer: {error}") from error
