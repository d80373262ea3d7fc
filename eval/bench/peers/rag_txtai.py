"""txtai: Segmentation with its recursive chunker, hybrid index with content, upsert and save.

Chunks hold at most the 254 tokens that the model reads, counted with its tokenizer, texts not cleaned. The index is
exact (its default is approximate over 5,000 entries). Ids are document and number: an upsert replaces, and embeds
again, what is there. It lives in memory but for the texts, and is written at the end.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

PACKAGES = ("txtai", "chonkie", "faiss-cpu", "sentence-transformers", "torch")
MODULES = ("txtai", "txtai.pipeline.data.segmentation", "chonkie", "faiss", "sentence_transformers")
SETTINGS = "Segmentation, recursive, 254 tokens; hybrid=True, content=True, exact FAISS; upsert with own ids, save"


def load(model: str, options: dict[str, Any]) -> Any:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(Path(model) / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    segment = import_module("txtai.pipeline.data.segmentation").Segmentation(
        chunker="recursive",
        tokenizer=lambda text: len(tokenizer.encode(text, add_special_tokens=False).ids),
        chunk_size=254,
        cleantext=False,
    )
    config: dict[str, Any] = {
        "path": model,
        "method": "sentence-transformers",
        "gpu": False,
        "hybrid": True,
        "content": True,
        "backend": "faiss",
        "faiss": {"components": "IDMap,Flat"},
        "encodebatch": options.get("batch_size", 32),
    }
    if options.get("dtype"):
        config["vectors"] = {"model_kwargs": {"dtype": options["dtype"]}}
    made = _open((segment, config), None)
    made.batchtransform(["warm up"])
    return segment, config, made


def ingest(encoder: Any, documents: Path, store: Path) -> None:
    index = _open(encoder, store)
    entries = [
        (f"{path.name}#{number:06}", text)
        for path in sorted(documents.glob("*"))
        for number, text in enumerate(encoder[0](path.read_bytes().decode()))
        if text.strip()
    ]
    index.upsert(entries)
    index.save(str(store))


def rows(encoder: Any, store: Path) -> list[tuple[str, str]]:
    if not (store / "config.json").exists() and not (store / "config").exists():
        return []
    index = _open(encoder, store)
    found = index.search("select id, text from txtai", index.count())
    return [(one["id"].rsplit("#", 1)[0], one["text"]) for one in sorted(found, key=lambda one: str(one["id"]))]


def searcher(encoder: Any, store: Path) -> Callable[[str, int], list[tuple[str, str, float]]]:
    index = _open(encoder, store)

    def search(question: str, k: int) -> list[tuple[str, str, float]]:
        found = index.search(question, k)
        return [(one["id"].rsplit("#", 1)[0], one["text"], float(one["score"])) for one in found]

    return search


def _open(encoder: Any, store: Path | None) -> Any:
    index = import_module("txtai").Embeddings(dict(encoder[1]))
    if store is not None and index.exists(str(store)):
        index.load(str(store))
    return index
