"""Threads of this process: for parsers that run in a child process, and chunkers that leave Python."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from queue import LifoQueue

from rag.errors import ConfigError
from rag.executors._window import in_order
from rag.jobs import Executor, Job, Outcome, Runner, Work


@dataclass(frozen=True, kw_only=True)
class ThreadsExecutor(Executor):
    """Several files at once in threads. Python runs one of them at a time, so this gains where parsers wait."""

    workers: int = 4

    def __post_init__(self) -> None:
        if not 1 <= self.workers <= 256:
            raise ConfigError(f"threads: workers must be between 1 and 256, not {self.workers}")

    def open(self, work: Work) -> Runner:
        return _ThreadsRunner(work, self.workers)


class _ThreadsRunner(Runner):
    def __init__(self, work: Work, workers: int) -> None:
        self._works = [work, *(work.copy() for _ in range(workers - 1))]
        self._free: LifoQueue[Work] = LifoQueue()
        for one in reversed(self._works):
            self._free.put(one)
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="rag-threads")

    def run(self, jobs: Iterable[Job]) -> Iterator[Outcome]:
        return in_order(jobs, self._submit, window=2 * len(self._works))

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)
        for work in self._works:
            work.close()

    def _submit(self, job: Job) -> Future[Outcome]:
        return self._pool.submit(self._run, job)

    def _run(self, job: Job) -> Outcome:
        work = self._free.get()
        try:
            return work.run(job)
        finally:
            self._free.put(work)
