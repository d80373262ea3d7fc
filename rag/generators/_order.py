"""The order of the pieces in a prompt: by relevance, or the same for every question over the same pieces."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from rag.errors import ConfigError
from rag.types import CompressedContext

__all__ = ["PieceOrder", "check_order", "ordered"]

PieceOrder = Literal["relevance", "stable"]


def check_order(generator: str, order: str) -> None:
    if order not in ("relevance", "stable"):
        raise ConfigError(f"{generator}: piece_order is relevance or stable, not {order!r}")


def ordered(context: CompressedContext, order: PieceOrder) -> CompressedContext:
    """`context` with its pieces in the order in which a prompt numbers them.

    "relevance" leaves them as they are: documents by their best chunk. "stable" sorts them by document id and start, so
    that prompts over the same pieces are the same bytes up to the question, and a cache of prefixes knows them.
    """
    if order == "relevance":
        return context
    pieces = sorted(context.pieces, key=lambda piece: (piece.doc_id, piece.span.start, piece.span.end))
    return replace(context, pieces=tuple(pieces))
