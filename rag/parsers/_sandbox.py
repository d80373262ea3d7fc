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
from rag.parsers._choose import is_isolated, make_parser
from rag.parsers._frames import read_frame, to_document, write_frame
from rag.parsers._limits import MAX_ADDRESS_BYTES, MAX_SECONDS
from rag.types import Document

__all__ = ["ParserPool", "parse_in_process", "parse_isolated"]

_ANSWER_BYTES = 1_000_000_000
_WORN_BYTES = 500_000_000
"""A worker that has ever been this large is replaced, so that one huge file does not narrow the next one's limit."""

_ERRORS: dict[int, type[RagError]] = {error.exit_code: error for error in (ConfigError, InputError, MissingError)}


def parse_in_process(parser_name: str, data: bytes, source: str) -> Document:
    """The document, read right here: no start of a process, and no shelter from a crash of a native reader."""
    return make_parser(parser_name).parse(data, source=source)


def parse_isolated(parser_name: str, data: bytes, source: str) -> Document:
    """The document, read in a child process of its own. For more than one file use a ParserPool."""
    with ParserPool() as pool:
        return pool.parse_isolated(parser_name, data, source)


class ParserPool:
    """One worker process for the formats that ask for it, started when first needed and anew after a failure.

    Safe to share between threads, which take turns. `seconds` and `address_bytes` hold for each file.
    """

    def __init__(self, *, seconds: float = MAX_SECONDS, address_bytes: int = MAX_ADDRESS_BYTES) -> None:
        if seconds <= 0 or address_bytes < 100_000_000:
            raise ConfigError(f"seconds must be > 0 and address_bytes >= 100 MB, not {seconds} and {address_bytes}")
        self.starts = 0
        self.peak_bytes = 0
        self._seconds = seconds
        self._address_bytes = address_bytes
        self._worker: subprocess.Popen[bytes] | None = None
        self._turn = threading.Lock()

    def __enter__(self) -> ParserPool:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def parse(self, parser_name: str, data: bytes, source: str) -> Document:
        """The document; InputError names the reason when there is none."""
        if is_isolated(parser_name):
            return self.parse_isolated(parser_name, data, source)
        return parse_in_process(parser_name, data, source)

    def parse_isolated(self, parser_name: str, data: bytes, source: str) -> Document:
        """As `parse`, in the worker whatever the format."""
        request = {
            "parser": parser_name,
            "source": source,
            "seconds": self._seconds,
            "address_bytes": self._address_bytes,
        }
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

        clock = threading.Timer(self._seconds, stop)
        clock.start()
        answer = None
        try:
            write_frame(_pipe(worker.stdin), request, data)
            answer = read_frame(_pipe(worker.stdout), max_bytes=_ANSWER_BYTES)
        except (OSError, ValueError):
            pass  # a broken pipe or a garbled answer: no answer
        finally:
            clock.cancel()
            if answer is None:
                self._end(kill=True)
        if answer is None:
            raise InputError(f"{request['source']}: {_fate(worker.returncode, late.is_set(), self._seconds)}")
        peak = int(answer[0].get("peak_bytes", 0))
        self.peak_bytes = max(self.peak_bytes, peak)
        if late.is_set() or peak > _WORN_BYTES or "memory" in str(answer[0].get("error", "")):
            self._end(kill=True)
        return answer

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


def _fate(code: int | None, late: bool, seconds: float) -> str:
    if late or code == -getattr(signal, "SIGXCPU", 24):
        return f"reading it took more than {seconds:g} seconds"
    if code is not None and code < 0:
        with contextlib.suppress(ValueError):
            return f"reading it crashed the reader ({signal.Signals(-code).name})"
    return f"reading it crashed the reader (exit code {code})"
