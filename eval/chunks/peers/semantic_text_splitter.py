"""semantic-text-splitter (Rust), not trimmed: its lossless mode."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

PACKAGES = ("semantic-text-splitter", "tokenizers")
MODULES = ("semantic_text_splitter", "tokenizers")


def text(max_tokens: int, model: str) -> Callable[[str], Any]:
    from semantic_text_splitter import TextSplitter
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(Path(model) / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.post_processor = None  # it counts special tokens otherwise
    splitter = TextSplitter.from_huggingface_tokenizer(tokenizer, max_tokens, trim=False)
    return lambda source: [(part, start, start + len(part)) for start, part in splitter.chunk_indices(source)]


CHUNKERS = {"semantic-text-splitter": text}
