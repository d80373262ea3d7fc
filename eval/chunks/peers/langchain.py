"""LangChain's RecursiveCharacterTextSplitter, no white space stripped and offsets asked for: its exact mode."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

PACKAGES = ("langchain-text-splitters", "tokenizers")
MODULES = ("langchain_text_splitters", "tokenizers")


def recursive(max_tokens: int, model: str) -> Callable[[str], Any]:
    from langchain_text_splitters import RecursiveCharacterTextSplitter
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(Path(model) / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    splitter = RecursiveCharacterTextSplitter(
        chunk_size=max_tokens,
        chunk_overlap=0,
        strip_whitespace=False,
        add_start_index=True,
        length_function=lambda text: len(tokenizer.encode(text, add_special_tokens=False).ids),
    )

    def split(text: str) -> Any:
        found = splitter.create_documents([text])
        starts = [one.metadata["start_index"] for one in found]
        return [
            (one.page_content, start, start + len(one.page_content)) for one, start in zip(found, starts, strict=True)
        ]

    return split


CHUNKERS = {"langchain-recursive": recursive}
