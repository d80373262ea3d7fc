"""`rag eval compress`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from eval._options import CacheOption, DataOption, SetOption, folders, spec_of
from rag.cli._common import JsonOption, QuietOption, VerboseOption, console, print_json, set_verbosity

__all__ = ["compress"]


def compress(
    data: DataOption = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Folder for compress.json and compress.md.")] = None,
    compressor: Annotated[
        list[str] | None, typer.Option(help="Name, or YAML such as '{use: sentence-prune, lam: 0.5}'; repeatable.")
    ] = None,
    baseline: Annotated[str, typer.Option(help="What the others are compared with.")] = "(top-k)",
    rate: Annotated[
        list[float] | None, typer.Option(help="Share that stays; repeatable. Default: .5, .25, .125.")
    ] = None,
    budget: Annotated[int, typer.Option(min=1, help="Tokens of the context before compression.")] = 1600,
    retriever: Annotated[str, typer.Option(help="Name or YAML.")] = "{use: hybrid, k: 100}",
    selector: Annotated[str, typer.Option(help="What makes the context.")] = "top-k",
    sets: SetOption = None,
    half: Annotated[str, typer.Option(help="dev (for knobs), test (touch it once) or all.")] = "dev",
    questions: Annotated[int | None, typer.Option(min=1, help="Only so many of each set.")] = None,
    likelihood: Annotated[int, typer.Option(min=0, help="Questions whose answer the local model is asked for.")] = 0,
    embedder: Annotated[str, typer.Option(help="Name or YAML of the embedder.")] = "minilm",
    generator: Annotated[str, typer.Option(help="Whose tokens are counted, and whose model is asked.")] = "local",
    cache: CacheOption = None,
    resamples: Annotated[int, typer.Option(min=100, help="Resamples of the bootstrap.")] = 10_000,
    seed: Annotated[int, typer.Option(help="Seed of the bootstrap.")] = 0,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = 0,
) -> None:
    """Compare compressors at equal rates over the same contexts: evidence, answers and numbers that are left.

    Example: rag eval compress --data DATA --out out --compressor sentence-prune --set squad_long --cache work
    """
    set_verbosity(verbose)
    data, out = folders(data, out, half)
    from eval.compress.report import markdown, timings_of, write
    from eval.compress.run import run
    from eval.compress.settings import Settings

    given: dict[str, Any] = {
        "half": half,
        "compressors": tuple(spec_of(text) for text in compressor) if compressor else Settings.compressors,
        "rates": tuple(rate) if rate else Settings.rates,
        "sets": tuple(sets) if sets else Settings.sets,
        "retriever": spec_of(retriever),
        "selector": spec_of(selector),
        "embedder": spec_of(embedder),
        "generator": spec_of(generator),
    }
    numbers: dict[str, Any] = {
        "budget": budget,
        "questions": questions,
        "likelihood": likelihood,
        "resamples": resamples,
        "seed": seed,
    }
    settings = Settings(data=data, baseline=baseline, cache=cache, **numbers, **given)
    done = run(settings, lambda line: None if quiet else console().print(line, markup=False))
    report = write(done, settings, out)
    if as_json:
        print_json({**report, "timings": timings_of(done)})
    elif not quiet:
        typer.echo(markdown(report, timings_of(done)))
