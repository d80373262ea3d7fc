"""A run: every config answers every question of every set; the figures, and beside them the times."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

from eval.datasets import Dataset
from eval.measures.ranking import RANKING, ranking_scores
from eval.runs.asking import answer_all, single_threaded
from eval.runs.gold import Gold, gold_of
from eval.runs.ingesting import Prepared, prepare
from eval.runs.likelihood import LIKELIHOOD, tells
from eval.runs.outcomes import Outcome
from eval.runs.scoring import TOKEN_COSTS, Scored, ranking_of, scored
from eval.runs.settings import RunSettings, check_leaks
from rag.config import PipelineConfig
from rag.registry import spec_name
from rag.store.runs import RUNS_NAME

__all__ = ["Done", "SetRun", "judged", "run"]

_OF_REUSE = ("reused_tokens", "repaired_tokens", "computed_tokens", "bytes_loaded")
Tell = Callable[[str], None]
Bar = Callable[[str], AbstractContextManager[Callable[[int, int, str], None]]]


@dataclass(frozen=True, kw_only=True)
class SetRun:
    """One config on one set. `qrels` and `rankings` are by question id. `absent`: measure -> why there is none."""

    dataset: Dataset
    label: str
    documents: int
    chunks: int
    questions: tuple[Scored, ...]
    qrels: Mapping[str, Mapping[str, int]]
    rankings: Mapping[str, list[str]]
    failed_documents: Mapping[str, str]
    times: Mapping[str, Any] = field(default_factory=dict)
    absent: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Done:
    """All of them, sets in their order, configs in theirs."""

    settings: RunSettings
    runs: tuple[SetRun, ...]
    seconds: float


def run(settings: RunSettings, tell: Tell, bar: Bar) -> Done:
    """Ingest what is new, answer what is not kept, score everything.

    UsageError for a config that knows the questions; errors that every question would meet end the run.
    """
    began = time.perf_counter()
    for dataset in settings.datasets:
        check_leaks(dataset, settings.configs)
    runs: list[SetRun] = []
    with single_threaded(settings.workers) as pool:
        for dataset in settings.datasets:
            for label, config in settings.configs.items():
                prepared = prepare(dataset, config, settings.cache, tell)
                for name, error in sorted(prepared.failed.items())[:3]:
                    tell(f"{dataset.name}: {name} could not be read: {error}")
                runs.append(_one(dataset, label, config, prepared, settings, pool, bar))
    return Done(settings=settings, runs=tuple(runs), seconds=time.perf_counter() - began)


def _one(
    dataset: Dataset,
    label: str,
    config: PipelineConfig,
    prepared: Prepared,
    settings: RunSettings,
    pool: ProcessPoolExecutor | None,
    bar: Bar,
) -> SetRun:
    began = time.perf_counter()
    asked: dict[str, list[str]] = {}
    for question in dataset.questions:
        asked.setdefault(question.text, []).extend(question.answers if question.answerable else ())
    with bar(f"{dataset.name}, {label}") as on_progress:
        outcomes = answer_all(
            asked, prepared, config, settings.cache, pool, lambda done, total: on_progress(done, total, "")
        )
    answered = time.perf_counter() - began
    for path in prepared.directory.glob(f"{RUNS_NAME}*"):  # traces of runs that nobody will look up: 80 KB a question
        path.unlink(missing_ok=True)
    golds = [gold_of(question, dataset, prepared) for question in dataset.questions]
    made = judged(golds, [outcomes[one.text] for one in dataset.questions], dataset, prepared)
    times = {"ingest": prepared.seconds, "answer": answered, **_times(outcomes.values())}
    return SetRun(
        dataset=dataset, label=label, documents=len(prepared.texts), chunks=prepared.count,
        questions=tuple(made), times=times,
        qrels={gold.question.id: gold.grades for gold in golds if gold.grades},
        rankings={gold.question.id: ranking_of(gold, outcomes[gold.question.text]) for gold in golds},
        failed_documents=prepared.failed, absent=_absent(config, dataset, list(outcomes.values())),
    )  # fmt: skip


def _times(outcomes: Iterable[Outcome]) -> dict[str, dict[str, list[float]]]:
    """Seconds of every stage; and what depends on the questions before, such as tokens that were reused."""
    stages: dict[str, list[float]] = {}
    costs: dict[str, list[float]] = {}
    for outcome in outcomes:
        for stage, seconds in outcome["seconds"].items():
            stages.setdefault(stage, []).append(seconds)
        made = outcome["generation"] or {}
        shown = ("ttft_seconds", *(_OF_REUSE if made.get("prompt_tokens") else ())) if made.get("ttft_seconds") else ()
        for name in shown:
            costs.setdefault(name, []).append(made[name])
        if outcome["encoder"] is not None:
            costs.setdefault("sentences_embedded", []).append(outcome["encoder"]["made"])
    return {"stages": stages, "costs": costs}


def _absent(config: PipelineConfig, dataset: Dataset, outcomes: Sequence[Outcome]) -> dict[str, str]:
    answered = [one for one in outcomes if one["error"] is None]
    use = spec_name(config.generator)
    found: dict[str, str] = {}
    if answered and dataset.has_answers and not tells(one["gold"] for one in answered):
        found |= dict.fromkeys(LIKELIHOOD, f"the generator {use} does not tell how likely a text is")
    if answered and not any(one["generation"]["prompt_tokens"] for one in answered):
        found |= dict.fromkeys(TOKEN_COSTS, f"the generator {use} counts no tokens")
    return found


def judged(golds: list[Gold], outcomes: list[Outcome], dataset: Dataset, prepared: Prepared) -> list[Scored]:
    """The scores of every question, in order."""
    rankings = {gold.question.id: ranking_of(gold, one) for gold, one in zip(golds, outcomes, strict=True)}
    qrels = {gold.question.id: gold.grades for gold in golds if gold.grades}
    ranks = ranking_scores(qrels, rankings)
    none = dict.fromkeys(RANKING, 0.0)
    told = tells(outcome["gold"] for outcome in outcomes)
    return [
        scored(gold, outcome, ranks.get(gold.question.id, none), prepared, dataset.has_answers, told)
        for gold, outcome in zip(golds, outcomes, strict=True)
    ]
