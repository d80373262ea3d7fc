"""Verbs about the documents of an index: list, remove."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Annotated

import typer

from rag.cli._common import (
    ConfigOption,
    IndexOption,
    JsonOption,
    QuietOption,
    VerboseOption,
    console,
    open_index,
    pipeline_for,
    print_json,
    set_verbosity,
    stored_config,
)
from rag.cli.indexing import DEFAULT_INDEX
from rag.cli.upkeep import WaitOption
from rag.text import printable

__all__ = ["list_documents", "remove"]


def list_documents(
    pattern: Annotated[str, typer.Argument(help="Only sources like this, such as 'contracts/*'.")] = "*",
    index: IndexOption = DEFAULT_INDEX,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = 0,
) -> None:
    """List the documents of an index: id, chunks, characters, source; and the files that could not be read.

    Example: rag list 'contracts/*' --index my-index
    """
    set_verbosity(verbose)
    with open_index(index) as opened:
        documents = [one for one in opened.store.documents() if fnmatchcase(one.source, pattern)]
        failed = [one for one in opened.store.failed_files() if fnmatchcase(one.source, pattern)]
    if as_json:
        rows = [
            {"id": one.id, "source": one.source, "title": one.title, "chunks": one.chunks, "characters": one.chars,
             "files": list(one.origins), "chunker": (one.decision or {}).get("chunker")}
            for one in documents
        ]  # fmt: skip
        print_json({"documents": rows, "failed": [{"source": one.source, "error": one.error} for one in failed]})
        return
    for one in documents:
        typer.echo(printable(f"{one.id}  {one.chunks:6} {one.chars:10}  {one.source}"))
    for bad in failed:
        typer.echo(printable(f"{'failed':16}  {'':6} {'':10}  {bad.source}: {bad.error}"))
    if not quiet:
        console().print(
            f"{len(documents)} documents, {sum(one.chunks for one in documents)} chunks, {len(failed)} failed files",
            markup=False,
        )


def remove(
    names: Annotated[
        list[str],
        typer.Argument(help="Source, pattern of sources, or document id (or its beginning).", show_default=False),
    ],
    index: IndexOption = DEFAULT_INDEX,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would go, and change nothing.")] = False,
    wait: WaitOption = 0.0,
    config: ConfigOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = 0,
) -> None:
    """Take documents out of an index, with their chunks, vectors, keys and values. All that are named, or none.

    A file that still exists comes back when its folder is ingested again: move it, or --exclude it.

    Example: rag remove old-handbook.pdf 'drafts/*' --index my-index
    """
    from rag.removal import remove as run

    set_verbosity(verbose)
    pipeline = pipeline_for(config, stored=stored_config(index))
    report = run(index, names, pipeline=pipeline, wait_seconds=wait, dry_run=dry_run)
    if as_json:
        print_json({**report.to_dict(), "dry_run": dry_run})
        return
    for source in report.sources:
        typer.echo(printable(f"{'would remove' if dry_run else 'removed'}  {source}"))
    if not quiet:
        if not dry_run:
            console().print(
                f"{report.documents} documents with {report.chunks} chunks are out of {index}", markup=False
            )
        if report.present:
            console().print(
                f"{len(report.present)} of these files are still there and come back with the next ingestion of their "
                "folder: move them, or --exclude them",
                markup=False,
            )
