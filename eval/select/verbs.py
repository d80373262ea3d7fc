"""`rag eval poison` and `rag eval calibrate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from eval._options import CacheOption, DataOption, SetOption, folders, spec_of
from rag.cli._common import (
    JsonOption,
    QuietOption,
    VerboseOption,
    console,
    parse_settings,
    print_json,
    set_verbosity,
)
from rag.errors import UsageError

__all__ = ["calibrate", "poison"]


def poison(
    data: DataOption = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Folder for poison.json and poison.md.")] = None,
    sets: Annotated[
        list[str] | None,
        typer.Option(
            "--set", help="Folder under --data, or SET/VARIANT; repeatable. Default: poisoned and clean ones."
        ),
    ] = None,
    half: Annotated[str, typer.Option(help="dev (for thresholds), test (touch it once) or all.")] = "dev",
    option: Annotated[
        list[str] | None, typer.Option(help="Parameter of the verifier, such as conflict=0.5; repeatable.")
    ] = None,
    limit: Annotated[int, typer.Option(min=0, help="Questions of each set; 0 for all.")] = 0,
    perplexity: Annotated[
        int, typer.Option(min=0, help="Questions of each set for the perplexity baseline; 0 leaves it out.")
    ] = 8,
    generator: Annotated[str, typer.Option(help="Name or YAML of what the perplexity is measured with.")] = "local",
    resamples: Annotated[int, typer.Option(min=100, help="Resamples of the bootstrap.")] = 2000,
    seed: Annotated[int, typer.Option(help="Seed of the bootstrap.")] = 0,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = 0,
) -> None:
    """How well the selector `verified` finds poisoned passages, and what it costs where there are none.

    Example: rag eval poison --data DATA --out out --set poisonedrag_nq --perplexity 20
    """
    set_verbosity(verbose)
    data, out = folders(data, out, half)
    from eval._reports import write_report
    from eval.select.poison_report import Settings, markdown, run

    settings = Settings(
        data=data,
        sets=tuple(sets) if sets else Settings.sets,
        half=half,
        options=parse_settings(option or []),
        limit=limit,
        perplexity=perplexity,
        generator=spec_of(generator),
        resamples=resamples,
        seed=seed,
    )
    err = console()
    report = run(settings, lambda line: None if quiet else err.print(line, markup=False))
    write_report(out, "poison", report, markdown(report))
    if as_json:
        print_json(report)
    elif not quiet:
        typer.echo(markdown(report))


def calibrate(
    data: DataOption = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Folder for calibrate.json and calibrate.md.")] = None,
    sets: SetOption = None,
    target: Annotated[float, typer.Option(help="Mean recall of evidence characters that is wanted.")] = 0.8,
    alpha: Annotated[float, typer.Option(help="Chance that the promise does not hold.")] = 0.1,
    budget: Annotated[int, typer.Option(min=1, help="Most tokens of a question.")] = 1200,
    per: Annotated[str, typer.Option(help="sentence, or token: see the selector.")] = "sentence",
    theta: Annotated[
        list[float] | None, typer.Option(help="Threshold to try; repeatable. Default: a grid for --per.")
    ] = None,
    retriever: Annotated[str | None, typer.Option(help="Name or YAML. Default: hybrid, 100 hits.")] = None,
    chunker: Annotated[str | None, typer.Option(help="Name or YAML. Default: as the set needs.")] = None,
    embedder: Annotated[str, typer.Option(help="Name or YAML of the embedder.")] = "minilm",
    counter: Annotated[str, typer.Option(help="Whose tokens the budget has: embedder or generator.")] = "generator",
    cache: CacheOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = 0,
) -> None:
    """The threshold of `budget-auto` for a recall that is wanted, as a spec for a config. Reads the dev half only.

    Example: rag eval calibrate --data DATA --out out --set squad_long --target 0.8 --cache work
    """
    set_verbosity(verbose)
    data, out = folders(data, out)
    from eval._reports import write_report
    from eval.select.calibrating import Settings, markdown, run
    from eval.select.settings import HYBRID

    if sets and len(sets) > 1:
        raise UsageError("--set: one set, since a threshold is for one kind of documents")
    if per not in ("sentence", "token"):
        raise UsageError(f"--per {per}: expected sentence or token")
    unit: Literal["sentence", "token"] = "token" if per == "token" else "sentence"
    settings = Settings(
        data=data,
        name=sets[0] if sets else Settings.name,
        target=target,
        alpha=alpha,
        budget=budget,
        per=unit,
        thetas=tuple(theta or ()),
        retriever=spec_of(retriever) if retriever else HYBRID,
        chunker=spec_of(chunker) if chunker else None,
        embedder=spec_of(embedder),
        counter=counter,
        cache=cache,
    )
    err = console()
    report = run(settings, lambda line: None if quiet else err.print(line, markup=False))
    write_report(out, "calibrate", report, markdown(report))
    if as_json:
        print_json(report)
    elif not quiet:
        typer.echo(markdown(report))
