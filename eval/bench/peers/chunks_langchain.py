"""LangChain's RecursiveCharacterTextSplitter without overlap, its exact mode: nothing stripped, offsets asked for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

PACKAGES = ("langchain-text-splitters", "tokenizers")
MODULES = ("langchain_text_splitters", "tokenizers")


def load(tokens: Any, options: dict[str, Any]) -> Callable[[str], Any]:
    from langchain_text_splitters import RecursiveCharacterTextSplitter

    splitter = RecursiveCharacterTextSplitter(
        chunk_size=tokens.max_tokens,
        chunk_overlap=0,
        strip_whitespace=False,
        add_start_index=True,
        length_function=tokens.count,
    )

    def split(text: str) -> Any:
        found = [(one.page_content, one.metadata["start_index"]) for one in splitter.create_documents([text])]
        return [(part, start, start + len(part)) for part, start in found]

    return split
