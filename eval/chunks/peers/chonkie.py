"""Chonkie's RecursiveChunker, SentenceChunker and SemanticChunker, with the tokenizer and the model given."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

PACKAGES = ("chonkie", "tokenizers")
MODULES = ("chonkie", "tokenizers")


def recursive(max_tokens: int, model: str) -> Callable[[str], Any]:
    from chonkie import RecursiveChunker

    return _split(RecursiveChunker(tokenizer=_tokenizer(model), chunk_size=max_tokens))


def sentence(max_tokens: int, model: str) -> Callable[[str], Any]:
    from chonkie import SentenceChunker

    return _split(SentenceChunker(tokenizer=_tokenizer(model), chunk_size=max_tokens, chunk_overlap=0))


def semantic(max_tokens: int, model: str) -> Callable[[str], Any]:
    from chonkie import SemanticChunker
    from chonkie.embeddings import SentenceTransformerEmbeddings

    return _split(SemanticChunker(embedding_model=SentenceTransformerEmbeddings(model), chunk_size=max_tokens))


def _tokenizer(model: str) -> Any:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(Path(model) / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _split(chunker: Any) -> Callable[[str], Any]:
    return lambda text: [(chunk.text, chunk.start_index, chunk.end_index) for chunk in chunker.chunk(text)]


CHUNKERS = {"chonkie-recursive": recursive, "chonkie-sentence": sentence, "chonkie-semantic": semantic}
