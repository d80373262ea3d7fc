"""The tools registered with the SDK, and the two ways to serve them: stdio, and streamable HTTP on loopback."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import anyio
from pydantic import Field

from rag.errors import RagError, UsageError, missing_extra
from rag.mcp.schemas import (
    MAX_CONTEXT,
    MAX_K,
    MAX_LINES,
    MAX_QUESTION_CHARS,
    Answered,
    Explained,
    Searched,
    SpanText,
    Stats,
)

try:
    from mcp.server.mcpserver import MCPServer
    from mcp.server.mcpserver.exceptions import ToolError
    from mcp.server.transport_security import TransportSecuritySettings
    from mcp_types import ToolAnnotations
except ImportError as error:
    raise missing_extra("mcp", "mcp", "rag mcp") from error

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator

    from rag.mcp.library import Library
    from rag.server.auth import Tokens

__all__ = ["check_loopback", "create_server", "serve_http", "serve_stdio"]

_MAX_BODY_BYTES = 262_144
_READS = ToolAnnotations(read_only_hint=True, destructive_hint=False, idempotent_hint=True, open_world_hint=False)
_ASKS = ToolAnnotations(read_only_hint=False, destructive_hint=False, idempotent_hint=False, open_world_hint=False)
_INSTRUCTIONS = (
    "Documents, searched by chunks that are exact slices. Search first; a hit names its document and the characters "
    "[start, end) that it holds. get_span reads around them. Cite source, start and end."
)

Question = Annotated[str, Field(description="What to look for, in plain words.", max_length=MAX_QUESTION_CHARS)]
Count = Annotated[int, Field(description="How many chunks.", ge=1, le=MAX_K)]
Where = Annotated[
    dict[str, Any] | None,
    Field(
        description='Filter on source, doc_id, title, section or meta.NAME, such as {"source": "handbook.md"} or '
        '{"meta.year": {"ge": 2020}}; and, or, not join filters.'
    ),
]
Name = Annotated[str, Field(description="Id or source name of a document, or a chunk id (DOC:START-END).")]
Offset = Annotated[int | None, Field(description="In characters of the document; none: the whole.", ge=0)]
Context = Annotated[int, Field(description="More characters on both sides.", ge=0, le=MAX_CONTEXT)]
RunId = Annotated[str, Field(description="Id of a stored answer, or last.")]
Lines = Annotated[int, Field(description="How many decisions to list.", ge=0, le=MAX_LINES)]


def create_server(library: Library, *, version: str, asks: bool = False) -> MCPServer[Any]:
    """The server with its tools: search, get_span, explain, stats, and with `asks` also ask, which stores a run."""
    server: MCPServer[Any] = MCPServer(
        "chunkwise", instructions=_INSTRUCTIONS, version=version, log_level="WARNING", subscriptions=False
    )

    def search(question: Question, k: Count = 8, where: Where = None) -> Searched:
        """Find the chunks of the documents that fit a question best."""
        with _told(library):
            return library.search(question, k, where)

    def get_span(document: Name, start: Offset = None, end: Offset = None, context: Context = 0) -> SpanText:
        """Read the exact text of a document, or of a part of it, such as a hit and what stands around it."""
        with _told(library):
            return library.span(document, start, end, context)

    def explain(run_id: RunId = "last", lines: Lines = 40) -> Explained:
        """Tell how a stored answer came about: its stages, citations, and what was kept or left out and why."""
        with _told(library):
            return library.explain(run_id, lines)

    def stats() -> Stats:
        """Count what is indexed, and tell what the index was built with."""
        with _told(library):
            return library.stats()

    def ask(question: Question, where: Where = None) -> Answered:
        """Answer a question from the documents, with citations; the answer is stored, for explain."""
        with _told(library):
            return library.ask(question, where)

    reading: list[Callable[..., Any]] = [search, get_span, explain, stats]
    for tool in reading:
        server.add_tool(tool, annotations=_READS)
    if asks:
        server.add_tool(ask, annotations=_ASKS)
    return server


def serve_stdio(server: MCPServer[Any]) -> None:
    """Serve one client on stdin and stdout until it hangs up. Whatever else is printed goes to stderr."""
    anyio.run(server.run_stdio_async)


def serve_http(server: MCPServer[Any], bound: socket.socket, tokens: Tokens) -> None:
    """Serve streamable HTTP at /mcp until SIGTERM or Ctrl-C. Requests that name another host are refused."""
    import uvicorn

    hosts = ["127.0.0.1", "localhost", "[::1]", _bracketed(bound.getsockname()[0])]
    app = server.streamable_http_app(
        max_request_body_size=_MAX_BODY_BYTES,
        transport_security=TransportSecuritySettings(
            allowed_hosts=[f"{host}:*" for host in hosts], allowed_origins=[f"http://{host}:*" for host in hosts]
        ),
    )
    config = uvicorn.Config(
        _Guarded(app, tokens),
        ws="none",
        loop="asyncio",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=5,
    )
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _ended)  # what uvicorn raises again at its end; the end is in order
    uvicorn.Server(config).run(sockets=[bound])


def check_loopback(host: str) -> None:
    """UsageError for an address that other machines reach."""
    from rag.server.auth import is_loopback

    if not is_loopback(host):
        raise UsageError(
            f"--host {host} can be reached from other machines, and rag mcp has one scope only: everything. "
            "Use --host 127.0.0.1 (other machines: a tunnel), or rag serve, which knows tenants"
        )


class _Guarded:
    """An ASGI application behind the bearer token, where there is one."""

    def __init__(self, app: Any, tokens: Tokens) -> None:
        self._app, self._tokens = app, tokens

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http" and self._tokens.caller(_authorization(scope)) is None:
            body = json.dumps({"error": "a bearer token is needed: Authorization: Bearer RAG_TOKEN"}).encode()
            headers = [(b"content-type", b"application/json"), (b"www-authenticate", b"Bearer")]
            await send({"type": "http.response.start", "status": 401, "headers": headers})
            await send({"type": "http.response.body", "body": body})
            return
        await self._app(scope, receive, send)


def _ended(_number: int, _frame: object) -> None:
    """The signal has been heard."""


def _authorization(scope: Any) -> str | None:
    found = [value for name, value in scope["headers"] if name == b"authorization"]
    return found[0].decode("latin-1") if len(found) == 1 else None


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


@contextmanager
def _told(library: Library) -> Iterator[None]:
    """Errors that Chunkwise raises on purpose become tool errors with their message, which names the fix.

    The model that reads them may run elsewhere: where the index lies on this machine is not told.
    """
    try:
        yield
    except RagError as error:
        folder = str(library.directory)
        told = str(error).replace(folder, library.name) if library.directory.is_absolute() else str(error)
        raise ToolError(told) from error
