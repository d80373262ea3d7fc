"""Ask: an answer, the exact spans that it stands on, and an honest word where there is none."""

from __future__ import annotations

import re
from typing import Any

import streamlit as st

from app.desk import Desk, Run
from app.parts import Mark, command, copyable, marked_line, marked_text, plain, safe
from rag import PipelineConfig, RagError
from rag.errors import UsageError
from rag.types import Document

EXAMPLES = (
    "Who approves travel above 5,000 EUR?",
    "What does the training day Good weighing practice cost per person?",
    "How many weigh cells KV-WC-220 must be purchased from Korvane each year?",
)
AROUND, AROUND_WIDE = 300, 2000
CLOSEST = 3
KEPT = 20
_MARK = re.compile(r"\[(\d+)\]")


def show(desk: Desk) -> None:
    """The questions of this session, newest first."""
    asked: list[Run] = st.session_state.setdefault("asked", [])
    question = st.container().chat_input("Ask your documents", key="question")  # in a container it stays on top
    if not asked:
        question = _welcome() or question
    if question and question.strip():
        try:
            run = _streamed(desk, question.strip())
        except RagError as error:
            st.error(plain(str(error)))
            return
        asked.insert(0, run)
        del asked[KEPT:]
        st.session_state["run"], st.session_state["pick"] = run, run["run_id"]
        st.rerun()
    for number, run in enumerate(asked):
        with st.container(border=True):
            _draw(desk, run, f"{len(asked) - number}")
    if not asked and desk.run is not None:
        st.subheader("The run looked at")
        with st.container(border=True):
            _draw(desk, desk.run, "0")


def _welcome() -> str | None:
    st.write("Every citation opens the exact words that it stands on. Ask above, or try one of these:")
    for at, example in enumerate(EXAMPLES):
        if st.button(example, key=f"example-{at}", icon=":material/arrow_outward:"):
            return example
    return None


def _streamed(desk: Desk, question: str) -> Run:
    """Asks, and draws the text as it is written; the finished run is drawn by the next run of the script."""
    with st.container(border=True):
        st.html(f'<div class="cw cw-head">{safe(question)}</div>')
        place, written = st.empty(), []

        def on_text(text: str) -> None:
            written.append(text)
            place.html(f'<div class="cw cw-text cw-answer">{safe("".join(written))}</div>')

        with st.spinner("Reading"):
            return desk.ask(question, on_text=on_text)


def _draw(desk: Desk, run: Run, key: str) -> None:
    st.html(f'<div class="cw cw-head" data-testid="question">{safe(run["question"])}</div>')
    if run["citations"] or run["sentences"]:
        st.html(f'<div class="cw cw-text cw-answer" data-testid="answer">{answer_html(run, key)}</div>')
        doubted = sum(not backed for backed in run["supported"])
        if doubted:
            total = len(run["supported"])
            st.warning(f"{doubted} of {total} sentences are not backed by the documents: they have a wavy line.")
        for citation in run["citations"]:
            draw_citation(desk, citation, key)
    else:
        _not_found(desk, run)
    seconds = sum(stage["seconds"] for stage in run["trace"])
    bubble = run["bubble"]
    st.caption(f"{seconds:.2f} s · {bubble['token_count']} of {bubble['budget']} tokens of context")
    config = PipelineConfig.from_dict(run["config"]).to_yaml() if run.get("config") else None
    copyable(command("rag", "ask", run["question"], "--index", desk.directory), config)


def answer_html(run: Run, key: str) -> str:
    """The answer with links for its marks, and a wavy line under sentences that nothing backs."""
    text, known = run["answer"], {one["mark"] for one in run["citations"]}
    doubts = [
        Mark(start, end, "doubt", "not backed by the documents")
        for (start, end), backed in zip(run["sentences"], run["supported"], strict=True)
        if not backed
    ]
    made, at = [], 0
    for found in _MARK.finditer(text):
        if int(found[1]) in known:
            made.append(marked_line(text, doubts, at, found.start()))
            made.append(f'<a class="cw-ref" href="#source-{key}-{found[1]}" title="open the source">{found[1]}</a>')
            at = found.end()
    return "".join([*made, marked_line(text, doubts, at, len(text))])


def draw_citation(desk: Desk, citation: dict[str, Any], key: str) -> None:
    """A card with the exact span inside of what stands around it, and a wider view on demand."""
    page = f", page {citation['page']}" if citation["page"] else ""
    head = f"{safe(str(citation['mark']))} · {safe(citation['source'])}{page}"
    name = f"source-{key}-{citation['mark']}"
    try:
        document = desk.document(citation["doc_id"])
    except UsageError:
        note = "This version of the document is not in the index any more; these are the words that were cited."
        body = marked_text(citation["text"], [Mark(0, len(citation["text"]))], test_id="citation")
        st.html(_card(name, head, body + f'<div class="cw-dim">{note}</div>'))
        return
    start, end = citation["start"], citation["end"]
    st.html(_card(name, head, _window(document, start, end, AROUND, "citation")))
    if not page and start <= AROUND and len(document.text) <= end + AROUND:
        return  # all of it is on the card
    with st.expander(f"Wider: {'the page' if page else 'what stands around it'}", icon=":material/article:"):
        st.html(_wide(document, start, end))
        place = f"{citation['doc_id']}:{start}-{end}"
        st.code(command("rag", "show", place, "--index", desk.directory), language="sh", wrap_lines=True)


def _card(name: str, head: str, body: str) -> str:
    return f'<div class="cw cw-card" id="{name}" data-testid="{name}"><div class="cw-head">{head}</div>{body}</div>'


def _window(document: Document, start: int, end: int, around: int, test_id: str) -> str:
    """The span and up to `around` characters on both sides, from a word's start to a word's end."""
    text = document.text
    low, high = max(0, start - around), min(len(text), end + around)
    while 0 < low < start and not text[low - 1].isspace():
        low += 1
    while end < high < len(text) and not text[high].isspace():
        high -= 1
    return marked_text(text, [Mark(start, end)], start=low, end=high, test_id=test_id)


def _wide(document: Document, start: int, end: int) -> str:
    """The whole page where the source has pages, else some thousand characters."""
    number = document.page_at(start)
    page = next((one.span for one in document.pages if one.number == number), None)
    if page is None or page.end - page.start > 2 * AROUND_WIDE:
        return _window(document, start, end, AROUND_WIDE, "wide")
    return marked_text(
        document.text, [Mark(start, end)], start=page.start, end=max(page.end, end), classes="cw-scroll", test_id="wide"
    )


def _not_found(desk: Desk, run: Run) -> None:
    st.info(
        "**Not found in the documents.** No passage backs an answer. Try other words, or add the file that should "
        "hold it under Documents.",
        icon=":material/search_off:",
    )
    closest = run.get("candidates", [])[:CLOSEST]
    if not closest:
        return
    with st.expander("What came closest", icon=":material/travel_explore:"):
        for hit in closest:
            try:
                chunk = desk.index.store.chunk(hit["chunk_id"])
            except KeyError:
                continue
            source = run.get("sources", {}).get(chunk.doc_id, chunk.doc_id)
            body = marked_text(chunk.text, [], end=600, test_id="closest")
            st.html(f'<div class="cw cw-card"><div class="cw-head">{safe(source)}</div>{body}</div>')
