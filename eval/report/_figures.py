"""Figures as SVG for a page: colours are the page's variables, ids are of their own, bytes repeat.

No text of a user is drawn: configurations are letters and sets stand in the caption, so a name can neither be read as
a formula nor leave its place.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from eval.report._views import CLASSES, Loss
from rag.errors import missing_extra

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["HATCHES", "SERIES", "class_swatch", "curves", "failures", "swatch", "waterfall"]

SERIES = 8
"""Colours of the page; configurations beyond repeat them with another line and marker."""
HATCHES = dict(zip(CLASSES, ("", "////", "\\\\\\\\", "||||", "xxxx", "----", "++++", "///---"), strict=True))
_LINES = ("-", "--", "-.", ":")
_MARKERS = "osD^vPX*"
_TEXT, _GRID, _PAPER = "#b0000a", "#b0000b", "#b0000c"
_VARIABLES = {
    _TEXT: "var(--ink)", _GRID: "var(--line)", _PAPER: "var(--paper)",
    **{f"#a000{at:02x}": f"var(--s{at})" for at in range(SERIES)},
    **{f"#c000{at:02x}": f"var(--f-{name})" for at, name in enumerate(CLASSES)},
}  # fmt: skip
"""Colours that no figure has otherwise -> what the page calls them, so that dark and light share one figure."""
_RC = {
    "svg.fonttype": "none", "font.size": 10.5, "axes.edgecolor": _GRID, "axes.labelcolor": _TEXT, "text.color": _TEXT,
    "xtick.color": _TEXT, "ytick.color": _TEXT, "axes.grid": True, "grid.color": _GRID, "grid.linewidth": 0.8,
    "axes.spines.top": False, "axes.spines.right": False, "axes.axisbelow": True, "hatch.linewidth": 1.2,
    "xtick.major.size": 0, "ytick.major.size": 0, "text.parse_math": False, "lines.linewidth": 1.8,
    "figure.facecolor": "none", "axes.facecolor": "none", "savefig.facecolor": "none",
}  # fmt: skip


def curves(name: str, runs: Sequence[tuple[int, str, Sequence[Mapping[str, Any]]]]) -> str:
    """Recall over tokens with bands. `runs`: number and letter of the configuration, rows of its curve."""

    def draw(axes: Axes) -> None:
        ends = []
        for at, letter, rows in runs:
            x, y = [row["tokens"] for row in rows], [row["recall"] for row in rows]
            colour = f"#a000{at % SERIES:02x}"
            low = [row["recall"] if row.get("low") is None else row["low"] for row in rows]
            high = [row["recall"] if row.get("high") is None else row["high"] for row in rows]
            axes.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
            axes.plot(x, y, color=colour, linestyle=_LINES[at % 4], marker=_MARKERS[at % 8], markersize=5)
            ends.append((y[-1], x[-1], letter, colour))
        ticks = sorted({row["tokens"] for _, _, rows in runs for row in rows})
        axes.set_xscale("log", base=2)
        axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
        axes.minorticks_off()
        axes.set_xlabel("tokens of context")
        axes.set_ylabel("evidence recall")
        axes.set_ylim(0, 1.02)
        floor = -1.0
        for y_end, x_end, letter, colour in sorted(ends):
            floor = max(floor + 0.09, y_end)  # letters of curves that end together stand above each other
            place = {"xytext": (9, 0), "textcoords": "offset points", "va": "center", "fontweight": "bold"}
            axes.annotate(letter, (x_end, floor), color=colour, **place)  # type: ignore[arg-type]

    return _svg(f"curves-{name}", draw, (5.0, 2.9))


def waterfall(name: str, at: int, steps: Sequence[Loss]) -> str:
    """Bars of what is left after each stage; what a stage lost is hatched beside them, with its figure."""

    def draw(axes: Axes) -> None:
        colour = f"#a000{at % SERIES:02x}"
        for row, step in enumerate(steps):
            axes.barh(row, step.value, color=colour, alpha=0.5, height=0.62, linewidth=0)
            if step.lost:
                axes.barh(
                    row,
                    step.lost,
                    left=step.value,
                    height=0.62,
                    fill=False,
                    hatch="////",
                    edgecolor=colour,
                    linewidth=0.8,
                )
            if step.low is not None and step.high is not None:
                axes.plot([step.low, step.high], [row, row], color=_TEXT, linewidth=1.4, marker="|", markersize=6)
            said = f"\u2212{step.lost:.3f}" if step.lost >= 0.0005 else "0"
            weight = "bold" if step.most else "normal"
            axes.text(1.2, row, said, ha="right", va="center", fontweight=weight)
        axes.set_yticks(range(len(steps)), [re.sub(r"\W", "", step.stage) for step in steps])
        axes.set_xlim(0, 1)
        axes.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
        axes.invert_yaxis()
        axes.grid(visible=False, axis="y")

    return _svg(f"waterfall-{name}", draw, (5.0, 0.55 + 0.36 * len(steps)))


def failures(name: str, runs: Sequence[tuple[str, Mapping[str, int]]]) -> str:
    """Shares of the failure classes, one stacked bar per configuration (letter, counts)."""

    def draw(axes: Axes) -> None:
        for row, (_, counts) in enumerate(runs):
            total, left = sum(counts.get(kind, 0) for kind in CLASSES) or 1, 0.0
            for at, kind in enumerate(CLASSES):
                width = counts.get(kind, 0) / total
                if width:
                    _block(axes, at, row, left, width)
                left += width
        axes.set_yticks(range(len(runs)), [letter for letter, _ in runs])
        axes.set_xlim(0, 1)
        axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "25 %", "50 %", "75 %", "100 %"])
        axes.invert_yaxis()
        axes.grid(visible=False, axis="y")

    return _svg(f"failures-{name}", draw, (5.0, 0.55 + 0.42 * len(runs)))


def _block(axes: Axes, at: int, row: float, left: float, width: float) -> None:
    """A class as a filled, hatched bar: readable without its colour."""
    colour = f"#c000{at:02x}"
    axes.barh(row, width, left=left, height=0.66, color=colour, alpha=0.45 if at else 0.8, linewidth=0)
    axes.barh(row, width, left=left, height=0.66, fill=False, hatch=HATCHES[CLASSES[at]], edgecolor=colour)


def swatch(at: int) -> str:
    """The line and marker of a configuration, for the legend."""

    def draw(axes: Axes) -> None:
        colour = f"#a000{at % SERIES:02x}"
        axes.plot([0, 0.5, 1], [0, 0, 0], color=colour, linestyle=_LINES[at % 4])
        axes.plot([0.5], [0], color=colour, marker=_MARKERS[at % 8], markersize=5)
        axes.set_axis_off()

    return _svg(f"series-{at}", draw, (0.5, 0.2))


def class_swatch(kind: str) -> str:
    """The colour and pattern of a failure class, for the legend."""

    def draw(axes: Axes) -> None:
        _block(axes, CLASSES.index(kind), 0, 0, 1)
        axes.set_axis_off()

    return _svg(f"class-{kind}", draw, (0.4, 0.2))


def _svg(name: str, draw: Callable[[Axes], None], size: tuple[float, float]) -> str:
    """An inline <svg> of `size` inches. The same arguments give the same bytes; `name` keeps its ids apart."""
    try:
        import matplotlib
        from matplotlib.backends.backend_svg import FigureCanvasSVG
        from matplotlib.figure import Figure
    except ImportError:
        raise missing_extra("matplotlib", "eval", "the figures of the report") from None
    settings: Any = {**_RC, "svg.hashsalt": name}
    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # a matplotlibrc of the user would change bytes
        matplotlib.rcParams.update(settings)
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasSVG(figure)
        draw(figure.add_subplot())
        out = io.StringIO()
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    return _inline(out.getvalue(), name)


def _inline(svg: str, name: str) -> str:
    """The element alone, with its ids renamed and the page's colours."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<!--.*?-->|<metadata>.*?</metadata>|<style.*?</style>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    prefix = re.sub(r"[^a-z0-9]+", "-", name.lower())
    svg = re.sub(r'\bid="', f'id="{prefix}-', svg)
    svg = svg.replace("url(#", f"url(#{prefix}-").replace('href="#', f'href="#{prefix}-')
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(colour, variable)
    svg = svg.replace("<svg ", '<svg aria-hidden="true" focusable="false" ', 1)
    return re.sub(r"\n\s*", "\n", svg).strip()
