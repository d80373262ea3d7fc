"""LLMLingua (Jiang et al., EMNLP 2023, arXiv 2310.05736): words that a language model finds likely are left out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from compressors._asking import Reader
from compressors._tokenwise import Blocks, check_numbers, coarse, coarse_ledger, ranked, shares
from compressors._words import Part, by_place, fitted, kept_spans, ledger, parts_of
from rag.errors import ConfigError
from rag.protocols import Compressor, Corpus, Generator, TokenCounter, service
from rag.spans.pieces import aim, check_size, context_of, text_of, unchanged
from rag.text import assemble
from rag.types import Bubble, CompressedContext


@dataclass(frozen=True, kw_only=True)
class TokenPruneCompressor(Compressor):
    """Keeps the words that surprise the pipeline's language model most, given what is left before them.

    1. Context level: chunks by mean loss of their tokens, highest first, until the target and `context_budget` tokens
    are used up. 2. With `sentence_level`: sentences by mean loss, highest first, until `token_budget_ratio` times the
    target. 3. Blocks of `iterative_size` tokens, each read after what is left of those before; in each the words with
    the highest mean loss stay. `dynamic_ratio` keeps so much more of the first ranked chunk and less of the last.

    Protected spans (numbers, dates, units, negations, names, code, quotes, addresses) stay with their sentence, or the
    sentence goes. Kept words are slices of the document, so what is left can be cited. The question plays no part.
    Needs a model that tells likelihoods: `generator: local`. Each block is a pass over it and all that is left before.

    Deviations: whole words by their mean loss instead of tokens, punctuation with its word; blocks end with sentences;
    protected spans instead of `force_tokens`; no instruction is read before; keys and values are not kept from block
    to block; after the last block the threshold is moved, for all blocks alike, until the target is met.
    """

    target: int | None = None
    rate: float = 0.5
    context_budget: int = 100
    sentence_level: bool = False
    token_budget_ratio: float = 1.4
    iterative_size: int = 200
    dynamic_ratio: float = 0.0
    counter: TokenCounter = service()
    generator: Generator | None = service(default=None)

    def __post_init__(self) -> None:
        check_size("token-prune", self.target, self.rate)
        check_numbers("token-prune", self.context_budget, self.iterative_size, self.dynamic_ratio)
        if not 1 <= self.token_budget_ratio < float("inf"):
            raise ConfigError(f"token-prune: token_budget_ratio must be >= 1, not {self.token_budget_ratio}")

    def compress(self, bubble: Bubble, corpus: Corpus) -> CompressedContext:
        size = self.counter.count(assemble(bubble.texts))
        goal = aim(size, self.target, self.rate)
        if goal >= size:
            return unchanged(bubble, self.counter, "token-prune")
        reader = Reader.of("token-prune", self.generator)
        parts = parts_of(bubble, corpus, self.counter)
        sizes = {place: sum(part.size for part in found) for place, found in by_place(parts)}
        scores = {place: reader.mean(text_of(bubble, place, bubble.spans[place])) for place in sizes}
        ranking = ranked(scores)
        used = coarse(ranking, sizes, goal + self.context_budget)
        left = [part for part in parts if part.place in used]
        if self.sentence_level:
            left = self._likely_sentences_out(left, reader, goal)
        total = sum(part.size for part in left)
        share = shares(ranking, used, goal / max(1, total), self.dynamic_ratio)
        blocks = Blocks(
            bubble, left, share, self.iterative_size, lambda text, before: reader.losses(text, after=before)
        )
        chosen = fitted(bubble, left, blocks.margins, goal, self.counter)
        decisions = [
            *coarse_ledger(bubble, ranking, used, scores, sizes),
            *ledger(bubble, left, chosen, blocks.scores, "mean loss in nats after what is left before"),
        ]
        return context_of(bubble, kept_spans(left, chosen, len(bubble.hits)), self.counter, "token-prune", decisions)

    def _likely_sentences_out(self, parts: Sequence[Part], reader: Reader, goal: int) -> list[Part]:
        """The sentences that fill the allowance, each read after the one before it of its chunk."""
        losses: dict[int, float] = {}
        for number, part in enumerate(parts):
            before = parts[number - 1].text if number and parts[number - 1].place == part.place else ""
            losses[number] = reader.mean(part.text, after=before)
        sizes = {number: part.size for number, part in enumerate(parts)}
        return [parts[number] for number in coarse(ranked(losses), sizes, int(goal * self.token_budget_ratio))]
