"""What every verb shares: the common options, opening things, and writing to the two streams."""

from __future__ import annotations

import json
import logging
import signal
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rag.errors import UsageError
from rag.text import printable

if TYPE_CHECKING:
    from rich.console import Console

    from rag.index import Index
    from rag.pipeline import Pipeline

__all__ = [
    "ConfigOption",
    "IndexOption",
    "JsonOption",
    "QuietOption",
    "VerboseOption",
    "console",
    "echo",
    "open_index",
    "parse_settings",
    "pipeline_for",
    "print_json",
    "read_queries",
    "set_verbosity",
    "stop_signals",
    "stored_config",
]

IndexOption = Annotated[Path, typer.Option("--index", "-i", envvar="RAG_INDEX", help="Folder of the index.")]
ConfigOption = Annotated[
    Path | None, typer.Option("--config", "-c", help="YAML file with the pipeline (default: ./rag.yaml if present).")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout, and nothing else there.")]
QuietOption = Annotated[bool, typer.Option("-q", "--quiet", help="No progress, no remarks.")]
VerboseOption = Annotated[int, typer.Option("-v", "--verbose", count=True, help="More on stderr; twice: debug log.")]


def console() -> Console:
    """Where people read: stderr, so that stdout stays clean for data."""
    from rich.console import Console

    return Console(stderr=True, highlight=False, soft_wrap=True)


def echo(text: str) -> None:
    """A text for stdout: as it is into a file or pipe, without control characters on a terminal."""
    typer.echo(printable(text, lines=True) if sys.stdout.isatty() else text)


def print_json(value: Mapping[str, Any]) -> None:
    """One JSON object on one line of stdout."""
    sys.stdout.write(json.dumps(value, ensure_ascii=False) + "\n")
    sys.stdout.flush()


def set_verbosity(verbose: int) -> None:
    """Log to stderr: warnings; -v: infos; -vv: everything."""
    level = [logging.WARNING, logging.INFO, logging.DEBUG][min(verbose, 2)]
    logging.basicConfig(level=level, format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr)


def open_index(directory: Path) -> Index:
    """The index, open for reading."""
    from rag.index import Index

    return Index.open(directory)


def stored_config(directory: Path) -> Mapping[str, Any] | None:
    """The config that the index in `directory` was built with; None when there is no index yet."""
    from rag.index import Index

    if not Index.exists(directory):
        return None
    with open_index(directory) as index:
        config: Mapping[str, Any] | None = index.manifest().get("config")
        return config


def pipeline_for(
    config: Path | None,
    *,
    index: Index | None = None,
    stored: Mapping[str, Any] | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> Pipeline:
    """The pipeline of this call; slots that nobody names are the ones that the index was built with.

    The index is given open, or as its `stored_config`.
    """
    from rag.config import resolve
    from rag.pipeline import Pipeline

    stored = index.manifest().get("config") if index else stored
    return Pipeline(resolve(config_file=config, index_config=stored, overrides=overrides).config)


def parse_settings(settings: list[str]) -> dict[str, Any]:
    """`["max_tokens=200"]` -> `{"max_tokens": 200}`; values are read as YAML."""
    import yaml

    values: dict[str, Any] = {}
    for setting in settings:
        name, equals, value = setting.partition("=")
        if not equals or not name:
            raise UsageError(f"--set {setting!r}: expected NAME=VALUE, such as --set max_tokens=200")
        values[name.strip()] = yaml.safe_load(value)
    return values


def read_queries(path: Path) -> Iterator[tuple[str, str]]:
    """(query_id, text) per line of a JSON Lines file."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--queries {path}: cannot be read: {error}") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            yield str(row["query_id"]), str(row["text"])
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise UsageError(
                f'--queries {path}, line {number}: expected {{"query_id": ..., "text": ...}}, got {line[:80]!r}'
            ) from error


@contextmanager
def stop_signals(advice: str) -> Iterator[None]:
    """Ctrl-C and SIGTERM end the block in order: KeyboardInterrupt inside, `advice` on stderr, exit 130 or 143.

    A second signal ends the process at once. A signal that is ignored from outside (nohup, `&`) stays ignored.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # handlers can be set in the main thread only
        return
    got: list[int] = []

    def stop(number: int, _frame: object) -> None:
        got.append(number)
        for one in before:
            signal.signal(one, signal.SIG_DFL)
        raise KeyboardInterrupt

    wanted = (signal.SIGINT, signal.SIGTERM)
    before = {one: signal.getsignal(one) for one in wanted if signal.getsignal(one) is not signal.SIG_IGN}
    for one in before:
        signal.signal(one, stop)
    try:
        yield
    except KeyboardInterrupt:
        print(f"interrupted; {advice}", file=sys.stderr)
        raise typer.Exit(128 + (got[0] if got else signal.SIGINT)) from None
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)
