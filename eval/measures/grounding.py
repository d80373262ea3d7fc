"""What an answer rests on: citations against the evidence, and proxies that need no judge.

A proxy looks at words, not at meaning: a high value does not prove that an answer is supported.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from eval.chunks.measures import covered
from eval.sets import Place
from rag.generators._support import content_words

__all__ = ["citation_precision", "citation_recall", "contained_facts", "facts", "k_precision"]

_NUMBER = re.compile(r"\d+(?:[.,:]\d+)*")
_NAMES = re.compile(r"\b[A-Z][\w'’-]*(?:\s+[A-Z][\w'’-]*)*")


def citation_precision(citations: Sequence[Place], evidence: Sequence[Place]) -> float:
    """Share of the citations that hold half of a piece of evidence or lie by half in one; 0 without a citation."""
    return sum(any(_meet(one, other) for other in evidence) for one in citations) / max(1, len(citations))


def citation_recall(citations: Sequence[Place], evidence: Sequence[Place]) -> float:
    """Share of the pieces of evidence that a citation meets, as above."""
    return sum(any(_meet(other, one) for other in citations) for one in evidence) / max(1, len(evidence))


def k_precision(answer: str, context: Iterable[str]) -> float:
    """Proxy: share of the content words of the answer that stand in the context; 1 for an answer without any."""
    said = content_words(answer)
    there = {word for text in context for word in content_words(text)}
    return sum(word in there for word in said) / len(said) if said else 1.0


def facts(text: str) -> list[str]:
    """Numbers, and runs of capitalised words, the first word of a sentence left out."""
    names = []
    for sentence in re.split(r"(?<=[.!?])\s+", text):
        for found in _NAMES.finditer(sentence):
            words = found[0].split()
            names.append(" ".join(words[1:] if not sentence[: found.start()].strip() else words))
    return [*_NUMBER.findall(text), *(name for name in names if name)]


def contained_facts(answer: str, cited: Iterable[str]) -> float:
    """Proxy: share of the numbers and names of the answer that stand in a cited place; 1 for an answer without any."""
    said = facts(answer)
    texts = [" ".join(text.split()) for text in cited]
    return sum(any(one in text for text in texts) for one in said) / len(said) if said else 1.0


def _meet(citation: Place, evidence: Place) -> bool:
    shared = covered([evidence], [citation])
    return bool(shared) and 2 * shared >= min(citation[2] - citation[1], evidence[2] - evidence[1])
