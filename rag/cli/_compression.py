"""What a compressor made of a bubble: a diff of each chunk, the size against the target, what became of facts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from rag.cli._common import console
from rag.text import printable

if TYPE_CHECKING:
    from rich.text import Text

    from rag.protocols import Corpus
    from rag.types import Span

__all__ = ["compressed", "diff_text", "draw_compression"]

_INDENT = 4
_SHOWN = 240
"""Characters of a dropped part, unless all is asked for."""
_WIDTHS = (60, 120)


def compressed(run: Mapping[str, Any], corpus: Corpus) -> dict[str, Any]:
    """What became of the bubble of a run, as JSON holds it.

    `target`: the tokens that the config aims at, None where it names no size. `chunks`: for each of the bubble its
    `parts` in order, kept and dropped, that make up what was chosen of it; `rewritten` is the text that stands for the
    kept ones where the compressor writes anew, else None. `survival`: kind of protected span -> how many stand in
    sentences of which anything is kept, how many of those are kept whole, and how many there were. `gone` names chunks
    whose document is not in the index any more: they are in neither.
    """
    from rag.spans.protected import survivors
    from rag.types import Piece, Span, parse_chunk_id

    context = run["context"]
    pieces = {
        one["chunk_id"]: Piece(
            chunk_id=one["chunk_id"],
            doc_id=one["doc_id"],
            span=Span(*one["span"]),
            text=one["text"],
            kept=tuple(Span(*pair) for pair in one["kept"]),
            verbatim=one.get("verbatim", True),
        )
        for one in context["pieces"]
    }
    chosen, chunks, gone = {}, [], []
    chunk_ids = run["bubble"]["chunk_ids"]
    spans = run["bubble"].get("kept") or [None] * len(chunk_ids)  # None: stored before bubbles kept parts of chunks
    for chunk_id, pairs in zip(chunk_ids, spans, strict=True):
        doc_id, span = parse_chunk_id(chunk_id)
        try:
            text = corpus.document(doc_id).text
        except KeyError:
            gone.append(chunk_id)
            continue
        chosen[chunk_id] = [Span(*pair) for pair in pairs] if pairs is not None else [span]
        piece = pieces.get(chunk_id)
        chunks.append(
            {
                "chunk_id": chunk_id,
                "source": run.get("sources", {}).get(doc_id),
                "span": [span.start, span.end],
                "parts": list(_parts(text, chosen[chunk_id], piece.kept if piece else ())),
                "rewritten": piece.text if piece is not None and not piece.verbatim else None,
            }
        )
    left = survivors(chosen, [piece for piece in pieces.values() if piece.chunk_id in chosen], corpus)
    names = ("with_kept_sentences", "kept", "all")
    return {
        "compressor": context["compressor"],
        "tokens": context["token_count"],
        "source_tokens": context["source_token_count"],
        "keep_ratio": context["keep_ratio"],
        "target": _target(run),
        "chunks": chunks,
        "survival": {kind: dict(zip(names, counts, strict=True)) for kind, counts in left.items() if counts[2]},
        "gone": gone,
    }


def _parts(text: str, chosen: Sequence[Span], kept: Sequence[Span]) -> Iterator[dict[str, Any]]:
    """What was chosen, cut where keeping starts and ends."""
    for span in chosen:
        edges = {span.start, span.end}
        edges.update(at for one in kept for at in (one.start, one.end) if span.start < at < span.end)
        cuts = sorted(edges)
        for start, end in pairwise(cuts):
            stays = any(one.start <= start and end <= one.end for one in kept)
            yield {"kept": stays, "span": [start, end], "text": text[start:end]}


def _target(run: Mapping[str, Any]) -> dict[str, Any] | None:
    """Tokens, from which setting, and which share of it was used; a size that the bubble is within already is none."""
    from rag.registry import catalogue, describe, spec_name
    from rag.spans.pieces import aim

    spec, context = run.get("config", {}).get("compressor"), run["context"]
    if spec is None or spec_name(spec) != context["compressor"] or spec_name(spec) not in catalogue("compressor"):
        return None
    settings = {one.name: one.default for one in describe("compressor", spec_name(spec)).parameters}
    settings.update(spec if isinstance(spec, Mapping) else {})
    target, rate = settings.get("target"), settings.get("rate")
    if target is None and rate is None:
        return None
    tokens = aim(context["source_token_count"], target, rate or 1.0)
    told = f"target {target}" if target is not None else f"rate {rate}"
    return {"tokens": tokens, "set_by": told, "used": context["token_count"] / tokens}


# ---------------------------------------------------------------------- drawing


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
