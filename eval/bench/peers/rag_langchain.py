"""LangChain: RecursiveCharacterTextSplitter, Chroma on disk through the indexing API, EnsembleRetriever with BM25.

Chunks hold at most the 254 tokens that the model reads, counted with its tokenizer, without overlap. The indexing API
(`index` with SQLRecordManager, cleanup="incremental") skips what has not changed; it gets some documents at a time,
all chunks of a document in one batch, since it loses count of a source that two batches share.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

PACKAGES = ("langchain-core", "langchain-classic", "langchain-chroma", "langchain-community", "langchain-huggingface",
            "langchain-text-splitters", "chromadb", "rank-bm25", "sentence-transformers", "torch")  # fmt: skip
MODULES = (
    "chromadb",
    "langchain_chroma",
    "langchain_classic.indexes",
    "langchain_classic.retrievers",
    "langchain_community.retrievers",
    "langchain_huggingface",
    "langchain_text_splitters",
    "rank_bm25",
)
SETTINGS = (
    "RecursiveCharacterTextSplitter, 254 tokens; Chroma on disk, indexing API; EnsembleRetriever of BM25 and vectors"
)
_DOCUMENTS = 64
_WORD = re.compile(r"\w+")


def load(model: str, options: dict[str, Any]) -> Any:
    from langchain_huggingface import HuggingFaceEmbeddings
    from langchain_text_splitters import RecursiveCharacterTextSplitter
    from tokenizers import Tokenizer

    dtype = {"model_kwargs": {"dtype": options["dtype"]}} if options.get("dtype") else {}
    embeddings = HuggingFaceEmbeddings(
        model_name=model,
        model_kwargs={"device": "cpu", **dtype},
        encode_kwargs={"normalize_embeddings": True, "batch_size": options.get("batch_size", 32)},
    )
    embeddings.embed_documents(["warm up"])
    tokenizer = Tokenizer.from_file(str(Path(model) / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    splitter = RecursiveCharacterTextSplitter(
        chunk_size=254,
        chunk_overlap=0,
        length_function=lambda text: len(tokenizer.encode(text, add_special_tokens=False).ids),
    )
    return embeddings, splitter


def ingest(encoder: Any, documents: Path, store: Path) -> None:
    from langchain_core.indexing import index

    store.mkdir(parents=True, exist_ok=True)
    chroma = _open(encoder, store)
    records = import_module("langchain_classic.indexes").SQLRecordManager(
        "chroma/documents", db_url=f"sqlite:///{store / 'records.sqlite'}"
    )
    records.create_schema()
    files = sorted(documents.glob("*"))
    for at in range(0, len(files), _DOCUMENTS):
        chunks = [chunk for path in files[at : at + _DOCUMENTS] for chunk in _chunks(encoder[1], path)]
        index(
            chunks, records, chroma, cleanup="incremental", source_id_key="source", key_encoder="sha256",
            batch_size=max(1, len(chunks)),
        )  # fmt: skip


def rows(encoder: Any, store: Path) -> list[tuple[str, str]]:
    found = _open(encoder, store).get(include=["documents", "metadatas"])
    pairs = sorted(
        zip(found["metadatas"], found["documents"], strict=True), key=lambda one: (one[0]["source"], one[0]["part"])
    )
    return [(meta["source"], text) for meta, text in pairs]


def searcher(encoder: Any, store: Path) -> Callable[[str, int], list[tuple[str, str, float]]]:
    from langchain_community.retrievers import BM25Retriever
    from langchain_core.documents import Document

    texts = [Document(page_content=text, metadata={"source": source}) for source, text in rows(encoder, store)]
    lexical = BM25Retriever.from_documents(texts, preprocess_func=lambda text: _WORD.findall(text.lower()))
    dense = _open(encoder, store).as_retriever()
    both = import_module("langchain_classic.retrievers").EnsembleRetriever(
        retrievers=[lexical, dense], weights=[0.5, 0.5]
    )

    def search(question: str, k: int) -> list[tuple[str, str, float]]:
        lexical.k = k
        dense.search_kwargs = {"k": k}
        found = both.invoke(question)[:k]
        return [(one.metadata["source"], one.page_content, 1 / rank) for rank, one in enumerate(found, start=1)]

    return search


def _open(encoder: Any, store: Path) -> Any:
    chroma = import_module("langchain_chroma").Chroma
    return chroma("documents", encoder[0], persist_directory=str(store / "chroma"))


def _chunks(splitter: Any, path: Path) -> list[Any]:
    from langchain_core.documents import Document

    text = path.read_bytes().decode()
    return [
        Document(page_content=part, metadata={"source": path.name, "part": number})
        for number, part in enumerate(splitter.split_text(text))
    ]
