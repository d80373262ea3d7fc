"""KV and attention: which keys and values of a prompt were there already, and how much of the prompt was read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import streamlit as st

from app.desk import Desk
from app.parts import command, copyable, empty, plain, safe, table
from app.views._drawing import Bar, Fill, bars, draw, grid, legend, share

_DENSE = ("none", "sdpa", "dense")
_TOLD = ("selection", "executor", "drafts")
_DENSITIES = {"prefill_density": "scores computed, prompt", "decode_density": "scores computed, answer"}


def show(desk: Desk) -> None:
    """What became of every segment of the prompt, and of the attention to it."""
    run = desk.run
    if run is None:
        empty("No prompt yet", "Ask a question in the view Ask. What became of its keys and values is shown here.")
        return
    st.html(f'<div class="cw cw-head" data-testid="question">{safe(run["question"])}</div>')
    stats = run["stats"]
    if stats["policy"] == "none":
        _nothing_reused(stats)
    else:
        _figures(desk, run)
    rows = _notes(run, "segments").get("segments", ())
    if rows:
        st.subheader("Segments of the prompt", anchor=False)
        draw(timeline(run, rows))
        if made := _notes(run, "segments").get("tokens_made"):
            st.caption(f"{made:,} of the reused tokens were computed for this prompt, and are kept for the next one.")
    _honesty(stats)
    st.subheader("Attention", anchor=False)
    _attention(run, rows)
    audit = ["--audit-kv"] if stats["policy"] != "none" else []
    line = command("rag", "ask", run["question"], "--trace", *audit, "--index", desk.directory)
    copyable(line, _yaml(desk, run))


def _nothing_reused(stats: Mapping[str, Any]) -> None:
    if stats["prompt_tokens"]:
        empty(
            "No keys and values were reused",
            f"The generator read {stats['prompt_tokens']:,} tokens anew. Copy the YAML below, which sets "
            "`reuse: chunk`, and ask two questions: the second finds the chunks of the first.",
        )
        return
    empty(
        "This generator reads no prompt with a language model",
        "It copies sentences out of the documents, so there are no keys and values, and no attention. Copy the YAML "
        "below, which sets the generator `local` with `reuse: chunk`, and ask again.",
    )


def _figures(desk: Desk, run: Mapping[str, Any]) -> None:
    stats, box = run["stats"], st.container(horizontal=True, gap="medium")
    prompt = stats["prompt_tokens"]
    reused = f"{share(stats['reused_tokens'], prompt):.0f} %"
    box.metric("Reused", reused, help=f"policy {stats['policy']}", width="content")
    anew, of = f"{stats['computed_tokens']:,}", f"{prompt:,} in the prompt"
    box.metric("Computed", anew, of, delta_color="off", delta_arrow="off", width="content")
    full = full_prefill(desk, run)
    seconds = stats["ttft_seconds"]
    change = f"{seconds / full['stats']['ttft_seconds'] - 1:+.0%} against a full prefill" if full else None
    box.metric("First token", _milliseconds(seconds), change, delta_color="inverse", width="content")
    box.metric("From disk", _megabytes(stats["bytes_loaded"]), width="content")
    if full:
        took = _milliseconds(full["stats"]["ttft_seconds"])
        st.caption(plain(f"Full prefill of the same prompt: run {full['run_id']}, first token after {took}."))
    else:
        st.caption("A full prefill of this prompt is not among the stored runs; ask with `reuse: none` to have one.")


def full_prefill(desk: Desk, run: Mapping[str, Any]) -> dict[str, Any] | None:
    """The newest stored run that read the very same prompt with the same plugin, all of it anew."""
    for one in desk.runs():
        stats = one["stats"]
        same = one["prompt"] == run["prompt"] and one["trace"][-1]["plugin"] == run["trace"][-1]["plugin"]
        anew = stats["computed_tokens"] == stats["prompt_tokens"] > 0 and not stats["repaired_tokens"]
        dense = stats["policy"] == "none" and stats["attention"] in _DENSE
        if same and anew and dense and stats["ttft_seconds"] > 0:
            return one
    return None


def timeline(run: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> str:
    """A bar for each segment, as long as its share of the longest: reused, repaired and computed tokens."""
    most, made = max((row["tokens"] for row in rows), default=1), []
    for row in rows:
        again = row["repaired"] or 0
        counts = (
            ("0", row["reused"], "reused"),
            ("1", again, "repaired"),
            ("lost", row["computed"] - again, "new"),
            ("3", row.get("skipped", 0), "read by none and not loaded"),
        )
        fills = [Fill(kind, share(count, most), f"{count} {name}") for kind, count, name in counts if count]
        state = (
            "not read"
            if row.get("skipped")
            else "miss"
            if not row["reused"]
            else "hit"
            if not row["computed"]
            else "hit in part"
        )
        if row["reused"] and (again or row["repaired"] is None):
            state = "hit, repaired"
        size = f" · {_megabytes(row['bytes'])}" if row.get("bytes") else ""
        made.append(Bar(_name(row, run), fills, f"{state} · {row['tokens']:,} tokens{size}"))
    keys = [("0", "reused (hit)"), ("1", "repaired: reused, then computed again"), ("lost", "computed (miss)")]
    keys += [("3", "read by none, not loaded")] if any(row.get("skipped") for row in rows) else []
    return bars(made, "kv-timeline") + legend(keys)


def _honesty(stats: Mapping[str, Any]) -> None:
    """How far the answer strays from that of a full prefill, and what drafts brought."""
    told = []
    if stats.get("predicted_deviation") is not None:
        told.append(f"predicted deviation {stats['predicted_deviation']:.3g} nats a token")
    if stats.get("measured_deviation") is not None:
        told.append(f"measured {stats['measured_deviation']:.3g} nats a token")
        told.append(f"the same most likely token in {stats['measured_agreement']:.1%} of the answer")
    if stats.get("drafted_tokens"):
        told.append(f"{stats['accepted_tokens']} of {stats['drafted_tokens']} guessed tokens held")
    if told:
        st.caption(plain("Against full prefill: " + "; ".join(told)))


def _attention(run: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> None:
    """Selection, density and masks, where the run has them; else that everything was read, or that there is nothing."""
    stats = run["stats"]
    found = _notes(run, "attention").get("attention") or {"selection": stats["attention"]}
    if not stats["prompt_tokens"]:
        st.write("No language model read a prompt in this run, so there was no attention.")
        return
    if found["selection"] in _DENSE and stats["density"] >= 1.0:
        st.write("Attention was dense: every token read all tokens before it (density 100 %).")
        st.caption("To read less, set `attention` of the generator `local`: `chunk-block`, say.")
        return
    shares = [(label, found[name]) for name, label in _DENSITIES.items() if found.get(name) is not None]
    shares = shares or [("scores computed", stats["density"])]
    draw(bars([_share_bar(label, float(part), "computed") for label, part in shares], "attention-density"))
    table(("", ""), [(name, str(found[name])) for name in _TOLD if found.get(name)], test_id="attention-facts")
    read = [(row, row["read"]) for row in rows if row.get("read") is not None]
    if read:
        st.caption("How much of each segment the answer reads")
        draw(bars([_share_bar(_name(row, run), part, "read") for row, part in read], "attention-segments"))
    masks = found.get("masks") or ()
    if masks:
        draw("".join(grid(one["rows"], f"layer {one['layer']}") for one in masks))
    else:
        st.caption("The run keeps no block masks, so there are no thumbnails to draw.")


def _share_bar(name: str, part: float, what: str) -> Bar:
    told = "not at all" if not part else f"{part:.1%}"
    return Bar(name, [Fill("2", 100 * part, f"{part:.1%} {what}")], told)


def _notes(run: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """The notes of the last stage that has some of that name."""
    return next((one["notes"] for one in reversed(run["trace"]) if name in one["notes"]), {})


def _name(row: Mapping[str, Any], run: Mapping[str, Any]) -> str:
    if "chunk_id" not in row:
        return str(row["part"])
    doc_id = row["chunk_id"].partition(":")[0]
    return f"[{row['part']}] {run.get('sources', {}).get(doc_id) or doc_id}"


def _milliseconds(seconds: float) -> str:
    return f"{1000 * seconds:,.0f} ms"


def _megabytes(count: int) -> str:
    return f"{count / 1e6:.2f} MB"


def _yaml(desk: Desk, run: dict[str, Any]) -> str:
    """The config of the run; where no keys and values were reused, with a generator that does."""
    config = desk.pipeline_of(run).config
    if run["stats"]["policy"] == "none":
        spec = config.generator
        own = dict(spec) if isinstance(spec, Mapping) and spec.get("use") == "local" else {"use": "local"}
        config = replace(config, generator={**own, "reuse": "chunk"})
    return config.to_yaml()
