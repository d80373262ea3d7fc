"""What requests and answers look like; the OpenAPI document is made from these.

Unknown fields of requests are ignored, as OpenAI's clients send many (temperature, seed, tools): a pipeline is
configured, not steered by the request.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, Field, StringConstraints

__all__ = [
    "ChatCompletion",
    "ChatRequest",
    "Citation",
    "EmbeddingsRequest",
    "ErrorBody",
    "RagField",
    "SearchRequest",
    "SearchResult",
]


def _whole(text: str) -> str:
    """JSON can write half of a surrogate pair, which is no text: no encoder and no database takes it."""
    if any("\ud800" <= char <= "\udfff" for char in text):
        raise ValueError("holds a lone surrogate")
    return text


Text = Annotated[str, AfterValidator(_whole)]
Name = Annotated[str, StringConstraints(min_length=1, max_length=200)]


class TextPart(BaseModel):
    """A part of a message; parts that are no text are refused."""

    type: Literal["text"]
    text: Text


class Message(BaseModel):
    """One turn. The question is the text of the last turn of the user; earlier turns are not read."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: Text | list[TextPart] | None = None


class StreamOptions(BaseModel):
    """`include_usage`: the last chunk before [DONE] has the counts of tokens."""

    include_usage: bool | None = False


class ChatRequest(BaseModel):
    """`model` is the name of a pipeline (GET /v1/models lists them); `default` is the one of the index."""

    model: Name
    messages: list[Message] = Field(min_length=1, max_length=1000)
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    n: Literal[1] | None = 1


class EmbeddingsRequest(BaseModel):
    """Texts for the embedder of a pipeline. Lists of token ids are refused."""

    model: Name
    input: Text | list[Text]
    encoding_format: Literal["float", "base64"] | None = "float"
    dimensions: int | None = None


class SearchRequest(BaseModel):
    """`where` is a filter on metadata, such as {"source": "handbook.md"}; it holds inside of the caller's scope."""

    question: Text
    model: Name = "default"
    k: int | None = Field(default=None, ge=1)
    where: dict[str, Any] | None = None


class Citation(BaseModel):
    """A mark [n] of the answer and the exact place that it opens: characters [start, end) of the document's text."""

    mark: int
    chunk_id: str
    doc_id: str
    source: str
    start: int
    end: int
    page: int | None
    text: str


class RagField(BaseModel):
    """What a completion of Chunkwise has beside OpenAI's fields, under `rag`; in a stream, on the chunk with the
    finish_reason. `supported[i]` says whether the documents bear out `sentences[i]`, [start, end) of the content;
    GET /explain/{run_id} tells how the answer came about."""

    run_id: str
    citations: list[Citation]
    sentences: list[list[int]]
    supported: list[bool]
    context_tokens: int


class ChatCompletion(BaseModel):
    """OpenAI's chat completion, and `rag`."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[dict[str, Any]]
    usage: dict[str, Any]
    rag: RagField


class SearchResult(BaseModel):
    """As `rag search --json` prints, with the generation of the index that was read."""

    hits: list[dict[str, Any]]
    seconds: float
    generation: int


class ErrorDetail(BaseModel):
    """`code` is for programs, `message` for people."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    """Every refusal and failure has this shape."""

    error: ErrorDetail
