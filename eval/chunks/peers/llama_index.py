"""LlamaIndex's SentenceSplitter without overlap, and its SemanticSplitterNodeParser, which knows no limit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

PACKAGES = ("llama-index-core", "llama-index-embeddings-huggingface", "tokenizers")
MODULES = ("llama_index.core.node_parser", "llama_index.embeddings.huggingface", "tokenizers")


def sentence(max_tokens: int, model: str) -> Callable[[str], Any]:
    from llama_index.core.node_parser import SentenceSplitter
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(Path(model) / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return _split(
        SentenceSplitter(
            chunk_size=max_tokens,
            chunk_overlap=0,
            tokenizer=lambda text: tokenizer.encode(text, add_special_tokens=False).ids,
            include_metadata=False,
        )
    )


def semantic(max_tokens: int, model: str) -> Callable[[str], Any]:
    from llama_index.core.node_parser import SemanticSplitterNodeParser
    from llama_index.embeddings.huggingface import HuggingFaceEmbedding

    return _split(SemanticSplitterNodeParser(embed_model=HuggingFaceEmbedding(model_name=model, device="cpu")))


def _split(parser: Any) -> Callable[[str], Any]:
    from llama_index.core import Document
    from llama_index.core.schema import MetadataMode

    def split(text: str) -> Any:
        nodes = parser.get_nodes_from_documents([Document(text=text)])
        return [(node.get_content(MetadataMode.NONE), node.start_char_idx, node.end_char_idx) for node in nodes]

    return split


CHUNKERS = {"llama-index-sentence": sentence, "llama-index-semantic": semantic}
