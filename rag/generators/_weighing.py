"""What a model says of the tokens of a text: how surprising each is, and what its attention leans on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rag.errors import ConfigError
from rag.generators._attention import READINGS, leaned_on, needs, read_attention, relevance, words_of
from rag.generators._losses import token_losses
from rag.protocols import TokenLoss, TokenNeed

if TYPE_CHECKING:
    from tokenizers import Encoding

__all__ = ["CodedBefore", "losses_of", "needs_of"]

_WINDOW, _CARRY = 2048, 512
"""Tokens that a loss may look back on: at most and, once past the start, at least."""
CodedBefore = Sequence[tuple[int, tuple[int, int] | None]]
"""The ids before a text, each with its characters; None for those of a chat template."""


def losses_of(model: Any, tokenizer: Any, coded: Encoding, before: CodedBefore) -> list[TokenLoss]:
    """Of the tokens of `coded`. With nothing before it, the first is read after the model's token for the start or the
    end of a text."""
    if not coded.ids:
        return []
    room = _room(model, len(before) + _CARRY)
    ids = ([token for token, _ in before] or [_first(tokenizer)])[-(room - 1) :]
    values = token_losses(model, [*ids, *coded.ids], len(ids), window=room, carry=min(_CARRY, room - 1))
    return [(start, end, float(loss)) for (start, end), loss in zip(coded.offsets, values, strict=True)]


def needs_of(
    model: Any, tokenizer: Any, coded: Encoding, before: CodedBefore, *, text: str, after: str, reading: str
) -> list[TokenNeed]:
    """Of the first 512 tokens of `text`, which is `coded`, behind as much of `after` as there is room for."""
    if reading not in READINGS:
        raise ConfigError(f"reading must be one of {', '.join(READINGS)}, not {reading!r}")
    room = _room(model)
    ids, places = coded.ids[: min(_CARRY, room - 1)], coded.offsets[: min(_CARRY, room - 1)]
    if not ids:
        return []
    behind = (list(before) or [(_first(tokenizer), None)])[-(room - len(ids)) :]
    read = read_attention(model, [*(token for token, _ in behind), *ids], len(behind))
    moved = [(len(after) + start, len(after) + end) for start, end in places]
    words = words_of(after + text, [*(place for _, place in behind), *moved])
    return [
        (start, end, float(nats), float(need), leaned_on(words, relevance(read, at)))
        for at, ((start, end), nats, need) in enumerate(zip(places, read.nats, needs(read, reading), strict=True))
    ]


def _room(model: Any, wanted: int = 0) -> int:
    """Tokens that are read at once: more than the window where what stands before the text is longer."""
    most = getattr(model.config, "max_position_embeddings", None) or _WINDOW
    return int(min(max(_WINDOW, wanted), most))


def _first(tokenizer: Any) -> Any:
    return tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
