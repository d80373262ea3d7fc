"""What the benchmark `scale` fills a store with: text that reads like text, and vectors that lie like vectors of text.

Text: runs of sentences of the public sets, in random order, so that words are as frequent as they are in prose (without
the sets: words drawn with Zipf's frequencies). Questions are real ones, with their real vectors.

Vectors: `(1 - w) * a + w * b + 0.3 * (c - d)`, scaled to length 1; a is a real MiniLM vector of public text, b one of
its 32 nearest neighbours, c and d are any others, w is uniform in [0, 0.5]. The difference of two texts has the
spectrum of text, so that these vectors keep its low effective dimension and its clusters, which Gaussian noise has not.
Mean cosine of a question with its 1st, 10th, 40th and 400th neighbour among 10,000 real chunks: 0.547, 0.368, 0.299,
0.183; among 10,000 of these: 0.499, 0.362, 0.297, 0.186. Two random chunks: 0.044 (deviation 0.102) and 0.044 (0.108).
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rag.embedders.hashing import HashingEmbedder
from rag.protocols import TokenCounter
from rag.store.records import Entry, FileRecord
from rag.types import Chunk, Document
from rag.vectors import as_unit

__all__ = [
    "CHUNKS_PER_DOCUMENT",
    "DIMENSION",
    "FINGERPRINT",
    "Material",
    "TableEmbedder",
    "entries",
    "gather",
    "load",
    "save",
]

Vectors = NDArray[np.float32]

DIMENSION = 384
FINGERPRINT = "bench-scale"
_SETS = ("scifact", "nq_gold", "poisonedrag_nq", "2wiki_164", "hotpotqa_200", "covidqa", "squad_long", "clapnq_dev")
_ASKED = ("scifact", "nq_gold", "2wiki_164", "hotpotqa_200", "covidqa", "squad_long")
_SENTENCES, _BASE, _PIECE_CHARS = 60_000, 6_000, 330
CHUNKS_PER_DOCUMENT = 20
_NEIGHBOURS, _SPREAD = 32, np.float32(0.3)
_WORDS = 30_000


@dataclass(frozen=True, kw_only=True)
class Material:
    """What chunks are made of. `questions` and the rows of `asked` (n, 384) belong together."""

    sentences: list[str]
    base: Vectors
    questions: list[str]
    asked: Vectors
    origin: str

    @cached_property
    def near(self) -> NDArray[np.int64]:
        """(n, neighbours): the rows of `base` nearest to each row, itself left out."""
        cosines = self.base @ self.base.T
        np.fill_diagonal(cosines, -2.0)
        return np.argpartition(-cosines, min(_NEIGHBOURS, len(cosines) - 1), axis=1)[:, :_NEIGHBOURS]


@dataclass(frozen=True, kw_only=True)
class TableEmbedder(HashingEmbedder):
    """Looks the vectors of questions up, so that no model is in what is measured."""

    table: dict[str, Vectors]

    @property
    def dimension(self) -> int:
        return DIMENSION

    @property
    def fingerprint(self) -> str:
        return FINGERPRINT

    def embed_question(self, text: str) -> Vectors:
        return self.table[text]


class _Lengths(TokenCounter):
    """Token counts do not matter here, and counting would."""

    name, limit, additive = "characters", None, False

    def count(self, text: str) -> int:
        return len(text)

    def offsets(self, text: str) -> list[tuple[int, int]]:
        return [(at, at + 1) for at in range(len(text))]


# ---------------------------------------------------------------------- material


def gather(data: Path | None, questions: int, seed: int, base: int = _BASE) -> Material:
    """Real material from the public sets and the bundled encoder; made-up material for what is absent."""
    folders = [data / name for name in _SETS if data is not None and (data / name).is_dir()]
    draw = random.Random(seed)  # noqa: S311
    if not folders:
        sentences, asked = _made_sentences(draw), [" ".join(_made_words(draw, 8)) for _ in range(questions)]
        vectors = _made_vectors(base + questions, seed)
        origin = "generated words with Zipf's frequencies; vectors around made-up topics"
        return Material(sentences=sentences, base=vectors[:base], questions=asked, asked=vectors[base:], origin=origin)
    texts = [str(row["text"]) for folder in folders for row in _rows(folder / "corpus.jsonl")]
    asked = [str(r["text"]) for folder in folders if folder.name in _ASKED for r in _rows(folder / "queries.jsonl")]
    asked = draw.sample(sorted(set(asked)), min(questions, len(set(asked))))
    draw.shuffle(texts)
    real = _real_vectors([*_pieces(texts, base), *asked])
    vectors = _made_vectors(base + len(asked), seed) if real is None else real
    kind = "vectors around made-up topics" if real is None else "mixtures of MiniLM vectors of public text"
    return Material(
        sentences=_sentences(texts),
        base=vectors[: -len(asked)],
        questions=asked,
        asked=vectors[-len(asked) :],
        origin=f"sentences and questions of the public sets; {kind}",
    )


def save(material: Material, folder: Path) -> None:
    """For the child processes that measure."""
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(folder / "vectors.npz", base=material.base, asked=material.asked)
    words = {"sentences": material.sentences, "questions": material.questions, "origin": material.origin}
    (folder / "texts.json").write_text(json.dumps(words), encoding="utf-8")


def load(folder: Path) -> Material:
    """What `save` kept."""
    words = json.loads((folder / "texts.json").read_text(encoding="utf-8"))
    with np.load(folder / "vectors.npz", allow_pickle=False) as arrays:
        return Material(base=arrays["base"], asked=arrays["asked"], **words)


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    if path.is_file():
        for line in path.read_text(encoding="utf-8").splitlines():
            yield json.loads(line)


def _pieces(texts: Sequence[str], count: int) -> list[str]:
    found = (text[at : at + _PIECE_CHARS] for text in texts for at in range(0, len(text), _PIECE_CHARS))
    long_enough = [piece for piece in found if len(piece) > _PIECE_CHARS // 3]
    return random.Random(0).sample(long_enough, min(count, len(long_enough)))  # noqa: S311


def _sentences(texts: Sequence[str]) -> list[str]:
    found: list[str] = []
    for text in texts:
        found.extend(s for s in re.split(r"(?<=[.?!])\s+", text) if 20 < len(s) < 400)
        if len(found) > _SENTENCES:
            break
    return found


def _real_vectors(texts: Sequence[str]) -> Vectors | None:
    """MiniLM vectors, None without the model."""
    from rag.embedders.minilm import MinilmEmbedder
    from rag.errors import MissingError

    try:
        return MinilmEmbedder(overlong="window").embed(texts)
    except MissingError:
        return None


def _made_words(draw: random.Random, count: int) -> list[str]:
    weights = list(accumulate(1 / rank for rank in range(1, _WORDS + 1)))
    return [f"w{rank}" for rank in draw.choices(range(_WORDS), cum_weights=weights, k=count)]


def _made_sentences(draw: random.Random) -> list[str]:
    words = _made_words(draw, 150_000)
    return [" ".join(words[at : at + 15]) + "." for at in range(0, len(words), 15)]


def _made_vectors(count: int, seed: int) -> Vectors:
    """Points around 200 topics, with directions that weigh less and less."""
    rng = np.random.default_rng(seed)
    spectrum = np.arange(1, DIMENSION + 1) ** -0.5
    topics = rng.standard_normal((200, DIMENSION)) * spectrum
    return as_unit(topics[rng.integers(0, 200, count)] + rng.standard_normal((count, DIMENSION)) * spectrum)


# ---------------------------------------------------------------------- chunks


def entries(material: Material, first: int, count: int, seed: int) -> list[Entry]:
    """Documents number `first` to `first + count`, 20 chunks each; every one depends on its number and `seed` alone."""
    return [_entry(material, number, seed) for number in range(first, first + count)]


def _entry(material: Material, number: int, seed: int) -> Entry:
    rng = np.random.default_rng([seed, number])
    texts = [_text(material.sentences, rng) for _ in range(CHUNKS_PER_DOCUMENT)]
    source, text = f"{number % 10}/{number:07}.txt", "".join(texts)
    document = Document(text=text, source=source, title=f"Document {number}", meta={"number": number})
    ends = list(accumulate(len(one) for one in texts))
    chunks = tuple(
        Chunk.cut(document, start, end, counter=_Lengths(), chunker="bench")
        for start, end in zip([0, *ends], ends, strict=False)
    )
    vectors = _vectors(material, len(chunks), rng)
    record = FileRecord(
        origin=f"/bench/{source}",
        source=source,
        content_hash=document.id,
        size_bytes=len(text),
        mtime_ns=0,
        recipe="bench",
        doc_id=document.id,
    )
    by_key = {chunk.key: vector for chunk, vector in zip(chunks, vectors, strict=True)}
    return Entry(file=record, document=document, chunks=chunks, vectors=by_key, fingerprint=FINGERPRINT)


def _text(sentences: Sequence[str], rng: np.random.Generator) -> str:
    """Two neighbouring sentences and one from elsewhere."""
    here, there = rng.integers(0, len(sentences) - 1, 2)
    return f"{sentences[here]} {sentences[here + 1]} {sentences[there]}\n"


def _vectors(material: Material, count: int, rng: np.random.Generator) -> Vectors:
    base = material.base
    at, plus, minus = rng.integers(0, len(base), (3, count))
    beside = material.near[at, rng.integers(0, material.near.shape[1], count)]
    share = rng.uniform(0.0, 0.5, (count, 1)).astype(np.float32)
    return as_unit((1 - share) * base[at] + share * base[beside] + _SPREAD * (base[plus] - base[minus]))
