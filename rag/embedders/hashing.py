"""Feature hashing (Weinberger et al., arXiv 0902.2206): deterministic vectors without a model."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar

from rag.errors import ConfigError
from rag.protocols import Embedder, TokenCounter
from rag.text import lexical_words
from rag.tokens import WordCounter

if TYPE_CHECKING:
    from rag.protocols import Vectors


@dataclass(frozen=True, kw_only=True)
class HashingEmbedder(Embedder):
    """Signed feature hashing of words, for tests and for machines without a model. It matches words, not meaning.

    Deviations: features are weighted 1 + ln(count) instead of count, and rows are scaled to length 1.
    """

    matches_meaning: ClassVar[bool] = False

    buckets: int = 512
    max_tokens: int = 256

    def __post_init__(self) -> None:
        if self.buckets < 8 or self.max_tokens < 1:
            raise ConfigError(
                f"hashing: buckets must be >= 8 and max_tokens >= 1, not {self.buckets} and {self.max_tokens}"
            )

    @property
    def dimension(self) -> int:
        return self.buckets

    @property
    def fingerprint(self) -> str:
        return f"hashing-{self.buckets}"

    @cached_property
    def counter(self) -> TokenCounter:
        return WordCounter(limit=self.max_tokens)

    def embed(self, texts: Sequence[str]) -> Vectors:
        import numpy as np

        from rag.vectors import as_unit

        matrix = np.zeros((len(texts), self.buckets), dtype=np.float32)
        for row, text in enumerate(texts):
            for word, count in Counter(lexical_words(text)).items():
                digest = int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest(), "big")
                sign = 1.0 if digest & 1 else -1.0
                matrix[row, (digest >> 1) % self.buckets] += sign * (1.0 + math.log(count))
            if not matrix[row].any():
                matrix[row, 0] = 1.0  # a text without words still needs a direction
        return as_unit(matrix)

    def embed_question(self, text: str) -> Vectors:
        vector: Vectors = self.embed([text])[0]
        return vector
