"""A compressor over the contexts of all questions at one rate: what is left, and what that cost."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from eval.chunks.vectors import CountingEmbedder
from eval.compress.measures import Measured, survived
from eval.compress.references import Part, reference
from eval.sets import Place, Question
from rag.protocols import Compressor, Corpus, Embedder, Generator, TokenCounter
from rag.registry import Spec, build
from rag.spans.pieces import aim
from rag.text import assemble
from rag.types import Bubble, CompressedContext

__all__ = ["Asked", "Row", "compressed"]


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A question, its context before compression, the sentences of that, and its evidence in ids of the index."""

    question: Question
    bubble: Bubble
    sentences: Sequence[Part]
    evidence: Sequence[Place]


@dataclass(frozen=True, kw_only=True)
class Row:
    """Figures per question, in the order of the questions. `cpu_ms` is without the encoder's share."""

    compressor: str
    rate: float
    measured: list[Measured] = field(default_factory=list)
    contexts: list[CompressedContext] = field(default_factory=list)
    cpu_ms: list[float] = field(default_factory=list)
    embedded: list[int] = field(default_factory=list)
    source_tokens: list[int] = field(default_factory=list)

    def scores(self, name: str) -> list[float | None]:
        return [one.scores[name] for one in self.measured]


def compressed(
    asked: Sequence[Asked],
    corpus: Corpus,
    label: str,
    spec: Spec | None,
    rate: float,
    *,
    counter: TokenCounter,
    embedder: Embedder,
    generator: Generator,
) -> Row:
    """The row of a compressor; `spec` None for a reference. The target of a question is `rate` of its context."""
    row = Row(compressor=label, rate=rate)
    counting = CountingEmbedder(inner=embedder)
    plugin = None if spec is None else _plugin(spec, rate, counter, counting, generator)
    for one in asked:
        tokens = counter.count(assemble(one.bubble.texts))
        target = aim(tokens, None, rate)
        compressor = plugin or reference(label, counter, target, one.evidence)
        texts, encoding = counting.counts["texts"], counting.counts["cpu_seconds"]
        begin = time.process_time()
        context = compressor.compress(one.bubble, corpus)
        spent = time.process_time() - begin - (counting.counts["cpu_seconds"] - encoding)
        row.cpu_ms.append(1000 * max(0.0, spent))
        row.embedded.append(int(counting.counts["texts"] - texts))
        row.source_tokens.append(tokens)
        row.contexts.append(context)
        found = survived(
            one.bubble,
            context,
            one.sentences,
            evidence=one.evidence,
            answers=one.question.answers,
            target=target,
            counter=counter,
            verbatim=compressor.verbatim,
        )
        row.measured.append(found)
    return row


def _plugin(spec: Spec, rate: float, counter: TokenCounter, embedder: Embedder, generator: Generator) -> Compressor:
    given = {"use": spec} if isinstance(spec, str) else dict(spec)
    services: dict[str, object] = {"counter": counter, "embedder": embedder, "generator": generator}
    sized = {} if given["use"] == "none" else {"rate": rate}
    made: Compressor = build("compressor", {**given, **sized}, services=services, path="--compressor")
    return made
