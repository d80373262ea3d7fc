"""Verbs about documents and the index: ingest, chunk, show, stats."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
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
    echo,
    open_index,
    parse_settings,
    pipeline_for,
    print_json,
    set_verbosity,
    stop_signals,
    stored_config,
)
from rag.errors import UsageError
from rag.text import printable

if TYPE_CHECKING:
    from rag.report import IngestReport, Progress
    from rag.types import Chunk, Document

SentencesOption = Annotated[
    bool | None,
    typer.Option(
        "--sentences/--no-sentences", help="Embed every sentence now, so that questions need not.", show_default=False
    ),
]
PrefillOption = Annotated[
    bool, typer.Option("--prefill-kv", help="Keys and values of all chunks now (generator local, reuse: chunk).")
]
DeleteMissingOption = Annotated[
    bool, typer.Option("--delete-missing", help="Remove documents whose files are gone from the given folders.")
]
WorkersOption = Annotated[
    int | None, typer.Option(min=1, max=256, help="Processes that read and cut files (1: this one alone).")
]
NearDuplicatesOption = Annotated[
    str | None, typer.Option(help="Documents that are nearly the same: report, skip or off.", show_default=False)
]
DEFAULT_INDEX = Path("rag-index")
_MOST_LINES = 20


def ingest(
    paths: Annotated[list[str], typer.Argument(help="Files, folders or glob patterns.", show_default=False)],
    index: IndexOption = DEFAULT_INDEX,
    config: ConfigOption = None,
    include: Annotated[list[str] | None, typer.Option(help="Only files that match this pattern.")] = None,
    exclude: Annotated[list[str] | None, typer.Option(help="Skip files that match (as in .gitignore).")] = None,
    hidden: Annotated[bool, typer.Option("--hidden", help="Hidden files and folders too.")] = False,
    delete_missing: DeleteMissingOption = False,
    workers: WorkersOption = None,
    near_duplicates: NearDuplicatesOption = None,
    duplicate_threshold: Annotated[
        float | None, typer.Option(help="Similarity from which on they are (0.5 to 1; default 0.9).")
    ] = None,
    sentences: SentencesOption = None,
    prefill_kv: PrefillOption = False,
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
    overrides: dict[str, Any] = {"near_duplicates": near_duplicates, "duplicate_threshold": duplicate_threshold}
    overrides["sentences"] = sentences
    if workers:
        overrides["executor"] = "serial" if workers == 1 else {"use": "processes", "workers": workers}
    given = {key: value for key, value in overrides.items() if value is not None}
    pipeline = pipeline_for(config, stored=stored_config(index), overrides=given)
    if prefill_kv:
        pipeline.prefill_kv(None)  # a config without any is told before the work
    advice = f"finished batches are saved in {index}. Run the same command again to go on"
    with stop_signals(advice), _progress(quiet or as_json, events=events) as on_progress:
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
        made = pipeline.prefill_kv(opened) if prefill_kv else 0
    report = opened.report
    opened.close()
    assert report is not None  # noqa: S101  index() always sets it
    if as_json:
        print_json({**report.to_dict(), **({"kv_made": made} if prefill_kv else {})})
    if not quiet and not as_json:
        _print_report(report, index)
        if prefill_kv:
            console().print(f"kept the keys and values of {made} chunks", markup=False)
    if report.failed:
        raise typer.Exit(4)


def chunk(
    file: Annotated[Path, typer.Argument(help="The file to cut.", show_default=False)],
    chunker: Annotated[str | None, typer.Option(help="Chunker to use (rag plugins chunker lists them).")] = None,
    settings: Annotated[list[str] | None, typer.Option("--set", help="Parameter of the chunker, NAME=VALUE.")] = None,
    explain: Annotated[
        bool, typer.Option("--explain", help="The candidates, how each measures, and why one was taken.")
    ] = False,
    config: ConfigOption = None,
    index: IndexOption = DEFAULT_INDEX,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = 0,
) -> None:
    """Show how one file is cut; nothing is stored.

    Example: rag chunk handbook.md --chunker metric-selected --set max_tokens=200 --explain
    """
    from rag.cli._explaining import explained, print_decision

    set_verbosity(verbose)
    pipeline = pipeline_for(config)
    if chunker or settings:
        from rag.registry import spec_name

        name = chunker or spec_name(pipeline.config.chunker)
        kept = pipeline.config.chunker if not chunker and not isinstance(pipeline.config.chunker, str) else {}
        pipeline = pipeline_for(config, overrides={"chunker": {**kept, "use": name, **parse_settings(settings or [])}})
    document = pipeline.parse(file)
    chunks, decision = explained(pipeline, document) if explain else pipeline.decide(document)
    if as_json:
        print_json(_chunk_report(document, chunks, decision))
        return
    for number, piece in enumerate(chunks, start=1):
        head = f"[{number}] {piece.span.start}-{piece.span.end}  {piece.token_count} tokens"
        typer.secho(printable(head + ("  " + " > ".join(piece.section) if piece.section else "")), bold=True)
        echo(piece.text.rstrip())
    if not quiet:
        sizes = _metrics(chunks)
        console().print(printable(f"{len(chunks)} chunks of {document.source}: {sizes}"), markup=False)
    if explain:
        print_decision(console(), decision)


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
        console().print(printable(place), markup=False, style="bold")
    echo(text)


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


def _print_report(report: IngestReport, index: Path) -> None:
    out = console()
    for failure in report.failed:
        out.print(printable(f"failed  {failure.source}: {failure.error}"), markup=False, style="red")
    for one in report.near_duplicates[:_MOST_LINES]:
        what = "the same text as" if one.similarity == 1 else f"{one.similarity:.0%} like"
        verb = "left out" if one.left_out else "similar"
        out.print(printable(f"{verb}  {one.source}: {what} {one.of}"), markup=False)
    more = len(report.near_duplicates) - _MOST_LINES
    if more > 0:
        out.print(f"and {more} more near-duplicates; --json lists all", markup=False)
    sentences = f"{report.sentences} sentences embedded, " if report.sentences else ""
    left_out = f"{report.left_out} near-duplicates left out, " if report.left_out else ""
    out.print(
        f"{report.documents} documents, {report.chunks} chunks, {report.embedded} texts embedded, "
        f"{sentences}{report.skipped} unchanged, {left_out}{report.removed} removed, {len(report.failed)} failed, "
        f"{report.ignored} of unknown type{_listed(report.ignored_types)}, in {report.seconds:.1f} s -> {index}",
        markup=False,
    )


def _listed(names: Sequence[str]) -> str:
    return f" ({', '.join(names)})" if names else ""


def _chunk_report(document: Document, chunks: list[Chunk], decision: Mapping[str, Any]) -> dict[str, Any]:
    from rag.cli._explaining import measures

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
        "metrics": {**_metrics(chunks), **measures(decision)},
        "decision": dict(decision),
    }


def _metrics(chunks: list[Chunk]) -> dict[str, Any]:
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
    from rich.progress import BarColumn, TextColumn
    from rich.progress import Progress as Bar

    with Bar(TextColumn("ingest"), BarColumn(), TextColumn("{task.fields[state]}"), console=console()) as bar:
        task = bar.add_task("ingest", total=None, state="")

        def on_progress(progress: Progress) -> None:
            bar.update(task, total=progress.bytes_total, completed=progress.bytes_done, state=_state(progress))

        yield on_progress


def _state(progress: Progress) -> str:
    """Files, rate, time left by bytes, failures and the last file, on one line."""
    parts = [f"{progress.done}/{progress.total}"]
    if progress.seconds:
        parts.append(f"{progress.done / progress.seconds:.1f} files/s")
    if progress.eta_seconds is not None:
        minutes, seconds = divmod(round(progress.eta_seconds), 60)
        parts.append(f"{minutes // 60}:{minutes % 60:02}:{seconds:02} left")
    if progress.failed:
        parts.append(f"{progress.failed} failed")
    return "  ".join([*parts, printable(progress.source[-40:])])


def _print_event(progress: Progress) -> None:
    """A line is written after its batch is durable: whoever read it may count on what it names."""
    sys.stderr.write(json.dumps(asdict(progress)) + "\n")
    sys.stderr.flush()
