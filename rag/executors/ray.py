"""Ray (Moritz et al., arXiv 1712.05889): the per-file work on the cores of this machine or of a cluster."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from queue import LifoQueue
from typing import Any

from rag.errors import ConfigError, MissingError, RagError
from rag.executors._frames import job_header, to_outcome
from rag.executors._ray_cluster import Cluster, join
from rag.executors._ray_worker import Worker
from rag.executors._window import in_order
from rag.executors.processes import usable_cores
from rag.jobs import Executor, Job, Outcome, Runner, Work

_ERRORS: dict[int, type[RagError]] = {error.exit_code: error for error in (ConfigError, MissingError)}


@dataclass(frozen=True, kw_only=True)
class RayExecutor(Executor):
    """Several files at once in Ray actors, `workers` of them (0: one per CPU of this machine or of the cluster).

    Without `address` Ray starts on this machine with the first file and ends with the run, unless the caller has
    started it. With one ("auto", "HOST:6379", "ray://HOST:10001") the run joins that cluster; every node needs this
    package in the same version and the files under the same paths, and whoever may use the cluster may run code on it.
    An actor that dies, also with its whole node, is replaced and its file tried once more. Writing stays with the
    caller.
    """

    workers: int = 0
    address: str | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.workers <= 4096:
            raise ConfigError(f"ray: workers must be between 0 (one per CPU) and 4096, not {self.workers}")

    def open(self, work: Work) -> Runner:
        return _RayRunner(work, self.workers, self.address or "")


class _RayRunner(Runner):
    """One thread per actor drives it; the threads only wait."""

    def __init__(self, work: Work, workers: int, address: str) -> None:
        work.close()  # nothing of it runs here
        self._described = json.dumps(work.describe())
        self._wanted, self._address = workers, address
        self._cluster: Cluster | None = None
        self._actors: list[_Actor] = []
        self._free: LifoQueue[_Actor] = LifoQueue()  # last in, first out: few jobs start few actors
        self._pool: ThreadPoolExecutor | None = None
        self._closed = False

    def run(self, jobs: Iterable[Job]) -> Iterator[Outcome]:
        some = iter(jobs)
        first = next(some, None)
        if first is not None:  # Ray takes seconds to start
            pool = self._start()
            window = 3 * len(self._actors)
            yield from in_order(chain([first], some), lambda job: pool.submit(self._run, job), window=window)

    def close(self) -> None:
        self._closed = True
        for actor in self._actors:
            actor.close()
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
        if self._cluster is not None:
            self._cluster.leave()
            self._cluster = None

    def _start(self) -> ThreadPoolExecutor:
        if self._closed:
            raise RagError("executor ray: the runner was closed; open another one")
        if self._pool is None:
            self._cluster = join(self._address, self._wanted or usable_cores())
            count = self._wanted or self._cluster.cpus
            self._actors = [_Actor(self._cluster.ray, self._described) for _ in range(count)]
            for actor in reversed(self._actors):
                self._free.put(actor)
            self._pool = ThreadPoolExecutor(count, thread_name_prefix="rag-ray")
        return self._pool

    def _run(self, job: Job) -> Outcome:
        actor = self._free.get()
        try:
            for _ in range(2):
                outcome = actor.ask(job)
                if outcome is not None:
                    return outcome
        finally:
            self._free.put(actor)
        return Outcome(error=f"{job.source}: reading it ended the worker process twice ({actor.fate})")


class _Actor:
    """A Ray actor that is made when first asked, and anew after it died."""

    def __init__(self, ray: Any, described: str) -> None:
        self.fate = ""
        self._ray = ray
        self._described = described
        self._handle: Any = None
        self._closed = False
        self._turn = threading.Lock()  # making and closing; never held while a file is read

    def ask(self, job: Job) -> Outcome | None:
        """The outcome; None when the actor died over it."""
        if self._is_new():
            if (answer := self._call("start")) is None:
                raise RagError(f"executor ray: a worker cannot be started ({self.fate})")
            self._refuse(answer)
        answer = self._call("run", json.dumps(job_header(job)))
        if answer is None:
            return None
        self._refuse(answer)
        header, body = answer
        return to_outcome(header, body)

    def close(self) -> None:
        """End the actor, whatever it does; later questions are refused."""
        with self._turn:
            self._closed = True
            handle, self._handle = self._handle, None
        if handle is not None:
            self._ray.kill(handle)

    def _is_new(self) -> bool:
        with self._turn:
            if self._closed:
                raise RagError("the executor was closed while files were still read")
            if self._handle is not None:
                return False
            kind = self._ray.remote(Worker).options(num_cpus=1, max_restarts=0, scheduling_strategy="SPREAD")
            self._handle = kind.remote(self._described)
            return True

    def _call(self, method: str, *arguments: str) -> tuple[dict[str, Any], bytes] | None:
        """The answer; None when the actor is gone, or raised what it should not, and is given up."""
        handle = self._handle
        if handle is None:
            raise RagError("the executor was closed while files were still read")
        try:
            header, body = self._ray.get(getattr(handle, method).remote(*arguments))
            return json.loads(header), body
        except self._ray.exceptions.RayError as error:
            self.fate = _fate(error)
        with self._turn:
            if self._handle is handle:
                self._handle = None
                self._ray.kill(handle)
        return None

    def _refuse(self, answer: tuple[dict[str, Any], bytes]) -> None:
        """Raise what the worker says that no job could get past."""
        told = answer[0]
        if told.get("fatal"):
            raise _ERRORS.get(told["exit_code"], RagError)(str(told["error"]))


def _fate(error: Exception) -> str:
    """Ray's account, cut to what it says first of the death."""
    text = " ".join(str(error).split())
    _, _, detail = text.rpartition("Worker exit detail: ")
    return f"{type(error).__name__}: {detail.split('. ')[0][:200]}"
