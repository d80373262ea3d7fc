"""The laws of a chunker on hard texts, for our chunkers and for those of others."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from eval.chunks._texts import hard_texts
from eval.chunks.contenders import Ours, Peer
from rag.errors import RagError
from rag.protocols import TokenCounter
from rag.text import may_cut, safe_cut
from rag.types import Document

__all__ = ["LAWS", "SIZES", "broken_laws", "conformance"]

LAWS: Mapping[str, str] = {
    "runs": "no exception, and done within a minute",
    "exact": "every chunk says where it stands, and stands there",
    "lossless": "the chunks joined are the text",
    "within": "no chunk is over the limit of tokens",
    "whole": "no cut parts a user-visible character",
    "deterministic": "the same text gives the same chunks",
}
SIZES = (64, 128, 256)
_SECONDS = 60

Part = Sequence[Any]
"""[chunk text, start or None, end or None]; a fourth entry is what the encoder reads, where that is more."""
Answer = Sequence[Part] | Mapping[str, str]
"""Chunks of one text, or {"error": why there are none}."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What one chunker did to the laws: law -> the cells (text@size) where it failed."""

    name: str
    cells: int
    failed: Mapping[str, Sequence[str]]
    errors: Mapping[str, str]

    def to_dict(self) -> dict[str, Any]:
        return {"name": self.name, "cells": self.cells, "failed": dict(self.failed), "errors": dict(self.errors)}


def conformance(
    contender: Ours | Peer, counter: TokenCounter, sizes: Sequence[int] = SIZES, texts: Mapping[str, str] | None = None
) -> Verdict:
    """Every text at every size, twice. A size over the limit of the counter becomes that limit."""
    given = hard_texts() if texts is None else texts
    failed: dict[str, list[str]] = {law: [] for law in LAWS}
    errors: dict[str, str] = {}
    for size in sizes:
        limit = min(size, counter.limit or size)
        rounds = _answers(contender, list(given.values()), limit)
        for at, (name, text) in enumerate(given.items()):
            first, again = rounds[0][at], rounds[1][at]
            for law in broken_laws(text, first, again, limit, counter.count):
                failed[law].append(f"{name}@{size}")
            if isinstance(first, Mapping):
                errors[f"{name}@{size}"] = first["error"]
    return Verdict(name=contender.name, cells=len(sizes) * len(given), failed=failed, errors=errors)


def broken_laws(text: str, first: Answer, again: Answer, limit: int, count: Callable[[str], int]) -> list[str]:
    """Names of the laws that the chunks of `text` break. Without chunks, only `runs` is broken.

    A blank text may have no chunks. A chunk of one user-visible character may be over the limit: it cannot be cut.
    """
    if isinstance(first, Mapping) or isinstance(again, Mapping):
        return ["runs"]
    parts = [(part[0], part[1], part[2]) for part in first]
    joined = "".join(part for part, _, _ in parts)
    over = [part for part in first if count(part[-1] if len(part) > 3 else part[0]) > limit and not _single(part[0])]
    edges = {at for _, start, end in parts if start is not None and end is not None for at in (start, end)}
    held = {
        "exact": all(
            (part or not text) and start is not None and text[start:end] == part for part, start, end in parts
        ),
        "lossless": joined == text or (not joined and not text.strip()),
        "within": not over,
        "whole": all(may_cut(text, at) for at in edges if 0 <= at <= len(text)),
        "deterministic": [list(part) for part in first] == [list(part) for part in again],
    }
    return [law for law, holds in held.items() if not holds]


def _answers(contender: Ours | Peer, texts: Sequence[str], limit: int) -> Sequence[Sequence[Answer]]:
    """Two rounds of answers, one per text."""
    if isinstance(contender, Peer):
        try:
            rounds: Sequence[Sequence[Answer]] = contender.answer(texts, limit, rounds=2, seconds=_SECONDS)["rounds"]
        except RagError as error:
            return [[{"error": str(error)}] * len(texts)] * 2
        return rounds
    return [[_own(contender, text, limit) for text in texts] for _ in range(2)]


def _own(contender: Ours, text: str, limit: int) -> Answer:
    """Our chunks with `max_tokens` at the limit, whatever their knob is; a header counts as text that is encoded."""
    try:
        chunks = contender.chunker(limit, knob="max_tokens").chunk(Document(text=text, source="hard.txt"))
    except Exception as error:  # whatever a chunker raises is what the table is for
        return {"error": f"{type(error).__name__}: {error}"}
    return [(chunk.text, chunk.span.start, chunk.span.end, chunk.embed_text) for chunk in chunks]


def _single(text: str) -> bool:
    """One user-visible character, or none."""
    return not text or safe_cut(text, 0, 1) == len(text)
