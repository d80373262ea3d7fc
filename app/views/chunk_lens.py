"""Chunk lens: where a chunker cuts a document, why, and how the cuts move when it or the size changes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import streamlit as st

from app.desk import Desk, Line
from app.parts import Mark, command, copyable, empty, marked_text, plain, table
from app.views._drawing import Bar, Fill, bars, draw, one_line, share
from rag import PipelineConfig, RagError
from rag.registry import catalogue, describe, spec_name
from rag.spans.kept import KeptEmbedder
from rag.types import Chunk, Document

_SELECTOR = "metric-selected"
_SIZES = {"max_tokens": "Largest chunk, in tokens", "target_chars": "Wanted size, in characters"}
_PAGE_CHARS = 30_000
_PASTED = "Pasted text"
_OPEN_SIZE = 512
"""Tokens that the slider goes to where the encoder has no limit."""

Cutting = tuple[list[Chunk], dict[str, Any]]


def show(desk: Desk) -> None:
    """A document, a chunker and its sizes; the cuts, the reason for them, and the candidates that were weighed."""
    document = _document(desk)
    if document is None:
        return
    if not document.text.strip():
        empty("This document has no text", "Pick another one: there is nothing in it to cut.")
        return
    kept = _kept_embedder(document.id, json.dumps(_plain_spec(desk.pipeline.config.embedder)), desk)
    spec = _chunker(desk, kept)
    config = desk.pipeline.config.merged({"chunker": spec}, where="chunk lens")
    try:
        config.check()
        chunks, decision = _cut(document.id, config.to_yaml(), kept, document)
    except RagError as error:
        st.error(plain(f"{spec['use']} cannot cut this document: {error}"))
        _copy(document, spec, config)
        return
    _summary(chunks, decision, kept)
    _strips(desk, document, chunks, spec)
    _text(document, chunks)
    _curve(decision)
    _chooser(desk, document, kept, spec, decision)
    with st.expander("Chunks as a table"):
        st.dataframe(_chunk_rows(chunks), hide_index=True)
    _copy(document, spec, config)


# ---------------------------------------------------------------------- what is cut


def _document(desk: Desk) -> Document | None:
    """The picked document of the index, or the text that was pasted."""
    listed = {one.id: one for one in desk.index.store.documents()}
    names = [*listed, _PASTED]
    picked = st.selectbox(
        "Document",
        names,
        format_func=lambda one: one_line(listed[one].source) if one in listed else one,
        key="lens_doc",
    )
    if picked in listed:
        return desk.document(picked)
    text = st.text_area("Text to cut", height=160, key="lens_text", placeholder="Paste a text, Markdown works too")
    if not text.strip():
        empty("Nothing to cut yet", "Pick a document above, or paste a text and press Ctrl+Enter.")
        return None
    try:
        pasted: Document = _parsed(text, desk)
    except RagError as error:
        st.error(plain(str(error)))
        return None
    return pasted


@st.cache_resource(max_entries=8, show_spinner=False)
def _parsed(text: str, _desk: Desk) -> Document:
    """Read as a Markdown file would be, within the limits of the config."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "pasted.md"
        path.write_text(text, encoding="utf-8", errors="replace")
        return replace(_desk.pipeline.parse(path), source=path.name)


def _chunker(desk: Desk, kept: KeptEmbedder) -> dict[str, Any]:
    """The spec that the controls say; the parameters of the config stay where its own chunker is picked."""
    own = _plain_spec(desk.pipeline.config.chunker)
    names = sorted(catalogue("chunker"))
    columns = st.columns([2, 2, 2])
    name = columns[0].selectbox("Chunker", names, index=names.index(own["use"]), key="lens_chunker")
    spec = own if name == own["use"] else {"use": name}
    known = {one.name: one.default for one in describe("chunker", name).parameters}
    for column, (size, label) in zip(columns[1:], _SIZES.items(), strict=True):
        if size not in known:
            continue
        limit = (kept.counter.limit or _OPEN_SIZE) if size == "max_tokens" else 4000
        default = min(spec.get(size) or known[size] or limit, limit)
        least, step = (16, 2) if size == "max_tokens" else (100, 20)
        value = column.slider(label, min(least, default), limit, default, step, key=f"lens_{size}_{name}")
        if value != default:
            spec = {**spec, size: value}
    return spec


def _plain_spec(spec: Any) -> dict[str, Any]:
    return dict(spec) if isinstance(spec, Mapping) else {"use": str(spec)}


