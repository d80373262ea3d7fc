"""The report as JSON, JSON Lines and Markdown; what differs from run to run lies in a file of its own."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from statistics import fmean, median
from typing import Any

from eval._reports import table, write_report
from eval.bench._report import load_average, machine
from eval.chunks.stats import differences, holm
from eval.compress.claims import claims_of
from eval.compress.run import Evaluated, Evaluation
from eval.compress.settings import Settings
from rag.errors import UsageError

__all__ = ["markdown", "report_of", "timings_of", "write"]

_PACKAGES = ("chunkwise", "numpy", "tokenizers")
_SCORES = ("recall", "kept", "answer", "numbers", "size", "tokens")


def report_of(done: Evaluation, settings: Settings) -> dict[str, Any]:
    """Everything but times: the same bytes for the same inputs."""
    report = {
        "kind": "compressor-evaluation",
        "versions": {name: version(name) for name in _PACKAGES},
        "half": settings.half,
        "budget": settings.budget,
        "rates": sorted(settings.rates, reverse=True),
        "compressors": [spec if isinstance(spec, str) else dict(spec) for spec in settings.labelled.values()],
        "selector": settings.selector,
        "retriever": settings.retriever,
        "baseline": settings.baseline,
        "resamples": settings.resamples,
        "seed": settings.seed,
        "embedder": done.embedder,
        "counter": done.counter,
        "sets": {name: _set(one, settings) for name, one in done.sets.items()},
    }
    return {**report, "claims": claims_of(report)}


def _set(one: Evaluated, settings: Settings) -> dict[str, Any]:
    rows = []
    for number, row in enumerate(one.rows):
        likelihood = one.likelihoods.get(number)
        broken: dict[str, int] = {}
        for law in (law for found in row.measured for law in found.broken):
            broken[law] = broken.get(law, 0) + 1
        rows.append(
            {
                "compressor": row.compressor,
                "rate": row.rate,
                "scores": {name: _mean(row.scores(name)) for name in _SCORES},
                "off_target": _off(row.scores("size")) if row.rate < 1 else None,
                "embedded": round(fmean(row.embedded), 1),
                "likelihood": None if not likelihood else round(fmean(likelihood), 4),
                "asked": len(likelihood or ()),
                "broken": dict(sorted(broken.items())),
            }
        )
    return {**one.facts, "rows": rows, "comparisons": list(_compared(one, settings))}


def _mean(values: list[float | None]) -> float | None:
    there = [value for value in values if value is not None]
    return round(fmean(there), 4) if there else None


def _off(sizes: list[float | None]) -> float:
    """Share of the contexts whose size is more than 3 % off the target."""
    return round(fmean(abs((size or 0.0) - 1) > 0.03 for size in sizes), 4)


def _compared(one: Evaluated, settings: Settings) -> Iterator[dict[str, Any]]:
    """Every compressor minus the baseline at the same rate, in recall (paired bootstrap, Holm over compressors), and in
    `answer` and `likelihood` over the questions that have them. References are there where the baseline is none.
    """
    import numpy as np

    told = {id(row): one.likelihoods.get(number, []) for number, row in enumerate(one.rows)}
    left_out = "(" if settings.baseline.startswith("(") else "(oracle)"
    for rate in sorted(settings.rates, reverse=True):
        here = [row for row in one.rows if row.rate == rate]
        base = next((row for row in here if row.compressor == settings.baseline), None)
        if base is None:
            raise UsageError(f"--baseline {settings.baseline}: neither a compressor of this run nor a reference")
        others = [row for row in here if row is not base and not row.compressor.startswith(left_out)]
        if not others:
            continue
        scores = np.array([row.scores("recall") for row in others], dtype=np.float64)
        against = np.array([base.scores("recall") for _ in others], dtype=np.float64)
        made = differences(scores, against, resamples=settings.resamples, seed=settings.seed)
        for row, found, p in zip(others, made, holm([one.p for one in made]), strict=True):
            yield {
                "compressor": row.compressor, "rate": rate, "mean": round(found.mean, 4), "low": round(found.low, 4),
                "high": round(found.high, 4), "p_holm": round(p, 4),
                "answer": _difference(row.scores("answer"), base.scores("answer"), settings),
                "likelihood": _difference(told[id(row)], told[id(base)], settings),
            }  # fmt: skip


def _difference(
    values: Sequence[float | None], against: Sequence[float | None], settings: Settings
) -> dict[str, Any] | None:
    """Mean paired difference with its interval, None without a question that has both."""
    import numpy as np

    pairs = [(a, b) for a, b in zip(values, against, strict=True) if a is not None and b is not None]
    if not pairs:
        return None
    both = np.array(pairs, dtype=np.float64).T
    found = differences(both[:1], both[1:], resamples=settings.resamples, seed=settings.seed)[0]
    ends = {"mean": round(found.mean, 4), "low": round(found.low, 4), "high": round(found.high, 4)}
    return {**ends, "questions": len(pairs)}


def timings_of(done: Evaluation) -> dict[str, Any]:
    """CPU milliseconds of a compression without the encoder, source tokens per CPU second, and the machine."""
    rows = [
        {
            "set": name, "compressor": row.compressor, "rate": row.rate, "median_cpu_ms": round(median(row.cpu_ms), 3),
            "tokens_per_cpu_second": round(1000 * sum(row.source_tokens) / max(sum(row.cpu_ms), 1e-9)),
        }
        for name, one in done.sets.items()
        for row in one.rows
    ]  # fmt: skip
    return {"kind": "compressor-timings", "machine": machine(), "load_average": load_average(), "rows": rows}


def write(done: Evaluation, settings: Settings, folder: Path) -> dict[str, Any]:
    """compress.json, compress.md and questions.jsonl, which repeat, and timings.json, which does not; the report."""
    report = report_of(done, settings)
    write_report(folder, "compress", report, markdown(report))
    timings = json.dumps(timings_of(done), indent=1) + "\n"
    (folder / "timings.json").write_text(timings, encoding="utf-8")
    with (folder / "questions.jsonl").open("w", encoding="utf-8", newline="\n") as lines:
        for row in _questions(done):
            lines.write(json.dumps(row, ensure_ascii=False) + "\n")
    return report


def _questions(done: Evaluation) -> Iterator[dict[str, Any]]:
    for name, one in done.sets.items():
        for row in one.rows:
            for question, found in zip(one.questions, row.measured, strict=True):
                yield {
                    "set": name, "question": question.id, "compressor": row.compressor, "rate": row.rate,
                    **{key: None if value is None else round(value, 6) for key, value in found.scores.items()},
                    "kept": [[one.names[doc_id], start, end] for doc_id, start, end in found.places],
                    "broken": list(found.broken),
                }  # fmt: skip


def _side_by_side(comparisons: Sequence[Mapping[str, Any]], baseline: str) -> tuple[list[str], list[list[Any]]]:
    """Header and rows: differences in answers kept and in likelihood, each with its interval."""
    header = [f"minus {baseline}", "rate", "answers kept", "low", "high", "likelihood", "low", "high", "questions"]
    rows = []
    for one in comparisons:
        answer, likelihood = one["answer"] or {}, one["likelihood"] or {}
        ends = [found.get(key) for found in (answer, likelihood) for key in ("mean", "low", "high")]
        rows.append([one["compressor"], one["rate"], *ends, likelihood.get("questions")])
    return header, rows


def markdown(report: Mapping[str, Any], timings: Mapping[str, Any] | None = None) -> str:
    """The report for people."""
    parts = [
        f"# Compressor evaluation\n\nQuestions of the {report['half']} half; contexts of {report['selector']} over "
        f"{report['retriever']}, {report['budget']} tokens of {report['counter']}.\nrecall: share of the evidence "
        "characters; kept: of those that the context has; answer: share of answers in the context that are still in "
        "it; numbers: of those in kept sentences, share that is whole; size: tokens over the target; off: share of "
        "contexts more than 3 % off it; likelihood: mean ln p a token of short answers under the local model."
    ]
    for name, one in report["sets"].items():
        parts.append(
            f"## {name}\n\n{one['questions']} questions, {one['source_tokens']:.0f} tokens a context, "
            f"{one['with_answers']} with an answer that the context says."
        )
        header = ["compressor", "rate", *_SCORES, "off", "texts embedded", "likelihood"]
        body = (
            [
                row["compressor"], row["rate"], *(row["scores"][score] for score in _SCORES), row["off_target"],
                row["embedded"], row["likelihood"],
            ]
            for row in one["rows"]
        )  # fmt: skip
        parts.append(table(header, body, 3))
        made = ([c["compressor"], c["rate"], c["mean"], c["low"], c["high"], c["p_holm"]] for c in one["comparisons"])
        names = [f"recall minus {report['baseline']}", "rate", "mean", "low", "high", "p (Holm)"]
        parts.append(table(names, made, 3))
        parts.append(table(*_side_by_side(one["comparisons"], report["baseline"]), 3))
        faults = [
            f"- {row['compressor']} at {row['rate']}: {law}, {count} questions"
            for row in one["rows"]
            for law, count in row["broken"].items()
        ]
        parts += ["Broken laws:\n" + "\n".join(faults)] if faults else []
    if report["claims"]:
        body = ([one["claim"], one["value"], one["goal"], "yes" if one["holds"] else "no"] for one in report["claims"])
        parts += [f"## Goals ({report['half']} half)", table(["goal", "value", "at least", "holds"], body, 3)]
    if timings is not None:
        columns = ("set", "compressor", "rate", "median_cpu_ms", "tokens_per_cpu_second")
        rows = ([row[column] for column in columns] for row in timings["rows"])
        parts += ["## CPU without the encoder", table(columns, rows, 3)]
    return "\n\n".join(parts) + "\n"
