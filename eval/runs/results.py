"""results.json (the same bytes for the same inputs), timings.json, and the files beside them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from statistics import median
from typing import Any

from eval.bench._report import load_average, machine
from eval.chunks.stats import differences, holm
from eval.measures.intervals import Interval, f1_interval, intervals
from eval.measures.ranking import write_trec
from eval.runs.outcomes import BUDGETS
from eval.runs.run import Done, SetRun
from eval.runs.scoring import BETTER, COSTS, FAILURES, PROXIES, STAGES, Scored
from eval.runs.settings import config_hash, versions
from rag.errors import UsageError

__all__ = ["compared", "read_results", "results_of", "rounded", "timings_of", "write"]

_PLACES = 6
_FORMAT = 1


def results_of(done: Done) -> dict[str, Any]:
    """Everything but times, floats rounded; see the report for what the parts mean."""
    settings = done.settings
    scores = {(one.dataset.name, one.label): {q.row["query_id"]: q.scores for q in one.questions} for one in done.runs}
    found: dict[str, Any] = rounded(
        {
            "format": _FORMAT,
            "seed": settings.seed,
            "resamples": settings.resamples,
            "versions": versions(),
            "sets": {
                one.name: {
                    "documents": len(one.texts) or _counted(done, one.name),
                    "questions": len(one.questions),
                    "half": settings.half,
                    "digests": {"documents": one.documents_digest, "questions": one.questions_digest},
                    "has_answers": one.has_answers,
                }
                for one in settings.datasets
            },
            "configs": {
                label: {"config": config.for_index(), "hash": config_hash(config)}
                for label, config in settings.configs.items()
            },
            "runs": [_run(one, settings.resamples, settings.seed) for one in done.runs],
            "comparisons": compared(scores, list(settings.configs), settings.resamples, settings.seed),
        }
    )
    return found


def compared(
    scores: Mapping[tuple[str, str], Mapping[str, Mapping[str, float]]],
    labels: Sequence[str],
    resamples: int,
    seed: int,
) -> list[dict[str, Any]]:
    """Every two configs on every set and measure: mean of b minus mean of a over the questions that both have.

    `scores`: (set, config) -> question -> measure -> score. Holm's family is all comparisons of one measure.
    """
    import numpy as np

    found: list[dict[str, Any]] = []
    for name in dict.fromkeys(name for name, _ in scores):
        for a, b in combinations([label for label in labels if (name, label) in scores], 2):
            left, right = scores[name, a], scores[name, b]
            both = [query for query in left if query in right]
            for measure in sorted({one for query in both for one in left[query]}):
                pairs = [
                    (left[query][measure], right[query][measure])
                    for query in both
                    if measure in left[query] and measure in right[query]
                ]
                if pairs:
                    ours, base = np.asarray([[y for _, y in pairs]]), np.asarray([[x for x, _ in pairs]])
                    made = differences(ours, base, resamples=resamples, seed=seed)[0]
                    found.append(
                        {"set": name, "measure": measure, "a": a, "b": b, "difference": made.mean, "low": made.low,
                         "high": made.high, "p": made.p, "n": len(pairs)}
                    )  # fmt: skip
    for measure in {one["measure"] for one in found}:
        family = [one for one in found if one["measure"] == measure]
        for one, p in zip(family, holm([one["p"] for one in family]), strict=True):
            one["p_holm"] = p
    return found


def timings_of(done: Done) -> dict[str, Any]:
    """Seconds of this run; those of a stage were taken when the question was answered, maybe by an earlier run.

    `costs` has the time to the first token, and what depends on the questions before: tokens whose keys and values were
    there, bytes of those from disk, sentences that the index did not hold yet.
    """
    return {
        "machine": machine(),
        "load": load_average(),
        "workers": done.settings.workers,
        "seconds": round(done.seconds, 2),
        "runs": [
            {
                "set": one.dataset.name,
                "config": one.label,
                "ingest_seconds": None if one.times["ingest"] is None else round(one.times["ingest"], 2),
                "answer_seconds": round(one.times["answer"], 2),
                "failed_documents": dict(one.failed_documents),
                **{
                    part: {name: _percentiles(values) for name, values in sorted(one.times[part].items())}
                    for part in ("stages", "costs")
                },
            }
            for one in done.runs
        ],
    }


def write(done: Done, out: Path) -> dict[str, Any]:
    """All files of a run into `out`; the results."""
    from eval.report import markdown, write_html

    out.mkdir(parents=True, exist_ok=True)
    results = results_of(done)
    dump(results, out / "results.json")
    dump(timings_of(done), out / "timings.json")
    for one in done.runs:
        folder = out / "trec" / _folder(one.dataset.name) / _folder(one.label)
        folder.mkdir(parents=True, exist_ok=True)
        write_trec(folder, one.qrels, one.rankings)
    (out / "report.md").write_text(markdown(results), encoding="utf-8")
    write_html(results, out / "report.html")
    return results


def dump(value: Mapping[str, Any], path: Path) -> None:
    """JSON with sorted keys, whole or not at all."""
    aside = path.with_name(f"{path.name}.part")
    aside.write_text(json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")
    aside.replace(path)


def read_results(path: Path) -> dict[str, Any]:
    """The results in that file, or in `results.json` of that folder; UsageError when they cannot be read."""
    path = path / "results.json" if path.is_dir() else path
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: no results of `rag eval run` ({error})") from error
    if not isinstance(found, dict) or found.get("format") != _FORMAT:
        raise UsageError(f"{path}: expected results of `rag eval run` with format {_FORMAT}; run it again")
    return found


def rounded(value: Any) -> Any:
    """Floats to 6 places, everywhere inside; 0 has no sign, and what is no number is None."""
    if isinstance(value, float):
        return (round(value, _PLACES) + 0.0) if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: rounded(inner) for key, inner in value.items()}
    return [rounded(inner) for inner in value] if isinstance(value, list | tuple) else value


def _run(one: SetRun, resamples: int, seed: int) -> dict[str, Any]:
    measures: dict[str, list[float]] = {}
    for question in one.questions:
        for name, score in question.scores.items():
            measures.setdefault(name, []).append(score)
    means = intervals(measures, resamples=resamples, seed=seed)
    figures = {name: _figure(name, found, len(measures[name])) for name, found in means.items()}
    if not all(question.answerable for question in one.dataset.questions):
        outcomes = [question.abstention for question in one.questions]
        found = f1_interval(outcomes, resamples=resamples, seed=seed)
        figures["abstention_f1"] = _figure("abstention_f1", found, len(outcomes))
    shares = {stage: [q.shares[stage] for q in one.questions if q.shares] for stage in STAGES}
    left = intervals(shares, resamples=resamples, seed=seed)
    failures = [question.failure or "none" for question in one.questions]
    return {
        "set": one.dataset.name,
        "config": one.label,
        "chunks": one.chunks,
        "measures": figures,
        "absent": dict(one.absent),
        "curve": _curve(one.questions, resamples, seed),
        "waterfall": [
            {"stage": stage, "value": left[stage][0], "low": left[stage][1], "high": left[stage][2]}
            for stage in STAGES
            if stage in left
        ],
        "failures": {name: failures.count(name) for name in FAILURES},
        "questions": [dict(question.row) for question in one.questions],
    }


def _curve(questions: Sequence[Scored], resamples: int, seed: int) -> list[dict[str, Any]]:
    at = {str(tokens): [q.curve[i] for q in questions if q.curve] for i, tokens in enumerate(BUDGETS)}
    found = intervals(at, resamples=resamples, seed=seed)
    return [
        {"tokens": tokens, "recall": found[str(tokens)][0], "low": found[str(tokens)][1], "high": found[str(tokens)][2]}
        for tokens in BUDGETS
        if str(tokens) in found
    ]


def _figure(name: str, found: Interval, count: int) -> dict[str, Any]:
    mean, low, high = found
    better = BETTER.get(name, "higher")
    kind = {"proxy": name in PROXIES, "cost": name in COSTS}
    return {"mean": mean, "low": low, "high": high, "n": count, "better": better, **kind}


def _counted(done: Done, name: str) -> int:
    """Documents of a set that is a folder: those that were read and those that could not be."""
    first = next(one for one in done.runs if one.dataset.name == name)
    return first.documents + len(first.failed_documents)


def _folder(name: str) -> str:
    return name.replace("/", "_")


def _percentiles(values: Sequence[float]) -> dict[str, float]:
    ordered = sorted(values)
    return {
        "p50": round(median(ordered), 4),
        "p95": round(ordered[min(len(ordered) - 1, int(0.95 * len(ordered)))], 4),
        "sum": round(sum(ordered), 2),
    }
