"""Tables of claims in Markdown files, written from the JSON of the benchmarks between two markers.

`<!-- bench:NAME -->` ... `<!-- /bench -->` holds every claim of results/NAME.json; `<!-- bench:NAME lost -->` only a
count and the lost ones; `<!-- bench:all -->` one row per report. No form leaves a lost claim out of its count.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated

import typer

from eval._reports import table
from eval.bench._claims import RESULTS, Claim, Report, read_reports
from rag.errors import UsageError

__all__ = ["CheckOption", "WriteOption", "rendered", "stale", "tables"]

CheckOption = Annotated[
    list[Path] | None,
    typer.Option("--check", help="File whose tables must be those of the reports, tables; repeatable."),
]
WriteOption = Annotated[
    list[Path] | None,
    typer.Option("--write", help="File whose tables are written from the reports, tables; repeatable."),
]

_BLOCK = re.compile(r"^<!-- bench:([\w.-]+)( lost)? -->\n(.*?)^<!-- /bench -->$", re.DOTALL | re.MULTILINE)
_MARKER = re.compile(r"<!-- /?bench\b")


def rendered(text: str, reports: Mapping[str, Report]) -> str:
    """`text` with the table of every block made anew; UsageError for an unknown report or half a pair of markers."""

    def block(match: re.Match[str]) -> str:
        name, lost = match[1], match[2] or ""
        return f"<!-- bench:{name}{lost} -->\n{_body(name, bool(lost), reports)}\n<!-- /bench -->"

    markers, blocks = len(_MARKER.findall(text)), list(_BLOCK.finditer(text))
    if markers != 2 * len(blocks) or any(_MARKER.search(one[3]) for one in blocks):
        raise UsageError(
            f"{markers} markers make {len(blocks)} blocks; each block begins with <!-- bench:NAME --> and ends with "
            "<!-- /bench -->, both on lines of their own"
        )
    return _BLOCK.sub(block, text)


def stale(paths: Iterable[Path], reports: Mapping[str, Report]) -> list[str]:
    """A line for each file whose tables are not those of the reports."""
    found = []
    for path in paths:
        text = path.read_text(encoding="utf-8")
        if text != (new := rendered(text, reports)):
            pairs = zip(_BLOCK.finditer(text), _BLOCK.finditer(new), strict=True)
            names = ", ".join(sorted({old[1] for old, made in pairs if old[3] != made[3]}))
            found.append(f"{path}: differs from the reports: {names}; run rag bench tables --write {path}")
    return found


def tables(check: Sequence[Path] | None, write: Sequence[Path] | None, folder: Path = RESULTS) -> None:
    """`rag bench tables`: write the tables of some files, check those of others; exit 1 where one is stale."""
    check, write = tuple(check or ()), tuple(write or ())
    if not check and not write:
        raise UsageError("rag bench tables needs --check FILE or --write FILE")
    reports = read_reports(folder)
    for path in (*check, *write):
        if not path.is_file():
            raise UsageError(f"no file {path}")
    for path in write:
        path.write_text(rendered(path.read_text(encoding="utf-8"), reports), encoding="utf-8", newline="\n")
    if lines := stale(check, reports):
        typer.echo("\n".join(lines), err=True)
        raise typer.Exit(1)


def _body(name: str, lost: bool, reports: Mapping[str, Report]) -> str:
    if name == "all":
        rows = [[one.name, len(one.claims), len(one.claims) - len(one.lost), len(one.lost)] for one in reports.values()]
        return table(["report", "claims", "hold", "lost"], rows)
    if name not in reports:
        raise UsageError(f"no report {name!r} for <!-- bench:{name} -->; there are: {', '.join(reports)}, all")
    report = reports[name]
    held = len(report.claims) - len(report.lost)
    setting = f" {report.setting}." if report.setting else ""
    head = f"`{report.name}.json`: {held} of {len(report.claims)} claims hold.{setting}"
    claims = report.lost if lost else report.claims
    rows = [[one.claim, _figure(one.value), _goal(one), "yes" if one.holds else "**lost**"] for one in claims]
    return f"{head}\n\n{table(['claim', 'measured', 'goal', 'holds'], rows)}" if rows else head


def _figure(value: float | None) -> str:
    """With all digits of the report: a rounded figure could read as held where it was lost."""
    return "-" if value is None else f"{value + 0.0:,.10g}"


def _goal(one: Claim) -> str:
    return f"{'at least' if one.better == 'higher' else 'at most'} {_figure(one.goal)}"
