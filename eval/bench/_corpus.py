"""What the contenders read, and how retrieved chunks are scored against exact evidence spans."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from eval.sets import Place, Question, QuestionSet, read_set
from rag.errors import UsageError

__all__ = [
    "Place",
    "Question",
    "QuestionSet",
    "cut_documents",
    "locate",
    "make_text",
    "read_set",
    "recall",
    "trim",
    "write_documents",
]


def cut_documents(texts: Iterable[str], count: int, size_chars: int, seed: int) -> dict[str, str]:
    """File name -> text of `count` documents: the texts cut at line ends, `size_chars` at most, drawn with `seed`.

    A piece grows line by line until it has `size_chars` characters; what is over (the end of its last line) is left
    out. UsageError when the texts do not give that many pieces.
    """
    pieces = [piece for text in texts for piece in _pieces(text, size_chars)]
    if count > len(pieces):
        raise UsageError(f"--documents {count}: the texts give {len(pieces)} documents of {size_chars} characters")
    drawn = sorted(random.Random(seed).sample(range(len(pieces)), count))  # noqa: S311
    return {f"{number:04}.txt": pieces[at] for number, at in enumerate(drawn)}


def make_text(words: Sequence[str], size_chars: int, seed: int) -> str:
    """Sentences and paragraphs of words drawn at random: no sense, but the lengths of prose, and no text twice."""
    draw = random.Random(seed)  # noqa: S311
    paragraphs: list[str] = []
    size = 0
    while size < size_chars:
        sentences = (" ".join(draw.choices(words, k=draw.randint(6, 24))) for _ in range(draw.randint(2, 7)))
        paragraphs.append(" ".join(f"{sentence.capitalize()}." for sentence in sentences) + "\n\n")
        size += len(paragraphs[-1])
    return "".join(paragraphs)


def write_documents(texts: Mapping[str, str], folder: Path) -> None:
    """One file per text, bytes as they are."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        (folder / name).write_bytes(text.encode())


def locate(chunks: Sequence[tuple[str, str]], texts: Mapping[str, str]) -> list[Place | None]:
    """Where each (document, text) chunk stands, by exact forward search; None when it is not found.

    A search starts where the chunk before it in the same document ended, so chunks must come in reading order and
    without overlap. A chunk that was altered is not found, and the search goes on from the last one that was.
    """
    ends: dict[str, int] = {}
    places: list[Place | None] = []
    for document, text in chunks:
        start = texts[document].find(text, ends.get(document, 0)) if text else -1
        if start < 0:
            places.append(None)
            continue
        ends[document] = start + len(text)
        places.append((document, start, start + len(text)))
    return places


def trim(found: Iterable[Place], budget_chars: int) -> list[Place]:
    """The first places of a ranking that fit into `budget_chars`; the last one is cut."""
    kept: list[Place] = []
    for document, start, end in found:
        end = min(end, start + budget_chars)
        if end > start:
            kept.append((document, start, end))
            budget_chars -= end - start
    return kept


def recall(evidence: Sequence[Place], found: Iterable[Place]) -> float:
    """Share of the evidence characters that the found places cover; a character counts once."""
    wanted = _characters(evidence)
    return len(wanted & _characters(found)) / len(wanted)


def _characters(places: Iterable[Place]) -> set[tuple[str, int]]:
    return {(document, at) for document, start, end in places for at in range(start, end)}


def _pieces(text: str, size_chars: int) -> list[str]:
    pieces: list[str] = []
    piece = ""
    for line in text.splitlines(keepends=True):
        piece += line
        if len(piece) >= size_chars:
            pieces.append(piece[:size_chars])
            piece = ""
    return [*pieces, piece] if piece.strip() else pieces
