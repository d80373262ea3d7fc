"""`rag eval peers`."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from eval._options import DataOption, PeerOption, PythonOption, folders
from eval.runs.verbs import CacheOption, HalfOption, LimitOption, ResamplesOption, SeedOption
from rag.cli._common import JsonOption, QuietOption, VerboseOption, console, print_json, set_verbosity, stop_signals
from rag.errors import UsageError

if TYPE_CHECKING:
    from eval.chunks.data import Half
    from eval.datasets import Dataset

__all__ = ["peers"]

_SETS = ("squad_long", "chroma_chunking", "hotpotqa_200")


def peers(
    data: DataOption = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Folder for peers.json and peers.md.")] = None,
    sets: Annotated[
        list[str] | None, typer.Option("--set", help=f"Folder under --data; repeatable. Default: {', '.join(_SETS)}.")
    ] = None,
    peer: PeerOption = None,
    peer_python: PythonOption = None,
    budget: Annotated[list[int] | None, typer.Option(min=1, help="Tokens; repeatable. Default: 800, 1600.")] = None,
    upkeep: Annotated[
        list[str] | None,
        typer.Option(help="Set on which a second ingest and a kill are measured; repeatable. Default: the last one."),
    ] = None,
    half: HalfOption = "all",
    limit: LimitOption = 0,
    threads: Annotated[int, typer.Option(min=1, help="Threads of every framework.")] = 1,
    workers: Annotated[int, typer.Option(min=0, help="Processes that answer ours; 0: this one.")] = 0,
    cache: CacheOption = None,
    resamples: ResamplesOption = 2000,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = 0,
) -> None:
    """Ours against LangChain, LlamaIndex, Haystack, txtai and Chonkie: same encoder, same reader, same questions.

    Example: rag eval peers --data DATA --out out --peer-python peers/bin/python
    """
    set_verbosity(verbose)
    data, out = folders(data, out, half)
    from platformdirs import user_cache_path

    from eval.peers.measuring import PEERS
    from eval.peers.report import markdown, write
    from eval.peers.run import PeerSettings
    from eval.peers.run import run as run_all

    names = sets or list(_SETS)
    settings = PeerSettings(
        datasets=tuple(_dataset(data / name, half, limit) for name in names),
        cache=(cache or user_cache_path("chunkwise") / "eval").resolve(),
        peers=PEERS if not peer or "all" in peer else tuple(peer), peer_pythons=_pythons(peer_python),
        budgets=tuple(budget or (800, 1600)), upkeep=tuple(upkeep or names[-1:]), half=_half(half), threads=threads,
        workers=workers, resamples=resamples, seed=seed,
    )  # fmt: skip
    with stop_signals("what was measured is kept; run the same command again to go on"):
        report = write(run_all(settings, _tell(quiet), _bar(quiet)), out)
    if as_json:
        print_json(report)
    elif not quiet:
        typer.echo(markdown(report))


def _dataset(path: Path, half: str, limit: int) -> Dataset:
    from eval.datasets import read_dataset

    return read_dataset(path).part(_half(half), limit)


def _half(half: str) -> Half:
    known: dict[str, Half] = {"dev": "dev", "test": "test", "all": "all"}
    return known[half]


def _pythons(given: list[Path] | None) -> tuple[str, ...]:
    """Not resolved: the interpreter of a virtual environment is a link."""
    import sys

    for path in given or []:
        if not path.is_file():
            raise UsageError(f"--peer-python {path}: no such file; give the interpreter of the peers' environment")
    return tuple(str(path.absolute()) for path in given or []) or (sys.executable,)


def _tell(quiet: bool) -> Callable[[str], None]:
    err = console()
    return lambda line: None if quiet else err.print(line, markup=False)


def _bar(quiet: bool) -> Callable[[str], AbstractContextManager[Callable[[int, int, str], None]]]:
    from rag.cli.upkeep import progress_bar

    return lambda title: progress_bar(title, silent=quiet)
