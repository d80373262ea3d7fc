"""Why a file is cut as it is: the candidates, their measures and the winner, as a table and as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from rag.text import printable

if TYPE_CHECKING:
    from rich.console import Console

    from rag.pipeline import Pipeline
    from rag.types import Chunk, Document

__all__ = ["explained", "measures", "print_decision"]

_SELECTOR = "metric-selected"


def explained(pipeline: Pipeline, document: Document) -> tuple[list[Chunk], dict[str, Any]]:
    """As `pipeline.decide`; a chunker that weighs no candidates is measured as the only candidate there is."""
    from rag.pipeline import Pipeline
    from rag.registry import spec_name

    spec = pipeline.config.chunker
    name = spec_name(spec)
    if name == _SELECTOR:
        return pipeline.decide(document)
    wrapped: dict[str, Any] = {"use": _SELECTOR, "candidates": [spec]}
    size = spec.get("max_tokens") if isinstance(spec, Mapping) else None
    if size is not None:
        wrapped["max_tokens"] = size
    chunks, record = Pipeline(replace(pipeline.config, chunker=wrapped)).decide(document)
    if record["winner"] is None:  # an empty text, or chunks outside of the limits of the encoder
        chunks, decision = pipeline.decide(document)
        return chunks, {**decision, "candidates": record.get("candidates", [])}
    own = record.pop("winner_decision", {"chunker": name, "reason": "named by the config"})
    kept = ("objective", "candidates", "skipped_metrics", "encoder")
    return [replace(chunk, chunker=name) for chunk in chunks], {**own, **{key: record[key] for key in kept}}


def measures(decision: Mapping[str, Any]) -> dict[str, Any]:
    """Label -> value of the metrics of the chunks at hand: of the winner, or of the one candidate."""
    rows = decision.get("candidates") or []
    winner = decision.get("winner")
    row: Mapping[str, Any] = next((row for row in rows if winner is None or row["chunker"] == winner), {})
    return dict(row.get("metrics", {}))


def print_decision(out: Console, decision: Mapping[str, Any]) -> None:
    """The table of candidates and metrics, the reason, and what to know about the numbers."""
    rows = decision.get("candidates") or []
    measured = [row for row in rows if "metrics" in row]
    if measured:
        table = _table(measured, decision.get("winner"))
        needed = out.measure(table, options=out.options.update(max_width=1000)).maximum
        out.width = max(out.width, needed)  # better wrapped by the terminal than cut off
        out.print(table)
    for row in rows:
        if "left_out" in row:
            out.print(printable(f"left out  {row['chunker']}: {row['left_out']}"), markup=False)
    for label, why in decision.get("skipped_metrics", {}).items():
        out.print(printable(f"skipped   {label}: {why}"), markup=False)
    if any("gains" in row for row in measured):
        out.print("gain: over random cuts of the same sizes, from -1 to 1; the score is the mean of the gains")
    if decision.get("follows_size"):
        out.print(f"these measures mostly follow the size of the chunks here: {', '.join(decision['follows_size'])}")
    out.print(printable(f"{decision['chunker']}: {decision['reason']}"), markup=False)


def _table(rows: Sequence[Mapping[str, Any]], winner: str | None) -> Any:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    labels = list(rows[0]["metrics"])
    for name in ("", "chunker", "score", *labels, "chunks", "tokens", "most"):
        table.add_column(name, justify="left" if name in ("", "chunker") else "right", no_wrap=True)
    for row in rows:
        values = [_number(row["metrics"][label]) for label in labels]
        sizes = [str(row[key]) for key in ("chunks", "mean_tokens", "max_tokens")]
        mark = "*" if row["chunker"] == winner else ""
        cells = (mark, printable(row["chunker"]), _number(row["score"]), *values, *sizes)
        table.add_row(*(Text(cell) for cell in cells))
        if "gains" in row:
            table.add_row("", Text("  gain", style="dim"), "", *(_number(row["gains"][label], "+") for label in labels))
    return table


def _number(value: float | None, sign: str = "") -> str:
    return "-" if value is None else f"{value:{sign}.3f}"
