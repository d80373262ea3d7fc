"""`rag bench NAME --out FILE`: speed and quality against the peers, interleaved in one run.

A benchmark is a file of this folder with `run(settings) -> report`; its file name is its name.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from eval.bench import _options as options
from eval.bench._tables import CheckOption, WriteOption, tables
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
    name: Annotated[str, typer.Argument(help="Which benchmark, or tables; an unknown name lists them.")],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Where the JSON report goes.")] = None,
    data: options.Data = None,
    rounds: options.Rounds = 3,
    documents: options.Documents = 200,
    threads: options.Threads = 1,
    seed: options.Seed = 0,
    kills: options.Kills = 20,
    peer_python: options.PeerPython = None,
    quality: options.Quality = True,
    part: options.Part = None,
    length: options.Length = None,
    questions: options.Questions = None,
    calibrate: options.Calibrate = None,
    rows: options.Rows = None,
    seconds: options.Seconds = None,
    clients: options.Clients = None,
    check: CheckOption = None,
    write: WriteOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = 0,
) -> None:
    """Measure this pipeline and other frameworks in one interleaved run, and check the claims.

    Example: rag bench ingest --out bench.json --data DATA --peer-python peers/bin/python
    """
    set_verbosity(verbose)
    if name == "tables":
        return tables(check, write)
    if name not in benchmarks():
        raise UsageError(f"no benchmark {name!r}; there are: {', '.join(benchmarks())}, tables")
    if out is None or not out.resolve().parent.is_dir():
        raise UsageError(f"rag bench {name} needs --out FILE in a folder that exists, not {out}")
    from eval.bench._report import Settings

    settings = Settings(
        data=data, config=config, rounds=rounds, documents=documents, threads=threads, seed=seed, kills=kills,
        peer_pythons=tuple(str(path) for path in peer_python or []), quality=quality, quiet=quiet,
    )  # fmt: skip
    given = {
        "parts": part, "lengths": length, "questions": questions, "calibrate": calibrate, "rows": rows,
        "seconds": seconds, "clients": clients,
    }  # fmt: skip
    report = _run(name, settings, given)
    out.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    if as_json:
        print_json(report)
    return None


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
