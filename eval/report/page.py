"""One HTML file: style and figures inside, no script, nothing fetched; the same results give the same bytes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from eval.report import _figures as figures
from eval.report._questions import entries, visible
from eval.report._views import (
    ALPHA,
    CLASSES,
    COST,
    absences,
    chance,
    compared,
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
from rag.errors import UsageError, missing_extra

__all__ = ["html", "write_html"]

_TEMPLATES = Path(__file__).parent / "templates"


def write_html(results: Mapping[str, Any], path: Path, *, questions: int = 200) -> None:
    """Write the report of results.json to `path`.

    questions: entries of the drill-down per set and configuration, failing ones first; all figures count every
    question. UsageError for results of a format that this version does not read.
    """
    path.write_text(html(results, questions=questions), encoding="utf-8", newline="\n")


def html(results: Mapping[str, Any], *, questions: int = 200) -> str:
    """The page of `write_html`. Every text is escaped, and characters that hide or reorder text are shown."""
    if results.get("format") != 1:
        raise UsageError(f"results of format {results.get('format')!r}; this version reads format 1: run them again")
    if questions < 0:
        raise UsageError(f"questions = {questions}; allowed: 0 or more")
    try:
        from jinja2 import Environment, FileSystemLoader, StrictUndefined
    except ImportError:
        raise missing_extra("jinja2", "eval", "the HTML report") from None
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES, encoding="utf-8"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        finalize=_shown,
    )
    environment.filters["number"] = lambda value: number(value).replace("-", "\u2212")
    environment.filters["chance"] = chance
    environment.filters["minus"] = lambda text: text.replace("-", "\u2212")
    return environment.get_template("report.html").render(_model(results, questions))


def _shown(value: Any) -> Any:
    """What a template prints: text with hidden characters made visible; markup is ours and stays."""
    return visible(value) if type(value) is str else value


def _model(results: Mapping[str, Any], questions: int) -> dict[str, Any]:
    from markupsafe import Markup

    marks = letters(results)
    rows, left_out = entries(results, questions)
    names = sets_of(results)
    count = sum(max((len(run["questions"]) for run in ordered_runs(results, name)), default=0) for name in names)
    used = [kind for kind in CLASSES if any(run["failures"].get(kind) for run in results["runs"])]
    # S704: the markup is that of matplotlib and of this package; no text of a user is in it.
    return {
        "results": results,
        "configs": [
            {"label": label, "letter": letter, "at": at, "swatch": Markup(figures.swatch(at))}  # noqa: S704
            for at, (label, letter) in enumerate(marks.items())
        ],
        "sets": [_set(results, name, at) for at, name in enumerate(names)],
        "classes": [{"name": kind, "swatch": Markup(figures.class_swatch(kind))} for kind in used],  # noqa: S704
        "shown_classes": [kind for kind in CLASSES[1:] if any(row["failure"] == kind for row in rows)],
        "any_passed": any(row["failure"] == "none" for row in rows),
        "entries": rows,
        "left_out": left_out,
        "asked": count,
        "per_run": questions,
        "alpha": ALPHA,
        "versions": versions(results),
        "set_facts": sorted(results.get("sets", {}).items()),
        "config_facts": [
            {"label": label, "letter": marks[label], "hash": one.get("hash", "-"), "text": _json(one.get("config"))}
            for label, one in sorted(results["configs"].items())
        ],
        "machine": _json(results["machine"]) if results.get("machine") else "",
        "style": Markup((_TEMPLATES / "report.css").read_text(encoding="utf-8")),  # noqa: S704
    }


def _set(results: Mapping[str, Any], name: str, at: int) -> dict[str, Any]:
    """All tables and figures of one set."""
    from markupsafe import Markup

    marks = letters(results)
    numbers = {label: place for place, label in enumerate(marks)}
    runs = ordered_runs(results, name)
    drawn = [(numbers[run["config"]], marks[run["config"]], run["curve"]) for run in runs if run.get("curve")]
    return {
        "name": name,
        "at": at,
        "facts": results.get("sets", {}).get(name, {}),
        "groups": [
            (
                title,
                [(measure_name(key, row), row, table_of(results, name, key)) for key, row in measures],
                title != COST,
            )
            for title, measures in groups(results, name)
        ],
        "absent": absences(results, name),
        "pairs": pairs(results, name),
        "curve": Markup(figures.curves(str(at), drawn)) if drawn else "",  # noqa: S704
        "tokens": sorted({row["tokens"] for _, _, curve in drawn for row in curve}),
        "curves": [
            (letter, {row["tokens"]: (row["recall"], interval(row)) for row in curve}) for _, letter, curve in drawn
        ],
        "waterfalls": [
            {
                "label": run["config"],
                "letter": marks[run["config"]],
                "steps": steps,
                "figure": Markup(figures.waterfall(f"{at}-{numbers[run['config']]}", numbers[run["config"]], steps)),  # noqa: S704
            }
            for run in runs
            if (steps := losses(run.get("waterfall") or ()))
        ],
        "failures": [(marks[run["config"]], run["config"], run["failures"]) for run in runs],
        "failure_figure": Markup(  # noqa: S704
            figures.failures(str(at), [(marks[run["config"]], run["failures"]) for run in runs])
        ),
        "comparisons": [{**row, "interval": interval(row)} for row in compared(results, name)],
    }


def _json(value: Any) -> str:
    return json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False)
