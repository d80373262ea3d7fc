"""Compression: what was dropped from the bubble, as a diff, and what became of numbers, names and quotes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import streamlit as st

from app.desk import Desk
from app.parts import Mark, command, copyable, empty, marked_text, plain, safe, table
from app.views._drawing import draw
from rag.compressed import compressed
from rag.spans.protected import Protector
from rag.types import Document, Span, parse_chunk_id

_SUGGESTED = "sentence-prune"
_LIST_CHARS = 120_000
"""Characters of diffs that one page shows; what is longer is opened by the reader."""


def show(desk: Desk) -> None:
    """The diff of every chunk of the bubble against what the generator read of it."""
    run = desk.run
    if run is None:
        empty("Nothing compressed yet", "Ask a question in the view Ask. What its compressor dropped is shown here.")
        return
    st.html(f'<div class="cw cw-head" data-testid="question">{safe(run["question"])}</div>')
    told = compressed(run, desk.index.corpus)
    _figures(told)
    if not _changed(told):
        st.info(
            f"The compressor {plain(told['compressor'])} left everything as it was. To see a diff, copy the YAML below "
            f"with another compressor ({_SUGGESTED}, say) and ask again."
        )
    _survival(told)
    for gone in told["gone"]:
        st.warning(plain(f"Chunk {gone}: its document is not in the index any more."))
    boxes = st.toggle("Box protected spans (numbers, dates, units, negations, names, code, quotes, addresses)", True)
    only = st.toggle("Only chunks that were changed", False)
    st.html(
        '<div class="cw cw-legend"><span><mark class="cw-keep">kept</mark></span><span><mark class="cw-drop">dropped'
        '</mark></span><span><mark class="cw-guard">protected</mark></span></div>'
    )
    room = _LIST_CHARS
    for number, chunk in enumerate(told["chunks"]):
        if only and _fate(chunk) == "nothing dropped":
            continue
        room -= sum(len(part["text"]) for part in chunk["parts"])
        with st.expander(_heading(chunk), expanded=number < 8 and room > 0):
            _diff(desk.document(parse_chunk_id(chunk["chunk_id"])[0]), chunk, boxes=boxes)
    line = command("rag", "explain", run.get("run_id") or "last", "--index", desk.directory)
    copyable(line, _yaml(desk, run, told))


def _figures(told: Mapping[str, Any]) -> None:
    target = told["target"]
    box = st.container(horizontal=True, gap="medium")
    box.metric("Tokens in the bubble", f"{told['source_tokens']:,}", width="content")
    box.metric("Tokens left", f"{told['tokens']:,}", width="content")
    box.metric("Kept", f"{told['keep_ratio']:.1%}", width="content")
    box.metric("Target", f"{target['tokens']:,}" if target else "none", width="content")
    used = f"; {target['used']:.1%} of the target used (set by {target['set_by']})" if target else ""
    st.caption(plain(f"Compressor {told['compressor']}{used}"))


def _survival(told: Mapping[str, Any]) -> None:
    if not told["survival"]:
        return
    with st.expander("What became of protected spans", expanded=_changed(told)):
        rows = [
            (kind, one["all"], one["kept"], one["with_kept_sentences"] - one["kept"])
            for kind, one in told["survival"].items()
        ]
        table(("kind", "in the bubble", "kept", "cut from a kept sentence"), rows, test_id="survival")
        cut = sum(row[3] for row in rows)
        st.caption(
            f"{cut} protected spans were cut out of sentences of which something is kept."
            if cut
            else "No sentence that is kept in part has lost a protected span."
        )


def _diff(document: Document, chunk: Mapping[str, Any], *, boxes: bool) -> None:
    """What was chosen of the chunk: kept, struck out, and protected spans in a box."""
    parts = chunk["parts"]
    marks = []
    for part in parts:
        if part["text"].strip():
            start, end = part["span"]
            marks.append(Mark(start, end, *(("keep", "kept") if part["kept"] else ("drop", "dropped"))))
    if boxes:
        protector = Protector(document)
        for sentence in (one for part in parts for one in protector.sentences(Span(*part["span"]))):
            kinds = protector.spans(sentence)
            for span in protector.union(sentence):
                named = [kind for kind, spans in kinds.items() if any(one.overlaps(span) for one in spans)]
                marks.append(Mark(span.start, span.end, "guard", ", ".join(named)))
    shown = []
    for at, part in enumerate(parts):  # what the bubble did not choose between two parts is left out
        start, end = part["span"]
        if at and parts[at - 1]["span"][1] < start:
            shown.append('<div class="cw cw-dim">[…] not in the bubble</div>')
        if part is parts[-1]:
            end = start + len(part["text"].rstrip())
        shown.append(marked_text(document.text, marks, start=start, end=end))
    draw(f'<div data-testid="diff">{"".join(shown)}</div>')
    if chunk["rewritten"] is not None:
        st.caption("Rewritten as:")
        st.html(marked_text(chunk["rewritten"], (), test_id="rewritten"))


def _changed(told: Mapping[str, Any]) -> bool:
    return any(_fate(chunk) != "nothing dropped" for chunk in told["chunks"])


def _fate(chunk: Mapping[str, Any]) -> str:
    stays = [part["kept"] for part in chunk["parts"] if part["text"].strip()]
    if chunk["rewritten"] is not None:
        return "rewritten"
    return "nothing dropped" if all(stays) else "dropped in part" if any(stays) else "dropped whole"


def _heading(chunk: Mapping[str, Any]) -> str:
    start, end = chunk["span"]
    return plain(f"{chunk['source'] or chunk['chunk_id']} {start}-{end}: {_fate(chunk)}")


def _yaml(desk: Desk, run: dict[str, Any], told: Mapping[str, Any]) -> str:
    """The config of the run; where nothing compresses, with a compressor that does."""
    from dataclasses import replace

    config = desk.pipeline_of(run).config
    if not _changed(told):
        tokens = max(1, told["source_tokens"] // 2)
        config = replace(config, compressor={"use": _SUGGESTED, "target": tokens})
    return config.to_yaml()
