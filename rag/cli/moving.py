"""The verb migrate: an index to another store, or to the format of this version."""

from __future__ import annotations

from collections.abc import Mapping
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
from rag.cli.upkeep import WaitOption, busy
from rag.errors import UsageError, no_index

if TYPE_CHECKING:
    from rag.registry import Spec

__all__ = ["migrate"]

_FILES = (".yaml", ".yml", ".json")


def migrate(
    directory: Annotated[Path | None, typer.Argument(help="Folder of the index.", show_default=False)] = None,
    index: IndexOption = DEFAULT_INDEX,
    to: Annotated[
        str | None, typer.Option("--to", help="Retriever to move to: a name, or a YAML or JSON file with its spec.")
    ] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="Parameter of that retriever, such as mode=hybrid.")
    ] = None,
    keep_config: Annotated[
        bool, typer.Option("--keep-config", help="Fill the other store; the index goes on naming the retriever it has.")
    ] = False,
    keep_old: Annotated[
        bool, typer.Option("--snapshot/--no-snapshot", help="New format: keep the old state as a snapshot.")
    ] = True,
    wait: WaitOption = 0.0,
    config: ConfigOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = 0,
) -> None:
    """Move an index to another store (--to), or bring one of an older version to this format, in place.

    With --to, stored chunks and vectors are copied to the store of that retriever, read back and compared; nothing is
    embedded. Then the index's config names the new retriever, unless --keep-config. The chunks and vectors in the
    index stay as they are. After an interruption run the same command again.

    Example: rag migrate my-index --to pgvector --set mode=hybrid
    """
    set_verbosity(verbose)
    place = directory or index
    if to is not None:
        _move(place, _spec(to, settings or []), keep_config, wait, config, as_json, quiet)
        return
    if settings or keep_config:
        raise UsageError("--set and --keep-config need --to RETRIEVER, such as --to pgvector")
    from rag.store.migrate import migrate as run

    with busy("migrating", as_json or quiet):
        report = run(place, keep_old=keep_old, wait_seconds=wait)
    if as_json:
        print_json(report.to_dict())
    elif not quiet:
        if report.before == report.after:
            console().print(f"{place} has format {report.after}, the newest: nothing to do", markup=False)
        else:
            kept = f"; the old state is the snapshot {report.snapshot}" if report.snapshot else ""
            console().print(f"{place}: format {report.before} -> {report.after}{kept}", markup=False)


def _move(
    place: Path,
    spec: Spec,
    keep_config: bool,
    wait: float,
    config: Path | None,
    as_json: bool,
    quiet: bool,
) -> None:
    from rag.transfer import transfer

    stored = stored_config(place)
    if stored is None:
        raise no_index(place)
    pipeline = pipeline_for(config, stored=stored, overrides={"retriever": spec})
    advice = "the index is as it was. Run the same command again to go on"
    with stop_signals(advice), busy("moving", as_json or quiet):
        report = transfer(place, pipeline, keep_config=keep_config, wait_seconds=wait)
    if as_json:
        print_json(report.to_dict())
        return
    if quiet:
        return
    out = console()
    out.print(
        f"{place}: {report.before} -> {report.after}, {report.chunks} chunks: {report.present} were there, "
        f"{report.written} written, {report.verified} read back and the same, 0 embedded, in {report.seconds:.1f} s",
        markup=False,
    )
    if keep_config:
        out.print(f"the index still names {report.before}", markup=False)
        return
    now = pipeline_for(config, stored={**stored, "retriever": spec}).config.retriever
    if now != pipeline.config.retriever:
        out.print("a config file or RAG_RETRIEVER names another retriever, which goes before the index's", markup=False)
    if isinstance(stored.get("retriever"), Mapping) or stored.get("retriever") == "hybrid":
        out.print("the index named its retriever with parts or parameters; only those of --to hold now", markup=False)


def _spec(to: str, settings: list[str]) -> Spec:
    """`--to` with `--set` over it."""
    import yaml

    spec: Any = to
    if to.lower().endswith(_FILES):
        try:
            spec = yaml.safe_load(Path(to).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise UsageError(f"--to {to}: cannot be read: {error}") from error
        if isinstance(spec, Mapping) and set(spec) == {"retriever"}:
            spec = spec["retriever"]
    if isinstance(spec, str):
        spec = {"use": spec}
    if not isinstance(spec, Mapping) or not isinstance(spec.get("use"), str):
        raise UsageError(f"--to {to}: expected the name of a retriever, or a file such as {{use: pgvector, k: 40}}")
    told = {**spec, **parse_settings(settings)}
    return told if len(told) > 1 else str(told["use"])
