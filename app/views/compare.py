"""Compare: one question, two pipelines on the same index, what differs first."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import streamlit as st
import yaml

from app.desk import Desk, Run
from app.parts import Mark, budget_bar, command, copyable, empty, marked_text, plain, safe, table
from app.views.ask import answer_html
from rag import Pipeline, RagError
from rag.errors import ConfigError

OWN = "My own YAML"
PRESETS: dict[str, dict[str, Any]] = {
    "As the index was built": {},
    "Whole chunks (top-k)": {"selector": {"use": "top-k", "budget": 1200}},
    "A third of the budget": {"selector": {"use": "bubble", "budget": 400}},
    "Half of the context cut (sentence-prune)": {"compressor": {"use": "sentence-prune", "rate": 0.5}},
    "Full-text search alone (bm25)": {"retriever": "bm25"},
    "Bridges between documents": {"retriever": "bridge"},
}
SLOTS = ("retriever", "selector", "compressor", "generator")
MOST_TEXT = 1500


def show(desk: Desk) -> None:
    """Two configs, a question, differences, then both answers."""
    question = st.text_input(
        "Question", value=desk.run["question"] if desk.run else "", key="compared", placeholder="Ask both pipelines"
    )
    names = ("A", "B")
    chosen = []
    for at, column in enumerate(st.columns(2)):
        with column:
            chosen.append(_choose(desk, names[at], at))
    if not question.strip():
        empty("Nothing to compare yet", "Write a question above; both pipelines answer it from the same index.")
        return
    pipelines = [one for one in chosen if one is not None]
    if len(pipelines) < 2:
        return
    runs = []
    for name, pipeline in zip(names, pipelines, strict=True):
        try:
            runs.append(desk.answered(question.strip(), pipeline))
        except RagError as error:
            st.error(f"{name}: " + plain(str(error)))
    if len(runs) < 2:
        return
    _differences(runs[0], runs[1])
    for at, column in enumerate(st.columns(2)):
        with column, st.container(border=True):
            _side(runs[at], names[at])
    _only(desk, runs)
    asked = command("rag", "ask", question.strip(), "--index", desk.directory, "--trace", "--config")
    both = "\n".join(f"# {name}.yaml\n{one.describe()}" for name, one in zip(names, pipelines, strict=True))
    copyable(f"{asked} A.yaml\n{asked} B.yaml", both)


def _choose(desk: Desk, name: str, preset: int) -> Pipeline | None:
    """The pipeline of a side; None, and why, when its config is wrong."""
    picked = st.selectbox(f"Pipeline {name}", [*PRESETS, OWN], index=preset, key=f"preset-{name}")
    slots: Any = PRESETS.get(picked, {})
    if picked == OWN:
        start = {slot: desk.pipeline.config.to_dict()[slot] for slot in SLOTS}
        written = st.text_area(
            f"YAML of {name}", value=yaml.safe_dump(start, sort_keys=False), height=190, key=f"yaml-{name}"
        )
        try:
            slots = yaml.safe_load(written) or {}
        except yaml.YAMLError as error:
            st.error("This is no YAML: " + plain(" ".join(str(error).split())))
            return None
    else:
        told = yaml.safe_dump(slots, default_flow_style=True, sort_keys=False).strip() if slots else "nothing changed"
        st.html(f'<div class="cw cw-dim">{safe(told)}</div>')
    try:
        return _pipeline(desk, slots)
    except RagError as error:
        st.error(plain(str(error)))
        return None


def _pipeline(desk: Desk, slots: Any) -> Pipeline:
    if not isinstance(slots, Mapping):
        raise ConfigError(f"expected slots such as 'retriever: bm25', not {type(slots).__name__}")
    wrong = [str(name) for name in slots if name not in SLOTS]
    if wrong:
        raise ConfigError(
            f"{', '.join(wrong)} cannot be changed here, since both pipelines ask one index. Slots: {', '.join(SLOTS)}"
        )
    return desk.pipeline_with(**slots)


def contrasts(first: Run, second: Run) -> list[tuple[str, str, str, str]]:
    """(what, A, B, same or differs) of two runs, what differs first."""
    rows = [
        ("answer", first["answer"], second["answer"]),
        ("cited", *(_places(run["citations"]) for run in (first, second))),
        ("tokens of context", *(str(run["context"]["token_count"]) for run in (first, second))),
        ("chunks in context", *(str(len(run["bubble"]["chunk_ids"])) for run in (first, second))),
        ("candidates", *(str(len(run.get("candidates", ()))) for run in (first, second))),
        ("first candidate", *(_first(run) for run in (first, second))),
    ]
    told = [(what, one, other, "same" if one == other else "differs") for what, one, other in rows]
    told.sort(key=lambda row: row[3] == "same")
    return [*told, ("milliseconds", _milliseconds(first), _milliseconds(second), "measured")]


def _places(citations: list[dict[str, Any]]) -> str:
    return ", ".join(f"{one['source']} {one['start']}-{one['end']}" for one in citations) or "nothing"


def _first(run: Run) -> str:
    return _source(run, run["candidates"][0]["chunk_id"]) if run.get("candidates") else "none"


def _source(run: Run, chunk_id: str) -> str:
    doc_id, _, place = chunk_id.rpartition(":")
    return f"{run.get('sources', {}).get(doc_id, doc_id)} {place}"


def _milliseconds(run: Run) -> str:
    return f"{1000 * sum(stage['seconds'] for stage in run['trace']):.0f}"


def only_in(run: Run, other: Run) -> list[dict[str, Any]]:
    """Pieces of the context of `run` with words that the context of `other` does not have, and those words' spans."""
    theirs: dict[str, list[list[int]]] = {}
    for piece in other["context"]["pieces"]:
        theirs.setdefault(piece["doc_id"], []).extend(piece["kept"])
    found = []
    for piece in run["context"]["pieces"]:
        spans = [span for span in piece["kept"] if not _covered(span, theirs.get(piece["doc_id"], []))]
        if spans:
            found.append({**piece, "kept": spans})
    return found


