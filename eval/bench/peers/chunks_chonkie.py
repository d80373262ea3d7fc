"""Chonkie's RecursiveChunker, with each of the ways to count tokens that it takes.

`counter`: `tokenizers` hands it the tokenizer (its own adapter), `callable` a function that counts without offsets
(faster, but it cannot split a word that is too long), `tokie` the same vocabulary in the tokenizer library that
Chonkie itself depends on.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

PACKAGES = ("chonkie", "tokenizers", "tokie")
MODULES = ("chonkie", "tokenizers")


def load(tokens: Any, options: dict[str, Any]) -> Callable[[str], Any]:
    from chonkie import RecursiveChunker

    counter: Any = tokens.tokenizer if options["counter"] == "tokenizers" else tokens.count
    if options["counter"] == "tokie":
        counter = import_module("tokie").Tokenizer.from_json(tokens.file)
    chunker = RecursiveChunker(tokenizer=counter, chunk_size=tokens.max_tokens)
    return lambda text: [(chunk.text, chunk.start_index, chunk.end_index) for chunk in chunker.chunk(text)]
