"""A generator's language model for plain prompts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from rag.protocols import TextModel

__all__ = ["Completion"]


@dataclass(frozen=True)
class Completion(TextModel):
    """`write(prompt, max_tokens)` gives the text so far, each time it has grown; nothing is loaded before that."""

    write: Callable[[str, int], Iterator[str]]

    def complete(self, prompt: str, *, max_tokens: int, stop: Sequence[str] = ()) -> str:
        text = ""
        for text in self.write(prompt, max_tokens):
            ends = [at for at in (text.find(end) for end in stop) if at >= 0]
            if ends:
                return text[: min(ends)]
        return text
