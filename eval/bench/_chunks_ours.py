"""Our own chunkers, run by the same driver as the peers, over plain documents.

`use`: the chunker; `floor` is no chunker: it tokenises each text once, without offsets, and makes one chunk of it.
Vectors come from the hashing embedder: no neural encoder is part of what is measured.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

PACKAGES = ("chunkwise", "tokenizers", "sentencex")
MODULES = ("rag.registry", "rag.embedders.hashing", "tokenizers", "sentencex")


def load(tokens: Any, options: Mapping[str, Any]) -> Callable[[str], Any]:
    from rag.embedders.hashing import HashingEmbedder
    from rag.registry import build
    from rag.types import Document

    if options["use"] == "floor":
        return lambda text: [(text, 0, len(text))] if tokens.ids(text) else []
    counter = _counter(tokens)
    services = {"counter": counter, "embedder": HashingEmbedder()}
    chunker = build("chunker", {"use": options["use"], "max_tokens": tokens.max_tokens}, services=services)

    def split(text: str) -> Any:
        chunks = chunker.chunk(Document(text=text, source="text.txt"))
        return [(chunk.text, chunk.span.start, chunk.span.end) for chunk in chunks]

    return split


def _counter(tokens: Any) -> Any:
    from rag.tokens import TokenizerCounter

    class Counted(TokenizerCounter):
        def count(self, text: str) -> int:
            tokens.characters[0] += len(text)
            return super().count(text)

        def offsets(self, text: str) -> list[tuple[int, int]]:
            tokens.characters[0] += len(text)
            return super().offsets(text)

        def _ascii_sizes(self) -> Any:
            sizes = super()._ascii_sizes()
            if sizes is None:
                return None

            def counted(words: Sequence[str]) -> dict[str, int]:
                found = sizes(words)
                tokens.characters[0] += len(" ".join(found))
                return found

            return counted

    kind = TokenizerCounter if tokens.characters is None else Counted
    return kind(tokens.tokenizer, name="minilm", limit=None, additive=True)
