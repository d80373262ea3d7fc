"""Builds the `rag` program and turns errors into one line and an exit code."""

from __future__ import annotations

import os
import sys
from importlib.metadata import entry_points
from typing import Annotated

import typer

from rag.cli import about, asking, copies, documents, indexing, moving, serving, upkeep
from rag.cli import demo as demo_verb
from rag.cli import mcp as mcp_verb
from rag.errors import RagError

__all__ = ["app", "main"]

EPILOG = (
    "Exit codes: 0 ok, 1 failure, 2 usage, 3 bad config, 4 some inputs failed, 5 index damaged, "
    "6 model or extra missing, 7 index locked, 130 interrupted (finished batches are saved)."
)

app = typer.Typer(
    name="rag",
    help="Chunkwise: search and ask your documents, with citations that open the exact span.",
    epilog=EPILOG,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _version(wanted: bool) -> None:
    if wanted:
        from rag import __version__

        typer.echo(f"chunkwise {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and leave.")
    ] = False,
) -> None:
    """Chunkwise: search and ask your documents, with citations that open the exact span."""


for verb, function in (
    ("demo", demo_verb.demo),
    ("ingest", indexing.ingest),
    ("chunk", indexing.chunk),
    ("search", asking.search),
    ("ask", asking.ask),
    ("list", documents.list_documents),
    ("show", indexing.show),
    ("remove", documents.remove),
    ("explain", asking.explain),
    ("stats", indexing.stats),
    ("serve", serving.serve),
    ("mcp", mcp_verb.mcp),
    ("verify", upkeep.verify),
    ("repair", upkeep.repair),
    ("compact", upkeep.compact),
    ("rebuild", upkeep.rebuild),
    ("migrate", moving.migrate),
    ("doctor", about.doctor),
    ("plugins", about.plugins),
):
    app.command(verb)(function)
app.add_typer(copies.snapshot_app, name="snapshot")
app.add_typer(copies.cache_app, name="cache")
app.add_typer(about.config_app, name="config")
for command in sorted(entry_points(group="rag.commands"), key=lambda found: found.name):
    try:
        loaded = command.load()
        if isinstance(loaded, typer.Typer):
            app.add_typer(loaded, name=command.name)
        else:
            app.command(command.name)(loaded)
    except Exception as error:  # somebody's broken plugin must not take the other verbs with it
        print(f"warning: the command {command.name!r} cannot be loaded: {error}", file=sys.stderr)


def main() -> None:
    """Entry point of `rag` and `python -m rag`."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        app()
    except RagError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(error.exit_code) from None
    except KeyboardInterrupt:
        print("interrupted; finished batches are saved, run the same command again to go on", file=sys.stderr)
        raise SystemExit(130) from None
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None
