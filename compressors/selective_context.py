"""Selective Context (Li et al., EMNLP 2023, arXiv 2310.06201): what a language model expects is left out."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from compressors._asking import Reader
from compressors._words import Part, by_place, by_unit, fitted, kept_spans, ledger, parts_of, whole_sentences
from rag.errors import ConfigError
from rag.protocols import Compressor, Corpus, Generator, TokenCounter, service
from rag.spans.pieces import aim, check_size, context_of, unchanged
from rag.spans.protected import openers
from rag.text import assemble
from rag.types import Bubble, CompressedContext

_UNITS = ("sentence", "phrase", "token")
_BREAK = re.compile(r"[^\w\s]\s*$")


@dataclass(frozen=True, kw_only=True)
class SelectiveContextCompressor(Compressor):
    """Keeps the units with the most self-information, the sum of -ln p(token | the tokens before it of its chunk).

    `unit` "sentence": whole sentences, with the mean of their tokens, since the sum only tells the longest; "phrase":
    runs of words that end at punctuation or before a function word (English and some German, French and Spanish ones);
    "token": words. The question plays no part. One pass of the model over the bubble. Protected spans stay with
    their sentence, or the sentence goes.

    Deviations: as many units as the target holds, instead of those over a percentile; phrases by function words
    instead of spaCy's noun phrases; words whole; the mean for sentences and words; protected spans.
    """

    target: int | None = None
    rate: float = 0.5
    unit: Literal["sentence", "phrase", "token"] = "sentence"
    counter: TokenCounter = service()
    generator: Generator | None = service(default=None)

    def __post_init__(self) -> None:
        check_size("selective-context", self.target, self.rate)
        if self.unit not in _UNITS:
            raise ConfigError(f"selective-context: unit must be one of {', '.join(_UNITS)}, not {self.unit!r}")

    def compress(self, bubble: Bubble, corpus: Corpus) -> CompressedContext:
        size = self.counter.count(assemble(bubble.texts))
        goal = aim(size, self.target, self.rate)
        if goal >= size:
            return unchanged(bubble, self.counter, "selective-context")
        reader = Reader.of("selective-context", self.generator)
        parts = self._units(parts_of(bubble, corpus, self.counter))
        values: list[list[float]] = []
        for _, found in by_place(parts):
            text = "".join(part.text for part in found)
            losses, shift = reader.losses(text), 0
            for part in found:
                values.append([self._information(one) for one in by_unit(part, text, losses, shift)])
                shift += len(part.text)
        chosen = fitted(bubble, parts, values, goal, self.counter)
        scores = [sum(one) / len(one) for one in values]
        decisions = ledger(bubble, parts, chosen, scores, f"self-information of a {self.unit} in nats")
        kept = kept_spans(parts, chosen, len(bubble.hits))
        return context_of(bubble, kept, self.counter, "selective-context", decisions)

    def _units(self, parts: Sequence[Part]) -> list[Part]:
        if self.unit == "sentence":
            return whole_sentences(parts)
        return [part.merged(_phrases(part)) for part in parts] if self.unit == "phrase" else list(parts)

    def _information(self, losses: Sequence[float]) -> float:
        return sum(losses) if self.unit == "phrase" else sum(losses) / len(losses)


def _phrases(part: Part) -> list[list[int]]:
    """Groups of units: function words open one, punctuation ends it."""
    groups: list[list[int]] = []
    ended, content = True, False
    for at, unit in enumerate(part.units):
        word = part.text[unit.start - part.span.start : unit.end - part.span.start]
        opens = word.strip().lower() in openers
        if ended or (opens and content):
            groups.append([])
            content = False
        groups[-1].append(at)
        content = content or not opens
        ended = bool(_BREAK.search(word))
    return groups
