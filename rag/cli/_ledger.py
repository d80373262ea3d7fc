"""Runs on the terminal: citations, stages, the ledger line by line, and what came of replaying it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING, Any

import typer

from rag.cli._common import console
from rag.text import printable

if TYPE_CHECKING:
    from rag.replay import Replay

__all__ = ["draw_citations", "draw_replay", "draw_trace", "ledger_lines"]

_SHOWN = 3
"""Lines of a group of skipped candidates."""
_WIDTHS = (60, 120)
_PLACE = re.compile(r"\b[0-9a-f]{16}:\d+-\d+")
_NUMBER = re.compile(r"-?\d+(?:[.,]\d+)*%?")
_QUOTED = re.compile(r"'[^']*'|\"[^\"]*\"")


def draw_citations(run: Mapping[str, Any], index: Path) -> None:
    """The citations of an answer, each with the command that opens it."""
    for citation in run["citations"]:
        page = f", page {citation['page']}" if citation["page"] else ""
        place = f"{citation['doc_id']}:{citation['start']}-{citation['end']}"
        typer.secho(f"[{citation['mark']}] {citation['source']}{page}  (rag show {place} --index {index})", fg="cyan")
        typer.echo("    " + " ".join(citation["text"].split()))


def draw_trace(run: Mapping[str, Any], *, every: bool = False) -> None:
    """The stages and the ledger on stderr; `every`: all lines of the ledger, with all score parts."""
    from rich.table import Table

    stages = Table("stage", "plugin", "ms", "in", "out", "notes", title="stages", title_justify="left")
    for stage in run["trace"]:
        notes = ", ".join(f"{name}={_short(value)}" for name, value in _few(stage["notes"]))
        milliseconds = f"{1000 * stage['seconds']:.0f}"
        stages.add_row(
            stage["stage"], stage["plugin"], milliseconds, str(stage["items_in"]), str(stage["items_out"]), notes
        )
    out = console()
    out.print(stages)
    least, most = _WIDTHS
    for text, style in ledger_lines(run, min(max(out.width, least), most), every=every):
        out.print(printable(text), style=style, markup=False)


def _few(notes: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """The notes that fit into a cell: the counts of segments are drawn below."""
    return [(name, value) for name, value in notes.items() if name != "segments"]


def ledger_lines(run: Mapping[str, Any], width: int, *, every: bool = False) -> Iterator[tuple[str, str]]:
    """(line, style) of the ledger, none longer than `width` where words allow: totals, what was kept, what was not.

    What was skipped is in groups with the same action and a reason of the same kind; of each a few lines, or all.
    """
    from rag.replay import ledger, totals

    lines, sums = ledger(run), totals(run)
    yield from ((text, "bold") for text in _totals(sums, width))
    yield from _sections(lines, width, every)
    parts, context = ledger(run, "context"), run["context"]
    if parts:
        yield "", ""
        tokens = f"{context['token_count']} of {context['source_token_count']} tokens are left"
        yield f"compressor {context['compressor']}: {tokens}", "bold"
        yield from _sections(parts, width, every)


def _sections(lines: Sequence[dict[str, Any]], width: int, every: bool) -> Iterator[tuple[str, str]]:
    kept = [line for line in lines if line["taken"]]
    if kept:
        yield "", ""
        yield f"kept: {len(kept)}", "bold green"
        yield _HEAD, "dim"
    for at, line in enumerate(kept):
        told = any(other["chunk_id"] == line["chunk_id"] for other in kept[:at])
        yield from _entry(line, width, reason=True, parts=True, found=not told)
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for line in lines:
        if not line["taken"]:
            groups.setdefault((line["action"], _kind(line["reason"])), []).append(line)
    for (action, kind), group in groups.items():
        yield "", ""
        alike = len({line["reason"] for line in group}) == 1
        heading = f"{action}: {len(group)}, {group[0]['reason'] if alike else kind}"
        yield from ((text, "bold yellow") for text in wrap(heading, width))
        yield _HEAD, "dim"
        for line in group if every else group[:_SHOWN]:
            yield from _entry(line, width, reason=not alike, parts=every)
        if not every and len(group) > _SHOWN:
            yield f"      and {len(group) - _SHOWN} more (--all shows them)", "dim"


_HEAD = " rank tokens relevance     gain  redund.  source, and what `rag show` opens"


def _totals(sums: Mapping[str, Any], width: int) -> list[str]:
    told = [f"ledger: {sums['tokens']} of {sums['budget']} tokens in {sums['chunks']} chunks"]
    if sums["candidates"] is not None:
        told.append(f"{sums['candidates']} candidates, {sums['lines']} decisions")
    for name in ("taken", "skipped"):
        if sums[name]:
            told.append(f"{name}: " + ", ".join(f"{count} {action}" for action, count in sums[name].items()))
    return wrap("; ".join(told), width)


def _entry(
    line: Mapping[str, Any], width: int, *, reason: bool, parts: bool, found: bool = True
) -> Iterator[tuple[str, str]]:
    """`parts`: with the scores of the selector, and with `found` those of the retriever, which are of the chunk."""
    rank = "-" if line["rank"] is None else str(line["rank"])
    numbers = "".join(f"{line[name]:>9.4g}" for name in ("gain", "redundancy"))
    place = f"{line['doc_id']}:{line['start']}-{line['end']}"
    head = f"{rank:>5} {line['tokens']:>6} {line['relevance']:>9.4g}{numbers}  "
    source = line["source"] or ""
    if source and len(head) + len(source) + len(place) + 2 <= width:
        place = f"{source}  {place}"
    elif source:  # the end of a path tells more than its start; what opens it stays whole
        room = width - len(head) - len(place) - 5
        place = f"...{source[-room:]}  {place}" if room > 4 else place
    yield head + place, ""
    part = f" of chunk {line['chunk_id'].rpartition(':')[2]}" if line.get("span") else ""
    if reason or (parts and part):
        yield from _wrapped(f"{line['action']}{part}: {line['reason']}", width, "")
    if parts and line.get("parts"):
        yield from _wrapped("scores: " + _scores(line["parts"]), width, "dim")
    if parts and found and line["score"] is not None:
        more = f" ({_scores(line['retrieval'])})" if line["retrieval"] else ""
        yield from _wrapped(f"{line['retriever']}: {_short(line['score'])}{more}", width, "dim")


def _wrapped(text: str, width: int, style: str) -> Iterator[tuple[str, str]]:
    for part in wrap(text, width, initial_indent=" " * 6, subsequent_indent=" " * 8, break_on_hyphens=False):
        yield part, style


def _kind(reason: str) -> str:
    """A reason without what differs from line to line: chunks, numbers, words that are quoted."""
    return _NUMBER.sub("N", _QUOTED.sub("...", _PLACE.sub("another chunk", reason)))


def _scores(parts: Mapping[str, float]) -> str:
    return ", ".join(f"{name}={_short(value)}" for name, value in parts.items())


def draw_replay(checked: Replay) -> None:
    """What came of replaying a run, a line each."""
    out = console()

    def say(text: str, style: str) -> None:
        out.print(printable(text), style=style, markup=False)

    then, now = checked.generations
    if then != now:
        say(f"the index has changed since: generation {'unknown' if then is None else then}, now {now}", "yellow")
    for name in checked.missing:
        say(f"gone: {name}", "yellow")
    for why in checked.left_out:
        say(f"not checked: {why}", "yellow")
    if checked.tokens is not None:
        good = f"replay: the ledger gives the same context, {checked.tokens} tokens"
        _verdict(say, "replay", checked.differences, good)
        if not any(why.startswith("selection") for why in checked.left_out):
            good = "selection: run again from the same candidates, it writes the same ledger"
            _verdict(say, "selection", checked.selection, good)


def _verdict(say: Any, name: str, differences: Sequence[str], good: str) -> None:
    if not differences:
        say(good, "green")
    for text in differences:
        say(f"{name} differs: {text}", "red")


def _short(value: Any) -> str:
    if not isinstance(value, float):
        return str(value)
    return f"{value:.0f}" if value.is_integer() else f"{value:.3f}"
