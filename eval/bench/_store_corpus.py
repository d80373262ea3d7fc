"""What the stores are given: documents of paragraphs, the vector of every paragraph, and one document changed.

A paragraph is a chunk in every library: 60 words and a few full stops, so that one fits under each splitter's limit
and two do not. Each holds a word that is nowhere else, by which it can be found on disk.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval.bench._corpus import write_documents
from eval.bench.peers._store import digest

__all__ = ["BATCH", "DIMENSION", "StoreCorpus", "make_corpus"]

BATCH = 16  # documents; what our own ingestion commits at once
DIMENSION = 384
_PARAGRAPHS, _WORDS = 4, 60
_SENTENCE = 12


@dataclass(frozen=True, kw_only=True)
class StoreCorpus:
    """File name -> text, in order; which one is changed (and its new text) and which one deleted later."""

    texts: dict[str, str]
    changed: tuple[str, str]
    deleted: str
    marker: str
    chunk_chars: int
    chunk_words: int

    def rows(self, name: str, text: str | None = None) -> list[list[str]]:
        """The rows that document `name` should have, as the driver reports them: [document, digest]."""
        return sorted([name, digest(one)] for one in (text or self.texts[name]).split("\n\n"))

    def first(self, count: int) -> StoreCorpus:
        """The first documents only."""
        kept = dict(list(self.texts.items())[:count])
        return StoreCorpus(**{**vars(self), "texts": kept})

    def options(self) -> dict[str, Any]:
        """What every contender is told."""
        return {"batch": BATCH, "chunk_chars": self.chunk_chars, "chunk_words": self.chunk_words}

    def questions(self, count: int) -> list[str]:
        """Paragraphs, spread over the documents; each should find itself."""
        every = [paragraph for text in self.texts.values() for paragraph in text.split("\n\n")]
        return every[:: max(1, len(every) // count)][:count]

    def write(self, folder: Path) -> Path:
        """The files, in `folder`, an hour old: a file of this very second may change again unseen."""
        write_documents(self.texts, folder)
        then = time.time() - 3600
        for path in folder.iterdir():
            os.utime(path, (then, then))
        return folder

    def write_vectors(self, folder: Path) -> Path:
        """`vectors.npy` (rows, dimension) and the digests of their texts, made by our embedder `hashing`."""
        import numpy as np

        from rag.embedders.hashing import HashingEmbedder

        texts = [paragraph for text in (*self.texts.values(), self.changed[1]) for paragraph in text.split("\n\n")]
        unique = {digest(text): text for text in texts}
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "vectors.json").write_text(json.dumps(list(unique)), encoding="utf-8")
        np.save(folder / "vectors.npy", HashingEmbedder(buckets=DIMENSION).embed(list(unique.values())))
        return folder


def make_corpus(documents: int, seed: int) -> StoreCorpus:
    """`documents` texts of words from the sample; equal for equal arguments, and the first ones equal for any count."""
    words = _words()
    texts = {f"{number:05}.txt": _text(words, f"{seed}/{number}") for number in range(documents)}
    names = list(texts)
    middle, last = names[documents // 2], names[-1]
    paragraphs = texts[middle].split("\n\n")
    changed = "\n\n".join([_paragraph(words, f"{seed}/new"), *paragraphs[1:-1]])  # one is new, the last one is gone
    every = [paragraph for text in (*texts.values(), changed) for paragraph in text.split("\n\n")]
    return StoreCorpus(
        texts=texts,
        changed=(middle, changed),
        deleted=last,
        marker=_marker(texts[last].split("\n\n")[0]),
        chunk_chars=max(len(paragraph) for paragraph in every),
        chunk_words=_WORDS + _WORDS // 4,
    )


def _words() -> Sequence[str]:
    """Of middling length, so that no paragraph is twice as long as another."""
    from rag.sample import documents_dir

    texts = (path.read_text(encoding="utf-8") for path in sorted(documents_dir().glob("*.md")))
    return sorted({word.lower() for text in texts for word in text.split() if word.isalpha() and 4 <= len(word) <= 9})


def _text(words: Sequence[str], name: str) -> str:
    return "\n\n".join(_paragraph(words, f"{name}/{number}") for number in range(_PARAGRAPHS))


def _paragraph(words: Sequence[str], name: str) -> str:
    marker = "mark" + hashlib.blake2b(name.encode(), digest_size=6).hexdigest()
    drawn = [marker, *random.Random(name).choices(words, k=_WORDS - 1)]  # noqa: S311
    sentences = (" ".join(drawn[at : at + _SENTENCE]) for at in range(0, _WORDS, _SENTENCE))
    return " ".join(f"{sentence}." for sentence in sentences)


def _marker(paragraph: str) -> str:
    return paragraph.split(" ", 1)[0]
