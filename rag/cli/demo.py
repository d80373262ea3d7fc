"""`rag demo`: the main job on the sample documents, in one command."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

from rag.cli._common import (
    ConfigOption,
    IndexOption,
    JsonOption,
    QuietOption,
    VerboseOption,
    pipeline_for,
    print_json,
    set_verbosity,
)
from rag.cli._ledger import draw_citations, draw_trace

QUESTIONS = (
    "Who approves travel above 5,000 EUR?",
    "What does the training day Good weighing practice cost per person?",
    "How many weigh cells KV-WC-220 must be purchased from Korvane each year?",
)


def demo(
    index: IndexOption = Path("demo-index"),
    config: ConfigOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = 0,
) -> None:
    """Ingest the sample documents and ask three questions. Works offline."""
    from rag.sample import documents_dir

    set_verbosity(verbose)
    pipeline = pipeline_for(config)
    with pipeline.index([documents_dir()], into=index) as opened:
        assert opened.report is not None  # noqa: S101  index() always sets it
        report = opened.report.to_dict()
        if not as_json:
            typer.secho(f"Ingested {documents_dir().name}/ into {index}", bold=True)
            typer.echo(
                f"{report['documents']} documents, {report['chunks']} chunks, {report['skipped']} unchanged, "
                f"{len(report['failed'])} failed, {report['seconds']:.1f} s\n"
            )
        runs = [pipeline.ask(question, opened).to_dict() for question in QUESTIONS]
    if as_json:
        print_json({"ingest": report, "answers": runs})
        return
    for run in runs:
        _draw(run, index)
    draw_trace(runs[-1])
    typer.echo(f"\nNext:  rag ask 'your question' --index {index}   |   rag ingest YOUR_FOLDER --index my-index")


def _draw(run: dict[str, Any], index: Path) -> None:
    typer.secho(f"Q: {run['question']}", bold=True)
    typer.echo(f"A: {run['answer']}")
    draw_citations(run, index)
    typer.echo()
