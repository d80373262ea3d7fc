"""What LLMLingua and LongLLMLingua share: the context level, and blocks of words read after what is left so far."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import groupby

from compressors._asking import mean
from compressors._words import Part, kept_spans, means, picked
from rag.errors import ConfigError
from rag.protocols import TokenLoss
from rag.spans.pieces import text_of
from rag.text import SEPARATOR, assemble
from rag.types import Bubble, Decision

__all__ = ["Blocks", "check_numbers", "coarse", "coarse_ledger", "ranked", "shares", "threshold"]

Reading = Callable[[str, str], Sequence[TokenLoss]]
"""(text, what stands before it) -> a score for each token of the text; the highest stay."""


def check_numbers(name: str, context_budget: int, iterative_size: int, dynamic_ratio: float) -> None:
    """The ranges of the fields that both have."""
    if context_budget < 0 or iterative_size < 1 or not 0 <= dynamic_ratio <= 1:
        raise ConfigError(
            f"{name}: context_budget must be >= 0, iterative_size >= 1 and 0 <= dynamic_ratio <= 1, not "
            f"{context_budget}, {iterative_size} and {dynamic_ratio}"
        )


def ranked(scores: Mapping[int, float]) -> list[int]:
    """Places of hits, the highest score first, ties in the order of the bubble."""
    return sorted(scores, key=lambda place: (-round(scores[place], 6), place))


def coarse(ranking: Sequence[int], sizes: Mapping[int, int], allowance: int) -> list[int]:
    """The places that are walked before the allowance is used up, the one that uses it up included; in order."""
    used: list[int] = []
    for place in ranking:
        if allowance < 0:
            break
        used.append(place)
        allowance -= sizes[place]
    return sorted(used)


def coarse_ledger(
    bubble: Bubble, ranking: Sequence[int], used: Sequence[int], scores: Mapping[int, float], sizes: Mapping[int, int]
) -> Iterator[Decision]:
    """A line for each chunk: whether its words were weighed, and its rank among the chunks (`parts["rank"]`)."""
    for rank, place in enumerate(ranking, start=1):
        weighed = place in used
        yield Decision(
            chunk_id=bubble.hits[place].chunk.id,
            action="weigh" if weighed else "drop",
            relevance=round(scores[place], 6),
            gain=0.0,
            redundancy=0.0,
            tokens=sizes[place],
            reason=f"context level: rank {rank} of {len(ranking)}, "
            + ("within" if weighed else "over")
            + " the budget",
            parts={"rank": float(rank)},
        )


def shares(ranking: Sequence[int], used: Sequence[int], ratio: float, dynamic: float) -> dict[int, float]:
    """Share of the tokens that stays for each place: `ratio`, up to `dynamic` more for the first, less for the last."""
    order = [place for place in ranking if place in used]
    steps = max(1, len(order) - 1)
    tilt = [dynamic * (1 - 2 * at / steps) if len(order) > 1 else 0.0 for at in range(len(order))]
    return {place: min(1.0, max(0.0, ratio + more)) for place, more in zip(order, tilt, strict=True)}


class Blocks:
    """Reads parts block by block, each after what is left of the blocks before it.

    A block ends with the sentence in which it fills. `margins`: for each unit its mean score over the threshold of its
    chunk in its block, the score at which the chunk's share of tokens is reached from the top; `scores` are the mean
    score of each part.
    """

    def __init__(
        self, bubble: Bubble, parts: Sequence[Part], share: Mapping[int, float], size: int, reading: Reading
    ) -> None:
        self._bubble, self._share, self._reading = bubble, share, reading
        self.margins: list[list[float]] = []
        self.scores: list[float] = []
        self._read: list[Part] = []
        self._chosen: list[list[bool]] = []
        for block in _blocks(parts, size):
            self._add(block)

    def _add(self, block: Sequence[Part]) -> None:
        before = self._before(block[0].place)
        shifts, text, last = [], "", block[0].place
        for part in block:
            text += SEPARATOR if part.place != last else ""
            shifts.append(len(text))
            text, last = text + part.text, part.place
        losses = self._reading(text, before)
        values = [means(part, text, losses, shift) for part, shift in zip(block, shifts, strict=True)]
        for place, run in groupby(range(len(block)), key=lambda at: block[at].place):
            numbers = list(run)
            self._decide([block[at] for at in numbers], [values[at] for at in numbers], self._share[place])

    def _decide(self, run: Sequence[Part], values: Sequence[list[float]], share: float) -> None:
        budget = round(share * sum(part.size for part in run))
        limit = threshold(run, values, budget)
        self._read.extend(run)
        self._chosen.extend(picked(run, values, budget))
        self.margins.extend([value - limit for value in one] for one in values)
        self.scores.extend(mean(one) for one in values)

    def _before(self, place: int) -> str:
        """What is left so far, with the separator where the next part is of another chunk."""
        kept = kept_spans(self._read, self._chosen, len(self._bubble.hits))
        places = [at for at, spans in enumerate(kept) if spans]
        text = assemble(text_of(self._bubble, at, kept[at]) for at in places)
        return text + SEPARATOR if places and places[-1] != place else text


def _blocks(parts: Sequence[Part], size: int) -> Iterator[list[Part]]:
    block: list[Part] = []
    for part in parts:
        block.append(part)
        if sum(one.size for one in block) >= size:
            yield block
            block = []
    if block:
        yield block


def threshold(run: Sequence[Part], values: Sequence[Sequence[float]], budget: int) -> float:
    """The score at which the budget is reached from the top."""
    pairs = [pair for part, one in zip(run, values, strict=True) for pair in zip(one, part.tokens, strict=True)]
    used, limit = 0, max((value for value, _ in pairs), default=0.0)
    for value, tokens in sorted(pairs, reverse=True):
        used += tokens
        if used > budget:
            break
        limit = value
    return limit
