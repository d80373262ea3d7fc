"""Chonkie: RecursiveChunker and its ChromaHandshake, Chroma on disk. It has no ranking by words, so vectors alone.

Chunks hold at most the 254 tokens that the model reads, counted with its tokenizer. One write a document: the id of
an entry is made of its number in the write and its text, so equal texts at the same number become one entry. What is
there is embedded again and replaced.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

PACKAGES = ("chonkie", "chromadb", "sentence-transformers", "torch")
MODULES = ("chonkie", "chromadb", "sentence_transformers")
SETTINGS = "RecursiveChunker, 254 tokens; ChromaHandshake on disk; its search by vectors (it has no hybrid)"


def load(model: str, options: dict[str, Any]) -> Any:
    from chonkie import RecursiveChunker
    from chonkie.embeddings import SentenceTransformerEmbeddings
    from tokenizers import Tokenizer

    extra = {"model_kwargs": {"dtype": options["dtype"]}} if options.get("dtype") else {}
    embeddings = SentenceTransformerEmbeddings(model, device="cpu", **extra)
    embeddings.embed_batch(["warm up"])
    tokenizer = Tokenizer.from_file(str(Path(model) / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    count: Any = lambda text: len(tokenizer.encode(text, add_special_tokens=False).ids)  # noqa: E731
    return embeddings, RecursiveChunker(tokenizer=count, chunk_size=254)


def ingest(encoder: Any, documents: Path, store: Path) -> None:
    shake = _open(encoder, store)
    for path in sorted(documents.glob("*")):
        chunks = [chunk for chunk in encoder[1](path.read_bytes().decode()) if chunk.text.strip()]
        for chunk in chunks:
            chunk.metadata = {"source": path.name}
        if chunks:
            shake.write(chunks)


def rows(encoder: Any, store: Path) -> list[tuple[str, str]]:
    found = _open(encoder, store).collection.get(include=["documents", "metadatas"])
    pairs = sorted(
        zip(found["metadatas"], found["documents"], strict=True),
        key=lambda one: (one[0]["source"], one[0]["start_index"]),
    )
    return [(meta["source"], text) for meta, text in pairs]


def searcher(encoder: Any, store: Path) -> Callable[[str, int], list[tuple[str, str, float]]]:
    shake = _open(encoder, store)

    def search(question: str, k: int) -> list[tuple[str, str, float]]:
        found = shake.search(query=question, limit=k)
        return [(one["source"], one["text"], float(one["score"])) for one in found]

    return search


def _open(encoder: Any, store: Path) -> Any:
    from chonkie import ChromaHandshake

    store.mkdir(parents=True, exist_ok=True)
    return ChromaHandshake(collection_name="documents", embedding_model=encoder[0], path=str(store))
