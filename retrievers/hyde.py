"""Hypothetical document embeddings (Gao et al., arXiv 2212.10496): search beside answers that a model makes up."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rag.errors import ConfigError
from rag.protocols import Corpus, Embedder, Generator, Searcher, TextModel, nested, service
from rag.spans.around import AroundEmbedder
from retrievers._wrapped import Wrapper, needed_model

if TYPE_CHECKING:
    from rag.protocols import Vectors

_PROMPTS = (
    "Write a short passage that answers the question.\n\nQuestion: {question}\n\nPassage:",
    "Write two sentences from a handbook that answer the question.\n\nQuestion: {question}\n\nSentences:",
    "Answer the question in one full sentence.\n\nQuestion: {question}\n\nAnswer:",
)


@dataclass(frozen=True, kw_only=True)
class HydeRetriever(Wrapper):
    """Searches with the mean of the question's vector and those of `passages` answers that the generator makes up.

    v = (e(q) + sum e(h_i)) / (n + 1), scaled to unit length. The inner retriever must be dense, or hold a dense one:
    every embedder inside of it asks with v, and lexical parts keep the question as it is. Needs a capable model: with
    the bundled SmolLM2-135M the made-up passages lead away from the answer (hotpotqa_200, 40 questions, one passage
    of 32 tokens, recall in 800 tokens over `faiss-dense`: .903 to .873; 2026-11-22). Measure before use.

    Deviations: greedy decoding, so several passages come from several prompts and not from sampling; generic prompts
    instead of one a task; the default is one passage, the paper's is eight.
    """

    retriever: Any = nested("retriever", "faiss-dense")
    generator: Generator | None = service(default=None)
    k: int = 40
    passages: int = 1
    max_tokens: int = 96

    def __post_init__(self) -> None:
        if self.k < 1 or self.max_tokens < 1 or not 1 <= self.passages <= len(_PROMPTS):
            raise ConfigError(
                f"hyde: k and max_tokens must be >= 1 and passages between 1 and {len(_PROMPTS)}, not k={self.k}, "
                f"max_tokens={self.max_tokens}, passages={self.passages}"
            )

    def open(self, corpus: Corpus) -> Searcher:
        model = needed_model(self.generator, "hyde")
        if not self.retriever.uses_vectors:
            raise ConfigError(
                "hyde: its retriever must be dense (faiss-dense, chroma-dense) or hold a dense one (hybrid); "
                f"{type(self.retriever).__name__} reads no vectors"
            )
        inner = _with_embedder(self.retriever, lambda embedder: _HypotheticalEmbedder(embedder, model, self))
        return _RenamedSearcher(inner.open(corpus))


class _RenamedSearcher(Searcher):
    """The inner hits under the name of hyde."""

    def __init__(self, inner: Searcher) -> None:
        self._inner = inner

    def search(self, question: str, k: int, where: Any = None) -> list[Any]:
        return [dataclasses.replace(hit, retriever="hyde") for hit in self._inner.search(question, k, where)]

    def close(self) -> None:
        self._inner.close()


class _HypotheticalEmbedder(AroundEmbedder):
    """The embedder inside, which asks with the mean vector; texts keep their own vectors."""

    def __init__(self, inner: Embedder, model: TextModel, hyde: HydeRetriever) -> None:
        self.inner, self._model, self._hyde = inner, model, hyde

    def embed_question(self, text: str) -> Vectors:
        import numpy as np

        prompts = [prompt.format(question=text.strip()) for prompt in _PROMPTS[: self._hyde.passages]]
        made = [self._model.complete(prompt, max_tokens=self._hyde.max_tokens).strip() for prompt in prompts]
        question = self.inner.embed_question(text)
        total = question.astype(np.float64)
        for one in made:
            total = total + (self.inner.embed_question(one) if one else 0.0)
        length = float(np.linalg.norm(total))
        return (total / length).astype(np.float32) if length else question


def _with_embedder(retriever: Any, wrap: Callable[[Embedder], Embedder]) -> Any:
    """A copy of the retriever in which every embedder, of its own or of one nested in it, is wrapped."""
    changes: dict[str, Any] = {}
    for field in dataclasses.fields(retriever):
        value = getattr(retriever, field.name)
        if field.name == "embedder" and value is not None:
            changes[field.name] = wrap(value)
        elif "nested" in field.metadata and isinstance(value, tuple):
            changes[field.name] = tuple(_with_embedder(one, wrap) for one in value)
        elif "nested" in field.metadata and value is not None:
            changes[field.name] = _with_embedder(value, wrap)
    return dataclasses.replace(retriever, **changes)
