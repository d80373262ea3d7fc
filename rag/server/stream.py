"""An answer as it grows: from the thread that writes it, as server-sent events in OpenAI's shape."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from rag.answer import Answer
from rag.server.auth import Caller
from rag.server.engine import AskJob, Engine
from rag.server.errors import understood

__all__ = ["Shape", "events", "pieces_of"]


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What all chunks of one completion share."""

    id: str
    created: int
    model: str

    def rag(self, answer: Answer) -> dict[str, Any]:
        """The field `rag`: see `schemas.RagField`."""
        whole = answer.to_dict()
        kept = {name: whole[name] for name in ("run_id", "citations", "sentences", "supported")}
        return {**kept, "context_tokens": answer.context.token_count}

    def usage(self, answer: Answer) -> dict[str, Any]:
        """Counts of tokens, those that were reused as OpenAI's cached ones."""
        stats = answer.stats
        return {
            "prompt_tokens": stats.prompt_tokens,
            "completion_tokens": stats.new_tokens,
            "total_tokens": stats.prompt_tokens + stats.new_tokens,
            "prompt_tokens_details": {"cached_tokens": stats.reused_tokens},
        }

    def chunk(self, choices: list[dict[str, Any]], **more: Any) -> bytes:
        """One event."""
        head = {"id": self.id, "object": "chat.completion.chunk", "created": self.created, "model": self.model}
        return _event({**head, "choices": choices, **more})


async def pieces_of(engine: Engine, model: str, caller: Caller, question: str) -> AsyncIterator[str | Answer]:
    """The text as it grows, at last the answer. Raises Busy at once; leaving it early ends the work."""
    loop, queue = asyncio.get_running_loop(), asyncio.Queue[str | asyncio.Future[Answer]]()

    def hand_over(text: str) -> None:
        loop.call_soon_threadsafe(queue.put_nowait, text)

    job = AskJob(caller, question, hand_over)
    engine.submit(lambda index: engine.ask(index, model, job), caller).add_done_callback(queue.put_nowait)
    end = loop.time() + engine.limits.request_seconds
    try:
        while True:
            piece = await asyncio.wait_for(queue.get(), max(0.0, end - loop.time()))
            if not isinstance(piece, str):
                yield piece.result()
                return
            yield piece
    finally:
        job.cancel()


async def events(
    shape: Shape, first: str | Answer, pieces: AsyncIterator[str | Answer], with_usage: bool
) -> AsyncIterator[bytes]:
    """The chunks, and [DONE]; an error on the way is an event too, since the status is out already."""
    yield shape.chunk([_choice({"role": "assistant", "content": ""})])
    piece, written = first, 0
    try:
        while isinstance(piece, str):
            written += len(piece)
            yield shape.chunk([_choice({"content": piece})])
            piece = await anext(pieces)
        if piece.text and not written:
            yield shape.chunk([_choice({"content": piece.text})])
        yield shape.chunk([_choice({}, "stop")], rag=shape.rag(piece))
        if with_usage:
            yield shape.chunk([], usage=shape.usage(piece))
    except Exception as error:
        yield _event(understood(error).body)
    yield b"data: [DONE]\n\n"


def _choice(delta: dict[str, str], finish: str | None = None) -> dict[str, Any]:
    return {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}


def _event(value: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(value).encode("ascii") + b"\n\n"
