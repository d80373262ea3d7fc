"""LangChain with FAISS: RecursiveCharacterTextSplitter, HuggingFaceEmbeddings, FAISS.from_documents, save_local.

Settings: 1,000 characters without overlap, as in its documentation and mostly within the model's 256 tokens; or
`chunk_tokens`, counted with the model's own tokenizer: slower to cut, and better chunks. The batch size comes from
the job. Files are read with pathlib, which is cheaper than its document loaders.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

PACKAGES = ("langchain-core", "langchain-community", "langchain-huggingface", "langchain-text-splitters",
            "sentence-transformers", "transformers", "torch", "faiss-cpu")  # fmt: skip
MODULES = (
    "faiss",
    "langchain_community.vectorstores",
    "langchain_huggingface",
    "langchain_text_splitters",
    "sentence_transformers",
)


def load(model: str, options: dict[str, Any]) -> Any:
    from langchain_huggingface import HuggingFaceEmbeddings

    model_kwargs: dict[str, Any] = {"device": "cpu"}
    if "dtype" in options:
        model_kwargs["model_kwargs"] = {"dtype": options["dtype"]}
    encode_kwargs = {"normalize_embeddings": True, "batch_size": options.get("batch_size", 32)}
    embeddings = HuggingFaceEmbeddings(model_name=model, model_kwargs=model_kwargs, encode_kwargs=encode_kwargs)
    embeddings.embed_documents(["warm up"])
    return embeddings, _splitter(model, options.get("chunk_tokens"))


def ingest(encoder: Any, documents: Path, store: Path) -> int:
    from langchain_community.vectorstores import FAISS

    embeddings, splitter = encoder
    chunks = _chunks(splitter, documents)
    FAISS.from_documents(chunks, embeddings).save_local(str(store))
    return len(chunks)


def retrieve(encoder: Any, documents: Path, store: Path, questions: list[str], k: int) -> dict[str, Any]:
    from langchain_community.vectorstores import FAISS

    embeddings, splitter = encoder
    chunks = _chunks(splitter, documents)
    for number, chunk in enumerate(chunks):
        chunk.metadata["number"] = number
    index = FAISS.from_documents(chunks, embeddings)
    hits = [[found.metadata["number"] for found in index.similarity_search(one, k=k)] for one in questions]
    return {"chunks": [[chunk.metadata["source"], chunk.page_content] for chunk in chunks], "hits": {"dense": hits}}


def _splitter(model: str, chunk_tokens: int | None) -> Any:
    from langchain_text_splitters import RecursiveCharacterTextSplitter
    from tokenizers import Tokenizer

    if chunk_tokens is None:
        return RecursiveCharacterTextSplitter(chunk_size=1000, chunk_overlap=0)
    tokenizer = Tokenizer.from_file(str(Path(model) / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return RecursiveCharacterTextSplitter(
        chunk_size=chunk_tokens,
        chunk_overlap=0,
        length_function=lambda text: len(tokenizer.encode(text, add_special_tokens=False).ids),
    )


def _chunks(splitter: Any, documents: Path) -> list[Any]:
    from langchain_core.documents import Document

    texts = [
        Document(page_content=path.read_text(encoding="utf-8"), metadata={"source": path.name})
        for path in sorted(documents.glob("*.txt"))
    ]
    return list(splitter.split_documents(texts))
