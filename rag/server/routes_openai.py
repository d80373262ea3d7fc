"""/v1: chat completions, embeddings and models, for OpenAI's clients as they are."""

from __future__ import annotations

import base64
import secrets
import time
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from rag.server.engine import AskJob, Engine
from rag.server.errors import ApiError
from rag.server.schemas import ChatCompletion, ChatRequest, EmbeddingsRequest, Message
from rag.server.scope import caller_of, engine_of, model_named
from rag.server.stream import Shape, events, pieces_of

if TYPE_CHECKING:
    from rag.answer import Answer
    from rag.protocols import TokenCounter

__all__ = ["router"]

router = APIRouter(prefix="/v1", tags=["OpenAI"])


@router.post("/chat/completions", response_model=ChatCompletion, summary="Answer a question with citations")
async def chat(asked: ChatRequest, request: Request) -> Response:
    """The answer of a pipeline to the last message of the user; with `stream` as server-sent events."""
    engine, caller = engine_of(request), caller_of(request)
    model, question = model_named(engine, asked.model), _question(asked.messages, engine.limits.max_question_chars)
    shape = Shape(id=f"chatcmpl-{secrets.token_hex(12)}", created=int(time.time()), model=model)
    if asked.stream:
        pieces = pieces_of(engine, model, caller, question)
        first = await anext(pieces)  # what goes wrong before the first word still has a status of its own
        usage = bool(asked.stream_options and asked.stream_options.include_usage)
        return StreamingResponse(events(shape, first, pieces, usage), media_type="text/event-stream")
    job = AskJob(caller, question)
    answer = await engine.run(lambda index: engine.ask(index, model, job), job.caller, job)
    return JSONResponse(_completion(shape, answer))


def _completion(shape: Shape, answer: Answer) -> dict[str, Any]:
    message = {"role": "assistant", "content": answer.text, "refusal": None}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}
    return {
        "id": shape.id,
        "object": "chat.completion",
        "created": shape.created,
        "model": shape.model,
        "choices": [choice],
        "usage": shape.usage(answer),
        "rag": shape.rag(answer),
    }


def _question(messages: list[Message], most: int) -> str:
    said = [message for message in messages if message.role == "user"]
    if not said:
        raise ApiError(400, "messages must hold one with role user: the question", param="messages")
    content = said[-1].content
    text = content if isinstance(content, str) else "\n".join(part.text for part in content or ())
    return checked_question(text, most, "messages")


def checked_question(text: str, most: int, param: str) -> str:
    """The question; ApiError when it is empty or too long."""
    if not text.strip():
        raise ApiError(400, "the question is empty", param=param)
    if len(text) > most:
        raise ApiError(400, f"the question has {len(text):,} characters; at most {most:,} are read", param=param)
    return text


@router.post("/embeddings", summary="Vectors of texts")
async def embeddings(asked: EmbeddingsRequest, request: Request) -> JSONResponse:
    """Vectors of unit length from the embedder of a pipeline, as the index keeps them of its chunks."""
    engine = engine_of(request)
    model, texts = model_named(engine, asked.model), [asked.input] if isinstance(asked.input, str) else asked.input
    if not texts or len(texts) > engine.limits.max_texts:
        raise ApiError(400, f"input takes 1 to {engine.limits.max_texts} texts, not {len(texts)}", param="input")
    pipeline = engine.pipelines[model]
    dimension = pipeline.embedder.dimension
    if asked.dimensions not in (None, dimension):
        raise ApiError(400, f"this model has {dimension} dimensions, and no others", param="dimensions")
    tokens, vectors = await engine.run(
        lambda _: (_counted(pipeline.embedder.counter, texts), pipeline.embed_texts(texts)), caller_of(request)
    )
    as_text = asked.encoding_format == "base64"
    data = [
        {
            "object": "embedding",
            "index": at,
            "embedding": base64.b64encode(row.astype("<f4").tobytes()).decode() if as_text else row.tolist(),
        }
        for at, row in enumerate(vectors)
    ]
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return JSONResponse({"object": "list", "model": model, "data": data, "usage": usage})


def _counted(counter: TokenCounter, texts: list[str]) -> int:
    """Tokens of all texts; ApiError for one that the model cannot read at once."""
    counts = [counter.count(text) for text in texts]
    for at, count in enumerate(counts):
        if counter.limit is not None and count > counter.limit:
            message = f"text {at} has {count:,} tokens; this model reads {counter.limit:,}"
            raise ApiError(400, message, code="text_too_long", param="input")
    return sum(counts)


@router.get("/models", summary="The pipelines")
async def models(request: Request) -> dict[str, Any]:
    """Every pipeline by its name."""
    engine = engine_of(request)
    return {"object": "list", "data": [_model(engine, name) for name in engine.pipelines]}


@router.get("/models/{model}", summary="One pipeline")
async def one_model(model: str, request: Request) -> dict[str, Any]:
    """404 when there is none of this name."""
    engine = engine_of(request)
    return _model(engine, model_named(engine, model))


def _model(engine: Engine, name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": engine.started_at, "owned_by": "chunkwise"}
