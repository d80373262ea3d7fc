"""Rows of bars and small grids, which the views of one run draw with; fills are those of `app.theme`, and two more."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import streamlit as st

from app.parts import safe
from rag.text import printable

__all__ = ["Bar", "Fill", "bars", "blank", "draw", "grid", "legend", "one_line", "share"]

_STYLE = """<style>
.cw-rows{display:grid;grid-template-columns:minmax(7rem,15rem) minmax(0,1fr) minmax(4.5rem,auto);gap:.35rem .9rem;
 align-items:center;font-size:.92rem}
.cw-rows+.cw{margin-top:.5rem}
.cw-row{display:contents}
.cw-row>div{min-width:0;overflow-wrap:anywhere;line-height:1.35}
.cw-rows .cw-bar{height:1.3rem}
.cw-rows .cw-bar>span{border-right:0}
.cw-end{text-align:right;font-variant-numeric:tabular-nums}
.cw-fill-lost{background:repeating-linear-gradient(45deg,rgba(215,60,70,.85) 0 2px,rgba(215,60,70,.30) 2px 7px)}
.cw-fill-blank{background:none;min-width:0!important}
.cw-grid{display:inline-grid;gap:1px;border:1px solid rgba(128,140,155,.7);padding:1px}
.cw-grid i{width:6px;height:6px;background:rgba(128,140,155,.14)}
.cw-grid i.cw-on{background:rgba(40,130,200,.95)}
.cw-figure{display:inline-block;margin:.3rem 1rem .3rem 0;font-size:.85rem;vertical-align:top}
.cw mark.cw-a.cw-b{background:repeating-linear-gradient(45deg,rgba(150,70,200,.45) 0 3px,transparent 3px 6px);
 border-bottom:2px dotted currentColor}
.cw mark.cw-edge{-webkit-box-decoration-break:slice;box-decoration-break:slice;box-shadow:none;
 border-left:3px solid currentColor;padding-left:.2em}
.cw mark.cw-drop.cw-guard{outline-color:rgba(128,140,155,.7);outline-width:1px}
[data-testid="lens-chooser"] td,[data-testid="lens-chooser"] th{white-space:nowrap}
@media (max-width:640px){.cw-rows{display:block}
 .cw-row{display:grid;grid-template-columns:minmax(0,1fr) auto;gap:.15rem .6rem;margin-bottom:.6rem}
 .cw-row .cw-track{grid-column:1/-1;grid-row:2}}
</style>"""


@dataclass(frozen=True)
class Fill:
    """A part of a bar: the kind of its fill ("0" to "3", "free", "lost", "blank"), its width, and what it says."""

    kind: str
    percent: float
    title: str = ""


@dataclass(frozen=True)
class Bar:
    """A row: its name, what its bar is made of, and what stands at its end."""

    name: str
    fills: Sequence[Fill]
    end: str = ""


def blank(percent: float) -> Fill:
    """Room before a fill that starts later."""
    return Fill("blank", percent)


def share(part: float, whole: float) -> float:
    """Per cent; 0 of nothing."""
    return 100.0 * part / whole if whole else 0.0


def one_line(text: str) -> str:
    """A text for the list of a select box, which reads no Markdown."""
    return printable(" ".join(text.split()))


def bars(rows: Iterable[Bar], test_id: str) -> str:
    """A row each: name, bar, end; on a narrow screen the bar stands below the other two."""
    made = []
    for row in rows:
        fills = "".join(
            f'<span class="cw-fill-{one.kind}" style="width:{one.percent:.2f}%;flex:none" '
            f'title="{safe(one.title)}"></span>'
            for one in row.fills
            if one.percent > 0
        )
        told = safe(", ".join(one.title for one in row.fills if one.title))
        track = f'<div class="cw-track"><div class="cw-bar" role="img" aria-label="{told}">{fills}</div></div>'
        end = f'<div class="cw-end">{safe(row.end)}</div>'
        made.append(f'<div class="cw-row"><div>{safe(row.name)}</div>{track}{end}</div>')
    return f'<div class="cw cw-rows" data-testid="{test_id}">{"".join(made)}</div>'


def legend(keys: Iterable[tuple[str, str]]) -> str:
    """(kind of fill, what it stands for)."""
    told = "".join(f'<span><i class="cw-fill-{kind}"></i>{safe(text)}</span>' for kind, text in keys)
    return f'<div class="cw cw-legend">{told}</div>'


def grid(rows: Sequence[Sequence[float]], caption: str) -> str:
    """A mask: a cell is filled as much as its value, 0 to 1, says."""
    cells = "".join(
        f'<i class="cw-on" style="opacity:{min(float(value), 1.0):.2f}"></i>' if value else "<i></i>"
        for row in rows
        for value in row
    )
    columns = max((len(row) for row in rows), default=0)
    return (
        f'<div class="cw-figure"><div>{safe(caption)}</div><div class="cw-grid" role="img" aria-label="{safe(caption)}"'
        f' style="grid-template-columns:repeat({columns},6px)">{cells}</div></div>'
    )


def draw(*blocks: str) -> None:
    """The blocks, with the rules of style that they need."""
    st.html(_STYLE + "".join(blocks))
