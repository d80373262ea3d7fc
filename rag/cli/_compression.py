"""What a compressor made of a bubble: a diff of each chunk, the size against the target, what became of facts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from rag.cli._common import console
from rag.text import printable

if TYPE_CHECKING:
    from rich.text import Text


__all__ = ["diff_text", "draw_compression"]

_INDENT = 4
_SHOWN = 240
"""Characters of a dropped part, unless all is asked for."""
_WIDTHS = (60, 120)


def draw_compression(told: Mapping[str, Any], *, every: bool = False) -> None:
    """On stderr; nothing where the compressor left all as it was. `every`: dropped parts in full."""
    from rich.text import Text

    changed = [one for one in told["chunks"] if one["rewritten"] is not None or not all(_stays(one))]
    if not changed:
        return
    out = console()
    least, most = _WIDTHS
    width = min(max(out.width, least), most)
    lines = [Text(""), Text(_summary(told), style="bold")]
    if told["survival"]:
        lines.append(Text(_survival(told["survival"])))
    for chunk in told["chunks"]:
        lines += [Text(""), Text(printable(_heading(chunk)), style="bold green" if any(_stays(chunk)) else "yellow")]
        marked = out.color_system is not None and not out.no_color
        lines += _body(diff_text(chunk, styled=marked, every=every), width)
    lines += [Text(f"gone: chunk {one}, its document is not in the index any more") for one in told["gone"]]
    for line in lines:
        for row in line.wrap(out, width) if line.cell_len > width else [line]:
            row.rstrip()
            out.print(row, markup=False)


def diff_text(chunk: Mapping[str, Any], *, styled: bool, every: bool = True) -> Text:
    """What was chosen of a chunk: kept parts plain, dropped ones dim and struck out, or between ~~ without styles."""
    from rich.text import Text

    made = Text()
    for part in chunk["parts"]:
        text = _shown(part["text"])
        if part["kept"] or not text.strip():
            made.append(text)
            continue
        lead, trail = len(text) - len(text.lstrip()), len(text) - len(text.rstrip())
        inside = text[lead : len(text) - trail]
        if not every and len(inside) > _SHOWN:
            inside = f"{inside[: _SHOWN // 2].rstrip()} [...] {inside[-_SHOWN // 2 :].lstrip()}"
        made.append(text[:lead])
        if styled:
            made.append(inside, style="dim strike")
        else:  # line by line, as a reader of one line must see what it is
            made.append("\n".join(f"~~{line}~~" if line.strip() else line for line in inside.split("\n")))
        made.append(text[len(text) - trail :])
    if chunk["rewritten"] is not None:
        made.append("\nrewritten: ", style="bold" if styled else "")
        made.append(_shown(chunk["rewritten"]))
    return made


def _shown(text: str) -> str:
    return printable(text.replace("\r\n", "\n"), lines=True)


def _body(text: Text, width: int) -> Iterator[Text]:
    """Indented lines of at most `width` columns, without empty ones."""
    from rich.text import Text

    for line in text.wrap(console(), width - _INDENT):
        line.rstrip()
        if line.plain.strip():
            yield Text.assemble(" " * _INDENT, line)


def _stays(chunk: Mapping[str, Any]) -> list[bool]:
    return [part["kept"] for part in chunk["parts"] if part["text"].strip()]


def _summary(told: Mapping[str, Any]) -> str:
    target = told["target"]
    near = ""
    if target:
        met = "met" if target["used"] <= 1 else "missed"
        near = f"; target {target['tokens']} ({target['set_by']}) {met}, {target['used']:.1%} of it used"
        near = near.replace(f"target {target['tokens']} (target {target['tokens']})", f"target {target['tokens']}")
    size = f"{told['tokens']} of {told['source_tokens']} tokens, {told['keep_ratio']:.1%} kept"
    return f"{told['compressor']}: {size}{near}"


def _survival(kinds: Mapping[str, Mapping[str, int]]) -> str:
    """Of each kind what is whole of all there were; what was cut inside of a kept sentence is told apart."""
    told = []
    for kind, one in kinds.items():
        cut = one["with_kept_sentences"] - one["kept"]
        told.append(f"{kind} {one['kept']}/{one['all']}" + (f" ({cut} CUT)" if cut else ""))
    verdict = "none is cut" if not any("CUT" in one for one in told) else "CUT: lost from a sentence that is kept"
    return f"protected spans left, {verdict}: {', '.join(told)}"


def _heading(chunk: Mapping[str, Any]) -> str:
    start, end = chunk["span"]
    stays = _stays(chunk)
    what = "nothing dropped" if all(stays) else "in part" if any(stays) else "dropped"
    if chunk["rewritten"] is not None:
        what = "rewritten"
    return f"{chunk['source'] or chunk['chunk_id'].rpartition(':')[0]} {start}-{end}: {what}"
