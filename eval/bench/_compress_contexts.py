"""Contexts for `rag bench compress`: real text in an index, and bubbles of about so many tokens for a question."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eval.bench._report import Settings
from rag.text import assemble

if TYPE_CHECKING:
    from rag.index import Index
    from rag.pipeline import Pipeline
    from rag.protocols import TokenCounter
    from rag.types import Bubble

__all__ = ["DATA_SET", "Context", "contexts", "opened", "texts_of"]

DATA_SET = "chroma_chunking"
CHARS = 40_000
"""Characters of a document that are indexed, from its start: the figures are those of contexts, not of the index."""
CHUNK_TOKENS = 100


@dataclass(frozen=True, kw_only=True)
class Context:
    """A bubble for a question, of at most `length` tokens; `tokens` has those that it came to."""

    length: int
    bubble: Bubble

    @property
    def tokens(self) -> int:
        return self.bubble.token_count


def texts_of(settings: Settings) -> tuple[str, dict[str, str], list[str]]:
    """(name, file -> text, questions): the public set, of each document the start; without it the sample."""
    from eval.sets import read_set

    beside = Path(__file__).parents[2].parent / "shared" / "data"
    data = settings.data or (beside if (beside / DATA_SET).is_dir() else None)
    if data is None:
        from rag.sample import documents_dir, questions

        files = {path.name: path.read_text(encoding="utf-8") for path in sorted(documents_dir().glob("*.md"))}
        return "sample documents", files, [one.text for one in questions()]
    found = read_set(data / DATA_SET)
    asked = [one.text for one in found.questions if all(end <= CHARS for _, _, end in one.evidence)]
    return DATA_SET, {name: text[:CHARS] for name, text in found.texts.items()}, asked


@contextmanager
def opened(pipeline: Pipeline, texts: dict[str, str]) -> Iterator[Index]:
    """An index of the texts that is gone at the end."""
    from rag.index import Index

    with tempfile.TemporaryDirectory(prefix="rag-bench-") as folder:
        documents = Path(folder) / "documents"
        documents.mkdir()
        for file, text in texts.items():
            (documents / file).write_text(text, encoding="utf-8", newline="")
        pipeline.index(documents, Path(folder) / "index").close()
        with Index.open(Path(folder) / "index") as index:
            yield index


def contexts(
    pipeline: Pipeline, index: Index, asked: Sequence[str], lengths: Sequence[int], counter: TokenCounter
) -> list[Context]:
    """For every length one context of each question: the best hits, in reading order, as long as they fit."""
    from rag.registry import build

    made = []
    for length in lengths:
        spec: dict[str, Any] = {"use": "top-k", "budget": length}
        selector = build("selector", spec, services={"counter": counter, "embedder": pipeline.embedder})
        for question in asked:
            hits = pipeline.search(question, index, k=max(20, length // 20))
            bubble = selector.select(question, hits, index.corpus)
            if bubble.hits:
                size = counter.count(assemble(bubble.texts))
                assert size == bubble.token_count  # noqa: S101 - one counter for both
                made.append(Context(length=length, bubble=bubble))
    return made
