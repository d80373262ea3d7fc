"""LlamaIndex: VectorStoreIndex in its own stores, `refresh_ref_docs` and `storage_context.persist` after every batch.

`refresh_ref_docs` is its documented way to bring an index up to date: documents with stable ids, compared by hash.
Everything lives in memory and is written as JSON; batches that changed nothing are not written again.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

PACKAGES = ("llama-index-core",)
MODULES = (
    "llama_index.core",
    "llama_index.core.node_parser",
)
SETTINGS = "VectorStoreIndex, refresh_ref_docs with stable ids, persist after every batch that changed something"
ACKNOWLEDGED = "persist returned: handed to the operating system (no fsync), in JSON files written over in place"


def load(vectors: Any, options: dict[str, Any]) -> Any:
    from llama_index.core.base.embeddings.base import BaseEmbedding
    from llama_index.core.node_parser import SentenceSplitter

    class Lookup(BaseEmbedding):
        def _get_text_embeddings(self, texts: list[str]) -> list[list[float]]:
            return list(vectors.embed(texts))

        def _get_text_embedding(self, text: str) -> list[float]:
            return list(vectors.embed([text])[0])

        def _get_query_embedding(self, query: str) -> list[float]:
            return self._get_text_embedding(query)

        async def _aget_query_embedding(self, query: str) -> list[float]:
            return self._get_text_embedding(query)

    splitter = SentenceSplitter(
        chunk_size=options["chunk_words"], chunk_overlap=0, tokenizer=str.split, paragraph_separator="\n\n"
    )
    return Lookup(embed_batch_size=100), splitter, int(options["batch"])


def ingest(encoder: Any, documents: Path, store: Path, tell: Any) -> None:
    from llama_index.core import Document

    index = _open(encoder, store)
    files = sorted(documents.glob("*.txt"))
    for at in range(0, len(files), encoder[2]):
        batch = files[at : at + encoder[2]]
        if any(index.refresh_ref_docs([Document(text=path.read_text("utf-8"), id_=path.name) for path in batch])):
            tell.persist()
            index.storage_context.persist(str(store))
        tell.stored(at + len(batch))


def delete(encoder: Any, documents: Path, store: Path, name: str) -> None:
    index = _open(encoder, store)
    index.delete_ref_doc(name, delete_from_docstore=True)
    index.storage_context.persist(str(store))


def rows(encoder: Any, store: Path) -> dict[str, Any]:
    index = _open(encoder, store)
    nodes = list(index.docstore.docs.values())
    vectors = index.vector_store.data.embedding_dict
    parts = {"nodes": len(nodes), "vectors": len(vectors), "index": len(index.index_struct.nodes_dict)}
    return {"parts": parts, "rows": [(node.ref_doc_id, node.text) for node in nodes]}


def search(encoder: Any, store: Path, questions: list[str], k: int) -> list[list[tuple[str, str, float]]]:
    retriever = _open(encoder, store).as_retriever(similarity_top_k=k)
    found = (retriever.retrieve(question) for question in questions)
    return [[(hit.node.ref_doc_id, hit.node.text, float(hit.score)) for hit in hits] for hits in found]


def _open(encoder: Any, store: Path) -> Any:
    from llama_index.core import StorageContext, VectorStoreIndex, load_index_from_storage

    shared = {"embed_model": encoder[0], "transformations": [encoder[1]]}
    if (store / "docstore.json").exists():
        return load_index_from_storage(StorageContext.from_defaults(persist_dir=str(store)), **shared)
    return VectorStoreIndex([], storage_context=StorageContext.from_defaults(), **shared)
