"""LlamaIndex: IngestionPipeline with cache and docstore, strategy upserts, over its SimpleVectorStore, persisted.

The vector store keeps vectors and metadata, no texts, so a transformation copies each text into the metadata (left
out of what is embedded). Everything lives in memory and is written as JSON after every batch that gave new nodes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

PACKAGES = ("llama-index-core",)
MODULES = (
    "llama_index.core",
    "llama_index.core.ingestion",
    "llama_index.core.node_parser",
    "llama_index.core.vector_stores",
)
SETTINGS = "IngestionPipeline, cache, docstore upserts, SimpleVectorStore; both persisted after every batch with news"
ACKNOWLEDGED = "persist returned: handed to the operating system (no fsync), in JSON files written over in place"


def load(vectors: Any, options: dict[str, Any]) -> Any:
    from llama_index.core.base.embeddings.base import BaseEmbedding
    from llama_index.core.node_parser import SentenceSplitter
    from llama_index.core.schema import TransformComponent

    class Lookup(BaseEmbedding):
        def _get_text_embeddings(self, texts: list[str]) -> list[list[float]]:
            return list(vectors.embed(texts))

        def _get_text_embedding(self, text: str) -> list[float]:
            return list(vectors.embed([text])[0])

        def _get_query_embedding(self, query: str) -> list[float]:
            return self._get_text_embedding(query)

        async def _aget_query_embedding(self, query: str) -> list[float]:
            return self._get_text_embedding(query)

    class KeepText(TransformComponent):
        def __call__(self, nodes: Any, **kwargs: Any) -> Any:
            for node in nodes:
                node.metadata["text"] = node.text
                node.excluded_embed_metadata_keys = ["text"]
            return nodes

    splitter = SentenceSplitter(
        chunk_size=options["chunk_words"], chunk_overlap=0, tokenizer=str.split, paragraph_separator="\n\n"
    )
    return Lookup(embed_batch_size=100), [splitter, KeepText()], int(options["batch"])


def ingest(encoder: Any, documents: Path, store: Path, tell: Any) -> None:
    from llama_index.core import Document

    pipeline = _open(encoder, store)
    files = sorted(documents.glob("*.txt"))
    for at in range(0, len(files), encoder[2]):
        batch = files[at : at + encoder[2]]
        if pipeline.run(documents=[Document(text=path.read_text("utf-8"), id_=path.name) for path in batch]):
            tell.persist()
            _persist(pipeline, store)
        tell.stored(at + len(batch))


def delete(encoder: Any, documents: Path, store: Path, name: str) -> None:
    pipeline = _open(encoder, store)
    pipeline.vector_store.delete(name)
    pipeline.docstore.delete_document(name)
    _persist(pipeline, store)


def rows(encoder: Any, store: Path) -> dict[str, Any]:
    pipeline = _open(encoder, store)
    data = pipeline.vector_store.data
    pairs = [(data.text_id_to_ref_doc_id[key], meta["text"]) for key, meta in data.metadata_dict.items()]
    documents = {name for name, _ in pairs}
    known = set(pipeline.docstore.docs)
    # documents and vectors are counts of different things; what must agree is which documents they know
    parts = {"vectors": len(data.embedding_dict), "texts": len(pairs)}
    parts |= {} if known == documents else {"documents known to one part only": len(known ^ documents)}
    return {"parts": parts, "rows": pairs}


def search(encoder: Any, store: Path, questions: list[str], k: int) -> list[list[tuple[str, str, float]]]:
    from llama_index.core.vector_stores import VectorStoreQuery

    vectors = _open(encoder, store).vector_store
    answers = []
    for question in questions:
        query = VectorStoreQuery(query_embedding=encoder[0].get_query_embedding(question), similarity_top_k=k)
        found = vectors.query(query)
        pairs = zip(found.ids, found.similarities, strict=True)
        data = vectors.data
        answers.append([(data.text_id_to_ref_doc_id[key], data.metadata_dict[key]["text"], s) for key, s in pairs])
    return answers


def _open(encoder: Any, store: Path) -> Any:
    from llama_index.core.ingestion import DocstoreStrategy, IngestionPipeline
    from llama_index.core.storage.docstore import SimpleDocumentStore
    from llama_index.core.vector_stores import SimpleVectorStore

    there = (store / "vectors.json").exists()
    pipeline = IngestionPipeline(
        transformations=[*encoder[1], encoder[0]],
        docstore=SimpleDocumentStore(),
        docstore_strategy=DocstoreStrategy.UPSERTS,
        vector_store=SimpleVectorStore.from_persist_path(str(store / "vectors.json")) if there else SimpleVectorStore(),
    )
    if there:
        pipeline.load(str(store))
    return pipeline


def _persist(pipeline: Any, store: Path) -> None:
    """Vectors first: a document that the docstore knows and the vectors do not would be skipped for ever."""
    pipeline.vector_store.persist(str(store / "vectors.json"))
    pipeline.persist(str(store))
