"""What became of the keys and values of a prompt: a bar for every segment, what of each the answer reads, and how far
it strays."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from rag.cli._common import console
from rag.errors import UsageError
from rag.text import printable

if TYPE_CHECKING:
    from rag.pipeline import Pipeline

__all__ = ["audited", "draw_timeline", "timeline_lines"]

_BAR = 32
_REUSED, _REPAIRED, _NEW = "=", "~", "#"
_SOURCE = 32


def audited(pipeline: Pipeline) -> Pipeline:
    """The same pipeline, measuring what reuse of keys and values changes. UsageError for generators that reuse none."""
    from dataclasses import replace

    from rag.pipeline import Pipeline
    from rag.registry import spec_name

    spec = pipeline.config.generator
    if spec_name(spec) != "local":
        raise UsageError(
            f"--audit-kv measures what reuse of keys and values changes: the generator local reuses them, and this "
            f"config has {spec_name(spec)}. Leave it out, or set generator: {{use: local}}"
        )
    given = dict(spec) if isinstance(spec, Mapping) else {"use": spec}
    return Pipeline(replace(pipeline.config, generator={**given, "audit": True}))


def draw_timeline(run: Mapping[str, Any]) -> None:
    """On stderr; nothing where no keys and values were reused and nothing was measured."""
    out = console()
    for text, style in timeline_lines(run):
        out.print(printable(text), style=style, markup=False)


def timeline_lines(run: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """(line, style) for a run as it is stored, also by a version that told less."""
    stats = run.get("stats", {})
    if stats.get("policy", "none") != "none":
        notes: Mapping[str, Any] = next((one["notes"] for one in reversed(run["trace"]) if "reuse" in one["notes"]), {})
        yield "", ""
        yield f"keys and values, reuse {stats['policy']}: {_totals(stats)}", "bold"
        rows = notes.get("segments", ())
        most = max((row["tokens"] for row in rows), default=1)
        names = [_name(row, run) for row in rows]
        width = max(map(len, names), default=0)
        for name, row in zip(names, rows, strict=True):
            yield f"  {name:<{width}}  {_bar(row, most):<{_BAR}}  {_counts(row)}", ""
        if rows:
            yield f"  {_REUSED} reused  {_REPAIRED} repaired  {_NEW} computed", "dim"
        if notes.get("tokens_made"):
            yield f"  {notes['tokens_made']} of the reused tokens were computed for this prompt, and are kept", "dim"
    yield from _attention(run)
    if stats.get("drafted_tokens"):
        yield f"drafts: {stats['accepted_tokens']} of {stats['drafted_tokens']} guessed tokens held", ""
    told = _deviation(stats)
    if told:
        yield f"deviation from full prefill: {told}", ""


def _attention(run: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """How much of the prompt was read, where attention was sparse; one line names what the answer reads of each
    segment."""
    notes: Mapping[str, Any] = next(
        (one["notes"] for one in reversed(run.get("trace", ())) if "attention" in one["notes"]), {}
    )
    told = notes.get("attention", {})
    if "prefill_density" not in told:
        return
    answer = "" if told["decode_density"] is None else f", {100 * told['decode_density']:.0f} % of the answer's"
    line = f"attention {told['selection']} by {told['executor']}: {100 * told['prefill_density']:.0f} % of the "
    yield f"{line}prompt's scores computed{answer}", ""
    rows = [row for row in notes.get("segments", ()) if "read" in row]
    if rows:
        yield "  the answer reads " + ", ".join(f"{_short(row)} {_share(row['read'])}" for row in rows), ""


def _short(row: Mapping[str, Any]) -> str:
    return f"[{row['part']}]" if "chunk_id" in row else str(row["part"])


def _share(read: float) -> str:
    return "not at all" if not read else f"{100 * read:.0f} %" if read >= 0.01 else "under 1 %"


def _totals(stats: Mapping[str, Any]) -> str:
    told = [f"{stats['reused_tokens']} of {stats['prompt_tokens']} tokens reused"]
    if stats["repaired_tokens"]:
        told.append(f"{stats['repaired_tokens']} repaired")
    told.append(f"{stats['computed_tokens']} computed")
    if stats["bytes_loaded"]:
        told.append(f"{_megabytes(stats['bytes_loaded'])} from disk")
    return ", ".join([*told, f"first token after {1000 * stats['ttft_seconds']:.0f} ms"])


def _name(row: Mapping[str, Any], run: Mapping[str, Any]) -> str:
    if "chunk_id" not in row:
        return str(row["part"])
    doc_id = row["chunk_id"].partition(":")[0]
    source = run.get("sources", {}).get(doc_id) or doc_id
    return f"[{row['part']}] " + (source if len(source) <= _SOURCE else f"...{source[3 - _SOURCE :]}")


def _bar(row: Mapping[str, Any], most: int) -> str:
    """As long as the segment's share of the longest; at least one sign for everything there is."""
    again = row["repaired"] or 0
    parts = ((_REUSED, row["reused"]), (_REPAIRED, again), (_NEW, row["computed"] - again))
    return "".join(sign * max(1, _BAR * tokens // most) for sign, tokens in parts if tokens)[:_BAR]


def _counts(row: Mapping[str, Any]) -> str:
    again = row["repaired"]
    told = [f"{row['tokens']} tokens: {row['reused']} reused"]
    told.append("some repaired, other ones in every layer" if again is None else f"{again} repaired")
    told.append(f"{row['computed'] - (again or 0)} computed")
    if row.get("skipped"):
        told.append(f"{row['skipped']} read by none and not loaded")
    return ", ".join(told) + (f"; {_megabytes(row['bytes'])}" if row["bytes"] else "")


def _deviation(stats: Mapping[str, Any]) -> str:
    told = []
    if stats.get("predicted_deviation") is not None:
        told.append(f"predicted {stats['predicted_deviation']:.3g} nats a token")
    if stats.get("measured_deviation") is not None:
        told.append(f"measured {stats['measured_deviation']:.3g} nats a token")
        told.append(f"the same most likely token in {100 * stats['measured_agreement']:.1f} % of the answer")
    return ", ".join(told)


def _megabytes(count: int) -> str:
    return f"{count / 1e6:.2f} MB"
