"""The report as JSON, JSON Lines and Markdown; what differs from run to run lies in a file of its own."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

from eval._reports import table
from eval.bench._report import load_average, machine
from eval.select.claims import claims_of
from eval.select.compare import COMPARED, comparisons, means
from eval.select.run import Evaluated, Evaluation
from eval.select.settings import Settings, label_of

__all__ = ["markdown", "report_of", "timings_of", "write"]

_SCORES = ("recall", "all", "any", "precision", "tokens")
_PACKAGES = ("chunkwise", "numpy", "tokenizers")


def report_of(done: Evaluation, settings: Settings) -> dict[str, Any]:
    """Everything but times: the same bytes for the same inputs."""
    report: dict[str, Any] = {
        "kind": "selector-evaluation",
        "versions": {name: version(name) for name in _PACKAGES},
        "half": settings.half,
        "baseline": label_of(settings.baseline),
        "selectors": [spec if isinstance(spec, str) else dict(spec) for spec in settings.labelled.values()],
        "retrievers": [spec if isinstance(spec, str) else dict(spec) for spec in settings.retrievers],
        "budgets": sorted(settings.budgets),
        "resamples": settings.resamples,
        "seed": settings.seed,
        "embedder": done.embedder,
        "counters": dict(done.counters),
        "absent_counters": dict(done.absent),
        "sets": {name: _set(one, settings) for name, one in done.sets.items()},
    }
    return {**report, "claims": claims_of(report)}


def _set(one: Evaluated, settings: Settings) -> dict[str, Any]:
    made = comparisons(one.rows, label_of(settings.baseline), resamples=settings.resamples, seed=settings.seed)
    rows = means(one.rows, one.questions, one.facts["documents"])
    return {**one.facts, "rows": rows, "comparisons": made}


def timings_of(done: Evaluation) -> dict[str, Any]:
    """CPU milliseconds of a selection without the encoder, the tokenizer's part of them, and the machine."""
    rows = [
        {
            "set": name, "retriever": row.retriever, "selector": row.selector, "counter": row.counter,
            "budget": row.budget,
            "median_cpu_ms": round(median(row.cpu_ms), 3), "max_cpu_ms": round(max(row.cpu_ms), 3),
            "median_tokenizer_ms": round(median(row.counter_ms), 3),
        }
        for name, one in done.sets.items()
        for row in one.rows
    ]  # fmt: skip
    return {"kind": "selector-timings", "machine": machine(), "load_average": load_average(), "rows": rows}


def write(done: Evaluation, settings: Settings, folder: Path) -> dict[str, Any]:
    """select.json, select.md and questions.jsonl, which repeat, and timings.json, which does not; the report."""
    folder.mkdir(parents=True, exist_ok=True)
    report = report_of(done, settings)
    (folder / "select.json").write_text(_json(report), encoding="utf-8")
    (folder / "select.md").write_text(markdown(report), encoding="utf-8")
    (folder / "timings.json").write_text(_json(timings_of(done)), encoding="utf-8")
    with (folder / "questions.jsonl").open("w", encoding="utf-8", newline="\n") as lines:
        for row in _questions(done):
            lines.write(json.dumps(row, ensure_ascii=False) + "\n")
    return report


def _json(value: Mapping[str, Any]) -> str:
    return json.dumps(value, indent=1, ensure_ascii=False) + "\n"


def _questions(done: Evaluation) -> Iterator[dict[str, Any]]:
    """One row per question, selector and budget, with the places that were kept."""
    for name, one in done.sets.items():
        for row in one.rows:
            for question, found in zip(one.questions, row.measured, strict=True):
                yield {
                    "set": name, "question": question.id, "retriever": row.retriever, "selector": row.selector,
                    "counter": row.counter, "budget": row.budget,
                    **{key: round(value, 6) for key, value in found.scores.items()},
                    "kept": [[one.names[doc_id], start, end] for doc_id, start, end in found.places],
                    "broken": list(found.broken),
                }  # fmt: skip


def markdown(report: Mapping[str, Any], timings: Mapping[str, Any] | None = None) -> str:
    """The report for people: per set, retriever and counter one table of recall, one of the largest budget."""
    parts = [_head(report)]
    for name, one in report["sets"].items():
        parts += [f"## {name}", _facts(one)]
        for retriever in dict.fromkeys(row["retriever"] for row in one["rows"]):
            for counter, tokenizer in report["counters"].items():
                rows = [row for row in one["rows"] if (row["retriever"], row["counter"]) == (retriever, counter)]
                made = [c for c in one["comparisons"] if (c["retriever"], c["counter"]) == (retriever, counter)]
                parts += [f"### {retriever}, tokens of {tokenizer}", *_tables(report, rows, made)]
    if report["claims"]:
        body = ([one["claim"], one["value"], one["goal"], "yes" if one["holds"] else "no"] for one in report["claims"])
        parts += [f"## Goals ({report['half']} half)", _table(["goal", "value", "at least", "holds"], body)]
    if timings is not None:
        parts += ["## CPU milliseconds of a selection without the encoder", _times(timings["rows"])]
    return "\n\n".join(parts) + "\n"


