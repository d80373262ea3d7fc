"""semantic-text-splitter (Rust), not trimmed: its lossless mode."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

PACKAGES = ("semantic-text-splitter", "tokenizers")
MODULES = ("semantic_text_splitter", "tokenizers")


def load(tokens: Any, options: dict[str, Any]) -> Callable[[str], Any]:
    from semantic_text_splitter import TextSplitter

    tokens.tokenizer.post_processor = None  # it counts special tokens otherwise
    splitter = TextSplitter.from_huggingface_tokenizer(tokens.tokenizer, tokens.max_tokens, trim=False)
    return lambda text: [(part, start, start + len(part)) for start, part in splitter.chunk_indices(text)]
