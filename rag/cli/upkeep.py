"""Verbs about a whole index: verify, repair, compact, rebuild."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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
    parse_settings,
    pipeline_for,
    print_json,
    set_verbosity,
    stop_signals,
    stored_config,
)
from rag.cli.indexing import DEFAULT_INDEX
from rag.errors import ConfigError, IndexDamagedError, RagError, UsageError, no_index

if TYPE_CHECKING:
    from rag.index import Index
    from rag.pipeline import Pipeline
    from rag.store.verify import VerifyReport
    from rag.upkeep import MendReport

__all__ = ["busy", "compact", "progress_bar", "rebuild", "repair", "size", "verify"]

WaitOption = Annotated[float, typer.Option("--wait", help="Seconds to wait for another writer.")]


def verify(
    index: IndexOption = DEFAULT_INDEX,
    sample: Annotated[int, typer.Option(min=0, help="Embed this many chunks again and compare.")] = 0,
    config: ConfigOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = 0,
) -> None:
    """Check the whole index against itself: every chunk is cut from its source again. Exit code 5 on damage."""
    from rag.index import Index
    from rag.store.verify import verify as check

    set_verbosity(verbose)
    if not Index.exists(index):
        raise no_index(index)
    report = check(index)
    _check_with_models(index, config, sample, report)
    if as_json:
        print_json(report.to_dict())
    else:
        _draw_verify(report, quiet=quiet)
        if not report.ok and not quiet:
            console().print(f"cure it with: rag repair --index {index}", markup=False)
    if not report.ok:
        raise typer.Exit(5)


def repair(
    index: IndexOption = DEFAULT_INDEX,
    wait: WaitOption = 0.0,
    config: ConfigOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = 0,
) -> None:
    """Cure what verify finds, as far as the index itself holds what is needed, and verify again.

    What cannot be kept is named; the next `rag ingest` reads those files again.
    """
    from rag.store.verify import verify as check
    from rag.upkeep import mend

    set_verbosity(verbose)
    with busy("repairing", as_json or quiet):
        done = mend(index, lambda manifest: _stored_pipeline(manifest, config), wait_seconds=wait)
        report = check(index)
        _check_with_models(index, config, 0, report)
    if as_json:
        print_json({**done.to_dict(), "verify": report.to_dict()})
    elif not quiet:
        _draw_repair(done)
        _draw_verify(report, quiet=False)
    if not report.ok:
        raise typer.Exit(5)


def compact(
    index: IndexOption = DEFAULT_INDEX,
    wait: WaitOption = 0.0,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = 0,
) -> None:
    """Give room back: prune unused vectors, merge the full-text index, write the file anew without gaps."""
    from rag.store.compact import compact as run

    set_verbosity(verbose)
    with _open_for_writing(index, wait) as store, busy("compacting", as_json or quiet) as tell:
        report = run(store, on_step=tell)
    if as_json:
        print_json(report.to_dict())
    elif not quiet:
        before, after = size(report.bytes_before), size(report.bytes_after)
        console().print(f"{before} -> {after}; {report.vectors_pruned} vectors of other embedders pruned")


def rebuild(
    index: IndexOption = DEFAULT_INDEX,
    embedder: Annotated[str | None, typer.Option(help="Embedder to use from now on.", show_default=False)] = None,
    chunker: Annotated[str | None, typer.Option(help="Chunker to use from now on.", show_default=False)] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="Parameter of a slot, such as chunker.max_tokens=200.")
    ] = None,
    wait: WaitOption = 0.0,
    config: ConfigOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = 0,
) -> None:
    """Cut and embed the stored documents anew, beside the live index, and swap at the end. Sources are not read.

    Searching goes on meanwhile; an interrupted rebuild goes on where it was.

    Example: rag rebuild --chunker markdown --set chunker.max_tokens=200 --index my-index
    """
    from rag.upkeep import RebuildProgress
    from rag.upkeep import rebuild as run

    set_verbosity(verbose)
    stored = stored_config(index)
    pipeline = pipeline_for(config, stored=stored)
    overrides = _slots(pipeline, {"embedder": embedder, "chunker": chunker}, settings or [])
    if overrides:
        pipeline = pipeline_for(config, stored=stored, overrides=overrides)
    advice = "the live index is as it was. Run the same command again to go on"
    with stop_signals(advice), progress_bar("rebuild", silent=as_json or quiet) as tell:

        def on_progress(progress: RebuildProgress) -> None:
            tell(progress.done, progress.total, progress.source)

        report = run(index, pipeline, wait_seconds=wait, on_progress=on_progress)
    if as_json:
        print_json(report.to_dict())
    elif not quiet:
        console().print(
            f"{report.documents} documents, {report.chunks} chunks, {report.embedded} texts embedded, "
            f"{report.reused} vectors reused, {report.kept} documents kept from an interrupted rebuild, "
            f"in {report.seconds:.1f} s -> {index}",
            markup=False,
        )


# ---------------------------------------------------------------------- helpers


@contextmanager
def progress_bar(title: str, *, silent: bool) -> Iterator[Callable[[int, int, str], None]]:
    """A function (done, total, text) that draws a bar on a terminal, and nothing elsewhere."""
    if silent or not sys.stderr.isatty():
        yield lambda done, total, text: None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn(title), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, TextColumn("{task.fields[text]}"), console=console()) as bar:
        task = bar.add_task(title, total=None, text="")
        yield lambda done, total, text: bar.update(task, completed=done, total=total, text=text[-40:])


@contextmanager
def busy(title: str, silent: bool) -> Iterator[Callable[[str], None]]:
    """A spinner on a terminal, with a function that says which step it is."""
    if silent or not sys.stderr.isatty():
        yield lambda step: None
        return
    with console().status(title) as status:
        yield lambda step: status.update(f"{title}: {step}")


def size(count: int) -> str:
    """Bytes as people read them."""
    return f"{count / 1e6:,.1f} MB" if count >= 100_000 else f"{count / 1e3:,.1f} kB"


def _open_for_writing(index: Path, wait: float) -> Any:
    """The store, open for writing; UsageError instead of a new empty one."""
    from rag.index import Index
    from rag.store.store import Store

    if not Index.exists(index):
        raise no_index(index)
    return Store.create_or_open(index, wait_seconds=wait)


def _stored_pipeline(manifest: dict[str, Any], config: Path | None) -> Pipeline:
    """The pipeline that the index was built with, or that of `--config`."""
    from rag.config import PipelineConfig
    from rag.pipeline import Pipeline

    if config is not None:
        return pipeline_for(config, stored=manifest.get("config"))
    if not manifest.get("config"):
        raise ConfigError("the index does not say what it was built with; name it with --config FILE")
    return Pipeline(PipelineConfig.from_dict(manifest["config"], where="the index"))


def _check_with_models(index: Path, config: Path | None, sample: int, report: VerifyReport) -> None:
    """What the retriever keeps beside the store, and `sample` vectors; what cannot be looked at is a note."""
    from rag.index import Index

    try:
        with Index.open(index) as opened:
            _check_open(opened, config, sample, report)
    except IndexDamagedError as error:
        if report.ok:
            report.problems.append(str(error))
    except (RagError, ValueError, OSError) as error:
        report.notes.append(f"not checked: {error}")


def _check_open(index: Index, config: Path | None, sample: int, report: VerifyReport) -> None:
    from rag.upkeep import compare_vectors

    manifest = index.manifest()
    if not manifest.get("config") and config is None:
        return
    pipeline = _stored_pipeline(manifest, config)
    report.problems.extend(pipeline.retriever.check(index.corpus))
    if not sample:
        return
    if not pipeline.retriever.uses_vectors or not pipeline.embedder.agrees_with(manifest.get("fingerprint") or ""):
        report.notes.append(f"not checked: this config does not make vectors of {manifest.get('fingerprint')!r}")
        return
    count, problems = compare_vectors(index.store, pipeline.embedder, sample)
    report.checked["embedded again"] = count
    report.problems.extend(problems)


def _slots(pipeline: Pipeline, named: dict[str, str | None], settings: list[str]) -> dict[str, Any]:
    """Slot -> spec out of `--embedder`, `--chunker` and `--set SLOT.NAME=VALUE`."""
    from rag.config import SLOTS
    from rag.registry import spec_name

    specs: dict[str, Any] = {slot: {"use": name} for slot, name in named.items() if name}
    for name, value in parse_settings(settings).items():
        slot, dot, parameter = name.partition(".")
        if slot not in SLOTS or not dot or not parameter:
            raise UsageError(f"--set {name}: expected SLOT.NAME=VALUE with one of the slots {', '.join(SLOTS)}")
        now = getattr(pipeline.config, slot)
        held = specs.setdefault(slot, {"use": spec_name(now)} if isinstance(now, str) else dict(now))
        held[parameter] = value
    return specs


def _draw_verify(report: VerifyReport, *, quiet: bool) -> None:
    if quiet:
        return
    out = console()
    for problem in report.problems:
        out.print(problem, markup=False, style="red")
    for note in report.notes:
        out.print(note, markup=False, style="yellow")
    counts = ", ".join(f"{count} {name}" for name, count in report.checked.items())
    out.print(f"{'ok' if report.ok else 'DAMAGED'}: {counts} checked", markup=False)


def _draw_repair(done: MendReport) -> None:
    out = console()
    found = done.repair
    for line in found.fixed:
        out.print(f"fixed    {line}", markup=False)
    for item in found.removed:
        names = ", ".join(item.origins) or "no file"
        out.print(f"removed  {item.source} ({names}): {item.why}", markup=False, style="red")
    if found.uncut:
        out.print(f"fixed    {done.recut} of {len(found.uncut)} documents with damaged chunks were cut again")
    if found.unembedded or done.embedded:
        out.print(f"fixed    {done.embedded} texts without a vector were embedded", markup=False)
    for line in done.left:
        out.print(f"left     {line}", markup=False, style="yellow")
    if found.aside:
        out.print(f"the damaged file is kept as {found.aside}", markup=False)
    if found.removed:
        out.print("read the removed files again with: rag ingest PATH", markup=False)
    if not found.fixed and not found.removed and not found.uncut and not found.unembedded:
        out.print("nothing to repair")
