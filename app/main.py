"""The app's script. Streamlit runs it anew at every click; what is costly stays in `app.desk`."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import streamlit as st

from app.desk import Desk, Run, open_desk
from app.parts import command, plain
from app.theme import STYLE
from rag import Index, Pipeline, RagError
from rag.config import resolve
from rag.text import printable

VIEWS = {
    "ask": ("Ask", ":material/forum:"),
    "documents": ("Documents", ":material/folder_open:"),
    "chunk_lens": ("Chunk lens", ":material/content_cut:"),
    "trace": ("Trace", ":material/account_tree:"),
    "bubble": ("Bubble", ":material/bubble_chart:"),
    "compression": ("Compression", ":material/compress:"),
    "kv_attention": ("KV and attention", ":material/memory:"),
    "compare": ("Compare", ":material/compare:"),
    "reports": ("Reports", ":material/leaderboard:"),
}


def main() -> None:
    """Navigation, one sidebar, and the picked view."""
    st.set_page_config(page_title="Chunkwise", page_icon=str(Path(__file__).with_name("icon.svg")), layout="wide")
    st.html(STYLE)
    there = [name for name in VIEWS if find_spec(f"app.views.{name}")]
    pages = [
        st.Page(_page(name), title=VIEWS[name][0], icon=VIEWS[name][1], url_path=name, default=name == "ask")
        for name in there
    ]
    page = st.navigation(pages, expanded=True)
    st.title(page.title)
    page.run()


def _page(name: str) -> Callable[[], None]:
    def draw() -> None:
        try:
            desk = _desk(Path(os.environ.get("RAG_INDEX", "demo-index")))
            import_module(f"app.views.{name}").show(desk)
        except RagError as error:
            st.error(plain(str(error)))

    return draw


def _desk(directory: Path) -> Desk:
    """The desk, with the run that the sidebar picks; the sample documents at the first start."""
    if not Index.exists(directory):
        _sample(directory)
    desk = open_desk(directory)
    with st.sidebar:
        counts = desk.index.store.stats()
        st.caption(f"{counts['documents']} documents, {counts['chunks']} chunks in {plain(str(directory))}")
        runs = {run["run_id"]: run for run in desk.runs()}
        asked = st.session_state.get("run")
        if asked and asked.get("run_id", "") not in runs:
            runs = {asked.get("run_id", ""): asked, **runs}
        if not runs:
            st.caption("No question has been asked yet.")
            return desk
        wanted = st.session_state.pop("pick", None)
        if wanted in runs:
            st.session_state["picked"] = wanted
        if st.session_state.get("picked") not in runs:
            st.session_state["picked"] = next(iter(runs))
        picked = st.selectbox(
            "Run looked at", list(runs), key="picked", format_func=_labels(runs).__getitem__,
            help="Trace, Bubble, Compression, and KV and attention show this run.",
        )  # fmt: skip
        st.code(command("rag", "explain", picked, "--index", directory), language="sh", wrap_lines=True)
    return replace(desk, run=runs[picked])


def _sample(directory: Path) -> None:
    """Ingests the sample documents, so that the first start shows something."""
    from rag.sample import documents_dir

    with st.spinner("First start: reading the sample documents"):
        Pipeline(resolve().config).index([documents_dir()], into=directory).close()


def _labels(runs: Mapping[str, Run]) -> dict[str, str]:
    """Run id -> question, all different: the browser tells a choice by its label."""
    labels: dict[str, str] = {}
    for run_id, run in runs.items():
        label = _short(run["question"])
        labels[run_id] = f"{label} ({run_id})" if label in labels.values() else label
    return labels


def _short(question: str, most: int = 60) -> str:
    line = printable(" ".join(question.split()))
    return line if len(line) <= most else f"{line[: most - 1]}…"


if __name__ == "__main__":
    main()