def _head(report: Mapping[str, Any]) -> str:
    absent = [f"No budgets in tokens of the {name}: {why}" for name, why in report["absent_counters"].items()]
    return "\n".join(
        [
            "# Selector evaluation",
            "",
            f"Questions of the {report['half']} half; embedder {report['embedder']}.",
            f"Differences to `{report['baseline']}` over the same hits: paired bootstrap over questions, "
            f"{report['resamples']} resamples, seed {report['seed']}; * p < 0.05 after Holm's correction over the "
            "selectors of a column.",
            "recall, precision: of evidence characters, none counted twice. all: share of questions whose evidence is "
            "there whole; any: at least one piece of it. gain: recall between (random) = 0 and (oracle) = 1. (random) "
            "and (lead) take the same hits in random order and from the beginning of each document, (oracle) the "
            "evidence inside of them.",
            *absent,
        ]
    )


def _facts(one: Mapping[str, Any]) -> str:
    poison = f", {one['poisoned_documents']} of them poisoned" if one["poisoned_documents"] else ""
    held = "; ".join(
        f"{name}: recall {found['recall']:.3f}, all {found['all']:.3f}"
        + (f", {found['poisoned']:.1f} poisoned chunks a question" if one["poisoned_documents"] else "")
        for name, found in one["held_by_hits"].items()
    )
    return (
        f"{one['questions']} questions over {one['documents']} documents{poison}; {one['chunks']} chunks of "
        f"{one['chunker']}.\nAll hits together hold: {held}."
    )


def _tables(
    report: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], made: Sequence[Mapping[str, Any]]
) -> Iterator[str]:
    budgets: Sequence[int] = report["budgets"]
    by_name: dict[str, dict[int, Mapping[str, Any]]] = {}
    for row in rows:
        by_name.setdefault(row["selector"], {})[row["budget"]] = row
    header = [f"{score}@{budget}" for score in ("recall", "all") for budget in budgets]
    yield _table(
        ["selector", *header],
        ([name, *(at[b]["scores"][s] for s in ("recall", "all") for b in budgets)] for name, at in by_name.items()),
    )
    others = list(dict.fromkeys(one["selector"] for one in made))
    if others:
        found = {(one["selector"], one["measure"], one["budget"]): one for one in made}
        shown = [(name, budget) for name in COMPARED[:2] for budget in budgets]
        body = ([name, *(_difference(found[name, *column]) for column in shown)] for name in others)
        yield _table([f"minus {report['baseline']}", *header], body)
    last = budgets[-1]
    poisoned = any(at[last]["scores"]["poisoned"] for at in by_name.values())
    names = [*_SCORES, *(("poisoned", "poisoned_share") if poisoned else ())]
    works = ("embedded", "counter_calls", "counted_chars")
    yield f"At {last} tokens; work is the mean of a question:"
    yield _table(
        ["selector", *names, "gain", "texts embedded", "counter calls", "characters counted"],
        (
            [name, *(at[last]["scores"][s] for s in names), at[last]["gain"], *(at[last]["work"][w] for w in works)]
            for name, at in by_name.items()
        ),
    )
    faults = [
        f"- {row['selector']} at {row['budget']}: {law}, {count} questions"
        for row in rows
        for law, count in [*row["broken"].items(), ("less than with a smaller budget", row[_LESS])]
        if count
    ]
    if faults:
        yield "\n".join(["Broken laws:", *faults])


_LESS = "less_than_with_a_smaller_budget"


def _difference(one: Mapping[str, Any]) -> str:
    star = " *" if one["p_holm"] < 0.05 else ""
    relative = "" if one["relative"] is None else f" ({100 * one['relative']:+.0f} %)"
    return (
        f"{one['mean']:+.3f} [{one['low']:+.3f}, {one['high']:+.3f}]{relative if one['measure'] == 'all' else ''}{star}"
    )


def _table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    return table(header, rows, 3)


def _times(rows: Sequence[Mapping[str, Any]]) -> str:
    names = ("set", "retriever", "selector", "counter", "budget", "median_cpu_ms", "max_cpu_ms", "median_tokenizer_ms")
    return _table(names, ([row[name] for name in names] for row in rows))
