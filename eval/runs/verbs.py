"""`rag eval run`, `compare`, `regress`, `sweep` and `make`."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from eval._grouped import grouped
from eval._options import DataOption
from rag.cli._common import JsonOption, QuietOption, VerboseOption, console, print_json, set_verbosity, stop_signals
from rag.errors import UsageError

if TYPE_CHECKING:
    from eval.chunks.data import Half
    from eval.datasets import Dataset
    from eval.runs.settings import RunSettings
    from eval.runs.sweeping import Round
    from rag.config import PipelineConfig

__all__ = ["compare", "make", "regress", "run", "sweep"]

SetsOption = Annotated[
    list[str] | None,
    typer.Option("--dataset", "-d", help="Folder or file of a set, or the name of one under --data; repeatable."),
]
FormatOption = Annotated[
    str | None, typer.Option("--format", help="spans, beir, trec, chroma, squad or table. Default: by looking.")
]
DocsOption = Annotated[Path | None, typer.Option("--docs", help="Folder of the documents of a table of questions.")]
OutOption = Annotated[Path | None, typer.Option("--out", "-o", help="Folder for the results and the report.")]
CacheOption = Annotated[
    Path | None, typer.Option("--cache", help="Folder for indexes, vectors and answers. Default: the user's cache.")
]
HalfOption = Annotated[str, typer.Option(help="dev (for knobs), test (touch it once) or all.")]
LimitOption = Annotated[int, typer.Option(min=0, help="The first so many questions of each set; 0 for all.")]
WorkersOption = Annotated[
    int | None, typer.Option(min=0, help="Processes that answer. Default: one a core, 4 at most; 0: this process.")
]
ResamplesOption = Annotated[int, typer.Option(min=100, help="Resamples of the bootstrap.")]
SeedOption = Annotated[int, typer.Option(help="Seed of the bootstrap.")]
_MOST_WORKERS = 4
_ADVICE = "answers so far are kept; run the same command again to go on"


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What `run` and `sweep` are told alike."""

    dataset: SetsOption = None
    data: DataOption = None
    out: OutOption = None
    format: FormatOption = None
    docs: DocsOption = None
    half: HalfOption = "all"
    limit: LimitOption = 0
    workers: WorkersOption = None
    cache: CacheOption = None
    resamples: ResamplesOption = 2000
    seed: SeedOption = 0
    as_json: JsonOption = False
    quiet: QuietOption = False
    verbose: VerboseOption = 0

    def settings(self, configs: Mapping[str, PipelineConfig]) -> RunSettings:
        from eval.runs.settings import RunSettings

        return RunSettings(
            datasets=self._datasets(), configs=configs, cache=_cache(self.cache), half=_half(self.half),
            workers=_workers(self.workers), resamples=self.resamples, seed=self.seed,
        )  # fmt: skip

    def _datasets(self) -> tuple[Dataset, ...]:
        from eval.datasets import read_dataset

        if not self.dataset:
            raise UsageError(
                "--dataset DIR is needed: a folder or file of questions, or the name of a set under --data"
            )
        paths = [_path(name, self.data) for name in self.dataset]
        read = [read_dataset(path, self.format, documents=self.docs) for path in paths]
        return tuple(one.part(_half(self.half), self.limit) for one in read)


@dataclass(frozen=True, kw_only=True)
class Told:
    """What `compare` and `regress` are told alike."""

    out: Annotated[Path | None, typer.Option("--out", "-o", help="Folder for the comparison, JSON and Markdown.")] = (
        None
    )
    resamples: ResamplesOption = 2000
    seed: SeedOption = 0
    as_json: JsonOption = False
    quiet: QuietOption = False

    @property
    def drawn(self) -> dict[str, int]:
        return {"resamples": self.resamples, "seed": self.seed}

    def say(self, found: Mapping[str, Any], name: str) -> None:
        from eval._reports import write_report
        from eval.runs.comparing import markdown

        text = markdown(found)
        if self.out is not None:
            write_report(self.out, name, found, text)
        if self.as_json:
            print_json(found)
        elif not self.quiet:
            typer.echo(text)


