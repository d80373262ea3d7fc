"""Lines of context below the header of a chunk that is cut already: never in its text, always within the limit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from rag.protocols import TokenCounter
from rag.text import TokenMap, fit_tokens
from rag.types import Chunk

__all__ = ["LEAST", "extended", "room", "shortened"]

LEAST = 8
"""Tokens below which a line of context is not worth its room."""


def room(chunk: Chunk, counter: TokenCounter, limit: int, share: int) -> int:
    """Tokens for more lines in the header: at most `share`, and what header and text leave of `limit`."""
    used = counter.count(f"{chunk.header}\n") if chunk.header else 0
    return max(0, min(share, limit - used - chunk.token_count))


def shortened(line: str, counter: TokenCounter, max_tokens: int, max_chars: int) -> str:
    """The start of the line, on one line, that fits; "" for less than a token."""
    line = " ".join(line.split())
    if not line or max_tokens < 1:
        return ""
    line = line[: 2 * max_chars]
    end = fit_tokens(TokenMap(counter, line), line, 0, len(line), max_tokens, max_chars)
    found = line[:end].strip()
    return found if counter.count(found) <= max_tokens else ""


def extended(
    chunk: Chunk, lines: Sequence[str], counter: TokenCounter, *, limit: int, share: int
) -> tuple[Chunk, list[str]]:
    """The chunk with those of `lines` below its header, in order, that fit into `room`; and these lines."""
    left, kept = room(chunk, counter, limit, share), []
    for line in lines:
        cost = counter.count(f"{line}\n")
        if line and cost <= left:
            kept.append(line)
            left -= cost
    while kept:
        longer = replace(chunk, header="\n".join([*filter(None, [chunk.header]), *kept]))
        if counter.additive or counter.count(longer.embed_text) <= limit:
            return longer, kept
        kept.pop()
    return chunk, []
