"""`rag bench NAME --out FILE`: speed and quality against the peers, interleaved in one run.

A benchmark is a file of this folder with `run(settings) -> report`; its file name is its name.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rag.cli._common import ConfigOption, JsonOption, QuietOption, VerboseOption, print_json, set_verbosity
from rag.errors import UsageError

if TYPE_CHECKING:
    from eval.bench._report import Settings

__all__ = ["bench", "benchmarks"]


def benchmarks() -> list[str]:
    """The names of all benchmarks; nothing is imported."""
    files = Path(__file__).parent.glob("*.py")
    return sorted(file.stem.replace("_", "-") for file in files if not file.stem.startswith("_") and file.stem != "cli")


def bench(
    name: Annotated[str, typer.Argument(help="Which benchmark; an unknown name lists them.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Where the JSON report goes.")],
    data: Annotated[
        Path | None,
        typer.Option("--data", envvar="CHUNKWISE_DATA", help="Folder of the public evaluation data."),
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="How often each contender runs; medians are compared.")] = 3,
    documents: Annotated[int, typer.Option(min=1, help="How many documents are ingested in a round.")] = 200,
    threads: Annotated[int, typer.Option(min=1, help="Threads of every contender.")] = 1,
    seed: Annotated[int, typer.Option(help="Draws the documents.")] = 0,
    kills: Annotated[int, typer.Option(min=0, help="How often each store's writer is killed, and bytes flipped.")] = 20,
    peer_python: Annotated[
        list[Path] | None,
        typer.Option(help="Interpreter of an environment that has peers; repeatable. Default: this one."),
    ] = None,
    quality: Annotated[bool, typer.Option(help="Measure retrieval quality too.")] = True,
    part: Annotated[list[str] | None, typer.Option(help="Section of kv, compress or attention; repeatable.")] = None,
    length: Annotated[
        list[int] | None, typer.Option(min=1, help="Tokens of context: kv, compress, road, attention.")
    ] = None,
    questions: Annotated[
        int | None, typer.Option(min=1, help="Prompts or contexts: kv, compress, road, attention.")
    ] = None,
    calibrate: Annotated[
        Path | None, typer.Option(help="File for the table that auto of local reads: kv (repair), attention.")
    ] = None,
    rows: Annotated[Path | None, typer.Option(help="Folder from which a stopped run goes on, attention.")] = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = 0,
) -> None:
    """Measure this pipeline and other frameworks in one interleaved run, and check the claims.

    Example: rag bench ingest --out bench.json --data DATA --peer-python peers/bin/python
    """
    set_verbosity(verbose)
    if name not in benchmarks():
        raise UsageError(f"no benchmark {name!r}; there are: {', '.join(benchmarks())}")
    from eval.bench._report import Settings

    settings = Settings(
        data=data,
        config=config,
        rounds=rounds,
        documents=documents,
        threads=threads,
        seed=seed,
        kills=kills,
        peer_pythons=tuple(str(path) for path in peer_python or []),
        quality=quality,
        quiet=quiet,
    )
    if not out.resolve().parent.is_dir():
        raise UsageError(f"--out {out}: the folder {out.resolve().parent} does not exist")
    options = {"parts": part, "lengths": length, "questions": questions, "calibrate": calibrate, "rows": rows}
    report = _run(name, settings, options)
    out.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    if as_json:
        print_json(report)


def _run(name: str, settings: Settings, options: Mapping[str, Any]) -> dict[str, Any]:
    """The report; UsageError for an option that this benchmark does not have."""
    from importlib import import_module
    from inspect import signature

    run = import_module(f"eval.bench.{name.replace('-', '_')}").run
    given = {option: value for option, value in options.items() if value is not None}
    if unknown := sorted(given.keys() - signature(run).parameters.keys()):
        raise UsageError(f"rag bench {name} has no option for {', '.join(unknown)}")
    report: dict[str, Any] = run(settings, **given)
    return report
