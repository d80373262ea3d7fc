"""Answers that were written here, kept for prompts that hold their text: their keys and values are not computed anew.

A prompt and an answer meet as texts. Between the two an answer may have been stripped, given marks or cut, so it is the
longest run of its tokens whose text stands in the prompt that is taken. Those ids are the ones that were decoded: they
are never encoded again, and a special token among them ends the run.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from rag.engine.blocks import KvBlock
from rag.engine.cache import KvCache
from rag.engine.chunks import prefill_chunks
from rag.engine.model import EngineModel
from rag.engine.prefill import prefill
from rag.engine.prune import prune_block
from rag.engine.repair import RepairPolicy
from rag.engine.repair.relay import Relay, cut_answer
from rag.generators._completion import Relayed
from rag.generators._decode import STEP, Reading, read_on
from rag.generators._prompts import Coder

__all__ = ["ANSWERS", "LEAST", "Answers", "Found", "Kept", "longest_run"]

ANSWERS = 4
"""So many answers are kept, the last ones."""
LEAST = 16
"""Tokens of a run: a shorter one is as quickly computed, and may stand in a prompt by chance."""


@dataclass(frozen=True, slots=True, eq=False)
class Kept:
    """An answer's `block` and the `text` of its tokens; `ends[n]` is how much of it the first n make, None where a
    character is not whole there."""

    block: KvBlock
    text: str
    ends: tuple[int | None, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Found:
    """`block` is the text of a prompt in the characters [start, stop)."""

    block: KvBlock
    start: int
    stop: int


@dataclass(eq=False, kw_only=True)
class Answers:
    """The last ANSWERS answers of a generator, at most `max_bytes` of their keys and values. Not for several threads,
    but `last`, which every thread has of its own."""

    engine: EngineModel
    coder: Coder
    max_bytes: int
    policy: RepairPolicy = field(default_factory=Relay)
    _kept: deque[Kept] = field(default_factory=deque, init=False)
    _own: threading.local = field(default_factory=threading.local, init=False)

    def __len__(self) -> int:
        return len(self._kept)

    @property
    def size_bytes(self) -> int:
        return sum(one.block.size_bytes for one in self._kept)

    @property
    def last(self) -> Relayed:
        """Of the prompt that this thread completed last."""
        told: Relayed = getattr(self._own, "last", Relayed())
        return told

    def keep(self, cache: KvCache, prompt: Sequence[int], answer: Sequence[int]) -> None:
        """Keeps the `answer` that was decoded behind `prompt`, up to the first special token, from the `cache` of that
        run. Where the prompt's positions are not those of its text, nothing is kept."""
        special = self.coder.tokenizer.added_tokens_decoder
        plain = next((at for at, token in enumerate(answer) if token in special), len(answer))
        if cache.moved or plain < LEAST:
            return
        block = cut_answer(self.engine, cache, len(prompt), answer[:plain])
        if block is None or block.size_bytes > self.max_bytes:
            return
        text, ends = _told(prompt[-1], block.ids, self._text)
        self._kept.append(Kept(block, text, ends))
        while len(self._kept) > ANSWERS or self.size_bytes > self.max_bytes:
            self._kept.popleft()

    def find(self, text: str) -> Found | None:
        """The longest run of at least LEAST tokens of an answer that stands in `text`; of equal ones the latest's."""
        best: tuple[Kept, int, int] | None = None
        for kept in reversed(self._kept):
            start, stop = longest_run(kept.text, kept.ends, text)
            if stop - start >= LEAST and (best is None or stop - start > best[2] - best[1]):
                best = kept, start, stop
        if best is None:
            return None
        kept, start, stop = best
        run = kept.text[kept.ends[start] : kept.ends[stop]]
        at = text.index(run)
        return Found(prune_block(kept.block, range(start, stop), self.engine.frequencies), at, at + len(run))

    def read(self, text: str, room: int) -> Reading | None:
        """What a user says, with `room` for more tokens; None where it holds no answer, or is nothing else."""
        self._own.last = Relayed()
        found = self.find(text)
        if found is None:
            return None
        block = found.block
        before, after = self.coder.around(text[: found.start], text[found.stop :])
        size = len(before) + len(block) + len(after) + room
        longest = getattr(self.engine.config, "max_position_embeddings", None)
        if not before or not after or (longest and size > longest):
            return None
        cache = self.engine.new_cache(size)
        prefill(self.engine, before, cache, chunk_tokens=STEP)
        done = prefill_chunks(self.engine, cache, before, [block, after], self.policy, chunk_tokens=STEP)
        self._own.last = Relayed(len(block), done.repaired)
        counts = {"computed": len(before) + done.computed, "reused": done.reused - len(before)}
        return read_on(self.engine, done, **counts, made_tokens=0, policy="relay")

    def _text(self, ids: Sequence[int]) -> str:
        return str(self.coder.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))


def longest_run(text: str, ends: Sequence[int | None], prompt: str) -> tuple[int, int]:
    """The longest stretch [start, stop) of tokens whose text stands in `prompt`, the first of equal ones."""
    best, stop = (0, 0), 0
    for start, begin in enumerate(ends):
        if begin is None:
            continue
        stop = max(stop, start)
        for end in range(stop + 1, len(ends)):
            if ends[end] is None:
                continue
            if text[begin : ends[end]] not in prompt:
                break
            stop = end
        if stop - start > best[1] - best[0]:
            best = start, stop
    return best


def _told(
    before: int, ids: Sequence[int], decode: Callable[[Sequence[int]], str]
) -> tuple[str, tuple[int | None, ...]]:
    """(the text that `ids` make behind the token `before`, how much of it the first n make).

    Decoded behind the tokens of the step before, since some tokenizers leave out the space that a text begins with.
    """
    row, text, ends = [before, *ids], "", list[int | None]([0 if decode([before]) else None])
    held, seen = 0, 1
    for stop in range(2, len(row) + 1):
        known, now = decode(row[held:seen]), decode(row[held:stop])
        if now.endswith("\ufffd") or not now.startswith(known):
            ends.append(None)
            continue
        text += now[len(known) :]
        ends.append(len(text))
        held, seen = seen, stop
    return text, tuple(ends)
