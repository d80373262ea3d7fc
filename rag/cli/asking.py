"""Verbs about questions: search, ask, explain."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Sequence
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
    pipeline_for,
    print_json,
    read_queries,
    set_verbosity,
)
from rag.cli._compression import draw_compression
from rag.cli._ledger import draw_citations, draw_replay, draw_trace
from rag.cli._timeline import audited, draw_timeline
from rag.cli.indexing import DEFAULT_INDEX
from rag.compressed import compressed
from rag.errors import RagError, UsageError
from rag.text import printable

if TYPE_CHECKING:
    from rag.answer import Answer
    from rag.index import Index
    from rag.pipeline import Pipeline
    from rag.replay import Replay

LISTED = 20

WhereOption = Annotated[
    str | None, typer.Option("--where", help='Metadata filter as JSON, such as \'{"source": "handbook.md"}\'.')
]
QueriesOption = Annotated[
    Path | None, typer.Option("--queries", help="JSON Lines of questions; prints one JSON line for each.")
]


def search(
    question: Annotated[str | None, typer.Argument(help="What to look for.", show_default=False)] = None,
    k: Annotated[int, typer.Option("-k", min=1, help="Number of hits.")] = 10,
    where: WhereOption = None,
    queries: QueriesOption = None,
    index: IndexOption = DEFAULT_INDEX,
    config: ConfigOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = 0,
) -> None:
    """Find the chunks that fit a question best.

    Example: rag search "travel approval limit" -k 5 --where '{"source": "handbook.md"}'
    """
    set_verbosity(verbose)
    one = _one_or_many(question, queries)
    filters = _filter(where)
    with open_index(index) as opened:
        pipeline = pipeline_for(config, index=opened)
        if one is not None:
            result = _search(pipeline, opened, one, k, filters)
            print_json(result) if as_json else _draw_hits(result)
            return
        for query_id, text in read_queries(queries or Path()):
            print_json({"query_id": query_id, **_search(pipeline, opened, text, k, filters)})


def ask(
    question: Annotated[str | None, typer.Argument(help="The question.", show_default=False)] = None,
    where: WhereOption = None,
    queries: QueriesOption = None,
    trace: Annotated[bool, typer.Option("--trace", help="Show the stages and the ledger too.")] = False,
    every: Annotated[bool, typer.Option("--all", help="With --trace: every line of the ledger.")] = False,
    flow: Annotated[
        str | None, typer.Option("--flow", help="Answer along this flow: a YAML file, or a shipped one such as crag.")
    ] = None,
    audit_kv: Annotated[
        bool, typer.Option("--audit-kv", help="Measure what reuse of keys and values changes, by a full prefill.")
    ] = False,
    index: IndexOption = DEFAULT_INDEX,
    config: ConfigOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = 0,
) -> None:
    """Answer a question from the documents, with citations. Says so when they hold no answer.

    With --queries, those whose prompts begin alike are answered together where the generator can; a question that
    cannot be answered has "error" in its line, and the exit code is 4.

    Example: rag ask "Who approves travel above 5,000 EUR?"
    """
    from rag.pipeline import tried
    from rag.replay import about

    set_verbosity(verbose)
    one = _one_or_many(question, queries)
    filters = _filter(where)
    with open_index(index) as opened:
        pipeline = pipeline_for(config, index=opened)
        if audit_kv:
            pipeline = audited(pipeline)
        asked = _asker(pipeline, opened, filters, flow)
        if one is None:
            rows = list(read_queries(queries or Path()))
            if flow is None:
                _print_answers(rows, pipeline.ask_many((text for _, text in rows), opened, where=filters))
            else:
                _print_answers(rows, (tried(asked, text, None) for _, text in rows))
            return
        if as_json:
            print_json(asked(one, None).to_dict())
            return
        answer = asked(one, lambda text: typer.echo(text, nl=False))
        typer.echo()
        run = {**answer.to_dict(), **about(answer, opened.corpus), "config": pipeline.config.to_dict()}
        shortened = compressed(run, opened.corpus) if trace else {}
    draw_citations(run, index)
    if trace:
        draw_trace(run, every=every)
        draw_compression(shortened, every=every)
    if trace or audit_kv:
        draw_timeline(run)
    if not trace and not quiet and answer.run_id:
        console().print(f"why this answer: rag explain {answer.run_id} --index {index}", style="dim", markup=False)


def explain(
    run: Annotated[str, typer.Argument(help="Run id, or 'last'.")] = "last",
    every: Annotated[bool, typer.Option("--all", help="Every line of the ledger, with all score parts.")] = False,
    replay: Annotated[
        bool,
        typer.Option(
            "--replay", help="Rebuild the context from the ledger, select again, and compare. Exit 1: differs."
        ),
    ] = False,
    prompt: Annotated[bool, typer.Option("--prompt", help="Print the exact prompt as well.")] = False,
    newest: Annotated[bool, typer.Option("--list", help="Only name the newest runs.")] = False,
    index: IndexOption = DEFAULT_INDEX,
    config: ConfigOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = 0,
) -> None:
    """Show how an answer came about: stages, every kept and dropped part with its scores and reason, what the
    compressor struck out, what of the prompt was computed, the prompt.

    Example: rag explain last --all
    """
    from rag.replay import ledger, totals

    set_verbosity(verbose)
    if newest:
        _list_runs(index, as_json)
        return
    with open_index(index) as opened:
        found = _run(run, opened)
        checked = _replayed(found, opened, config) if replay else None
        shortened = compressed(found, opened.corpus)
    if as_json:
        more: dict[str, Any] = {"replay": checked.to_dict()} if checked else {}
        more |= {"compression": ledger(found, "context"), "compressed": shortened}
        print_json({**found, "ledger": ledger(found), "totals": totals(found), **more})
    elif checked:
        draw_replay(checked)
    else:
        typer.echo(f"{found['question']}\n{found['answer']}")
        draw_citations(found, index)
        draw_trace(found, every=every)
        draw_compression(shortened, every=every)
        draw_timeline(found)
        if prompt:
            typer.echo(found["prompt"])
    if checked and not checked.ok:
        raise typer.Exit(1)


def _list_runs(directory: Path, as_json: bool) -> None:
    with open_index(directory) as index:
        runs = index.store.runs(LISTED)
    rows = [
        {"run_id": run["run_id"], "question": run["question"], "tokens": run["bubble"]["token_count"]} for run in runs
    ]
    if as_json:
        print_json({"runs": rows})
        return
    for row in rows:
        typer.echo(printable(f"{row['run_id']}  {row['tokens']:>6} tokens  {' '.join(row['question'].split())}"))


def _run(run: str, index: Index) -> dict[str, Any]:
    if run != "last":
        return index.store.run(run)
    newest = index.store.runs(1)
    if not newest:
        raise UsageError(
            f"{index.directory} holds no runs yet; ask something first: rag ask QUESTION --index {index.directory}"
        )
    return newest[0]


def _replayed(run: dict[str, Any], index: Index, config: Path | None) -> Replay:
    """By the pipeline that the run was made with, unless another is named."""
    from rag.config import PipelineConfig
    from rag.pipeline import Pipeline
    from rag.replay import replay

    if config:
        return replay(run, pipeline_for(config, index=index), index)
    return replay(run, Pipeline(PipelineConfig.from_dict(run["config"], where=f"run {run['run_id']}")), index)


def _asker(
    pipeline: Pipeline, index: Index, where: dict[str, Any] | None, flow: str | None
) -> Callable[[str, Callable[[str], None] | None], Answer]:
    """Answers a question by the pipeline, or along a flow, whose answer comes whole at its end."""
    if flow is None:
        return lambda question, on_text: pipeline.ask(question, index, where=where, on_text=on_text)
    from rag.flow import Flow

    plan = Flow.load(flow)

    def along(question: str, on_text: Callable[[str], None] | None) -> Answer:
        answer = plan.run(pipeline, question, index, where=where)
        if on_text:
            on_text(answer.text)
        return answer

    return along


def _print_answers(rows: Sequence[tuple[str, str]], answers: Iterable[Answer | RagError]) -> None:
    """One JSON line for each of `rows`, (query_id, question); exit code 4 when a question has no answer."""
    failed = 0
    for (query_id, text), answer in zip(rows, answers, strict=True):
        if isinstance(answer, RagError):
            failed += 1
            print_json({"query_id": query_id, "question": text, "error": str(answer)})
        else:
            print_json({"query_id": query_id, **answer.to_dict()})
    if failed:
        console().print(f"{failed} of {len(rows)} questions could not be answered", style="red", markup=False)
        raise typer.Exit(4)


def _search(pipeline: Pipeline, index: Index, question: str, k: int, where: dict[str, Any] | None) -> dict[str, Any]:
    started = time.perf_counter()
    hits = pipeline.search(question, index, k=k, where=where)
    sources = {hit.chunk.doc_id: index.corpus.source(hit.chunk.doc_id) for hit in hits}
    rows = [
        {
            "chunk_id": hit.chunk.id,
            "doc_id": hit.chunk.doc_id,
            "source": sources[hit.chunk.doc_id],
            "start": hit.chunk.span.start,
            "end": hit.chunk.span.end,
            "text": hit.chunk.text,
            "score": hit.score,
            "rank": hit.rank,
            "parts": dict(hit.parts),
        }
        for hit in hits
    ]
    return {"hits": rows, "seconds": time.perf_counter() - started}


def _draw_hits(result: dict[str, Any]) -> None:
    if not result["hits"]:
        typer.echo("nothing found")
    for hit in result["hits"]:
        typer.secho(f"{hit['rank']:>2}. {hit['source']}  {hit['chunk_id']}  score {hit['score']:.4f}", bold=True)
        text = " ".join(hit["text"].split())
        typer.echo("    " + (text if len(text) <= 300 else text[:297] + "..."))


def _one_or_many(question: str | None, queries: Path | None) -> str | None:
    if (question is None) == (queries is None):
        raise UsageError("give one question, or --queries FILE.jsonl, not both")
    return question


def _filter(where: str | None) -> dict[str, Any] | None:
    if where is None:
        return None
    try:
        value = json.loads(where)
    except json.JSONDecodeError as error:
        raise UsageError(f"--where is not valid JSON ({error}): {where!r}") from error
    if not isinstance(value, dict):
        raise UsageError(f'--where: expected a JSON object such as {{"source": "a.md"}}, not {where!r}')
    return value
