"""LangChain with FAISS: load_local, add documents, save_local after every batch, since it holds all in memory.

With `records` the indexing API does the writing, as its documentation shows for incremental work: SQLRecordManager,
cleanup="incremental", source ids; save_local only when something changed. Without it `add_documents` adds.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

PACKAGES = ("langchain-core", "langchain-classic", "langchain-community", "langchain-text-splitters", "faiss-cpu",
            "sqlalchemy")  # fmt: skip
MODULES = (
    "faiss",
    "langchain_classic.indexes",
    "langchain_community.docstore.in_memory",
    "langchain_community.vectorstores",
    "langchain_core.indexing",
    "langchain_text_splitters",
    "sqlalchemy",
)
SETTINGS = "FAISS flat, save_local after every batch that changed something"
ACKNOWLEDGED = "save_local returned: handed to the operating system (no fsync), in two files written over in place"


def load(vectors: Any, options: dict[str, Any]) -> Any:
    from langchain_core.embeddings import Embeddings
    from langchain_text_splitters import RecursiveCharacterTextSplitter

    class Lookup(Embeddings):  # type: ignore[misc, unused-ignore]
        def embed_documents(self, texts: list[str]) -> list[list[float]]:
            return list(vectors.embed(texts))

        def embed_query(self, text: str) -> list[float]:
            return list(vectors.embed([text])[0])

    splitter = RecursiveCharacterTextSplitter(
        separators=["\n\n"], chunk_size=options["chunk_chars"], chunk_overlap=0, keep_separator=False
    )
    return Lookup(), splitter, int(options["batch"]), bool(options.get("records")), vectors.dimension


def ingest(encoder: Any, documents: Path, store: Path, tell: Any) -> None:
    from langchain_core.documents import Document

    _, splitter, size, _, _ = encoder
    index, records = _open(encoder, store), _records(encoder, store)
    files = sorted(documents.glob("*.txt"))
    for at in range(0, len(files), size):
        batch = files[at : at + size]
        texts = [Document(page_content=path.read_text("utf-8"), metadata={"source": path.name}) for path in batch]
        if _add(index, records, splitter.split_documents(texts)):
            tell.persist()
            index.save_local(str(store / "faiss"))
        tell.stored(at + len(batch))


def delete(encoder: Any, documents: Path, store: Path, name: str) -> None:
    index, records = _open(encoder, store), _records(encoder, store)
    stored = index.docstore._dict.items()  # the vector store itself cannot list by source
    ids = [key for key, document in stored if document.metadata["source"] == name]
    if records is not None:
        ids = records.list_keys(group_ids=[name])
        records.delete_keys(ids)
    index.delete(ids)
    index.save_local(str(store / "faiss"))


def rows(encoder: Any, store: Path) -> dict[str, Any]:
    index, records = _open(encoder, store), _records(encoder, store)
    stored = index.docstore._dict
    parts = {"vectors": int(index.index.ntotal), "ids": len(index.index_to_docstore_id), "texts": len(stored)}
    if records is not None:
        parts["records"] = len(records.list_keys())
    return {"parts": parts, "rows": [(one.metadata["source"], one.page_content) for one in stored.values()]}


def search(encoder: Any, store: Path, questions: list[str], k: int) -> list[list[tuple[str, str, float]]]:
    index = _open(encoder, store)
    found = (index.similarity_search_with_score(question, k=k) for question in questions)
    return [[(one.metadata["source"], one.page_content, float(score)) for one, score in hits] for hits in found]


def _add(index: Any, records: Any, chunks: list[Any]) -> bool:
    """True when the index changed."""
    from langchain_core.indexing import index as update

    if records is None:
        index.add_documents(chunks)
        return True
    done = update(chunks, records, index, cleanup="incremental", source_id_key="source", key_encoder="sha256")
    return bool(done["num_added"] or done["num_updated"] or done["num_deleted"])


def _open(encoder: Any, store: Path) -> Any:
    import faiss
    from langchain_community.docstore.in_memory import InMemoryDocstore
    from langchain_community.vectorstores import FAISS

    if (store / "faiss" / "index.faiss").exists():
        return FAISS.load_local(str(store / "faiss"), encoder[0], allow_dangerous_deserialization=True)
    return FAISS(encoder[0], faiss.IndexFlatL2(encoder[4]), InMemoryDocstore(), {})


def _records(encoder: Any, store: Path) -> Any:
    from importlib import import_module

    if not encoder[3]:
        return None
    store.mkdir(parents=True, exist_ok=True)
    manager = import_module("langchain_classic.indexes").SQLRecordManager(
        "faiss/documents", db_url=f"sqlite:///{store / 'records.sqlite'}"
    )
    manager.create_schema()
    return manager
