"""LlamaIndex: SentenceSplitter, VectorStoreIndex in its own stores, QueryFusionRetriever of vectors and BM25.

Chunks hold at most the 254 tokens that the model reads, without overlap. A store that is there is brought up to date
with `refresh_ref_docs`, which compares documents by hash. Its stores live in memory and are written at the end.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

PACKAGES = ("llama-index-core", "llama-index-embeddings-huggingface", "llama-index-retrievers-bm25", "bm25s",
            "sentence-transformers", "torch")  # fmt: skip
MODULES = (
    "llama_index.core",
    "llama_index.core.llms",
    "llama_index.core.retrievers",
    "llama_index.embeddings.huggingface",
    "llama_index.retrievers.bm25",
)
SETTINGS = (
    "SentenceSplitter, 254 tokens; VectorStoreIndex, persist, refresh_ref_docs; QueryFusionRetriever of BM25 and "
    "vectors, reciprocal rank"
)


def load(model: str, options: dict[str, Any]) -> Any:
    from llama_index.core.node_parser import SentenceSplitter
    from llama_index.embeddings.huggingface import HuggingFaceEmbedding
    from tokenizers import Tokenizer

    dtype = {"model_kwargs": {"dtype": options["dtype"]}} if options.get("dtype") else {}
    embedding = HuggingFaceEmbedding(
        model_name=model, device="cpu", embed_batch_size=options.get("unsorted_batch_size", 10), **dtype
    )
    embedding.get_text_embedding_batch(["warm up"])
    tokenizer = Tokenizer.from_file(str(Path(model) / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    splitter = SentenceSplitter(
        chunk_size=254,
        chunk_overlap=0,
        tokenizer=lambda text: tokenizer.encode(text, add_special_tokens=False).ids,
    )
    return embedding, splitter


def ingest(encoder: Any, documents: Path, store: Path) -> None:
    from llama_index.core import Document, VectorStoreIndex

    texts = [Document(text=path.read_bytes().decode(), id_=path.name) for path in sorted(documents.glob("*"))]
    if _there(store):
        index = _open(encoder, store)
        if not any(index.refresh_ref_docs(texts)):
            return
    else:
        index = VectorStoreIndex.from_documents(texts, embed_model=encoder[0], transformations=[encoder[1]])
    index.storage_context.persist(str(store))


def rows(encoder: Any, store: Path) -> list[tuple[str, str]]:
    if not _there(store):
        return []
    nodes = _open(encoder, store).docstore.docs.values()
    ordered = sorted(nodes, key=lambda node: (node.ref_doc_id, node.start_char_idx or 0))
    return [(node.ref_doc_id, node.text) for node in ordered]


def searcher(encoder: Any, store: Path) -> Callable[[str, int], list[tuple[str, str, float]]]:
    from llama_index.core.llms import MockLLM
    from llama_index.core.retrievers import QueryFusionRetriever
    from llama_index.core.retrievers.fusion_retriever import FUSION_MODES
    from llama_index.retrievers.bm25 import BM25Retriever

    index = _open(encoder, store)
    made: dict[int, Any] = {}

    def search(question: str, k: int) -> list[tuple[str, str, float]]:
        if k not in made:
            dense = index.as_retriever(similarity_top_k=k)
            lexical = BM25Retriever.from_defaults(docstore=index.docstore, similarity_top_k=k, verbose=False)
            made[k] = QueryFusionRetriever(
                [dense, lexical], llm=MockLLM(), num_queries=1, mode=FUSION_MODES.RECIPROCAL_RANK, similarity_top_k=k,
                use_async=False,
            )  # fmt: skip
        found = made[k].retrieve(question)
        return [(one.node.ref_doc_id, one.node.text, float(one.score)) for one in found]

    return search


def _there(store: Path) -> bool:
    return (store / "docstore.json").exists()


def _open(encoder: Any, store: Path) -> Any:
    from llama_index.core import StorageContext, load_index_from_storage

    context = StorageContext.from_defaults(persist_dir=str(store))
    return load_index_from_storage(context, embed_model=encoder[0], transformations=[encoder[1]])
