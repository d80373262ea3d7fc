"""The child process of ParserPool: reads one file after the other from stdin, inside hard limits.

It ends when its stdin does, so also when its parent is killed.
"""

from __future__ import annotations

import math
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any, BinaryIO

from rag.errors import InputError, RagError
from rag.limits import Limits
from rag.parsers._frames import document_frame, read_frame, write_frame
from rag.parsers._guard import parse_in_process

__all__ = ["serve"]


def main() -> None:
    """Serve on the real stdout; whatever a library prints goes to stderr instead."""
    requests, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    threading.Thread(target=_leave_with_parent, args=(os.getppid(),), daemon=True).start()
    serve(requests, answers)


def serve(requests: BinaryIO, answers: BinaryIO) -> None:
    """Answer every request until the stream ends. Whoever asks has checked the size of the file."""
    while (frame := read_frame(requests, max_bytes=sys.maxsize)) is not None:
        request, data = frame
        limits = Limits.from_dict(request["limits"])
        _limit(address_bytes=limits.max_address_bytes, seconds=limits.max_seconds)
        header, body = _answer(request, data, limits)
        try:
            write_frame(answers, {**header, "peak_bytes": _peak_bytes()}, body)
        except MemoryError:  # while the header was made: nothing has been written yet
            del header, body
            write_frame(answers, {**_too_large(request["source"], limits), "peak_bytes": _peak_bytes()}, b"")


def _answer(request: dict[str, Any], data: bytes, limits: Limits) -> tuple[dict[str, Any], bytes]:
    try:
        return document_frame(parse_in_process(request["parser"], data, request["source"], limits))
    except RagError as error:
        return {"error": str(error), "exit_code": error.exit_code}, b""
    except MemoryError:
        return _too_large(request["source"], limits), b""


def _too_large(source: str, limits: Limits) -> dict[str, Any]:
    return {"error": f"{source}: {limits.over('max_address_bytes')}", "exit_code": InputError.exit_code}


def _limit(*, address_bytes: int, seconds: float) -> None:
    """Address space for good, processor time for this file: what is used so far plus `seconds`."""
    try:
        import resource
    except ImportError:  # Windows has neither; the parent's clock still holds
        return
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    if hard == resource.RLIM_INFINITY or hard > address_bytes:
        resource.setrlimit(resource.RLIMIT_AS, (address_bytes, address_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a crash leaves nothing behind
    usage = resource.getrusage(resource.RUSAGE_SELF)
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    soft = math.ceil(usage.ru_utime + usage.ru_stime + seconds) + 1
    resource.setrlimit(resource.RLIMIT_CPU, (soft if hard == resource.RLIM_INFINITY else min(soft, hard), hard))


def _peak_bytes() -> int:
    """The largest memory this process has held; 0 where only getrusage could tell, which counts the parent's too."""
    try:
        status = Path("/proc/self/status").read_text("ascii")
    except OSError:
        return 0
    kilobytes = next((line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:")), "0")
    return int(kilobytes) * 1024


def _leave_with_parent(parent: int) -> None:
    """A second way out for the time while a file is read and nobody looks at stdin."""
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)


if __name__ == "__main__":
    main()
