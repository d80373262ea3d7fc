"""rag serve: the pipelines of an index over HTTP."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

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
from rag.errors import UsageError, missing_extra

if TYPE_CHECKING:
    from rag.config import PipelineConfig

__all__ = ["DEFAULT_MODEL", "serve"]

DEFAULT_MODEL = "default"


def serve(
    index: IndexOption = DEFAULT_INDEX,
    host: Annotated[
        str, typer.Option("--host", help="Address to listen on; without a token a loopback one.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", "-p", min=0, max=65535, help="Port; 0 takes a free one.")] = 8080,
    pipeline: Annotated[
        list[str] | None,
        typer.Option("--pipeline", help="NAME=FILE.yaml: one more pipeline on this index, as model NAME; repeatable."),
    ] = None,
    tokens: Annotated[
        Path | None, typer.Option("--tokens", help="YAML file: SHA-256 of a token -> {tenant, where}.")
    ] = None,
    threads: Annotated[int, typer.Option(min=1, max=256, help="Requests that run at once.")] = 8,
    waiting: Annotated[int, typer.Option(min=0, help="Requests that may wait; further ones get 429.")] = 64,
    tenant_share: Annotated[
        float,
        typer.Option(min=0.001, max=1.0, help="Share of these places that one tenant may have; then it gets 429."),
    ] = 0.5,
    request_seconds: Annotated[float, typer.Option(min=0.1, help="Time of one request.")] = 120.0,
    receive_seconds: Annotated[float, typer.Option(min=0.1, help="Time for a client to send a request.")] = 15.0,
    drain_seconds: Annotated[float, typer.Option(min=0.1, help="Time for what runs when the server ends.")] = 20.0,
    max_body_bytes: Annotated[int, typer.Option(min=1, help="Largest request.")] = 1_000_000,
    config: ConfigOption = None,
    quiet: QuietOption = False,
    verbose: VerboseOption = 0,
) -> None:
    """Serve an index over HTTP: OpenAI's chat completions and embeddings, search, documents, explain.

    The bearer token comes from RAG_TOKEN; without one the server listens on loopback only. Stop it with Ctrl-C.

    Example: RAG_TOKEN=... rag serve --index rag-index --host 0.0.0.0 --port 8080
    """
    set_verbosity(verbose)
    _check_installed()
    from rag import __version__
    from rag.server.app import create_app
    from rag.server.auth import Tokens
    from rag.server.engine import Engine
    from rag.server.limits import ServerLimits
    from rag.server.listen import listen, listening_socket
    from rag.server.metrics import Metrics

    known = Tokens.load(os.environ.get("RAG_TOKEN"), tokens)
    known.check_host(host)
    limits = ServerLimits(
        threads=threads,
        waiting=waiting,
        tenant_share=tenant_share,
        request_seconds=request_seconds,
        receive_seconds=receive_seconds,
        drain_seconds=drain_seconds,
        max_body_bytes=max_body_bytes,
    )
    engine = Engine(index, _configs(index, config, pipeline or []), limits, Metrics())
    engine.check_tenants(known)
    with listening_socket(host, port) as bound:
        if not quiet:
            _announce(index, host, bound.getsockname()[1], known.required)
        listen(create_app(engine, known, version=__version__), bound, limits, access_log=bool(verbose))


def _announce(index: Path, host: str, port: int, token_needed: bool) -> None:
    name = f"[{host}]" if ":" in host else host
    about = "token needed" if token_needed else "no token, this machine only"
    print(f"serving {index} at http://{name}:{port}/v1 ({about})", file=sys.stderr, flush=True)


def _configs(index: Path, config: Path | None, more: list[str]) -> dict[str, PipelineConfig]:
    """Name -> config: `default` and those of --pipeline, each over what the index was built with."""
    with open_index(index) as opened:
        configs = {DEFAULT_MODEL: pipeline_for(config, index=opened).config}
        for one in more:
            name, equals, file = one.partition("=")
            if not (equals and name and file) or name in configs or "/" in name:
                raise UsageError(
                    f"--pipeline {one!r}: expected a new NAME=FILE.yaml, such as --pipeline short=short.yaml"
                )
            configs[name] = pipeline_for(Path(file), index=opened).config
    return configs


def _check_installed() -> None:
    """MissingError with the command that installs what is absent."""
    try:
        import fastapi  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise missing_extra(error.name or "fastapi", "serve", "rag serve") from error
