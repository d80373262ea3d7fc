"""Trace: how long each stage took, and what became of every candidate, by which rule."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import streamlit as st

from app.desk import Desk
from app.parts import Mark, command, copyable, empty, marked_text, plain, safe
from app.views._drawing import Bar, Fill, bars, blank, draw, one_line, share
from rag.errors import RagError
from rag.replay import ledger, totals
from rag.types import parse_chunk_id

_FATES = {
    "prompt": "● in the prompt",
    "compressed": "◐ compressed away",
    "cut": "○ cut",
    "unseen": "○ not weighed",
}


def show(desk: Desk) -> None:
    """The stages of the picked run, its candidates, and the text of one of them."""
    run = desk.run
    if run is None:
        empty("Nothing to trace yet", "Ask a question in the view Ask. Its stages and candidates are shown here.")
        return
    st.html(f'<div class="cw cw-head" data-testid="question">{safe(run["question"])}</div>')
    st.subheader("Stages", anchor=False)
    draw(waterfall(run))
    with st.expander("Notes of the stages"):
        st.json({one["stage"]: {"plugin": one["plugin"], **one["notes"]} for one in run["trace"]})
    st.subheader("Candidates", anchor=False)
    _candidates(desk, run)
    if run["prompt"]:
        with st.expander("The prompt, exactly as the generator read it"):
            st.html(marked_text(run["prompt"], (), classes="cw-scroll", test_id="prompt"))
    copyable(
        command("rag", "explain", run.get("run_id") or "last", "--all", "--index", desk.directory),
        desk.pipeline_of(run).describe(),
    )


def waterfall(run: Mapping[str, Any]) -> str:
    """A bar for each stage, one after the other, from where it started to where it ended."""
    whole, at, rows = sum(one["seconds"] for one in run["trace"]), 0.0, []
    for number, one in enumerate(run["trace"]):
        width = share(one["seconds"], whole)
        told = f"{one['stage']}, {_milliseconds(one['seconds'])}, {one['items_in']} in, {one['items_out']} out"
        start = min(at, 99.5)
        rows.append(
            Bar(
                f"{one['stage']} · {one['plugin']}",
                (blank(start), Fill(str(number % 4), min(max(width, 0.5), 100.0 - start), told)),
                f"{_milliseconds(one['seconds'])} · {one['items_in']} → {one['items_out']}",
            )
        )
        at += width
    total = f'<div class="cw cw-dim">{_milliseconds(whole)} in all; on the right, items in → items out</div>'
    return bars(rows, "waterfall") + total


def candidate_rows(run: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A row for each candidate, best first: its fate and the rule, its rank and score at every step it went through."""
    lines: dict[str, list[dict[str, Any]]] = {}
    for line in ledger(run):
        lines.setdefault(line["chunk_id"], []).append(line)
    cited: dict[str, list[int]] = {}
    for one in run["citations"]:
        cited.setdefault(one["chunk_id"], []).append(one["mark"])
    in_prompt = {one["chunk_id"] for one in run["context"]["pieces"]}
    hits = {one["chunk_id"]: one for one in (*run["bubble"]["hits"], *run.get("candidates", ()))}
    rows = []
    for hit in sorted(hits.values(), key=lambda one: int(one["rank"])):
        own = lines.get(hit["chunk_id"], [])
        taken = [line for line in own if line["taken"]]
        kept = "prompt" if hit["chunk_id"] in in_prompt else "compressed"
        fate = kept if hit["chunk_id"] in run["bubble"]["chunk_ids"] else "cut" if own else "unseen"
        deciding = (taken or own or [{"action": "", "reason": ""}])[0]
        doc_id, span = parse_chunk_id(hit["chunk_id"])
        ranks = {name: int(value) for name, value in sorted(hit["parts"].items()) if name.endswith(".rank")}
        scores = {name: value for name, value in sorted(hit["parts"].items()) if not name.endswith(".rank")}
        rows.append(
            {
                "rank": hit["rank"],
                "fate": _FATES[fate],
                **ranks,
                "rule": f"{deciding['action']}: {deciding['reason']}" if own else "",
                "cited": ", ".join(f"[{mark}]" for mark in dict.fromkeys(cited.get(hit["chunk_id"], ()))),
                "source": run.get("sources", {}).get(doc_id) or doc_id,
                "place": f"{span.start}-{span.end}",
                "parts taken": f"{len(taken)} of {len(own)}",
                "tokens taken": sum(line["tokens"] for line in taken),
                "score": hit["score"],
                **scores,
                "chunk_id": hit["chunk_id"],
            }
        )
    return rows


def _candidates(desk: Desk, run: Mapping[str, Any]) -> None:
    rows, sums = candidate_rows(run), totals(run)
    if not rows:
        empty("No candidates", "The search found nothing, or this run was stored without them: ask again.")
        return
    told = [f"{len(rows)} candidates", f"{sums['chunks']} kept", f"{sums['tokens']} of {sums['budget']} tokens"]
    told += [f"{count} × {action}" for action, count in sums["skipped"].items()]
    st.caption(plain("; ".join(told)))
    st.caption("In the prompt ●; taken, then dropped by the compressor ◐; cut by the selector, or not weighed ○")
    fates = sorted({row["fate"] for row in rows}, key=list(_FATES.values()).index)
    shown = st.pills("Show", fates, selection_mode="multi", default=fates, key="trace_fates")
    rows = [row for row in rows if row["fate"] in shown]
    columns = {
        "rank": st.column_config.NumberColumn("rank", pinned=True, help="After fusion and reranking"),
        "rule": st.column_config.TextColumn("rule", width="medium"),
        "chunk_id": None,
    }
    st.dataframe(rows, hide_index=True, column_config=columns, height=360)
    picked = st.selectbox(
        "Read a candidate",
        [row["chunk_id"] for row in rows],
        format_func=lambda one: _label(next(row for row in rows if row["chunk_id"] == one)),
        index=0 if rows else None,
    )
    if picked:
        _read(desk, run, picked)


def _read(desk: Desk, run: Mapping[str, Any], chunk_id: str) -> None:
    """The text of a candidate, what was taken of it marked."""
    doc_id, span = parse_chunk_id(chunk_id)
    try:
        text = desk.document(doc_id).text
    except RagError as error:
        st.info(plain(f"The text cannot be shown: {error}"))
        return
    kept = dict(zip(run["bubble"]["chunk_ids"], run["bubble"]["kept"], strict=True)).get(chunk_id, ())
    marks = [Mark(start, end, "keep", "taken into the context") for start, end in kept]
    st.html(marked_text(text, marks, start=span.start, end=span.end, classes="cw-scroll", test_id="candidate"))
    st.caption("Green and underlined: taken into the context." if marks else "Nothing of it was taken.")
    st.code(command("rag", "show", chunk_id, "--index", desk.directory), language="sh", wrap_lines=True)


def _label(row: Mapping[str, Any]) -> str:
    return one_line(f"{row['rank']} {row['fate'][0]} {row['source']} {row['place']}")


def _milliseconds(seconds: float) -> str:
    return f"{1000 * seconds:,.0f} ms"
