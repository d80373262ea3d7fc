"""Micro-batches: what waits while one batch runs becomes the next one. Nobody waits for company."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Sequence
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from rag.protocols import Embedder
from rag.spans.around import AroundEmbedder

if TYPE_CHECKING:
    from rag.protocols import Vectors

__all__ = ["BatchedQuestions", "Batches"]

Item = TypeVar("Item")
Made = TypeVar("Made")
_PROBE = "Which words do a question and a text share?"
_SAME = 0.9999


class _Slot(Generic[Item, Made]):
    def __init__(self, item: Item) -> None:
        self.item = item
        self.made: list[Made] = []
        self.error: BaseException | None = None

    @property
    def is_done(self) -> bool:
        return bool(self.made) or self.error is not None


class Batches(Generic[Item, Made]):
    """Calls from many threads, done together: the thread that comes to work takes along what waits with its key.

    `work` gets at most `most` items and gives one result for each, an exception in place of one that failed; what it
    raises, all of them get. One batch runs at a time. `sizes` is told the size of each.
    """

    def __init__(
        self,
        work: Callable[[list[Item]], Sequence[Made | BaseException]],
        *,
        most: int,
        key: Callable[[Item], Hashable] = lambda item: None,
        sizes: Callable[[int], object] = lambda size: None,
    ) -> None:
        self._work, self._most, self._key, self._sizes = work, most, key, sizes
        self._lock, self._turn = threading.Lock(), threading.Lock()
        self._waiting: list[_Slot[Item, Made]] = []

    def __call__(self, item: Item) -> Made:
        slot: _Slot[Item, Made] = _Slot(item)
        with self._lock:
            self._waiting.append(slot)
        with self._turn:
            if not slot.is_done:
                self._run(self._take(slot))
        if slot.error is not None:
            raise slot.error
        return slot.made[0]

    def _take(self, slot: _Slot[Item, Made]) -> list[_Slot[Item, Made]]:
        """`slot` and those that have waited longest beside it."""
        with self._lock:
            key = self._key(slot.item)
            others = [one for one in self._waiting if one is not slot and self._key(one.item) == key]
            batch = [slot, *others[: self._most - 1]]
            self._waiting = [one for one in self._waiting if one not in batch]
        return batch

    def _run(self, batch: list[_Slot[Item, Made]]) -> None:
        self._sizes(len(batch))
        try:
            made = self._work([slot.item for slot in batch])
            for slot, one in zip(batch, made, strict=True):
                if isinstance(one, BaseException):
                    slot.error = one
                else:
                    slot.made.append(one)
        except BaseException as error:
            for slot in batch:
                slot.error = slot.error or error


class BatchedQuestions(AroundEmbedder):
    """An embedder whose questions, asked by several threads at once, are encoded together; all else is the inner one.

    Questions go together where the model embeds a question as it embeds a text, which is tried once; a model with a
    prompt of its own for questions gets them one by one. A question over the model's limit always goes alone.
    """

    def __init__(self, inner: Embedder, *, most: int = 32, sizes: Callable[[int], object] = lambda size: None) -> None:
        self.inner = inner
        self._together: bool | None = None
        self._questions: Batches[str, Vectors] = Batches(self._embed_questions, most=most, sizes=sizes)

    def embed_question(self, text: str) -> Vectors:
        return self._questions(text)

    def __repr__(self) -> str:
        return repr(self.inner)

    def _embed_questions(self, questions: list[str]) -> list[Any]:
        limit, counter = self.inner.counter.limit, self.inner.counter
        unique = list(dict.fromkeys(questions))
        short = [one for one in unique if limit is None or counter.count(one) <= limit] if len(unique) > 1 else []
        made: dict[str, Any] = {}
        if len(short) > 1 and self._may_go_together():
            made.update(zip(short, self.inner.light.embed(short), strict=True))
        for one in unique:
            if one not in made:
                made[one] = self._alone(one)
        return [made[one] for one in questions]

    def _alone(self, question: str) -> Any:
        try:
            return self.inner.embed_question(question)
        except Exception as error:
            return error

    def _may_go_together(self) -> bool:
        if self._together is None:
            text, question = self.inner.light.embed([_PROBE])[0], self.inner.embed_question(_PROBE)
            self._together = float(text @ question) > _SAME
        return self._together
