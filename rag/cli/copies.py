"""Verbs about whole copies and about what can be made again: snapshot, cache."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated

import typer

from rag.cli._common import IndexOption, JsonOption, QuietOption, console, print_json
from rag.cli.indexing import DEFAULT_INDEX
from rag.cli.upkeep import WaitOption, progress_bar, size
from rag.errors import UsageError, no_index

__all__ = ["cache_app", "snapshot_app"]

snapshot_app = typer.Typer(no_args_is_help=True, help="Whole copies of an index: create, list, restore, delete.")
cache_app = typer.Typer(no_args_is_help=True, help="What can be deleted and is made again when it is needed.")

NameArgument = Annotated[str, typer.Argument(help="Name of the snapshot.", show_default=False)]
KINDS = ("models", "derived", "mirror", "rebuild", "sentences", "kv")


@snapshot_app.command("create")
def create(
    name: Annotated[str | None, typer.Argument(help="Name (default: the time in UTC).", show_default=False)] = None,
    index: IndexOption = DEFAULT_INDEX,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Copy the newest committed state; readers and a writer may go on meanwhile."""
    from rag.store.store import Store

    with Store.open(index) as store, progress_bar("snapshot", silent=as_json or quiet) as tell:
        info = store.snapshot_create(name, on_progress=lambda done, total: tell(done, total, "pages"))
    if as_json:
        print_json(info.to_dict())
    elif not quiet:
        console().print(f"snapshot {info.name}: {info.documents} documents, {size(info.bytes)}", markup=False)


@snapshot_app.command("list")
def list_all(index: IndexOption = DEFAULT_INDEX, as_json: JsonOption = False, quiet: QuietOption = False) -> None:
    """All snapshots, oldest first."""
    from rag.store.snapshots import list_snapshots

    found = list_snapshots(index)
    if as_json:
        print_json({"snapshots": [info.to_dict() for info in found]})
        return
    for info in found:
        counts = "unreadable" if info.documents is None else f"{info.documents} documents, {info.chunks} chunks"
        typer.echo(f"{info.name:32} {info.created}  {size(info.bytes):>12}  {counts}")
    if not found and not quiet:
        console().print(f"no snapshots; make one with: rag snapshot create --index {index}", markup=False)


@snapshot_app.command("restore")
def restore(
    name: NameArgument,
    index: IndexOption = DEFAULT_INDEX,
    wait: WaitOption = 0.0,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Make the index what it was, in one step. Works over a damaged index too, whose file is kept aside."""
    from rag.store.lock import WriterLock
    from rag.store.snapshots import restore_snapshot
    from rag.store.store import Store

    if not index.is_dir():
        raise UsageError(f"there is no index in {index}")
    lock = WriterLock(index, wait_seconds=wait)
    try:
        restore_snapshot(index, name)
    finally:
        lock.release()
    with Store.create_or_open(index, wait_seconds=wait) as store:
        stats = store.stats()
    report = {"snapshot": name, "documents": stats["documents"], "chunks": stats["chunks"]}
    if as_json:
        print_json(report)
    elif not quiet:
        console().print(f"{index} is as in snapshot {name}: {stats['documents']} documents", markup=False)


@snapshot_app.command("delete")
def delete(
    name: NameArgument, index: IndexOption = DEFAULT_INDEX, as_json: JsonOption = False, quiet: QuietOption = False
) -> None:
    """Delete a snapshot."""
    from rag.store.snapshots import delete_snapshot

    delete_snapshot(index, name)
    if as_json:
        print_json({"deleted": name})
    elif not quiet:
        console().print(f"deleted snapshot {name}", markup=False)


@cache_app.command("stats")
def stats(
    index: Annotated[Path | None, typer.Option("--index", "-i", help="Look into this index too.")] = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Bytes per kind: converted models; with --index its derived files, mirror, unfinished rebuild, vectors, KV."""
    found = [(kind, path, _bytes(path)) for kind, path in _places(index).items()]
    if as_json:
        print_json({"cache": {kind: {"path": str(path), "bytes": count} for kind, path, count in found}})
        return
    for kind, path, count in found:
        typer.echo(f"{kind:8} {size(count):>12}  {path}")


@cache_app.command("clear")
def clear(
    kind: Annotated[list[str] | None, typer.Option("--kind", help=f"One of {', '.join(KINDS)}; may repeat.")] = None,
    index: Annotated[Path | None, typer.Option("--index", "-i", help="Clear in this index too.")] = None,
    wait: WaitOption = 0.0,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Delete what is made again when it is needed. Without --kind all of it; an index is touched only with --index."""
    places = _places(index)
    for name in kind or ():
        if name not in KINDS:
            raise UsageError(f"--kind {name}: allowed are {', '.join(KINDS)}")
        if name not in places:
            raise UsageError(f"--kind {name} needs --index")
    chosen = {name: path for name, path in places.items() if not kind or name in kind}
    freed = {name: _bytes(path) for name, path in chosen.items()}
    if "models" in chosen:
        shutil.rmtree(chosen["models"], ignore_errors=True)
    if index is not None and set(chosen) - {"models"}:
        _clear_index(index, chosen, wait)
    if as_json:
        print_json({"freed": freed})
    elif not quiet:
        for name, count in freed.items():
            console().print(f"cleared {name}: {size(count)}", markup=False)


def _places(index: Path | None) -> dict[str, Path]:
    from rag.generators._models import cache_root
    from rag.index import Index
    from rag.store.kv import KV_NAME
    from rag.store.sentences import SENTENCES_NAME

    places = {"models": cache_root() / "models"}
    if index is None:
        return places
    if not Index.exists(index):
        raise no_index(index)
    beside = {"derived": "derived", "mirror": "chroma", "rebuild": "rebuild", "sentences": SENTENCES_NAME}
    beside["kv"] = KV_NAME
    return {**places, **{kind: index / name for kind, name in beside.items()}}


def _clear_index(index: Path, chosen: dict[str, Path], wait: float) -> None:
    from rag.store.kv import clear_kv
    from rag.store.sentences import clear_sentences
    from rag.store.store import Store

    with Store.create_or_open(index, wait_seconds=wait) as store:
        if "derived" in chosen or "mirror" in chosen:
            store.clear_derived()  # a mirror is known by a derived file
        for name in ("mirror", "rebuild"):
            if name in chosen:
                shutil.rmtree(chosen[name], ignore_errors=True)
        if "sentences" in chosen:
            clear_sentences(index)
        if "kv" in chosen:
            clear_kv(index)


def _bytes(path: Path) -> int:
    if path.is_file():
        return path.stat().st_size
    return sum(file.lstat().st_size for file in path.rglob("*") if not file.is_dir()) if path.is_dir() else 0
