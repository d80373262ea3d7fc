"""Chunk contenders as fresh processes: interleaved rounds that measure, and one run each that is looked at."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from eval.bench._children import Contender, Outcome, run_child
from rag.protocols import TokenCounter

__all__ = ["DRIVER", "facts", "measure", "run_once"]

DRIVER = Path(__file__).parent / "peers" / "_chunks.py"
Part = tuple[str, int | None, int | None]


def run_once(contender: Contender, job: Mapping[str, Any], threads: int) -> Outcome:
    """One job in one fresh process."""
    return run_child(contender, job, threads, DRIVER)


def measure(
    contenders: Sequence[Contender],
    job: Mapping[str, Any],
    *,
    rounds: int,
    threads: int,
    tell: Callable[[str], None],
) -> dict[str, list[Outcome]]:
    """Every contender once a round, in order (A B C A B C); outcomes by name."""
    outcomes: dict[str, list[Outcome]] = {contender.name: [] for contender in contenders}
    for number in range(1, rounds + 1):
        tell(f"round {number} of {rounds}")
        for contender in contenders:
            outcomes[contender.name].append(run_once(contender, {**job, "count": False}, threads))
    return outcomes


def facts(texts: Sequence[str], found: Sequence[Sequence[Part]], counter: TokenCounter, limit: int) -> dict[str, Any]:
    """What can be counted of chunks: how many, how many over the limit or not where they say, texts that are whole.

    `lossless_texts`: the chunks joined are the text.
    """
    parts = [part for one in found for part, _, _ in one]
    sizes = [counter.count(part) for part in parts]
    exact = sum(
        start is not None and end is not None and text[start:end] == part
        for text, one in zip(texts, found, strict=True)
        for part, start, end in one
    )
    lossless = sum("".join(part for part, _, _ in one) == text for text, one in zip(texts, found, strict=True))
    return {
        "chunks": len(parts),
        "mean_tokens": sum(sizes) / max(1, len(sizes)),
        "over_limit": sum(size > limit for size in sizes),
        "largest_tokens": max(sizes, default=0),
        "inexact_offsets": len(parts) - exact,
        "lossless_texts": lossless,
    }
