"""Embeddings from an OpenAI-compatible endpoint."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from rag.embedders._client import open_client, readable_errors
from rag.errors import ConfigError, InputError, RagError
from rag.protocols import Embedder, TokenCounter
from rag.tokens import WordCounter

if TYPE_CHECKING:
    from openai import OpenAI

    from rag.protocols import Vectors

_WORDS_PER_TOKEN = 0.5


@dataclass(frozen=True, kw_only=True)
class OpenaiEmbedder(Embedder):
    """Embeddings over HTTP from any OpenAI-compatible endpoint: the texts leave this machine.

    `base_url` "" means OPENAI_BASE_URL, else OpenAI itself; the key is read from OPENAI_API_KEY only. `dimensions` 0 is
    the model's own size. The server's tokenizer is not known here, so texts are counted in words, and the limit is
    half of `max_tokens` words: a word is seldom more than two tokens.
    """

    model: str = "text-embedding-3-small"
    base_url: str = ""
    max_tokens: int = 8191
    dimensions: int = 0
    batch: int = 128
    timeout_seconds: float = 60.0

    def __post_init__(self) -> None:
        if not self.model:
            raise ConfigError("openai: model must name a model of the endpoint, it is empty")
        if self.max_tokens < 2 or self.dimensions < 0 or self.batch < 1 or self.timeout_seconds <= 0:
            raise ConfigError(
                "openai: max_tokens must be >= 2, dimensions >= 0, batch >= 1 and timeout_seconds > 0, not "
                f"{self.max_tokens}, {self.dimensions}, {self.batch} and {self.timeout_seconds}"
            )

    @cached_property
    def dimension(self) -> int:
        """`dimensions`, or the length of one vector that is asked for."""
        return self.dimensions or int(self._request(["dimension"]).shape[1])

    @property
    def fingerprint(self) -> str:
        return f"openai:{self.model}:{self.dimensions or 'full'}"

    @cached_property
    def counter(self) -> TokenCounter:
        return WordCounter(limit=int(self.max_tokens * _WORDS_PER_TOKEN))

    def embed(self, texts: Sequence[str]) -> Vectors:
        import numpy as np

        limit = self.counter.limit or 0
        for text in texts:
            count = self.counter.count(text)
            if count > limit:
                raise InputError(
                    f"embedder openai: a text of {count} words is over the limit of {limit} (max_tokens "
                    f"{self.max_tokens}); it starts with {text[:60]!r}. Cut it into smaller chunks"
                )
        if not texts:
            return np.zeros((0, self.dimension), dtype=np.float32)
        return np.concatenate([self._request(texts[at : at + self.batch]) for at in range(0, len(texts), self.batch)])

    def embed_question(self, text: str) -> Vectors:
        from rag.vectors import as_unit

        words, limit = self.counter.offsets(text), self.counter.limit or 1
        edges = [words[at][0] for at in range(0, len(words), limit)][1:]
        windows = [text[a:b] for a, b in zip([0, *edges], [*edges, len(text)], strict=True)]
        vector: Vectors = as_unit(self.embed(windows).mean(axis=0))
        return vector

    @cached_property
    def _client(self) -> OpenAI:
        return open_client(self.base_url, timeout_seconds=self.timeout_seconds, purpose="embedder openai")

    def _request(self, texts: Sequence[str]) -> Vectors:
        import numpy as np
        from openai import omit

        from rag.vectors import as_unit

        with readable_errors(self._client, "embedder openai"):
            reply = self._client.embeddings.create(
                model=self.model,
                input=[text or " " for text in texts],  # endpoints refuse an empty text
                dimensions=self.dimensions or omit,
                encoding_format="float",  # base64, the client's own choice, is unknown to some local servers
            )
        rows = sorted(reply.data, key=lambda row: row.index)
        if len(rows) != len(texts):
            raise RagError(f"embedder openai: {len(texts)} texts were sent, {len(rows)} vectors came back")
        return as_unit(np.array([row.embedding for row in rows], dtype=np.float32))