def _covered(span: list[int], others: list[list[int]]) -> bool:
    return any(low <= span[0] and span[1] <= high for low, high in others)


def _differences(first: Run, second: Run) -> None:
    rows = contrasts(first, second)
    unlike = sum(row[3] == "differs" for row in rows)
    st.subheader("No difference" if not unlike else f"{unlike} of {len(rows) - 1} things differ")
    table(["", "A", "B", ""], rows, test_id="differences")


def _side(run: Run, name: str) -> None:
    st.html(f'<div class="cw cw-head">{name}</div>')
    if run["citations"] or run["sentences"]:
        st.html(f'<div class="cw cw-text" data-testid="answer-{name}">{answer_html(run, f"compare-{name}")}</div>')
        for one in run["citations"]:
            page = f", page {one['page']}" if one["page"] else ""
            cited = marked_text(one["text"], [Mark(0, len(one["text"]))])
            head = f'<div class="cw-head">{one["mark"]} · {safe(one["source"])}{page}</div>'
            st.html(f'<div class="cw cw-card" id="source-compare-{name}-{one["mark"]}">{head}{cited}</div>')
    else:
        st.info("**Not found in the documents.**", icon=":material/search_off:")
    budget_bar(run)


def _only(desk: Desk, runs: list[Run]) -> None:
    """What each context alone holds."""
    for at, column in enumerate(st.columns(2)):
        pieces = only_in(runs[at], runs[1 - at])
        with column, st.expander(f"Only in the context of {'AB'[at]}: {len(pieces)}", icon=":material/difference:"):
            for piece in pieces[:20]:
                text = "\n…\n".join(desk.document(piece["doc_id"]).text[start:end] for start, end in piece["kept"])
                head = f'<div class="cw-head">{safe(_source(runs[at], piece["chunk_id"]))}</div>'
                st.html(f'<div class="cw cw-card">{head}{marked_text(text, [], end=MOST_TEXT)}</div>')