_ALL, _KNOBS, _TOLD = Asked(), Asked(half="dev"), Told()


@grouped
def run(
    config: Annotated[
        list[Path] | None, typer.Option("--config", "-c", help="YAML file; repeatable. Default: the default pipeline.")
    ] = None,
    asked: Asked = _ALL,
) -> None:
    """Ask configs every question of data sets: results.json, report.html, report.md, timings.json, TREC files.

    Example: rag eval run --dataset squad.json --config a.yaml --config b.yaml --out out
    """
    set_verbosity(asked.verbose)
    from eval.runs.results import write
    from eval.runs.run import run as run_all
    from eval.runs.settings import labelled

    out = _needed(asked.out)
    settings = asked.settings(labelled(config or []))
    with stop_signals(_ADVICE):
        done = run_all(settings, _tell(asked.quiet), _bar(asked.quiet))
        results = write(done, out)
    if asked.as_json:
        print_json(results)
    elif not asked.quiet:
        typer.echo((out / "report.md").read_text(encoding="utf-8"))
        console().print(f"{done.seconds:.0f} s; report: {out / 'report.html'}", markup=False)


@grouped
def compare(
    before: Annotated[Path, typer.Argument(metavar="A", help="results.json, or its folder.")],
    after: Annotated[Path, typer.Argument(metavar="B", help="The other one.")],
    told: Told = _TOLD,
) -> None:
    """B minus A on the questions that both answered, with intervals and Holm-corrected p-values.

    Example: rag eval compare before/results.json after/results.json
    """
    from eval.runs.comparing import compare as compare_all
    from eval.runs.results import read_results

    told.say(compare_all(read_results(before), read_results(after), **told.drawn), "compare")


@grouped
def regress(
    after: Annotated[Path, typer.Argument(metavar="RESULTS", help="The new results.json, or its folder.")],
    against: Annotated[Path, typer.Option("--against", help="The results.json that nothing may fall behind.")],
    told: Told = _TOLD,
) -> None:
    """Exit code 1, and which measure, when anything fell beyond its 95 % interval. For continuous integration.

    Example: rag eval regress out --against baseline/results.json
    """
    from eval.runs.comparing import regress as regress_all
    from eval.runs.results import read_results

    found = regress_all(read_results(against), read_results(after), **told.drawn)
    told.say(found, "regress")
    for one in found["fallen"]:
        console().print(
            f"fell: {one['set']}, {one['b']}: {one['measure']} {one['difference']:+.4f} "
            f"[{one['low']:+.4f}, {one['high']:+.4f}]",
            markup=False,
        )
    if found["fallen"]:
        raise typer.Exit(1)


@grouped
def sweep(
    grid: Annotated[list[str], typer.Option("--grid", help="slot=a,b or slot.parameter=1,2; repeatable.")],
    config: Annotated[Path | None, typer.Option("--config", "-c", help="YAML of what the grid changes.")] = None,
    halving: Annotated[
        bool, typer.Option("--halving", help="Ask few questions of all, ever more of the best.")
    ] = False,
    measure: Annotated[str, typer.Option(help="What decides, averaged over the sets.")] = "span_recall",
    asked: Asked = _KNOBS,
) -> None:
    """Try every combination of a grid; sweep.json has all rounds, the report the configs of the last one.

    Knobs are never set on the test half.

    Example: rag eval sweep --dataset set --grid 'selector.budget=400,800' --grid 'chunker=recursive,sentence' --halving
    """
    set_verbosity(asked.verbose)
    from eval.runs.results import dump, rounded, write
    from eval.runs.sweeping import grid as grid_of
    from eval.runs.sweeping import sweep as sweep_all
    from rag.config import PipelineConfig

    out = _needed(asked.out)
    if asked.half == "test":
        raise UsageError("--half test: knobs are set on the dev half; use --half dev, then `rag eval run --half test`")
    base = PipelineConfig.from_yaml(config) if config else PipelineConfig.default()
    settings = asked.settings(grid_of(base, grid))
    with stop_signals(_ADVICE):
        done, rounds = sweep_all(settings, _tell(asked.quiet), _bar(asked.quiet), measure=measure, halving=halving)
        write(done, out)
    best = next(iter(rounds[-1].means))
    report = rounded(
        {
            "format": 1, "measure": measure, "best": best, "config": settings.configs[best].for_index(),
            "rounds": [{"questions": one.questions, "order": list(one.means), "means": one.means} for one in rounds],
        }
    )  # fmt: skip
    dump(report, out / "sweep.json")
    if asked.as_json:
        print_json(report)
    elif not asked.quiet:
        typer.echo(_rounds(rounds, measure))


