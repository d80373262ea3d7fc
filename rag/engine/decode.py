"""Decoding behind a prompt that is in a cache, token by token or several at once from a draft.

A draft is a guess that costs nothing: what followed the same tokens before. One pass over the guess shows what the
model itself would have said after each of its tokens, and the guess holds as far as it agrees (speculative decoding,
arXiv 2211.17192, with a draft that is certain of its tokens). Greedily that gives the tokens of plain decoding. With a
temperature a token is drawn from the model's distribution, and the guess holds where the draw hits it: the acceptance
rule of the paper for a certain draft, and one draw per token, so that the same seed gives the same text.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator, Sequence
from contextlib import closing
from typing import TYPE_CHECKING, Protocol, TypeVar

import torch
from torch import Tensor

from rag.engine.errors import EngineError

if TYPE_CHECKING:
    from rag.engine.draft import Draft

__all__ = ["Chooser", "Held", "Runs", "Stop", "StopGate", "chooser", "generate"]

Stop = int | tuple[int, ...]
"""A token, or a sequence of tokens, that ends a text and is no part of it."""
Chooser = Callable[[Tensor], int]
"""The next token, from logits (vocabulary)."""


class Held(Protocol):
    """What decoding asks of a cache; `truncate` only after a draft."""

    @property
    def length(self) -> int: ...
    def truncate(self, length: int) -> None: ...


_Cache = TypeVar("_Cache", bound=Held)
_Read = TypeVar("_Read", contravariant=True)


class Runs(Protocol[_Read]):
    """What decoding asks of a model: `EngineModel`, or whatever reads tokens into a cache of its own kind."""

    def run(self, ids: Sequence[int], cache: _Read, *, keep: int = 1) -> Tensor:
        """The logits (keep, vocabulary) of the last `keep` ids, float32."""


def generate(
    model: Runs[_Cache],
    cache: _Cache,
    logits: Tensor,
    *,
    max_new_tokens: int,
    stops: Collection[Stop] = (),
    draft: Draft | None = None,
    temperature: float = 0.0,
    seed: int = 0,
) -> Generator[int]:
    """New tokens, one by one, up to a stop; `logits` (vocabulary) follow what `cache` holds.

    `draft` knows the prompt and is told every new token. What may begin a stop of several tokens is held back until
    that is clear. Afterwards, also when the caller stops early, the cache holds everything before the last token
    chosen, which is the last one given or the last of a stop; a draft changes nothing there. "The same tokens with a
    draft" is exact in float32; in bfloat16 a pass over several tokens rounds otherwise than one over each.
    """
    choose, gate = chooser(temperature, seed), StopGate(stops)
    with closing(_tokens(model, cache, logits, max_new_tokens, draft, choose)) as tokens:
        for token in tokens:
            yield from gate.push(token)
            if gate.closed:
                return
        yield from gate.rest()


def chooser(temperature: float, seed: int) -> Chooser:
    """The most likely token at temperature 0, else a draw; one draw a token, so a seed repeats a text."""
    if temperature < 0:
        raise EngineError(f"temperature must be >= 0, not {temperature}")
    if not temperature:
        return lambda logits: int(logits.argmax())
    random = torch.Generator(device="cpu").manual_seed(seed)

    def draw(logits: Tensor) -> int:
        chances = torch.softmax(logits.float().cpu() / temperature, dim=-1)
        return int(torch.multinomial(chances, 1, generator=random))

    return draw


def _tokens(
    model: Runs[_Cache], cache: _Cache, logits: Tensor, most: int, draft: Draft | None, choose: Chooser
) -> Generator[int]:
    """Without stops. `cache` grows by what was given, but the last token."""
    start, given = cache.length, 0
    token = choose(logits) if most > 0 else -1
    while given < most:
        given += 1
        if draft is not None:
            draft.extend([token])
        yield token
        if given == most:
            return
        guess = list(draft.propose(most - given - 1)) if draft is not None and given + 1 < most else []
        rows = model.run([token, *guess], cache, keep=len(guess) + 1)
        ran, token, accepted = cache.length, choose(rows[0]), 0
        for row, guessed in zip(rows[1:], guess, strict=True):
            if token != guessed:
                break
            accepted += 1
            given += 1
            if draft is not None:
                draft.extend([token])
            try:
                yield token
            except GeneratorExit:
                if draft is not None:
                    draft.learn(len(guess), accepted)
                if cache.length == ran:  # else somebody went on with the cache, and this generator is only cleared away
                    cache.truncate(start + given - 1)
                raise
            token = choose(row)
        if guess and draft is not None:
            draft.learn(len(guess), accepted)
            cache.truncate(start + given)


class StopGate:
    """Lets tokens through up to the first stop; what may begin a stop of several tokens waits for those after it."""

    def __init__(self, stops: Collection[Stop]) -> None:
        # the longest first: of two stops that end at the same token the one that began earlier counts
        self._ends = sorted(
            ((stop,) if isinstance(stop, int) else tuple(stop) for stop in stops), key=lambda end: -len(end)
        )
        if not all(self._ends):
            raise EngineError("a stop sequence has at least one token")
        self._held: list[int] = []
        self.closed = False

    def push(self, token: int) -> list[int]:
        """The tokens that are clear now; with the last of a stop those before it, and the gate is closed."""
        self._held.append(token)
        for end in self._ends:
            if tuple(self._held[-len(end) :]) == end:
                self.closed = True
                return self._held[: -len(end)]
        free = len(self._held) - self._begun()
        clear, self._held = self._held[:free], self._held[free:]
        return clear

    def rest(self) -> list[int]:
        """What still waits, when the text is over; nothing behind a closed gate."""
        return [] if self.closed else self._held

    def _begun(self) -> int:
        """How many of the last held tokens are the beginning of a stop."""
        longest = len(self._ends[0]) - 1 if self._ends else 0
        for length in range(min(longest, len(self._held)), 0, -1):
            tail = tuple(self._held[-length:])
            if any(len(end) > length and end[:length] == tail for end in self._ends):
                return length
        return 0