@st.cache_resource(max_entries=8, show_spinner=False)
def _kept_embedder(doc_id: str, spec: str, _desk: Desk) -> KeptEmbedder:
    """One for each document and embedder, so that what it remembers is let go with the document."""
    return KeptEmbedder(_desk.pipeline.embedder)


@st.cache_resource(max_entries=128, show_spinner="Cutting")
def _cut(doc_id: str, config: str, _kept: KeptEmbedder, _document: Document) -> Cutting:
    """The chunks and the record of the chunker, once for each document, chunker and size."""
    import yaml

    line = Line(PipelineConfig.from_dict(yaml.safe_load(config)))
    line.embedder = _kept
    return line.decide(_document)


# ---------------------------------------------------------------------- drawing


def _summary(chunks: Sequence[Chunk], decision: Mapping[str, Any], kept: KeptEmbedder) -> None:
    sizes = [chunk.token_count for chunk in chunks]
    box = st.container(horizontal=True, gap="medium")
    box.metric("Chunks", f"{len(chunks):,}", width="content")
    box.metric("Tokens, mean", f"{sum(sizes) / len(sizes):,.0f}" if sizes else "-", width="content")
    box.metric("Tokens, most", f"{max(sizes, default=0):,}", width="content")
    told = (
        "Of this document, since it was opened here. A new size cuts the same sentences anew, and embeds none of them "
        "again."
    )
    box.metric("Texts embedded", f"{kept.texts:,}", help=told, width="content")
    st.caption(plain(f"{decision['chunker']}: {decision['reason']}"))


def _strips(desk: Desk, document: Document, chunks: Sequence[Chunk], spec: Mapping[str, Any]) -> None:
    """The document as one bar, cut where it is cut: now, before the last change, and in the index."""
    label = ", ".join([spec["use"], *(f"{name} {value}" for name, value in spec.items() if name in _SIZES)])
    now = [chunk.span.start for chunk in chunks]
    shown = st.session_state.get("lens_shown", {})
    before = shown.get("before", {}) if shown.get("now", {}).get("label") == label else shown.get("now", {})
    if shown.get("doc") != document.id:
        before = {}
    st.session_state["lens_shown"] = {
        "doc": document.id, "now": {"label": label, "starts": now}, "before": before,
    }  # fmt: skip
    rows = [(f"now: {label}", now)]
    if before:
        rows.append((f"before: {before['label']}", before["starts"]))
    try:
        indexed = desk.index.store.chunks_of(document.id)
    except (KeyError, RagError):
        indexed = []
    if indexed:
        rows.append((f"in the index: {indexed[0].chunker}", [chunk.span.start for chunk in indexed]))
    draw(bars([_strip(name, starts, len(document.text)) for name, starts in rows], "lens-strips"))


def _strip(name: str, starts: Sequence[int], length: int) -> Bar:
    edges = [0, *sorted({start for start in starts if start}), length]
    fills = [
        Fill(str(at % 2), share(high - low, length), f"{low}-{high}") for at, (low, high) in enumerate(pairwise(edges))
    ]
    return Bar(name, fills, f"{len(starts)} chunks")


def chunk_marks(chunks: Sequence[Chunk]) -> list[Mark]:
    """A tint and a pattern in turns, a line where each chunk starts, and what the pointer reads over it."""
    marks = []
    for number, chunk in enumerate(chunks, start=1):
        told = [f"chunk {number}", f"{chunk.token_count} tokens", f"{chunk.span.start}-{chunk.span.end}"]
        told += [" > ".join(chunk.section)] if chunk.section else []
        told += [f"header: {chunk.header}"] if chunk.header else []
        marks.append(Mark(chunk.span.start, chunk.span.end, "a edge" if number % 2 else "b edge", " · ".join(told)))
    return marks


