"""Order and back-pressure, shared by the executors that run jobs beside the caller."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future

from rag.jobs import Job, Outcome

__all__ = ["in_order"]

WINDOW_BYTES = 64_000_000
"""Bytes of files whose outcomes may wait, so that a few huge files are not all held in memory at once."""


def in_order(
    jobs: Iterable[Job], submit: Callable[[Job], Future[Outcome]], *, window: int, window_bytes: int = WINDOW_BYTES
) -> Iterator[Outcome]:
    """The outcomes in the order of the jobs. At most `window` jobs are in flight or waiting to be taken."""
    waiting: deque[tuple[int, Future[Outcome]]] = deque()
    held = 0
    for job in jobs:
        while waiting and held + job.size_bytes > window_bytes:
            size, future = waiting.popleft()
            held -= size
            yield future.result()
        waiting.append((job.size_bytes, submit(job)))
        held += job.size_bytes
        if len(waiting) >= window:
            size, future = waiting.popleft()
            held -= size
            yield future.result()
    while waiting:
        yield waiting.popleft()[1].result()
