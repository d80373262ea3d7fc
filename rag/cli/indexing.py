"""Verbs about documents and the index: ingest, chunk, show, verify, stats."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rag.cli._common import (
    ConfigOption,
    IndexOption,
    JsonOption,
    QuietOption,
    VerboseOption,
    console,
    open_index,
    parse_settings,
    pipeline_for,
    print_json,
    set_verbosity,
    stored_config,
)
from rag.errors import UsageError

if TYPE_CHECKING:
    from rag.ingest import Progress
    from rag.types import Chunk, Document

DEFAULT_INDEX = Path("rag-index")


def ingest(
    paths: Annotated[list[str], typer.Argument(help="Files, folders or glob patterns.", show_default=False)],
    index: IndexOption = DEFAULT_INDEX,
    config: ConfigOption = None,
    include: Annotated[list[str] | None, typer.Option(help="Only files that match this pattern.")] = None,
    exclude: Annotated[list[str] | None, typer.Option(help="Skip files that match (as in .gitignore).")] = None,
    hidden: Annotated[bool, typer.Option("--hidden", help="Hidden files and folders too.")] = False,
    delete_missing: Annotated[
        bool, typer.Option("--delete-missing", help="Remove documents whose files are gone from the given folders.")
    ] = False,
    wait: Annotated[float, typer.Option(help="Seconds to wait for another writer.")] = 0.0,
    events: Annotated[
        bool, typer.Option("--events", help="One JSON line on stderr for every batch that is stored durably.")
    ] = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = 0,
) -> None:
    """Put files into the index. Unchanged files are skipped, changed ones replaced; safe to interrupt and repeat.

    Example: rag ingest docs/ contracts/*.pdf --index my-index
    """
    set_verbosity(verbose)
    pipeline = pipeline_for(config, stored=stored_config(index))
    with _progress(quiet or as_json, events=events) as on_progress:
        opened = pipeline.index(
            paths,
            into=index,
            include=include or (),
            exclude=exclude or (),
            hidden=hidden,
            delete_missing=delete_missing,
            wait_seconds=wait,
            on_progress=on_progress,
        )
    report = opened.report
    opened.close()
    assert report is not None  # noqa: S101  index() always sets it
    if as_json:
        print_json(report.to_dict())
    if not quiet and not as_json:
        out = console()
        for failure in report.failed:
            out.print(f"failed  {failure.source}: {failure.error}", markup=False, style="red")
        out.print(
            f"{report.documents} documents, {report.chunks} chunks, {report.embedded} texts embedded, "
            f"{report.skipped} unchanged, {report.removed} removed, {len(report.failed)} failed, "
            f"{report.ignored} of unknown type{_listed(report.ignored_types)}, in {report.seconds:.1f} s -> {index}",
            markup=False,
        )
    if report.failed:
        raise typer.Exit(4)


def chunk(
    file: Annotated[Path, typer.Argument(help="The file to cut.", show_default=False)],
    chunker: Annotated[str | None, typer.Option(help="Chunker to use (rag plugins chunker lists them).")] = None,
    settings: Annotated[list[str] | None, typer.Option("--set", help="Parameter of the chunker, NAME=VALUE.")] = None,
    config: ConfigOption = None,
    index: IndexOption = DEFAULT_INDEX,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = 0,
) -> None:
    """Show how one file is cut; nothing is stored.

    Example: rag chunk handbook.md --chunker markdown --set max_tokens=200
    """
    set_verbosity(verbose)
    pipeline = pipeline_for(config)
    if chunker or settings:
        from rag.registry import spec_name

        name = chunker or spec_name(pipeline.config.chunker)
        kept = pipeline.config.chunker if not chunker and not isinstance(pipeline.config.chunker, str) else {}
        pipeline = pipeline_for(config, overrides={"chunker": {**kept, "use": name, **parse_settings(settings or [])}})
    document = pipeline.parse(file)
    chunks = pipeline.chunk(document)
    if as_json:
        print_json(_chunk_report(document, chunks))
        return
    for number, piece in enumerate(chunks, start=1):
        head = f"[{number}] {piece.span.start}-{piece.span.end}  {piece.token_count} tokens"
        typer.secho(head + ("  " + " > ".join(piece.section) if piece.section else ""), bold=True)
        typer.echo(piece.text.rstrip())
    if not quiet:
        sizes = _metrics(chunks)
        console().print(f"{len(chunks)} chunks of {document.source}: {sizes}", markup=False)


def show(
    name: Annotated[str, typer.Argument(help="Document id (or its beginning), source name, or chunk id.")],
    index: IndexOption = DEFAULT_INDEX,
    config: ConfigOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = 0,
) -> None:
    """Print a document, or the exact span that a citation names.

    Example: rag show 0123456789abcdef:120-480
    """
    from rag.types import Span, parse_chunk_id

    set_verbosity(verbose)
    try:
        doc_id, wanted = parse_chunk_id(name)
    except ValueError:
        doc_id, wanted = name, None
    with open_index(index) as opened:
        document = opened.document(doc_id)
    if wanted and wanted.end > len(document.text):
        raise UsageError(f"{name}: {document.source} has {len(document.text)} characters only")
    span = wanted or Span(0, len(document.text))
    text = document.text[span.start : span.end]
    if as_json:
        value: dict[str, Any] = {"id": document.id, "source": document.source, "title": document.title}
        value |= {"text": document.text, "meta": dict(document.meta)}
        value["pages"] = [{"number": page.number, "span": [page.span.start, page.span.end]} for page in document.pages]
        if wanted:
            value["span"] = {"start": span.start, "end": span.end, "text": text, "page": document.page_at(span.start)}
        print_json(value)
        return
    if not quiet:
        page = document.page_at(span.start)
        place = f"{document.source}  {span.start}-{span.end}" + (f"  page {page}" if page else "")
        console().print(place, markup=False, style="bold")
    typer.echo(text)


def verify(
    index: IndexOption = DEFAULT_INDEX,
    config: ConfigOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = 0,
) -> None:
    """Check the whole index against itself: every chunk is cut from its source again. Exit code 5 on damage."""
    from rag.store.store import Store
    from rag.store.verify import verify as check

    set_verbosity(verbose)
    report = check(Store.open(index))
    if as_json:
        print_json({"ok": report.ok, "checked": dict(report.checked), "problems": list(report.problems)})
    elif not quiet:
        for problem in report.problems:
            console().print(problem, markup=False, style="red")
        counts = ", ".join(f"{count} {name}" for name, count in report.checked.items())
        console().print(f"{'ok' if report.ok else 'DAMAGED'}: {counts} checked", markup=False)
    if not report.ok:
        raise typer.Exit(5)


def stats(
    index: IndexOption = DEFAULT_INDEX,
    config: ConfigOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = 0,
) -> None:
    """Counts and sizes of an index, and what it was built with."""
    set_verbosity(verbose)
    with open_index(index) as opened:
        values = opened.store.stats()
        manifest = opened.manifest()
    if as_json:
        print_json({**values, "manifest": manifest})
        return
    for name, value in values.items():
        typer.echo(f"{name:12} {value}")
    if manifest.get("config"):
        from rag.config import PipelineConfig

        typer.echo("built with:\n" + PipelineConfig.from_dict(manifest["config"], where=str(index)).to_yaml().rstrip())


def _listed(names: Sequence[str]) -> str:
    return f" ({', '.join(names)})" if names else ""


def _chunk_report(document: Document, chunks: list[Chunk]) -> dict[str, Any]:
    return {
        "document": {
            "id": document.id,
            "source": document.source,
            "title": document.title,
            "characters": len(document.text),
            "text": document.text,
        },
        "chunks": [
            {
                "id": piece.id,
                "doc_id": piece.doc_id,
                "start": piece.span.start,
                "end": piece.span.end,
                "text": piece.text,
                "token_count": piece.token_count,
                "section": list(piece.section),
                "header": piece.header,
                "parent": [piece.parent.start, piece.parent.end] if piece.parent else None,
            }
            for piece in chunks
        ],
        "metrics": _metrics(chunks),
        "decision": {"chunker": chunks[0].chunker if chunks else None, "reason": "named by the config"},
    }


def _metrics(chunks: list[Chunk]) -> dict[str, float]:
    sizes = [piece.token_count for piece in chunks]
    if not sizes:
        return {"chunks": 0}
    return {
        "chunks": len(sizes),
        "mean_tokens": round(sum(sizes) / len(sizes), 1),
        "min_tokens": min(sizes),
        "max_tokens": max(sizes),
    }


@contextmanager
def _progress(silent: bool, *, events: bool) -> Iterator[Callable[[Progress], None] | None]:
    """A bar with rate and ETA on a terminal, lines for programs when asked, nothing otherwise."""
    if events:
        yield _print_event
        return
    if silent or not sys.stderr.isatty():
        yield None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (TextColumn("ingest"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"))
    with Bar(*columns, TimeRemainingColumn(), TextColumn("{task.fields[source]}"), console=console()) as bar:
        task = bar.add_task("ingest", total=None, rate="", source="")

        def on_progress(progress: Progress) -> None:
            elapsed = bar.tasks[0].elapsed or 0.0
            rate = f"{progress.done / elapsed:.1f} files/s" if elapsed else ""
            bar.update(task, total=progress.total, completed=progress.done, rate=rate, source=progress.source[-40:])

        yield on_progress


def _print_event(progress: Progress) -> None:
    """A line is written after its batch is durable: whoever read it may count on what it names."""
    sys.stderr.write(json.dumps(asdict(progress)) + "\n")
    sys.stderr.flush()
