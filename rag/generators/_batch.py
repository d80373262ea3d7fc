"""Prompts that start alike, written together: their common start is computed once and read by all in one pass."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from rag.engine.grouping import group_prompts, lots
from rag.generators._decode import Decoder, Reading

__all__ = ["LEAST", "ROWS", "TOKENS", "Row", "write_together"]

LEAST = 64
"""Tokens that prompts must have in common."""
ROWS, TOKENS = 16, 4096
"""Of a lot that runs together: most prompts, and most slots of keys and values behind what they share."""


@dataclass(frozen=True, slots=True)
class Row:
    """The `tokens` behind prompt `number`, one of `together` that ran at once behind the same `shared` tokens.

    `reading` has the counts of the prompt. Seconds are those of the lot, from before it read the shared tokens.
    """

    number: int
    tokens: tuple[int, ...]
    reading: Reading
    shared: int
    together: int
    ttft_seconds: float
    total_seconds: float


def write_together(
    decoder: Decoder, prompts: Sequence[Sequence[int]], *, most: int, temperature: float, seed: int
) -> Iterator[Row]:
    """A row for every prompt that begins as others do, in at least LEAST tokens and one half of its own.

    The rest is left out, and so is what fits into no lot with another: beside long texts of their own a short common
    start saves little. Each text, of at most `most` tokens, is the one behind its prompt alone. Of the first row of a
    group the shared tokens count as computed, unless they were kept from earlier prompts; for others they were there.
    """
    for group in group_prompts(prompts, least=LEAST):
        context: Reading | None = None
        most_common = [number for number in group.members if len(prompts[number]) <= 2 * group.prefix]
        for lot in lots(replace(group, members=tuple(most_common)), prompts, rows=ROWS, tokens=TOKENS, room=most):
            if len(lot) < 2:
                continue
            started = time.perf_counter()
            known = group.prefix
            if context is None:
                context = decoder.read(prompts[lot[0]][: group.prefix], 0)
                known = context.reused
            suffixes = [prompts[number][group.prefix :] for number in lot]
            first, texts = [0.0] * len(lot), [list[int]() for _ in lot]
            for row, token in decoder.together(context, suffixes, most, temperature=temperature, seed=seed):
                first[row] = first[row] or time.perf_counter()
                texts[row].append(token)
            ended = time.perf_counter()
            for row, number in enumerate(lot):
                reused = known if row == 0 else group.prefix
                reading = replace(context, reused=reused, computed=len(prompts[number]) - reused, policy="batch")
                waited = (first[row] or ended) - started
                yield Row(number, tuple(texts[row]), reading, group.prefix, len(lot), waited, ended - started)
