"""What several views draw. Text of documents goes to the page through `safe` only: it is never Markdown or HTML."""

from __future__ import annotations

import html
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import streamlit as st

from rag.text import printable

__all__ = [
    "Mark", "bar", "budget_bar", "command", "copyable", "empty", "marked_line", "marked_text", "plain", "safe", "table",
]  # fmt: skip

_KINDS = ("cite", "a", "b", "edge", "keep", "drop", "guard", "doubt")
_FIGURES = re.compile(r"[-+]?\d")
DOCUMENTS_IN_BAR = 3
"""As many as there are fills, less one for what is left of the context."""


@dataclass(frozen=True)
class Mark:
    """A span of a text to be marked. `kind` is one or more of: cite, a, b (tints of chunks), edge (a line where it
    starts), keep, drop (struck), guard (boxed), doubt (wavy line). `title` is shown when the pointer rests on it."""

    start: int
    end: int
    kind: str = "cite"
    title: str = ""


def safe(text: str) -> str:
    """HTML of a text as it is: markup escaped, and what could reorder or hide other characters made visible."""
    return html.escape(printable(text.replace("\r\n", "\n"), lines=True), quote=True)


def plain(text: str) -> str:
    """A text inside of Streamlit's own Markdown (labels, captions): shown as it is, on one line."""
    line = printable(" ".join(text.split()))
    return "".join(f"\\{char}" if char in "\\`*_{}[]()<>#+-.!|~$:^&@" else char for char in line)


def marked_text(
    text: str, marks: Iterable[Mark], *, start: int = 0, end: int | None = None, classes: str = "", test_id: str = ""
) -> str:
    """HTML block of `text[start:end]` with the spans of `marks` (offsets of `text`); marks may overlap or nest."""
    name = f' data-testid="{html.escape(test_id)}"' if test_id else ""
    inner = marked_line(text, marks, start, len(text) if end is None else min(end, len(text)))
    return f'<div class="cw cw-text {html.escape(classes)}"{name}>{inner}</div>'


def marked_line(text: str, marks: Iterable[Mark], start: int, end: int) -> str:
    """As `marked_text`, without the block around it."""
    todo = sorted((one for one in marks if one.start < end and start < one.end), key=lambda one: one.start)
    edges = sorted({start, end, *(min(max(at, start), end) for one in todo for at in (one.start, one.end))})
    made: list[str] = []
    active: list[Mark] = []
    at = 0
    for low, high in pairwise(edges):
        active = [one for one in active if one.end > low]
        while at < len(todo) and todo[at].start <= low:
            active.append(todo[at])
            at += 1
        made.append(_wrapped(safe(text[low:high]), active, low))
    return "".join(made)


def _wrapped(inner: str, active: Sequence[Mark], low: int) -> str:
    if not active:
        return inner
    kinds = [kind for one in active for kind in one.kind.split() if kind != "edge" or one.start == low]
    names = " ".join(f"cw-{kind}" for kind in dict.fromkeys(kinds) if kind in _KINDS)
    title = "; ".join(one.title for one in active if one.title)
    told = f' title="{safe(title)}"' if title else ""
    return f'<mark class="{names}"{told}>{inner}</mark>'


def command(*words: str | Path) -> str:
    """A line for the shell, quoted where it must be."""
    return shlex.join(str(word) for word in words)


def copyable(cli: str, yaml: str | None = None) -> None:
    """The same from the shell and as a config, each with a button that copies it."""
    with st.expander("Copy as CLI" + (" or YAML" if yaml else ""), icon=":material/terminal:"):
        st.code(cli, language="sh", wrap_lines=True)
        if yaml:
            st.code(yaml, language="yaml")


def empty(title: str, advice: str) -> None:
    """A view that has nothing to show yet, and what to do about it. Both texts are the app's own."""
    with st.container(border=True):
        st.markdown(f"**{title}**")
        st.write(advice)


def bar(
    parts: Sequence[tuple[str, float]], total: float, *, unit: str = "", rest: str = "free", test_id: str = "bar"
) -> None:
    """One stacked bar of `total`: (name, amount) each with a colour and a pattern; what is left is named `rest`."""
    whole = max(total, sum(amount for _, amount in parts), 1e-9)
    spans, legend = [], []
    for at, (name, amount) in enumerate(parts):
        told = f"{name}: {_amount(amount)}{unit}"
        spans.append(
            f'<span class="cw-fill-{at % 4}" style="width:{100 * amount / whole:.2f}%" title="{safe(told)}"></span>'
        )
        legend.append(f'<span><i class="cw-fill-{at % 4}"></i>{safe(told)}</span>')
    left = total - sum(amount for _, amount in parts)
    if left > 0:
        spans.append('<span class="cw-fill-free"></span>')
        legend.append(f"<span><i></i>{html.escape(rest)}: {_amount(left)}{html.escape(unit)}</span>")
    st.html(
        f'<div class="cw" data-testid="{html.escape(test_id)}"><div class="cw-bar" role="img" '
        f'aria-label="{safe("; ".join(name for name, _ in parts))}">{"".join(spans)}</div>'
        f'<div class="cw-legend">{"".join(legend)}</div></div>'
    )


def budget_bar(run: Mapping[str, Any]) -> None:
    """The budget of a run: tokens of each document in its context, and what is left."""
    taken: dict[str, int] = {}
    for one in run["bubble"]["decisions"]:
        if not one["action"].startswith("skip-"):
            doc_id = one["chunk_id"].rpartition(":")[0]
            name = run.get("sources", {}).get(doc_id, doc_id)
            taken[name] = taken.get(name, 0) + one["tokens"]
    rows = sorted(taken.items(), key=lambda row: -row[1])
    spent = run["bubble"]["token_count"]
    listed = rows[:DOCUMENTS_IN_BAR]
    shown = sum(tokens for _, tokens in listed)
    parts: list[tuple[str, float]] = [(name, tokens) for name, tokens in listed]
    if spent > shown:
        parts.append(("other documents and joins" if len(rows) > len(listed) else "joins", spent - shown))
    bar(parts, run["bubble"]["budget"], unit=" tokens", test_id="budget-bar")


def table(
    head: Sequence[str], rows: Iterable[Sequence[Any]], *, best: Iterable[int] = (), test_id: str = "table"
) -> None:
    """A small table as text. Numbers stand to the right; the rows in `best` are bold. It scrolls where it is wide."""
    strong, lines = set(best), [list(row) for row in rows]
    numeric = [bool(lines) and all(_is_number(row[at]) for row in lines) for at in range(len(head))]
    names = ["cw-num" if one else "" for one in numeric]
    top = "".join(f'<th class="{names[at]}">{safe(str(name))}</th>' for at, name in enumerate(head))
    body = "".join(
        f'<tr class="{"cw-best" if at in strong else ""}">'
        + "".join(
            f'<td class="{names[column] or _figure(value)}">{safe(_cell(value))}</td>'
            for column, value in enumerate(row)
        )
        + "</tr>"
        for at, row in enumerate(lines)
    )
    st.html(
        f'<div class="cw cw-table-box" data-testid="{html.escape(test_id)}" tabindex="0"><table><thead><tr>{top}</tr>'
        f"</thead><tbody>{body}</tbody></table></div>"
    )


def _figure(value: Any) -> str:
    """The class of a cell with figures in it: they are not broken."""
    return "cw-fig" if _FIGURES.match(str(value)) else ""


def _is_number(value: Any) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return _amount(value) if isinstance(value, int | float) and not isinstance(value, bool) else str(value)


def _amount(value: float) -> str:
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:,.3f}"