def _text(document: Document, chunks: Sequence[Chunk]) -> None:
    pages = max(1, -(-len(document.text) // _PAGE_CHARS))
    page = st.slider("Part of the document", 1, pages, 1, key=f"lens_page_{document.id}") if pages > 1 else 1
    start = (page - 1) * _PAGE_CHARS
    draw(
        marked_text(
            document.text,
            chunk_marks(chunks),
            start=start,
            end=start + _PAGE_CHARS,
            classes="cw-scroll",
            test_id="lens-text",
        )
    )
    st.caption(
        "A line marks where a chunk starts; violet hatching is what two chunks share. Point at a chunk for more."
    )


def boundary_scores(decision: Mapping[str, Any]) -> list[tuple[int, float, bool]]:
    """(offset, score, whether a chunk ends there) where the chunker's own record has scores of places, else ()."""
    columns = decision.get("chunks")
    if isinstance(columns, Mapping) and {"start", "margin"} <= columns.keys():
        pairs = zip(columns["start"], columns["margin"], strict=True)
        return [(at, value, True) for at, value in pairs if value is not None]
    found = []
    for place in decision.get("places", ()):
        values = [
            value
            for name, value in place.items()
            if name != "at" and isinstance(value, int | float) and not isinstance(value, bool)
        ]
        if values:
            found.append((place["at"], float(values[0]), bool(place["cut"])))
    return found


def _curve(decision: Mapping[str, Any]) -> None:
    scores = boundary_scores(decision)
    if not scores:
        return
    with st.expander("Score of each boundary", expanded=True):
        high = max(abs(value) for _, value, _ in scores) or 1.0
        rows = [
            Bar(f"at {at}", (Fill("0" if cut else "free", share(abs(value), high), f"{value:+.3f}"),), f"{value:+.3f}")
            for at, value, cut in scores
        ]
        draw(f'<div class="cw-scroll">{bars(rows, "lens-curve")}</div>')
        st.caption(
            "What the objective gains by each cut, with all others in place; below 0: a size limit forces it."
            if "margin" in (decision.get("chunks") or ())
            else "What the chunker measured between sentences. Filled: a chunk ends there."
        )


def _chooser(
    desk: Desk, document: Document, kept: KeptEmbedder, spec: Mapping[str, Any], decision: Mapping[str, Any]
) -> None:
    """How the candidates measure on this document, the picked chunker among them, and which one would be taken."""
    with st.expander("Which chunker measures best here?", expanded=spec["use"] == _SELECTOR):
        if spec["use"] != _SELECTOR:
            if not st.toggle("Measure the candidates", key="lens_measure"):
                st.caption("Cuts this document with each candidate and compares them by five measures.")
                return
            decision = _measured(desk, document, kept, spec)
        rows = [row for row in decision.get("candidates", ()) if "metrics" in row]
        if rows:
            labels = list(rows[0]["metrics"])
            best = [at for at, row in enumerate(rows) if row["chunker"] == decision.get("winner")]
            body = [
                (
                    ("★ " if at in best else "") + row["chunker"],
                    row["score"],
                    *(row["metrics"][label] for label in labels),
                    row["chunks"],
                    row["mean_tokens"],
                )
                for at, row in enumerate(rows)
            ]
            table(("chunker", "score", *labels, "chunks", "mean tokens"), body, best=best, test_id="lens-chooser")
        for row in decision.get("candidates", ()):
            if "left_out" in row:
                st.caption(plain(f"left out: {row['chunker']}: {row['left_out']}"))
        for label, why in decision.get("skipped_metrics", {}).items():
            st.caption(plain(f"not measured: {label}: {why}"))
        st.markdown(f"**{plain(decision['reason'])}**")


def _measured(desk: Desk, document: Document, kept: KeptEmbedder, spec: Mapping[str, Any]) -> dict[str, Any]:
    """The record of the chooser with its own candidates and the picked chunker."""
    default = next(one.default for one in describe("chunker", _SELECTOR).parameters if one.name == "candidates")
    wanted: dict[str, Any] = {"use": _SELECTOR}
    sizes = {"max_tokens": spec["max_tokens"]} if "max_tokens" in spec else {}
    wanted["candidates"] = [dict(spec), *(one for one in default if spec_name(one) != spec["use"])]
    config = desk.pipeline.config.merged({"chunker": {**wanted, **sizes}}, where="chunk lens")
    try:
        config.check()
        return _cut(document.id, config.to_yaml(), kept, document)[1]
    except RagError as error:
        return {"reason": f"The candidates cannot be measured: {error}"}


def _chunk_rows(chunks: Sequence[Chunk]) -> list[dict[str, Any]]:
    return [
        {
            "chunk": number,
            "start": chunk.span.start,
            "end": chunk.span.end,
            "tokens": chunk.token_count,
            "section": " > ".join(chunk.section),
            "header": chunk.header,
            "begins": " ".join(chunk.text[:160].split())[:80],
        }
        for number, chunk in enumerate(chunks, start=1)
    ]


def _copy(document: Document, spec: Mapping[str, Any], config: PipelineConfig) -> None:
    settings = [f"{name}={json.dumps(value)}" for name, value in spec.items() if name != "use"]
    given = [word for setting in settings for word in ("--set", setting)]
    copyable(command("rag", "chunk", document.source, "--chunker", spec["use"], *given, "--explain"), config.to_yaml())
