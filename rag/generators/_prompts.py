"""Prompts as token ids: the chat template around texts, in which nothing opens a turn."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rag.answer import Prompt
from rag.errors import RagError
from rag.prompt import SYSTEM

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = ["Coder", "check_room", "template_of"]

_BODY = "<<chunkwise body>>"


@dataclass(frozen=True, eq=False)
class Coder:
    """`tokenizer` reads the chat template, `counting` texts, to which special tokens are plain text."""

    tokenizer: Any
    counting: Tokenizer

    def template(self, text: str) -> list[int]:
        return list(self.tokenizer.encode(text, add_special_tokens=False)) if text else []

    def plain(self, text: str) -> list[int]:
        return list(self.counting.encode(text, add_special_tokens=False).ids)

    def asked(self, text: str) -> list[int]:
        """`text` alone as what a user says."""
        before, after = self.around(text, "")
        return before + after

    def around(self, text: str, rest: str) -> tuple[list[int], list[int]]:
        """What a user says, in two parts that are tokenised apart: up to the end of `text`, and from `rest` on."""
        before, after = "", ""
        if self.tokenizer.chat_template:
            before, _, after = _rendered(self.tokenizer, [{"role": "user", "content": _BODY}]).partition(_BODY)
        return self.template(before) + self.plain(text), self.plain(rest) + self.template(after)

    def parts(self, prompt: Prompt, after: str) -> list[list[int]]:
        """Every segment tokenised alone, so that its ids do not depend on its neighbours.

        Only the chat template, around the system text and in `after`, has special tokens. In documents and in the
        question `<|im_start|>` is plain text: nothing that was retrieved opens a turn.
        """
        parts: list[list[int]] = []
        for part in prompt.segments:
            if part.role == "system":
                parts.append(self.template(part.text))
            elif part.role == "question":
                parts.append(self.plain(part.text.removesuffix(after)) + self.template(after))
            else:
                parts.append(self.plain(part.text))
        return parts

    def after(self, after: str, start: str, end: str) -> list[tuple[int, tuple[int, int] | None]]:
        """(id, its characters in `after`) of every token; None for those of the chat template.

        Special tokens are read only in `start` and `end`, the two ends of a prompt, and only where `after` begins and
        ends with exactly these: in documents, questions and any other text `<|im_start|>` is plain text.
        """
        whole = len(after) >= len(start) + len(end) and after.startswith(start) and after.endswith(end)
        low, high = (len(start), len(after) - len(end)) if whole else (0, len(after))
        coded = self.counting.encode(after[low:high], add_special_tokens=False)
        inside = [(token, (low + a, low + b)) for token, (a, b) in zip(coded.ids, coded.offsets, strict=True)]
        if not whole:
            return [*inside]
        opening, closing = self.template(start), self.template(end)
        return [*((token, None) for token in opening), *inside, *((token, None) for token in closing)]


def template_of(tokenizer: Any) -> tuple[str, str]:
    """The chat template around the documents: (its start with the system text, its end)."""
    if not tokenizer.chat_template:
        return SYSTEM, "Answer: "
    asked = {"role": "user", "content": _BODY}
    try:
        text = _rendered(tokenizer, [{"role": "system", "content": SYSTEM}, asked])
    except Exception:  # templates without a system role raise an error of their own
        text = _rendered(tokenizer, [{"role": "user", "content": f"{SYSTEM}\n{_BODY}"}])
    before, _, after = text.partition(_BODY)
    return before, after


def check_room(config: Any, prompt: int, answer: int, cure: str) -> None:
    """RagError where the model with that `config` cannot read so many tokens."""
    room = getattr(config, "max_position_embeddings", None)
    if room and prompt + answer > room:
        raise RagError(
            f"generator local: the prompt has {prompt} tokens and the answer up to {answer}, but "
            f"the model reads {room} in all. {cure}"
        )


def _rendered(tokenizer: Any, messages: list[dict[str, str]]) -> str:
    return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
