"""Ray (Moritz et al., arXiv 1712.05889): reading, cutting and embedding on this machine or on a cluster."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any, TypeVar

from rag.errors import ConfigError, RagError
from rag.executors._crew import Crew, Member, Request
from rag.executors._frames import Frame, refuse
from rag.executors._ray_cluster import Cluster, join
from rag.executors._ray_worker import Worker
from rag.executors.processes import usable_cores
from rag.jobs import Batch, Executor, Job, Outcome, Runner, Work

if TYPE_CHECKING:
    from rag.protocols import Vectors

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class RayExecutor(Executor):
    """Several files at once in Ray actors, `workers` of them (0: one per CPU of this machine or of the cluster).

    Without `address` Ray starts on this machine with the first file and ends with the run, unless the caller has
    started it. With one ("auto", "HOST:6379", "ray://HOST:10001") the run joins that cluster; every node needs this
    package in the same version and the files under the same paths, and whoever may use the cluster may run code on it.
    An actor that dies, also with its whole node, is replaced and its file tried once more. Writing stays with the
    caller; so does embedding without `embed` (for an embedder that is itself a service, say).

    Deviations: the stages are actors, not operators of Ray Data. What is embedded depends on what the store holds and
    on decisions that the writer makes in between, which Ray Data has no place for, and it neither says which row
    killed its worker nor keeps close to a slow consumer.
    """

    workers: int = 0
    address: str | None = None
    embed: bool = True

    def __post_init__(self) -> None:
        if not 0 <= self.workers <= 4096:
            raise ConfigError(f"ray: workers must be between 0 (one per CPU) and 4096, not {self.workers}")

    def open(self, work: Work) -> Runner:
        return _RayRunner(work, self)


class _RayRunner(Runner):
    def __init__(self, work: Work, wanted: RayExecutor) -> None:
        work.close()  # nothing of it runs here
        self._described = json.dumps(work.describe())
        self._wanted = wanted
        self._cluster: Cluster | None = None
        self._crew: Crew | None = None
        self._closed = False

    def run(self, jobs: Iterable[Job]) -> Iterator[Outcome]:
        some = iter(jobs)
        first = next(some, None)
        if first is not None:  # Ray takes seconds to start
            yield from self._start().run(chain([first], some))

    @property
    def embeds(self) -> int:
        return len(self._crew or ()) + 1 if self._wanted.embed else 0

    def embed(self, batch: Batch) -> Future[Mapping[str, Vectors]]:
        return self._start().embed(batch)

    def close(self) -> None:
        self._closed = True
        if self._crew is not None:
            self._crew.close()
        if self._cluster is not None:
            self._cluster.leave()
            self._cluster = None

    def _start(self) -> Crew:
        if self._closed:
            raise RagError("executor ray: the runner was closed; open another one")
        if self._crew is None:
            self._cluster = join(self._wanted.address or "", self._wanted.workers or usable_cores())
            count = self._wanted.workers or self._cluster.cpus
            self._crew = Crew([_Actor(self._cluster.ray, self._described) for _ in range(count)], "rag-ray")
        return self._crew


class _Actor(Member):
    """A Ray actor that is made when first asked, and anew after it died."""

    def __init__(self, ray: Any, described: str) -> None:
        self.fate = ""
        self._ray = ray
        self._described = described
        self._handle: Any = None
        self._closed = False
        self._turn = threading.Lock()  # making and closing; never held while a file is read

    def ask(self, request: Request[T]) -> T | None:
        if self._is_new():
            if (answer := self._call("start")) is None:
                raise RagError(f"executor ray: a worker cannot be started ({self.fate})")
            refuse(answer[0])
        answer = self._call("answer", request.verb, json.dumps(request.values))
        if answer is None:
            return None
        refuse(answer[0])
        return request.read(*answer)

    def close(self) -> None:
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

    def _call(self, method: str, *arguments: str) -> Frame | None:
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


def _fate(error: Exception) -> str:
    """Ray's account, cut to what it says first of the death."""
    text = " ".join(str(error).split())
    _, _, detail = text.rpartition("Worker exit detail: ")
    return f"{type(error).__name__}: {detail.split('. ')[0][:200]}"
