"""LongLLMLingua (Jiang et al., ACL 2024, arXiv 2310.06839): LLMLingua that knows the question."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from compressors._asking import Reader
from compressors._tokenwise import Blocks, check_numbers, coarse, coarse_ledger, ranked, shares
from compressors._words import by_place, fitted, kept_spans, ledger, parts_of
from rag.protocols import Compressor, Corpus, Generator, TokenCounter, TokenLoss, service
from rag.spans.pieces import aim, check_size, context_of, text_of, unchanged
from rag.text import SEPARATOR, assemble
from rag.types import Bubble, CompressedContext

_RESTRICTION = "We can get the answer to this question in the given documents."


@dataclass(frozen=True, kw_only=True)
class LongTokenPruneCompressor(Compressor):
    """Keeps the words that the question makes likelier, and more of the chunks that make the question likelier.

    1. Context level: chunks by the mean of ln p(question, restriction | chunk), where the restriction is "We can get
    the answer to this question in the given documents."; the best stay until the target and `context_budget` tokens
    are used up. 2. Budgets by rank: `dynamic_ratio` more of the best chunk and less of the last stays. 3. Blocks of
    `iterative_size` tokens, read after what is left of those before, once as they are and once with the question in
    front: the words stay whose loss falls most (contrastive perplexity).

    Protected spans, units, needs and cost are those of token-prune, with two passes a block and one more a chunk.

    Document reordering is not done: a context keeps the order of its bubble here, so that a selector's reading order,
    stable prefixes and other compressors' work hold. The order that the paper would give is in the ledger
    (`parts["rank"]` of the lines "context level"), and `by_rank` of compressors/_recovery.py reads it from there.
    Sub-sequence recovery is `recovered` of the same file; kept spans make it exact.

    Deviations: those of token-prune; no reordering; the question stands before what is left, on a line of its own.
    """

    target: int | None = None
    rate: float = 0.5
    context_budget: int = 100
    iterative_size: int = 200
    dynamic_ratio: float = 0.3
    counter: TokenCounter = service()
    generator: Generator | None = service(default=None)

    def __post_init__(self) -> None:
        check_size("long-token-prune", self.target, self.rate)
        check_numbers("long-token-prune", self.context_budget, self.iterative_size, self.dynamic_ratio)

    def compress(self, bubble: Bubble, corpus: Corpus) -> CompressedContext:
        size = self.counter.count(assemble(bubble.texts))
        goal = aim(size, self.target, self.rate)
        if goal >= size:
            return unchanged(bubble, self.counter, "long-token-prune")
        reader = Reader.of("long-token-prune", self.generator)
        parts = parts_of(bubble, corpus, self.counter)
        sizes = {place: sum(part.size for part in found) for place, found in by_place(parts)}
        asked = f" {bubble.question.strip()} {_RESTRICTION}"
        texts = {place: text_of(bubble, place, bubble.spans[place]) for place in sizes}
        scores = {place: -reader.mean(asked, after=text) for place, text in texts.items()}
        ranking = ranked(scores)
        used = coarse(ranking, sizes, goal + self.context_budget)
        left = [part for part in parts if part.place in used]
        share = shares(ranking, used, goal / max(1, sum(part.size for part in left)), self.dynamic_ratio)
        contrast = _Contrast(reader, bubble.question.strip())
        blocks = Blocks(bubble, left, share, self.iterative_size, contrast)
        chosen = fitted(bubble, left, blocks.margins, goal, self.counter)
        decisions = [
            *coarse_ledger(bubble, ranking, used, scores, sizes),
            *ledger(bubble, left, chosen, blocks.scores, "mean fall of the loss in nats with the question before"),
        ]
        kept = kept_spans(left, chosen, len(bubble.hits))
        return context_of(bubble, kept, self.counter, "long-token-prune", decisions)


@dataclass(frozen=True)
class _Contrast:
    """loss(token | before) - loss(token | question, before) for each token."""

    reader: Reader
    question: str

    def __call__(self, text: str, before: str) -> Sequence[TokenLoss]:
        alone = self.reader.losses(text, after=before)
        told = self.reader.losses(text, after=f"{self.question}{SEPARATOR}{before}")
        return [(start, end, nats - less) for (start, end, nats), (_, _, less) in zip(alone, told, strict=True)]
