"""The child process of the executor `processes`: one file, or one batch of chunks, after the other.

It ends when its stdin does, and also when its parent is killed while it works. Ctrl-C is the parent's business.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from typing import BinaryIO

from rag.errors import RagError
from rag.executors._frames import refusal
from rag.executors._work import FileWork, answer
from rag.parsers._frames import read_frame, write_frame

__all__ = ["MAX_FRAME_BYTES", "serve"]

MAX_FRAME_BYTES = 4_000_000_000
"""A batch of chunks brings its text along."""


def main() -> None:
    """Serve on the real stdout; whatever a library prints goes to stderr instead."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    requests, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    threading.Thread(target=_leave_with_parent, args=(os.getppid(),), daemon=True).start()
    serve(requests, answers)


def serve(requests: BinaryIO, answers: BinaryIO) -> None:
    """The first request describes the work, every other one is a `Request`; each is answered, in order."""
    first = read_frame(requests, max_bytes=MAX_FRAME_BYTES)
    if first is None:
        return
    try:
        work = FileWork.from_dict(first[0])
        _ = work.chunker  # a config that cannot be built is known before the first file is read
    except RagError as error:
        write_frame(answers, *refusal(error))
        return
    write_frame(answers, {}, b"")
    try:
        while (frame := read_frame(requests, max_bytes=MAX_FRAME_BYTES)) is not None:
            write_frame(answers, *answer(work, frame[0]["verb"], frame[0]["values"]))
    finally:
        work.close()


def _leave_with_parent(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


if __name__ == "__main__":
    main()
