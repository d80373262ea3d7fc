"""What runs on a Ray worker: one file, or one batch of chunks, after the other.

Everything it gets and gives back is JSON text and bytes.
"""

from __future__ import annotations

import json

from rag.errors import RagError
from rag.executors._frames import Frame, refusal
from rag.executors._work import FileWork, answer

__all__ = ["Reply", "Worker"]

Reply = tuple[str, bytes]
"""A frame of `rag.executors._frames`, its header as JSON text."""


class Worker:
    """An actor. Nothing is built before `start`, so that a config that cannot be built is an answer, not a death."""

    def __init__(self, work: str) -> None:
        self._described = work
        self._work: FileWork | None = None

    def start(self) -> Reply:
        """Build the chunker. An empty header says that requests may come."""
        try:
            self._work = FileWork.from_dict(json.loads(self._described))
            _ = self._work.chunker
        except RagError as error:
            return _reply(refusal(error))
        return _reply(({}, b""))

    def answer(self, verb: str, values: str) -> Reply:
        """What the request asks for."""
        if self._work is None:
            return _reply(refusal(RagError("executor ray: a request came before the worker was started")))
        return _reply(answer(self._work, verb, json.loads(values)))


def _reply(frame: Frame) -> Reply:
    header, body = frame
    return json.dumps(header), body
