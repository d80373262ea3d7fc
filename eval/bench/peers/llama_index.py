"""LlamaIndex: SentenceSplitter, HuggingFaceEmbedding, VectorStoreIndex, storage_context.persist.

Settings: its default of 1,024 tokens would be cut silently by this model, so chunks hold the 254 tokens that the
model reads besides its two special ones, counted with the model's own tokenizer, without overlap (fewer tokens to
embed). Documents carry no metadata: it would count into the chunk size and be embedded with every chunk.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

PACKAGES = ("llama-index-core", "llama-index-embeddings-huggingface", "sentence-transformers", "transformers", "torch")
MODULES = (
    "llama_index.core",
    "llama_index.embeddings.huggingface",
)
CHUNK_TOKENS = 254


def load(model: str, options: dict[str, Any]) -> Any:
    from llama_index.embeddings.huggingface import HuggingFaceEmbedding
    from tokenizers import Tokenizer

    extra = {"model_kwargs": {"dtype": options["dtype"]}} if "dtype" in options else {}
    batch_size = options.get("batch_size", 10)
    encoder = HuggingFaceEmbedding(model_name=model, device="cpu", embed_batch_size=batch_size, **extra)
    encoder.get_text_embedding_batch(["warm up"])
    tokenizer = Tokenizer.from_file(str(Path(model) / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return encoder, tokenizer


def ingest(encoder: Any, documents: Path, store: Path) -> int:
    from llama_index.core import VectorStoreIndex

    nodes = _nodes(encoder, documents)
    VectorStoreIndex(nodes, embed_model=encoder[0]).storage_context.persist(str(store))
    return len(nodes)


def retrieve(encoder: Any, documents: Path, store: Path, questions: list[str], k: int) -> dict[str, Any]:
    from llama_index.core import VectorStoreIndex

    nodes = _nodes(encoder, documents)
    numbers = {node.node_id: number for number, node in enumerate(nodes)}
    retriever = VectorStoreIndex(nodes, embed_model=encoder[0]).as_retriever(similarity_top_k=k)
    hits = [[numbers[found.node.node_id] for found in retriever.retrieve(one)] for one in questions]
    return {"chunks": [[node.ref_doc_id, node.text] for node in nodes], "hits": {"dense": hits}}


def _nodes(encoder: Any, documents: Path) -> list[Any]:
    from llama_index.core import Document
    from llama_index.core.node_parser import SentenceSplitter

    tokenizer = encoder[1]
    splitter = SentenceSplitter(
        chunk_size=CHUNK_TOKENS,
        chunk_overlap=0,
        tokenizer=lambda text: tokenizer.encode(text, add_special_tokens=False).ids,
    )
    texts = [Document(text=path.read_text(encoding="utf-8"), id_=path.name) for path in sorted(documents.glob("*.txt"))]
    return list(splitter.get_nodes_from_documents(texts))
