"""One index per set, made by the real pipeline with an embedder that remembers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from eval.chunks.data import digest
from eval.select.sets import Asked
from eval.sets import Place, write_texts
from rag.config import PipelineConfig
from rag.errors import RagError
from rag.pipeline import Pipeline
from rag.registry import Spec

if TYPE_CHECKING:
    from rag.index import Index
    from rag.protocols import Embedder
    from rag.types import Hit

__all__ = ["Indexed", "opened"]


class Indexed:
    """An open index of a set: names and texts of its documents, and evidence in the ids of the index."""

    def __init__(self, asked: Asked, index: Index, embedder: Embedder, chunker: Spec) -> None:
        self.asked = asked
        self.index = index
        self.chunker = chunker
        self.chunks = len(index.corpus)
        self.name_of: dict[str, str] = {}
        self.text_of: dict[str, str] = {}
        self._embedder = embedder
        self._pipelines: dict[str, Pipeline] = {}
        for doc_id in sorted({chunk.doc_id for chunk in index.corpus.chunks(index.corpus.rows().tolist())}):
            document = index.corpus.document(doc_id)
            name = PurePosixPath(document.source).name
            self.name_of[doc_id], self.text_of[doc_id] = name, document.text
        self._id_of = {name: doc_id for doc_id, name in self.name_of.items()}
        self._check()

    def evidence(self, places: tuple[Place, ...]) -> list[Place]:
        """The places with ids of the index instead of names."""
        return [(self._id_of[name], start, end) for name, start, end in places]

    def hits(self, retriever: Spec, question: str) -> list[Hit]:
        """What this retriever finds, as many as its own `k`."""
        name = json.dumps(retriever, sort_keys=True)
        if name not in self._pipelines:
            self._pipelines[name] = _pipeline(self._embedder, self.chunker, retriever)
        return self._pipelines[name].search(question, self.index)

    def _check(self) -> None:
        """RagError when a document that holds evidence is not in the index, or with another text."""
        wanted = {name for question in self.asked.questions for name, _, _ in question.evidence}
        wrong = sorted(
            name
            for name in wanted
            if name not in self._id_of or self.text_of[self._id_of[name]] != self.asked.texts[name]
        )
        if wrong:
            raise RagError(
                f"{self.asked.name}: {len(wrong)} documents with evidence are not in the index as they are in the "
                f"data ({', '.join(wrong[:3])}); places in them would be wrong"
            )


@contextmanager
def opened(asked: Asked, embedder: Embedder, chunker: Spec, cache: Path | None) -> Iterator[Indexed]:
    """The index of `asked`, below `cache`, where it is found again, or in a temporary folder."""
    with TemporaryDirectory() as temporary:
        home = Path(temporary) if cache is None else cache
        builder = "hybrid" if find_spec("faiss") else "bm25"  # the second makes an index without vectors
        named = digest([asked.digest, json.dumps(chunker, sort_keys=True), embedder.fingerprint, builder])
        texts = home / "texts" / asked.digest
        write_texts(asked.texts, texts)
        with _pipeline(embedder, chunker, builder).index(texts, home / "indexes" / named) as index:
            yield Indexed(asked, index, embedder, chunker)


def _pipeline(embedder: Embedder, chunker: Spec, retriever: Spec) -> Pipeline:
    """The line with this very embedder; its name in the config only tells the index what it was made with."""
    pipeline = Pipeline(PipelineConfig(chunker=chunker, retriever=retriever, near_duplicates="off"))
    vars(pipeline)["embedder"] = embedder
    return pipeline
