"""The report as Markdown: the tables of the page, without the questions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from eval._reports import table
from eval.report._views import (
    ALPHA,
    CLASSES,
    absences,
    groups,
    interval,
    letters,
    losses,
    measure_name,
    number,
    ordered_runs,
    pairs,
    sets_of,
    table_of,
    versions,
)
from rag.text import printable

__all__ = ["markdown"]

Row = Mapping[str, Any]


def markdown(results: Row) -> str:
    """Summary with intervals and marks, verdicts, budgets, stages, failure classes, hashes and versions."""
    marks = letters(results)
    parts = [
        "# Evaluation report",
        f"Intervals are 95 % from {results['resamples']:,} resamples of the questions, seed {results['seed']}. A "
        f"question that failed counts as zero. Bold: the best of the row. `>A`: better than A, p < {ALPHA} after "
        "Holm's correction. A proxy is computed without a judge, an indication only.",
        "\n".join(f"- {letter}: {_code(label)}" for label, letter in marks.items()),
    ]
    for name in sets_of(results):
        parts += _set(results, name, list(marks.values()))
    return "\n\n".join([*parts, *_again(results, marks)]) + "\n"


def _set(results: Row, name: str, header: list[str]) -> Iterator[str]:
    facts = results.get("sets", {}).get(name)
    yield f"## {_code(name)}"
    if facts:
        yield f"{facts['questions']:,} questions, {facts['documents']:,} documents, half: {printable(facts['half'])}."
    yield from _verdicts(results, name)
    rows = []
    for _, measures in groups(results, name):
        for measure, found in measures:
            lower = ", lower is better" if found.get("better") == "lower" else ""
            cells = table_of(results, name, measure)
            rows.append([_plain(measure_name(measure, found)) + lower, *(_cell(cell) for cell in cells)])
    yield table(["measure", *header], rows)
    for said, who, why in absences(results, name):
        yield f"Not measured: {_plain(said)} of {who}, since {_plain(why)}."
    yield from _curves(results, name)
    yield from _stages(results, name)
    yield from _failures(results, name)


def _cell(cell: Any) -> str:
    if cell is None:
        return "-"
    mean = f"**{cell.mean}**" if cell.best else cell.mean
    return " ".join(part for part in (mean, cell.interval, f"`>{','.join(cell.beats)}`" if cell.beats else "") if part)


def _verdicts(results: Row, name: str) -> Iterator[str]:
    lines = []
    for pair in pairs(results, name):
        said = [f"better on {_plain(', '.join(pair.b_better))}"] if pair.b_better else []
        said += [f"worse on {_plain(', '.join(pair.a_better))}"] if pair.a_better else []
        said = [*said, f"{pair.open} undecided"] if said else ["no difference that the data shows"]
        lines.append(f"- {_code(pair.b)} against {_code(pair.a)}: {'; '.join(said)}.")
    if lines:
        yield "\n".join(lines)


def _curves(results: Row, name: str) -> Iterator[str]:
    runs = [run for run in ordered_runs(results, name) if run.get("curve")]
    if runs:
        marks = letters(results)
        tokens = sorted({row["tokens"] for run in runs for row in run["curve"]})
        found = [{row["tokens"]: f"{number(row['recall'])} {interval(row)}" for row in run["curve"]} for run in runs]
        rows = [[f"{one:,}", *(curve.get(one, "-") for curve in found)] for one in tokens]
        yield "Evidence recall within a budget:"
        yield table(["tokens", *(marks[run["config"]] for run in runs)], rows)


def _stages(results: Row, name: str) -> Iterator[str]:
    runs = [(run["config"], losses(run.get("waterfall") or ())) for run in ordered_runs(results, name)]
    stages = list(dict.fromkeys(step.stage for _, steps in runs for step in steps))
    if stages:
        rows = []
        for label, steps in runs:
            by_stage = {step.stage: step for step in steps}
            rows.append([letters(results)[label], *(_step(by_stage.get(stage)) for stage in stages)])
        yield "Share of the evidence left after each stage (lost in it; bold where most is lost):"
        yield table(["", *(_plain(stage) for stage in stages)], rows)


def _step(step: Any) -> str:
    if step is None:
        return "-"
    lost = f"(-{number(step.lost)})" if step.lost else ""
    return f"{number(step.value)} {f'**{lost}**' if step.most else lost}".strip()


def _failures(results: Row, name: str) -> Iterator[str]:
    runs = ordered_runs(results, name)
    rows = [[letters(results)[run["config"]], *(run["failures"].get(kind, 0) for kind in CLASSES)] for run in runs]
    yield "Questions by the stage that failed:"
    yield table(["", "ok", *CLASSES[1:]], rows)


def _again(results: Row, marks: Mapping[str, str]) -> Iterator[str]:
    yield "## Configuration, data, versions"
    yield "\n".join(
        [
            *(
                f"- {marks[label]} {_code(label)}: {_code(one.get('hash', '-'))}"
                for label, one in _sorted(results, "configs")
            ),
            *(
                f"- {_code(name)}: documents {_code(one['digests']['documents'])}, "
                f"questions {_code(one['digests']['questions'])}"
                for name, one in _sorted(results, "sets")
            ),
        ]
    )
    yield ", ".join(f"{_plain(name)} {_plain(found)}" for name, found in versions(results)) + "."


def _sorted(results: Row, key: str) -> list[tuple[str, Row]]:
    return sorted(results.get(key, {}).items())


def _plain(text: str) -> str:
    """Text of results as text of Markdown: no markup, no HTML, one line."""
    return "".join(f"\\{char}" if char in "\\`*_{}[]<>#!~&" else char for char in printable(text))


def _code(text: str) -> str:
    """Text as code: nothing in it is markup; a backtick, which would end it, becomes an apostrophe."""
    return f"`{printable(text).replace('`', chr(39)) or ' '}`"
