"""Reading and embedding many files: what an executor gets and gives back, and what it promises.

The promises are tests: tests/contracts/test_executor.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from rag.errors import RagError

if TYPE_CHECKING:
    from rag.protocols import Vectors
    from rag.types import Chunk, Document

__all__ = ["Batch", "Executor", "Job", "Outcome", "Runner", "Work", "WorkerLostError"]


class WorkerLostError(RagError):
    """Worker processes ended over one and the same request."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One file to read, in plain values. A file whose bytes hash to `known_hash` is not parsed again."""

    path: str
    source: str
    parser: str
    size_bytes: int
    known_hash: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of a job: a document with its chunks, or an error, or neither when the bytes were known.

    `content_hash` is "" when the bytes could not be read. `lasting` says that the error lies in the bytes, so that
    reading them again would only repeat it.
    """

    content_hash: str = ""
    document: Document | None = None
    chunks: tuple[Chunk, ...] = ()
    decision: Mapping[str, Any] | None = None
    signature: bytes | None = None
    error: str = ""
    lasting: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Chunks of different contents that are embedded together; `texts` of the documents whose chunks have a surround.

    Together, since an encoder may round otherwise when a text stands in other company.
    """

    chunks: tuple[Chunk, ...]
    texts: Mapping[str, str]


class Work(Protocol):
    """What an executor runs for every job. It is made anew in another process from `describe()`."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Plain JSON values from which `rag.executors` makes an equal work elsewhere."""

    @abstractmethod
    def copy(self) -> Work:
        """An equal work that may run beside this one in another thread."""

    @abstractmethod
    def run(self, job: Job) -> Outcome:
        """Never raises for the sake of one job, only when no job could succeed (ConfigError)."""

    @abstractmethod
    def embed(self, batch: Batch) -> Mapping[str, Vectors]:
        """Key -> vector of every chunk, as the caller's embedder would make it; RagError when it cannot."""

    def close(self) -> None:
        """Give back child processes; calling twice is fine."""


class Runner(Protocol):
    """An executor at work."""

    @abstractmethod
    def run(self, jobs: Iterable[Job]) -> Iterator[Outcome]:
        """One outcome per job, in the order of the jobs.

        Jobs are pulled in the caller's thread, only while few outcomes wait to be taken: a slow caller stops the
        reading. A worker that dies is replaced and its job tried once more, then the outcome is an error.
        """

    @property
    def embeds(self) -> int:
        """How many batches `embed` keeps busy workers with; 0: the caller embeds."""
        return 0

    def embed(self, batch: Batch) -> Future[Mapping[str, Vectors]]:
        """What `Work.embed` gives, from a worker, beside the run. WorkerLostError when two workers died over it."""
        raise RagError("this executor leaves embedding to its caller: `embeds` is 0")

    def close(self) -> None:
        """End what was started, also in the middle of a run; calling twice is fine."""


class Executor(Protocol):
    """Where the per-file work of an ingestion runs. Any executor gives the same outcomes."""

    @abstractmethod
    def open(self, work: Work) -> Runner:
        """Ready to run; processes start when jobs come."""
