"""Reranking by query likelihood (Ponte & Croft, SIGIR 1998; with language models: Sachan et al., arXiv 2204.07496)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from rag.errors import ConfigError
from rag.protocols import Corpus, Generator, TextModel, TokenCounter, nested, service
from rag.types import Chunk
from retrievers._rerank import Reranker, Scored, Scorer, check_numbers

_PROMPT = "Passage: {text}\n\nA question that this passage answers:"
_CURE = "Set generator: local, or take another retriever (late-interaction, rule-rerank)"


@dataclass(frozen=True, kw_only=True)
class QueryLikelihoodRetriever(Reranker):
    """Scores a chunk by how likely the pipeline's language model finds the question after it.

    score = mean over the question's tokens of ln p(token | the chunk, the tokens before it), in nats, 0 at best. A
    chunk is read up to `max_tokens` tokens of that model. Needs a model that tells likelihoods: `generator: local`.

    Dear: one pass over chunk and question for every hit of the pool. `Hit.parts["query-likelihood.tokens"]` is how
    many tokens of the chunk and the question were read, the few of the prompt's own words left out.
    SmolLM2-135M on one core needs about .3 s for a chunk of 200 tokens (2026-11-22, 12 questions: too few to tell
    whether it gains). A small model is weak evidence, so `weight` is small by default.

    Deviations: the mean over tokens instead of the sum, so that questions of any length share a scale; a plain prompt
    for a model without instruction tuning. Keys and values of a chunk are not kept from question to question.
    """

    name: ClassVar[str] = "query-likelihood"

    retriever: Any = nested("retriever", "hybrid")
    generator: Generator | None = service(default=None)
    k: int = 40
    pool: int = 50
    weight: float = 0.3
    max_tokens: int = 256

    def __post_init__(self) -> None:
        check_numbers(self)
        if self.max_tokens < 1:
            raise ConfigError(f"query-likelihood: max_tokens must be >= 1, not {self.max_tokens}")

    def scorer(self, corpus: Corpus) -> Scorer:
        model = self.generator.text_model if self.generator is not None else None
        if self.generator is None or model is None:
            raise ConfigError(
                f"query-likelihood reads with a language model, and this pipeline's generator has none. {_CURE}"
            )
        counter = self.generator.counter
        return lambda question, chunks: [self._scored(model, counter, question, chunk) for chunk in chunks]

    def _scored(self, model: TextModel, counter: TokenCounter, question: str, chunk: Chunk) -> Scored:
        text, tokens = _head(chunk.embed_text, counter, self.max_tokens)
        losses = model.losses(f" {question.strip()}", after=_PROMPT.format(text=text)) if question.strip() else []
        if losses is None:
            raise ConfigError(f"query-likelihood: this pipeline's language model tells no likelihoods. {_CURE}")
        mean = -sum(nats for _, _, nats in losses) / len(losses) if losses else 0.0
        return mean, {"query-likelihood.tokens": float(tokens + len(losses)) if losses else 0.0}


def _head(text: str, counter: TokenCounter, most: int) -> tuple[str, int]:
    """The text up to `most` tokens, and how many those are."""
    ranges = counter.offsets(text)
    return (text, len(ranges)) if len(ranges) <= most else (text[: ranges[most - 1][1]], most)
