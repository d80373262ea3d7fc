"""What is cut and asked: documents of several sets in one pool, questions in two halves, and the guard between them."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from eval.sets import Question, QuestionSet, read_rows, read_set
from rag.errors import UsageError
from rag.registry import build
from rag.types import Document

__all__ = [
    "SETS",
    "STRUCTURED",
    "Half",
    "LeakGuard",
    "Pool",
    "Structured",
    "digest",
    "half_of",
    "pool_of",
    "read_pool",
    "read_structured",
    "strings_of",
]

Half = Literal["dev", "test", "all"]

SETS: Mapping[str, tuple[str, str | None]] = {
    "chroma_chunking": ("markdown", None),
    "squad_long": ("text", "sentence"),
    "covidqa": ("text", None),
}
"""Set -> parser that finds the blocks of its documents, and the level of evidence that is scored.

The answers of squad_long are single words, which lie inside of any chunk: the sentences around them are scored.
"""

STRUCTURED = "clair_regulation"
"""The set without questions, for the structure measures."""


@dataclass(frozen=True, kw_only=True)
class Pool:
    """Documents that share one index (name -> document), and questions about them. `hashes`: set -> digest."""

    documents: Mapping[str, Document]
    questions: tuple[Question, ...]
    hashes: Mapping[str, str]

    @property
    def chars(self) -> int:
        return sum(len(document.text) for document in self.documents.values())


def read_pool(data: Path, names: Sequence[str], half: Half) -> Pool:
    """The documents of all sets in one pool, and the questions of that half."""
    for name in names:
        if name not in SETS:
            raise UsageError(f"--set {name}: no such set of questions; there are: {', '.join(SETS)}")
    return pool_of([read_set(data / name, SETS[name][1]) for name in names], half)


def pool_of(sets: Sequence[QuestionSet], half: Half) -> Pool:
    """Names and ids get the name of their set in front."""
    documents: dict[str, Document] = {}
    questions: list[Question] = []
    for one in sets:
        parser = SETS.get(one.name, ("text", None))[0]
        documents |= {
            f"{one.name}/{name}": parsed(f"{one.name}/{name}", text, parser) for name, text in one.texts.items()
        }
        for question in one.questions:
            evidence = tuple((f"{one.name}/{name}", start, end) for name, start, end in question.evidence)
            questions.append(replace(question, id=f"{one.name}/{question.id}", evidence=evidence))
    asked = tuple(question for question in questions if half == "all" or half_of(question.id) == half)
    return Pool(documents=documents, questions=asked, hashes={one.name: _set_digest(one) for one in sets})


def parsed(source: str, text: str, parser: str) -> Document:
    """The document with its blocks, as ingestion sees it; without them where parsing would change the text."""
    document: Document = build("parser", parser, services={}).parse(text.encode(), source=source)
    return document if document.text == text else Document(text=text, source=source)


def half_of(question_id: str) -> Half:
    """Which half a question is in: a bit of a hash of its id, so that it stays there whatever else is asked."""
    return "test" if hashlib.blake2b(question_id.encode(), digest_size=1).digest()[0] & 1 else "dev"


def digest(parts: Iterable[str]) -> str:
    """16 hex digits over the parts and their order."""
    state = hashlib.blake2b(digest_size=8)
    for part in parts:
        data = part.encode("utf-8", "surrogatepass")
        state.update(len(data).to_bytes(8, "big") + data)
    return state.hexdigest()


def _set_digest(one: QuestionSet) -> str:
    texts = [part for name in sorted(one.texts) for part in (name, one.texts[name])]
    asked = [f"{question.id} {question.text} {question.evidence}" for question in one.questions]
    return digest([*texts, *asked])


_WORD = re.compile(r"\w+")


class LeakGuard:
    """Finds questions in what a chunker is given or makes: its parameters, files they name, headers of its chunks.

    A text leaks when it holds `words` consecutive words of a question, or a whole question that is shorter (but not
    shorter than `least` words). A run of words that stands in the documents as well is no leak: it came from there.
    """

    def __init__(self, questions: Iterable[Question], documents: Iterable[Document], words: int = 8, least: int = 4):
        asked = {tuple(_folded(question.text)): question.id for question in questions}
        self._runs: dict[tuple[str, ...], str] = {}
        for question, name in asked.items():
            size = min(words, len(question))
            if size >= least:
                for at in range(len(question) - size + 1):
                    self._runs.setdefault(question[at : at + size], name)
        self._sizes = sorted({len(run) for run in self._runs})
        for document in documents:
            for run in set(self._found(document.text)):
                del self._runs[run]

    def leaks(self, texts: Iterable[str]) -> list[str]:
        """Ids of the questions that stand in `texts`, each once, sorted."""
        return sorted({self._runs[run] for text in texts for run in self._found(text)})

    def check(self, spec: Any, name: str) -> None:
        """UsageError when the parameters of a chunker, or files that they name, hold questions."""
        found = self.leaks(strings_of(spec))
        if found:
            raise UsageError(
                f"--chunker {name}: its parameters hold {len(found)} of the questions that it would be tested with "
                f"({', '.join(found[:3])}); intents must be made without them"
            )

    def _found(self, text: str) -> Iterable[tuple[str, ...]]:
        words = _folded(text)
        for size in self._sizes:
            for at in range(len(words) - size + 1):
                run = tuple(words[at : at + size])
                if run in self._runs:
                    yield run


def _folded(text: str) -> list[str]:
    return _WORD.findall(text.casefold())


def strings_of(value: Any) -> Iterable[str]:
    """Every text inside of a spec, and the content of every file that one of them names."""
    if isinstance(value, str):
        yield value
        with suppress(OSError, ValueError):  # too long for a name, or no name at all
            yield Path(value).read_text(encoding="utf-8", errors="replace")
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from strings_of(inner)
    elif isinstance(value, Sequence):
        for inner in value:
            yield from strings_of(inner)


@dataclass(frozen=True, kw_only=True)
class Structured:
    """A document with published structure: borders of blocks, (entity, pronoun) spans, and where pages start."""

    document: Document
    blocks: tuple[int, ...]
    pairs: tuple[tuple[tuple[int, int], tuple[int, int]], ...]
    pages: tuple[int, ...] = ()


def read_structured(folder: Path) -> list[Structured]:
    """CLAIR's documents, borders of blocks and pairs of mentions; UsageError when the folder is not there.

    A pair that lost a mention, because that one lay outside of its text, is left out.
    """
    pairs = {row["doc_id"]: row["entity_pron_mentions"] for row in read_rows(folder / "coref.jsonl")}
    return [
        Structured(
            document=parsed(f"{folder.name}/{row['doc_id']}.md", row["text"], "markdown"),
            blocks=tuple(row["meta"]["split_points"]),
            pairs=tuple((tuple(one[0]), tuple(one[1])) for one in pairs.get(row["doc_id"], ()) if len(one) == 2),
            pages=tuple(row["meta"].get("page_starts", ())),
        )
        for row in read_rows(folder / "corpus.jsonl")
    ]
