"""`rag eval VERB`: how good the parts of a pipeline are. Each verb writes a report into a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from eval._options import (
    CacheOption,
    DataOption,
    LimitOption,
    PeerOption,
    PythonOption,
    SetOption,
    SizeOption,
    SpecOption,
    folders,
    spec_of,
)
from eval.compress.verbs import compress
from eval.peers.verbs import peers
from eval.runs.verbs import compare, make, regress, run, sweep
from eval.select.verbs import calibrate, poison
from rag.cli._common import JsonOption, QuietOption, VerboseOption, console, print_json, set_verbosity

__all__ = ["eval_app"]

eval_app = typer.Typer(
    no_args_is_help=True,
    help="Whole: run, compare, regress, sweep, make, peers; parts: chunks, papers, select, compress, poison, calibrate",
)


@eval_app.callback()
def root() -> None:
    """Evaluation on public data."""


@eval_app.command("chunks")
def chunks(
    data: DataOption = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Folder for chunks.json and chunks.md.")] = None,
    chunker: SpecOption = None,
    baseline: Annotated[str, typer.Option(help="The chunker that the others are compared with.")] = "sentence",
    sets: SetOption = None,
    half: Annotated[str, typer.Option(help="dev (for knobs), test (touch it once) or all.")] = "dev",
    size: SizeOption = None,
    max_tokens: LimitOption = None,
    embedder: Annotated[str, typer.Option(help="Name or YAML of the embedder.")] = "minilm",
    cache: CacheOption = None,
    peer_python: PythonOption = None,
    peer: PeerOption = None,
    laws: Annotated[bool, typer.Option(help="Check the laws on hard texts too, peers included.")] = True,
    resamples: Annotated[int, typer.Option(min=100, help="Resamples of the bootstrap.")] = 10_000,
    seed: Annotated[int, typer.Option(help="Seed of the bootstrap.")] = 0,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = 0,
) -> None:
    """Compare chunkers at matched sizes: recall within budgets, costs, laws.

    Example: rag eval chunks --data DATA --out out --chunker semantic --size 500 --cache vectors
    """
    set_verbosity(verbose)
    data, out = folders(data, out, half)
    from eval.chunks.report import dressed, markdown, write
    from eval.chunks.run import Settings, run

    given: dict[str, Any] = {
        "chunkers": tuple(spec_of(text) for text in chunker) if chunker else Settings.chunkers,
        "sets": tuple(sets) if sets else Settings.sets,
        "sizes": tuple(size or ()) if size or max_tokens else Settings.sizes,
        "max_tokens": tuple(max_tokens or ()) if size or max_tokens else Settings.max_tokens,
        "peer_pythons": tuple(str(path) for path in peer_python or ()),
        "peers": tuple(peer or ()),
    }
    options: dict[str, Any] = {
        "half": half,
        "cache": cache,
        "laws": laws,
        "resamples": resamples,
        "seed": seed,
        "baseline": baseline,
    }
    settings = Settings(data=data, embedder=spec_of(embedder), **options, **given)
    err = console()
    report = dressed(run(settings, lambda line: None if quiet else err.print(line, markup=False)), settings)
    write(report, out)
    if as_json:
        print_json(report)
    elif not quiet:
        typer.echo(markdown(report))


@eval_app.command("papers")
def papers(
    data: DataOption = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Folder for papers.json and papers.md.")] = None,
    cache: CacheOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = 0,
) -> None:
    """Tables of IDC and Adaptive Chunking run again, beside the papers' numbers.

    Example: rag eval papers --data DATA --out out --cache vectors
    """
    set_verbosity(verbose)
    data, out = folders(data, out)
    from eval.papers.report import markdown, run, write

    err = console()
    report = run(data, cache, lambda line: None if quiet else err.print(line, markup=False))
    write(report, out)
    if as_json:
        print_json(report)
    elif not quiet:
        typer.echo(markdown(report))


@eval_app.command("select")
def select(
    data: DataOption = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Folder for select.json and select.md.")] = None,
    selector: Annotated[
        list[str] | None, typer.Option(help="Name, or YAML such as '{use: mmr, lam: 0.7}'; repeatable.")
    ] = None,
    baseline: Annotated[str, typer.Option(help="The selector that the others are compared with.")] = "top-k",
    retriever: Annotated[
        list[str] | None, typer.Option(help="Name or YAML; repeatable. Default: hybrid, 100 hits.")
    ] = None,
    chunker: Annotated[str | None, typer.Option(help="Name or YAML. Default: as each set needs.")] = None,
    sets: SetOption = None,
    half: Annotated[str, typer.Option(help="dev (for knobs), test (touch it once) or all.")] = "dev",
    budget: Annotated[list[int] | None, typer.Option(min=1, help="Tokens; repeatable. Default: 200, 400, 800.")] = None,
    counter: Annotated[
        list[str] | None, typer.Option(help="Whose tokens: embedder or generator; repeatable. Default: both.")
    ] = None,
    embedder: Annotated[str, typer.Option(help="Name or YAML of the embedder.")] = "minilm",
    references: Annotated[bool, typer.Option(help="Add random, lead and oracle.")] = True,
    cache: CacheOption = None,
    resamples: Annotated[int, typer.Option(min=100, help="Resamples of the bootstrap.")] = 10_000,
    seed: Annotated[int, typer.Option(help="Seed of the bootstrap.")] = 0,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = 0,
) -> None:
    """Compare selectors at equal tokens over the same hits: recall of the evidence, intervals, costs.

    Example: rag eval select --data DATA --out out --selector mmr --set squad_long --budget 400 --cache work
    """
    set_verbosity(verbose)
    data, out = folders(data, out, half)
    from eval.select.report import markdown, timings_of, write
    from eval.select.run import run
    from eval.select.settings import Settings

    given: dict[str, Any] = {
        "selectors": tuple(spec_of(text) for text in selector) if selector else Settings.selectors,
        "retrievers": tuple(spec_of(text) for text in retriever) if retriever else Settings.retrievers,
        "sets": tuple(sets) if sets else Settings.sets,
        "budgets": tuple(budget) if budget else Settings.budgets,
        "counters": tuple(counter) if counter else Settings.counters,
        "chunker": spec_of(chunker) if chunker else None,
    }
    options: dict[str, Any] = {"half": half, "cache": cache, "resamples": resamples, "seed": seed}
    settings = Settings(
        data=data,
        baseline=spec_of(baseline),
        embedder=spec_of(embedder),
        references=references,
        **options,
        **given,
    )
    err = console()
    done = run(settings, lambda line: None if quiet else err.print(line, markup=False))
    report = write(done, settings, out)
    if as_json:
        print_json({**report, "timings": timings_of(done)})
    elif not quiet:
        typer.echo(markdown(report, timings_of(done)))


eval_app.command("run")(run)
eval_app.command("compare")(compare)
eval_app.command("regress")(regress)
eval_app.command("sweep")(sweep)
eval_app.command("make")(make)
eval_app.command("peers")(peers)
eval_app.command("compress")(compress)
eval_app.command("poison")(poison)
eval_app.command("calibrate")(calibrate)
