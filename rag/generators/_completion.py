"""A generator's language model for plain prompts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from rag.protocols import TextModel, TokenLoss, TokenNeed

__all__ = ["Completion", "Relayed"]


@dataclass(frozen=True, slots=True)
class Relayed:
    """Of a prompt, the `tokens` of an answer whose keys and values were there since it was written; `repaired` of
    them were computed again."""

    tokens: int = 0
    repaired: int = 0


@dataclass(frozen=True)
class Completion(TextModel):
    """`write(prompt, max_tokens)` gives the text so far, each time it has grown; nothing is loaded before that.

    `weigh(text, after)` gives the losses of its tokens, `attend(text, after, reading)` what attention says of them;
    None for a model that does not tell. `told` says what was relayed to the prompt that this thread completed last.
    """

    write: Callable[[str, int], Iterator[str]]
    weigh: Callable[[str, str], list[TokenLoss]] | None = None
    attend: Callable[[str, str, str], list[TokenNeed]] | None = None
    told: Callable[[], Relayed] | None = None

    def complete(self, prompt: str, *, max_tokens: int, stop: Sequence[str] = ()) -> str:
        text = ""
        for text in self.write(prompt, max_tokens):
            ends = [at for at in (text.find(end) for end in stop) if at >= 0]
            if ends:
                return text[: min(ends)]
        return text

    @property
    def relayed(self) -> Relayed:
        return self.told() if self.told else Relayed()

    def losses(self, text: str, *, after: str = "") -> list[TokenLoss] | None:
        return self.weigh(text, after) if self.weigh else None

    def needs(self, text: str, *, after: str = "", reading: str = "from") -> list[TokenNeed] | None:
        return self.attend(text, after, reading) if self.attend else None
