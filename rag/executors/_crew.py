"""Workers outside of this process: each is driven by a thread that only waits, and what kills one is tried twice."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from queue import LifoQueue
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from rag.executors._frames import batch_header, job_header, to_outcome, to_vectors
from rag.executors._window import in_order
from rag.jobs import Batch, Job, Outcome, WorkerLostError

if TYPE_CHECKING:
    from rag.protocols import Vectors

__all__ = ["Crew", "Member", "Request"]

T = TypeVar("T")
_TRIES = 2


@dataclass(frozen=True, slots=True)
class Request(Generic[T]):
    """A question to a worker in plain values, and how its answer is read."""

    verb: str
    values: dict[str, Any]
    read: Callable[[dict[str, Any], bytes], T]


class Member(Protocol):
    """A worker that is started when first asked, and anew after it died; one question at a time."""

    fate: str
    """How it died last."""

    @abstractmethod
    def ask(self, request: Request[T]) -> T | None:
        """The answer; None when the worker died over it. RagError when no request could be met."""

    @abstractmethod
    def close(self) -> None:
        """End the worker, whatever it does; later questions are refused."""


class Crew:
    """Reads files and embeds batches with the same workers, so that none waits for a stage that is not its own."""

    def __init__(self, members: Sequence[Member], name: str) -> None:
        self._members = list(members)
        self._free: LifoQueue[Member] = LifoQueue()  # last in, first out: few jobs start few workers
        for member in reversed(self._members):
            self._free.put(member)
        self._pool = ThreadPoolExecutor(len(self._members), thread_name_prefix=name)

    def __len__(self) -> int:
        return len(self._members)

    def run(self, jobs: Iterable[Job]) -> Iterator[Outcome]:
        """As `Runner.run`."""
        return in_order(jobs, lambda job: self._pool.submit(self._read, job), window=3 * len(self._members))

    def embed(self, batch: Batch) -> Future[Mapping[str, Vectors]]:
        """As `Runner.embed`."""
        return self._pool.submit(self._embed, batch)

    def close(self) -> None:
        """End all workers; calling twice is fine."""
        for member in self._members:
            member.close()
        self._pool.shutdown(cancel_futures=True)

    def _read(self, job: Job) -> Outcome:
        try:
            return self._ask(Request("read", job_header(job), to_outcome))
        except WorkerLostError as error:
            return Outcome(error=f"{job.source}: reading it {error}")

    def _embed(self, batch: Batch) -> Mapping[str, Vectors]:
        return self._ask(Request("embed", batch_header(batch), to_vectors))

    def _ask(self, request: Request[T]) -> T:
        member = self._free.get()
        try:
            for _ in range(_TRIES):
                answer = member.ask(request)
                if answer is not None:
                    return answer
            raise WorkerLostError(f"ended the worker process twice ({member.fate})")
        finally:
            self._free.put(member)
