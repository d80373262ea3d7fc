"""The app's script. Streamlit runs it anew at every click; models and index stay behind `cache_resource`."""

from __future__ import annotations

import html
import os
from pathlib import Path
from typing import Any

import streamlit as st

from rag import Index, Pipeline, RagError
from rag.config import resolve

CONTEXT_CHARS = 400
STYLE = "<style>mark{background:#ffe08a;color:#222;border-bottom:2px dashed #8a6d00;padding:0 .1em}</style>"


@st.cache_resource(max_entries=2, show_spinner="Opening the index")
def open_line(directory: str, generation: int) -> tuple[Pipeline, Index]:
    """Pipeline and index; a new `generation` makes a new pair, a new run trace does not."""
    index = Index.open(directory)
    return Pipeline(resolve(index_config=index.manifest().get("config")).config), index


def generation_of(directory: Path) -> int:
    """Which state of the chunks is on disk."""
    with Index.open(directory) as index:
        return index.corpus.generation


def sample_index(directory: Path) -> None:
    """Ingest the sample documents, so that the first start shows something."""
    from rag.sample import documents_dir

    with st.spinner("Reading the sample documents"):
        Pipeline().index([documents_dir()], into=directory).close()


def draw_citation(index: Index, citation: dict[str, Any], *, expanded: bool) -> None:
    """The exact span, marked, inside the text around it."""
    text = index.document(citation["doc_id"]).text
    start, end = citation["start"], citation["end"]
    before, after = text[max(0, start - CONTEXT_CHARS) : start], text[end : end + CONTEXT_CHARS]
    page = f", page {citation['page']}" if citation["page"] else ""
    with st.expander(f"[{citation['mark']}] {citation['source']}{page}", expanded=expanded):
        marked = f"{html.escape(before)}<mark>{html.escape(text[start:end])}</mark>{html.escape(after)}"
        st.html(f'{STYLE}<div data-testid="citation" style="white-space:pre-wrap">{marked}</div>')
        st.code(f"rag show {citation['doc_id']}:{start}-{end} --index {index.directory}", language="sh")


def draw_run(index: Index, run: dict[str, Any]) -> None:
    """Answer, citations, ledger and stages of one run."""
    st.markdown(f"**{html.escape(run['question'])}**")
    if run["citations"]:
        st.write(run["answer"])
        unsupported = sum(not backed for backed in run["supported"])
        if unsupported:
            st.warning(f"{unsupported} of {len(run['supported'])} sentences are not backed by the documents.")
    else:
        st.info("Not found in the documents. Try other words, or ingest the file that should hold the answer.")
    for at, citation in enumerate(run["citations"]):
        draw_citation(index, citation, expanded=at == 0)
    bubble = run["bubble"]
    with st.expander(f"Ledger: {bubble['token_count']} of {bubble['budget']} tokens"):
        st.dataframe(bubble["decisions"], hide_index=True)
    with st.expander("Stages"):
        keys = ("stage", "plugin", "seconds", "items_in", "items_out")
        st.dataframe([{key: stage[key] for key in keys} for stage in run["trace"]], hide_index=True)
    st.code(f"rag ask {run['question']!r} --index {index.directory}", language="sh")


def main() -> None:
    """Ask view: a question, its answer, and why."""
    st.set_page_config(page_title="Chunkwise", layout="wide")
    st.title("Chunkwise")
    directory = Path(os.environ.get("RAG_INDEX", "demo-index"))
    try:
        if not Index.exists(directory):
            sample_index(directory)
        pipeline, index = open_line(str(directory), generation_of(directory))
    except RagError as error:
        st.error(str(error))
        return
    counts = index.store.stats()
    st.caption(f"{counts['documents']} documents, {counts['chunks']} chunks in {directory}")
    runs: list[dict[str, Any]] = st.session_state.setdefault("runs", [])
    question = st.chat_input("Ask your documents")
    if question and question.strip():
        try:
            runs.insert(0, pipeline.ask(question, index).to_dict())
        except RagError as error:
            st.error(str(error))
    for run in runs:
        with st.container(border=True):
            draw_run(index, run)


main()
