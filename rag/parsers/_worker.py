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
from rag.parsers._choose import make_parser
from rag.parsers._frames import document_frame, read_frame, write_frame
from rag.parsers._limits import MAX_FILE_BYTES

__all__ = ["serve"]

_REQUEST_BYTES = 2 * MAX_FILE_BYTES


def main() -> None:
    """Serve on the real stdout; whatever a library prints goes to stderr instead."""
    requests, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    threading.Thread(target=_leave_with_parent, args=(os.getppid(),), daemon=True).start()
    serve(requests, answers)


def serve(requests: BinaryIO, answers: BinaryIO) -> None:
    """Answer every request until the stream ends."""
    while (frame := read_frame(requests, max_bytes=_REQUEST_BYTES)) is not None:
        request, data = frame
        _limit(address_bytes=request["address_bytes"], seconds=request["seconds"])
        header, body = _answer(request, data)
        write_frame(answers, {**header, "peak_bytes": _peak_bytes()}, body)


def _answer(request: dict[str, Any], data: bytes) -> tuple[dict[str, Any], bytes]:
    source = request["source"]
    try:
        return document_frame(make_parser(request["parser"]).parse(data, source=source))
    except RagError as error:
        return {"error": str(error), "exit_code": error.exit_code}, b""
    except MemoryError:
        return {"error": f"{source}: reading it needs more memory than is allowed", "exit_code": 4}, b""
    except Exception as error:
        message = f"{source}: the {request['parser']} parser failed: {type(error).__name__}: {error}"
        return {"error": message, "exit_code": InputError.exit_code}, b""


def _limit(*, address_bytes: int, seconds: float) -> None:
    """Address space for good, processor time for this file: what is used so far plus `seconds`."""
    try:
        import resource
    except ImportError:  # Windows has neither; the parent's clock still holds
        return
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    if hard == resource.RLIM_INFINITY or hard > address_bytes:
        resource.setrlimit(resource.RLIMIT_AS, (address_bytes, address_bytes))
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
