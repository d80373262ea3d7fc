"""Keeps test questions out of what an evaluated chunker was shown: intents that are test questions in other words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from rag.errors import ConfigError, RagError
from rag.text import lexical_words

if TYPE_CHECKING:
    from rag.protocols import Embedder, Vectors

__all__ = ["Leak", "LeakGuard"]


@dataclass(frozen=True, slots=True)
class Leak:
    """An intent that equals a test question (`cosine` 1), or nearly does."""

    intent: str
    question: str
    cosine: float


@dataclass(frozen=True, kw_only=True)
class LeakGuard:
    """Finds intents that are the same words as a test question, or over `level` in cosine with one.

    Words are compared without case, punctuation and width. Without an embedder only words are.
    """

    questions: tuple[str, ...]
    embedder: Embedder | None = None
    level: float = 0.95

    def __post_init__(self) -> None:
        if not 0 < self.level <= 1:
            raise ConfigError(f"leak guard: level must lie in (0, 1], not {self.level}")

    def find(self, intents: Sequence[str]) -> list[Leak]:
        """Every intent that leaks, with the nearest question, in order; blank intents say nothing and never leak."""
        said = [intent for intent in intents if lexical_words(intent)]
        near = self._nearest(said)
        leaks = []
        for intent in said:
            same = self._words.get(tuple(lexical_words(intent)))
            question, cosine = (same, 1.0) if same is not None else near.get(intent, ("", 0.0))
            if same is not None or cosine > self.level:
                leaks.append(Leak(intent, question, cosine))
        return leaks

    def check(self, intents: Sequence[str]) -> None:
        """RagError when an intent leaks: what was segmented with it must not be evaluated with these questions."""
        leaks = self.find(intents)
        if leaks:
            worst = max(leaks, key=lambda leak: leak.cosine)
            raise RagError(
                f"{len(leaks)} of {len(intents)} intents are test questions: {worst.intent!r} has cosine "
                f"{worst.cosine:.3f} with {worst.question!r} (allowed: {self.level}); take them out of the intents"
            )

    @cached_property
    def _words(self) -> dict[tuple[str, ...], str]:
        return {words: question for question in self.questions if (words := tuple(lexical_words(question)))}

    @cached_property
    def _vectors(self) -> Vectors | None:
        return self.embedder.embed(list(self.questions)) if self.embedder and self.questions else None

    def _nearest(self, intents: list[str]) -> dict[str, tuple[str, float]]:
        if self._vectors is None or self.embedder is None or not intents:
            return {}
        cosines = self.embedder.embed(intents) @ self._vectors.T
        best = cosines.argmax(axis=1)
        return {
            intent: (self.questions[at], float(row[at])) for intent, row, at in zip(intents, cosines, best, strict=True)
        }