def make(
    documents: Annotated[Path, typer.Argument(metavar="DOCS", help="Folder of the documents.")],
    out: OutOption = None,
    count: Annotated[int, typer.Option(min=1, help="Questions at most.")] = 100,
    source: Annotated[
        str, typer.Option(help="template (no model), or llm: the generator of the config writes.")
    ] = "template",
    format: Annotated[
        str, typer.Option("--format", help="spans, for `rag eval run`; sft, chats for training.")
    ] = "spans",
    config: Annotated[
        Path | None, typer.Option("--config", "-c", help="YAML of the pipeline that must find the evidence.")
    ] = None,
    cache: CacheOption = None,
    seed: Annotated[int, typer.Option(help="Which of the candidates are taken.")] = 0,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Make a question set of your own documents, with the exact places of the evidence.

    Example: rag eval make docs --out own --count 50, then: rag eval run --dataset own --out out
    """
    from eval.datasets.making import make as make_all
    from eval.datasets.making import write_sft, write_spans
    from rag.config import PipelineConfig

    out = _needed(out)
    for name, given, known in (("--source", source, ("template", "llm")), ("--format", format, ("spans", "sft"))):
        if given not in known:
            raise UsageError(f"{name} {given}: expected {' or '.join(known)}")
    line = PipelineConfig.from_yaml(config) if config else PipelineConfig.default()
    with stop_signals("nothing was written"):
        made = make_all(documents, line, _cache(cache), count=count, source=source, seed=seed, tell=_tell(quiet))
        with made.index:
            (write_sft if format == "sft" else write_spans)(made, out)
    report = {"questions": len(made.asked), "documents": len(made.texts), "dropped": dict(made.dropped)}
    if as_json:
        print_json(report)
    elif not quiet:
        reasons = "; ".join(f"{many} {why}" for why, many in made.dropped.items())
        typer.echo(
            f"{len(made.asked)} questions about {len(made.texts)} documents in {out}. Left out: {reasons or 'none'}"
        )


def _rounds(rounds: Sequence[Round], measure: str) -> str:
    from eval._reports import table

    parts = [
        f"{one.questions} questions of a set, {measure}:\n\n" + table(("config", "mean"), one.means.items(), 4)
        for one in rounds
    ]
    return "\n\n".join(parts)


def _path(name: str, data: Path | None) -> Path:
    path = Path(name)
    return data / name if data is not None and not path.exists() and (data / name).exists() else path


def _half(half: str) -> Half:
    known: dict[str, Half] = {"dev": "dev", "test": "test", "all": "all"}
    if half in known:
        return known[half]
    raise UsageError(f"--half {half}: expected dev, test or all")


def _needed(out: Path | None) -> Path:
    if out is None:
        raise UsageError("--out DIR is needed: the folder for the results and the report")
    return out


def _cache(cache: Path | None) -> Path:
    from platformdirs import user_cache_path

    return (cache or user_cache_path("chunkwise") / "eval").resolve()


def _workers(workers: int | None) -> int:
    return min(os.cpu_count() or 1, _MOST_WORKERS) if workers is None else workers


def _tell(quiet: bool) -> Callable[[str], None]:
    err = console()
    return lambda line: None if quiet else err.print(line, markup=False)


def _bar(quiet: bool) -> Callable[[str], AbstractContextManager[Callable[[int, int, str], None]]]:
    from rag.cli.upkeep import progress_bar

    return lambda title: progress_bar(title, silent=quiet)
