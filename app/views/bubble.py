"""Bubble: what the token budget was spent on, line by line, and what another budget would buy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import streamlit as st

from app.desk import Desk
from app.parts import budget_bar, command, copyable, empty, plain, safe
from rag.errors import UsageError
from rag.registry import describe, spec_name
from rag.replay import ledger, totals

_STEP, _LEAST, _MOST = 50, 50, 4000


def show(desk: Desk) -> None:
    """The budget, a slider that selects again from the same candidates, and the ledger that comes of it."""
    run = desk.run
    if run is None:
        empty("No bubble yet", "Ask a question in the view Ask. What its token budget was spent on is shown here.")
        return
    st.html(f'<div class="cw cw-head" data-testid="question">{safe(run["question"])}</div>')
    own = int(run["bubble"]["budget"])
    most = max(_MOST, 2 * own)
    name = f"bubble_budget_{run.get('run_id', '')}"
    if run.get("flow"):
        st.info("This run followed a flow: its context is shown as it was, and cannot be selected again.")
        budget = own
    else:
        budget = st.slider(
            "Token budget", min(_LEAST, own), most, own, _STEP, key=name,
            help="The selector runs again on the stored candidates. Nothing is searched, and nothing is embedded.",
        )  # fmt: skip
    now = run
    if budget != own:
        try:
            now = desk.reselect(run, budget)
        except UsageError as error:
            st.warning(plain(str(error)))
            budget = own
    _figures(run, now)
    budget_bar(now)
    _ledger(run, now)
    line = command("rag", "ask", run["question"], "--trace", "--all", "--index", desk.directory)
    copyable(line, _yaml(desk, run, budget))


def _figures(run: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    then, sums = totals(run), totals(now)
    moved = now is not run
    box = st.container(horizontal=True, gap="medium")
    shown = {"Tokens spent": "tokens", "Budget": "budget", "Chunks": "chunks", "Decisions": "lines"}
    for label, name in shown.items():
        change = sums[name] - then[name] if moved else None
        box.metric(label, f"{sums[name]:,}", f"{change:+,}" if change else None, delta_color="off", width="content")
    told = "; ".join(f"{count} × {action}" for action, count in {**sums["taken"], **sums["skipped"]}.items())
    st.caption(plain(told))


def ledger_rows(run: Mapping[str, Any], now: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The lines of the ledger as a table; `change` says what differs from the run as it was answered."""
    before = {_place(line) for line in ledger(run) if line["taken"]}
    rows = []
    for number, line in enumerate(ledger(now), start=1):
        had, has = _place(line) in before, line["taken"]
        rows.append(
            {
                "line": number,
                "taken": "● taken" if has else "○ left out",
                "change": "" if had == has or now is run else "+ new" if has else "− lost",
                "source": line["source"] or line["doc_id"],
                "place": f"{line['start']}-{line['end']}",
                "tokens": line["tokens"],
                "gain": line["gain"],
                "relevance": line["relevance"],
                "redundancy": line["redundancy"],
                "action": line["action"],
                "reason": line["reason"],
                "rank": line["rank"],
                **{f"part: {name}": value for name, value in line["parts"].items()},
            }
        )
    return rows


def _ledger(run: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    st.subheader("Ledger", anchor=False)
    rows = ledger_rows(run, now)
    if not rows:
        empty("The ledger is empty", "The selector weighed nothing: the search found no candidates.")
        return
    if now is not run:
        new, lost = (sum(row["change"] == sign for row in rows) for sign in ("+ new", "− lost"))
        st.html(
            f'<div class="cw cw-dim" data-testid="ledger-change">Against the answer as it was given: {new} parts more, '
            f"{lost} parts less. The answer itself was not written again.</div>"
        )
    kinds = {"all lines": None, "taken": "●", "left out": "○"}
    if now is not run:
        kinds["changed"] = ""
    kind = st.segmented_control("Lines", list(kinds), default="all lines", key="bubble_lines") or "all lines"
    if kind == "changed":
        rows = [row for row in rows if row["change"]]
    elif sign := kinds.get(kind):
        rows = [row for row in rows if row["taken"].startswith(sign)]
    columns = {
        "line": st.column_config.NumberColumn("line", pinned=True, width="small"),
        "taken": st.column_config.TextColumn("taken", width="small"),
        "change": None if now is run else st.column_config.TextColumn("change", width="small"),
        "gain": st.column_config.NumberColumn("gain", format="%.3f", help="What the line adds: relevance, less what "
                                              "the context says already"),
        "relevance": st.column_config.NumberColumn("relevance", format="%.3f"),
        "redundancy": st.column_config.NumberColumn("redundancy", format="%.3f"),
    }  # fmt: skip
    st.dataframe(rows, hide_index=True, column_config=columns, height=420)


def _place(line: Mapping[str, Any]) -> tuple[str, int, int]:
    return line["chunk_id"], line["start"], line["end"]


def _yaml(desk: Desk, run: dict[str, Any], budget: int) -> str:
    """The config of the run, with this budget where the selector takes one."""
    config = desk.pipeline_of(run).config
    spec = config.selector
    takes = any(one.name == "budget" for one in describe("selector", spec_name(spec)).parameters)
    if takes and budget != run["bubble"]["budget"]:
        given = dict(spec) if isinstance(spec, Mapping) else {"use": spec}
        config = replace(config, selector={**given, "budget": budget})
    return config.to_yaml()
