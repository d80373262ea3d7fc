"""rag mcp: an index as tools of the Model Context Protocol."""

from __future__ import annotations

import os
import sys
from enum import StrEnum
from typing import Annotated

import typer

from rag.cli._common import (
    ConfigOption,
    IndexOption,
    QuietOption,
    VerboseOption,
    open_index,
    pipeline_for,
    set_verbosity,
)
from rag.cli.indexing import DEFAULT_INDEX

__all__ = ["Transport", "mcp"]


class Transport(StrEnum):
    """How a client reaches the server."""

    STDIO = "stdio"
    HTTP = "http"


def mcp(
    index: IndexOption = DEFAULT_INDEX,
    transport: Annotated[
        Transport, typer.Option("--transport", "-t", help="stdio: the client starts this process; http: it connects.")
    ] = Transport.STDIO,
    host: Annotated[str, typer.Option("--host", help="http: loopback address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", "-p", min=0, max=65535, help="http: port; 0 takes a free one.")] = 8081,
    ask: Annotated[bool, typer.Option("--ask", help="Offer the tool ask too; it stores its answers as runs.")] = False,
    config: ConfigOption = None,
    quiet: QuietOption = False,
    verbose: VerboseOption = 0,
) -> None:
    """Serve an index to language models: the tools search, get_span, explain and stats, which change nothing.

    Over http, clients need the bearer token in RAG_TOKEN where that is set. Only this machine is served.

    Example: rag mcp --index rag-index
    """
    set_verbosity(verbose)
    from rag import __version__
    from rag.mcp.library import Library
    from rag.mcp.server import check_loopback, create_server, serve_http, serve_stdio

    with open_index(index) as opened:
        pipeline = pipeline_for(config, index=opened)
    library = Library(index, pipeline)
    server = create_server(library, version=__version__, asks=ask)
    if transport is Transport.STDIO:
        library.open()
        try:
            serve_stdio(server)
        except KeyboardInterrupt:
            raise typer.Exit(130) from None
        finally:
            library.close()
        return
    from rag.server.auth import Tokens
    from rag.server.listen import listening_socket

    check_loopback(host)
    tokens = Tokens.load(os.environ.get("RAG_TOKEN"))
    with listening_socket(host, port) as bound:
        library.open()
        if not quiet:
            name = f"[{host.strip('[]')}]" if ":" in host else host
            about = "token needed" if tokens.required else "no token, this machine only"
            print(
                f"serving {index} at http://{name}:{bound.getsockname()[1]}/mcp ({about})", file=sys.stderr, flush=True
            )
        serve_http(server, bound, tokens)
        library.close()
