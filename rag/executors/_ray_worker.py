"""What runs on a Ray worker: one file after the other. Everything it gets and gives back is JSON text and bytes."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from rag.errors import RagError
from rag.executors._frames import outcome_frame, to_job
from rag.executors._work import FileWork

__all__ = ["Reply", "Worker"]

Reply = tuple[str, bytes]
"""A header in JSON and the text of the document; a header with "error" alone says that no job could succeed."""


class Worker:
    """An actor. Nothing is built before `start`, so that a config that cannot be built is an answer, not a death."""

    def __init__(self, work: str) -> None:
        self._described = work
        self._work: FileWork | None = None

    def start(self) -> Reply:
        """Build the chunker. An empty header says that jobs may come."""

        def build() -> Reply:
            self._work = FileWork.from_dict(json.loads(self._described))
            _ = self._work.chunker
            return "{}", b""

        return _answer(build)

    def run(self, job: str) -> Reply:
        """The outcome of one job as a frame of `rag.executors._frames`."""

        def read() -> Reply:
            if self._work is None:
                raise RagError("executor ray: a job came before the worker was started")
            header, body = outcome_frame(self._work.run(to_job(json.loads(job))))
            return json.dumps(header), body

        return _answer(read)


def _answer(make: Callable[[], Reply]) -> Reply:
    try:
        return make()
    except RagError as error:
        told: dict[str, Any] = {"error": str(error), "exit_code": error.exit_code, "fatal": True}
        return json.dumps(told), b""
