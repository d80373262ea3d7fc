"""One file after the other, in the caller's process."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from rag.jobs import Executor, Job, Outcome, Runner, Work


@dataclass(frozen=True, kw_only=True)
class SerialExecutor(Executor):
    """One file after the other, in this process: nothing to start, and the least memory."""

    def open(self, work: Work) -> Runner:
        return _SerialRunner(work)


class _SerialRunner(Runner):
    def __init__(self, work: Work) -> None:
        self._work = work

    def run(self, jobs: Iterable[Job]) -> Iterator[Outcome]:
        return map(self._work.run, jobs)

    def close(self) -> None:
        self._work.close()
