"""One index per documents and ingest part of a config, below the cache, found again by its content."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eval.chunks.data import digest
from eval.datasets import Dataset
from eval.runs.embedding import RunEmbedder
from eval.runs.settings import code_digest
from eval.sets import write_texts
from rag.config import PipelineConfig
from rag.pipeline import Pipeline
from rag.registry import build

if TYPE_CHECKING:
    from rag.index import Index
    from rag.protocols import Embedder

__all__ = ["Prepared", "line_of", "name_in", "prepare"]

Tell = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """An index on disk. `texts`: name of a document -> text as parsed; `chunks`: name -> where its chunks are.

    `failed`: documents that could not be read -> why. `seconds` is None when the index was there already.
    """

    directory: Path
    home: Path
    key: str
    texts: Mapping[str, str]
    chunks: Mapping[str, list[tuple[int, int]]]
    failed: Mapping[str, str]
    seconds: float | None = None

    @property
    def count(self) -> int:
        return sum(map(len, self.chunks.values()))


def prepare(dataset: Dataset, config: PipelineConfig, cache: Path, tell: Tell) -> Prepared:
    """The index of the set for this config, made or found. One that was interrupted goes on where it was."""
    named = line_of(config, cache)
    documents = dataset.documents_digest
    key = digest([documents, json.dumps(_ingest_part(named, config), sort_keys=True), code_digest()])
    home = dataset.folder.resolve() if dataset.folder else (cache / "texts" / documents).resolve()
    directory = cache / "indexes" / key
    made = cache / "indexes" / f"{key}.json"
    if made.is_file():
        return _prepared(json.loads(made.read_text(encoding="utf-8")), directory, home, key, None)
    if dataset.folder is None:
        write_texts(dataset.texts, home)
    tell(f"{dataset.name}: ingesting {len(dataset.texts) or ''} documents".replace("  ", " "))
    began = time.perf_counter()
    with named.index(home, directory) as index:
        content = _content(index, home)
    seconds = time.perf_counter() - began
    aside = made.with_name(f"{key}.{os.getpid()}")
    aside.write_text(json.dumps(content), encoding="utf-8")
    aside.replace(made)
    return _prepared(content, directory, home, key, seconds)


def line_of(config: PipelineConfig, cache: Path | None) -> Pipeline:
    """The pipeline with an embedder that remembers: on disk below `cache`, or in memory.

    Where a part reads sentences, ingestion embeds them all: each question then only looks them up.
    """
    pipeline = Pipeline(config)
    vars(pipeline)["embedder"] = _embedder(json.dumps(config.to_dict()["embedder"], sort_keys=True), cache)
    if cache is not None and not config.sentences and _reads_sentences(pipeline):
        kept = Pipeline(config.merged({"sentences": True}, where="run"))
        vars(kept)["embedder"] = pipeline.embedder
        return kept
    return pipeline


@lru_cache(maxsize=2)
def _embedder(spec: str, cache: Path | None) -> RunEmbedder:
    """One for all lines of this process that have the same: what one line embeds, the next one knows."""
    inner: Embedder = build("embedder", json.loads(spec), services={}, path="embedder")
    return RunEmbedder(inner=inner, folder=cache / "vectors" if cache else None)


def name_in(home: Path, source: str) -> str:
    """What the data set calls the document with this source: its path below `home`."""
    return source.removeprefix(f"{home.name}/")


def _reads_sentences(pipeline: Pipeline) -> bool:
    return any(hasattr(part, "embedder") for part in (pipeline.selector, pipeline.compressor))


def _ingest_part(pipeline: Pipeline, config: PipelineConfig) -> dict[str, Any]:
    """What of a config shapes the index."""
    wanted = ("chunker", "embedder", "retriever", "near_duplicates", "duplicate_threshold")
    part = {name: value for name, value in config.for_index().items() if name in wanted}
    if hasattr(pipeline.chunker, "generator"):
        part["generator"] = config.for_index()["generator"]
    fingerprint = pipeline.embedder.fingerprint
    return {**part, "sentences": pipeline.config.sentences, "limits": dict(config.limits), "vectors": fingerprint}


def _content(index: Index, home: Path) -> dict[str, Any]:
    chunks: dict[str, list[tuple[int, int]]] = {}
    texts: dict[str, str] = {}
    names: dict[str, str] = {}
    for chunk in index.corpus.chunks(index.corpus.rows().tolist()):
        if chunk.doc_id not in names:
            document = index.corpus.document(chunk.doc_id)
            names[chunk.doc_id] = name_in(home, document.source)
            texts[names[chunk.doc_id]] = document.text
        chunks.setdefault(names[chunk.doc_id], []).append((chunk.span.start, chunk.span.end))
    failed = {name_in(home, one.source): one.error for one in (index.report.failed if index.report else ())}
    return {"texts": texts, "chunks": {name: sorted(places) for name, places in chunks.items()}, "failed": failed}


def _prepared(content: Mapping[str, Any], directory: Path, home: Path, key: str, seconds: float | None) -> Prepared:
    chunks = {name: [(int(s), int(e)) for s, e in places] for name, places in content["chunks"].items()}
    return Prepared(
        directory=directory, home=home, key=key, texts=content["texts"], chunks=chunks, failed=content["failed"],
        seconds=seconds,
    )  # fmt: skip
