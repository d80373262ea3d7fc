"""A data set: documents, and questions with whatever is known of them (places, quotes, relevant documents, answers)."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from urllib.parse import quote

from eval.chunks.data import Half, digest, half_of
from eval.sets import Question
from rag.errors import UsageError

__all__ = ["Dataset", "DatasetQuestion", "file_name", "located"]

_LONGEST = 200  # bytes of a file name: common file systems take 255, and a suffix comes on top


@dataclass(frozen=True, kw_only=True)
class DatasetQuestion(Question):
    """A question. `evidence` may be empty here.

    `quotes` are (document, words): evidence whose place is looked for in the text that the parser gives; document ""
    means any. `relevant`: document -> grade, for sets that judge whole documents. `answerable` False: the documents do
    not answer it, and a good answer says so.
    """

    quotes: tuple[tuple[str, str], ...] = ()
    relevant: Mapping[str, int] = field(default_factory=dict)
    answerable: bool = True


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """Documents as texts by file name, or as the files in `folder`; and the questions about them.

    `every` has the questions of both halves: no config may know them.
    """

    name: str
    questions: tuple[DatasetQuestion, ...]
    texts: Mapping[str, str] = field(default_factory=dict)
    folder: Path | None = None
    every: tuple[DatasetQuestion, ...] = ()

    @property
    def has_answers(self) -> bool:
        return any(question.answers for question in self.questions)

    @property
    def documents_digest(self) -> str:
        """Hex digest of names and contents."""
        if self.folder is None:
            return digest([part for name in sorted(self.texts) for part in (name, self.texts[name])])
        files = sorted(path for path in self.folder.rglob("*") if path.is_file())
        if not files:
            raise UsageError(f"{self.name}: no documents in {self.folder}")
        hashes = (hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest() for path in files)
        named = zip(files, hashes, strict=True)
        return digest([part for path, found in named for part in (path.relative_to(self.folder).as_posix(), found)])

    @property
    def questions_digest(self) -> str:
        """Hex digest of the questions and all that is known of them."""
        return digest(
            repr(
                (one.id, one.text, one.evidence, one.answers, one.quotes, sorted(one.relevant.items()), one.answerable)
            )
            for one in self.questions
        )

    def part(self, half: Half, limit: int = 0) -> Dataset:
        """The questions of one half, the first `limit` of them (0: all); UsageError when none is left."""
        chosen = [one for one in self.questions if half == "all" or half_of(f"{self.name}/{one.id}") == half]
        if not chosen:
            raise UsageError(f"--dataset {self.name}: no question in the {half} half")
        return replace(self, questions=tuple(chosen[:limit] if limit else chosen), every=self.questions)


def file_name(doc_id: str, suffix: str = ".txt") -> str:
    """A name that any file system takes; as it is where that is possible."""
    name = quote(doc_id, safe=" !#$&'()+,;=@[]^_`{}~-.") if not doc_id.isalnum() else doc_id
    name = f"_{name}" if name.startswith(".") or not name.strip() else name  # hidden files are not ingested
    if len(name.encode()) > _LONGEST:
        name = f"{name[:100]}-{digest([doc_id])}"
    return f"{name}{suffix}"


def located(texts: Mapping[str, str], document: str, words: str) -> tuple[str, int, int] | None:
    """The first place of `words` in that document, or without one the only place in any; None when there is none."""
    found: list[tuple[str, int, int]] = []
    for name in [document] if document else sorted(texts):
        text = texts.get(name, "")
        at = text.find(words) if words else -1
        if at >= 0:
            found.append((name, at, at + len(words)))
            if text.find(words, at + 1) >= 0 and not document:
                return None
    return found[0] if len(found) == 1 else None


def unique_ids(name: str, questions: Sequence[DatasetQuestion]) -> tuple[DatasetQuestion, ...]:
    """The questions, unless two share an id."""
    seen: set[str] = set()
    for one in questions:
        if one.id in seen:
            raise UsageError(f"--dataset {name}: two questions have the id {one.id!r}; ids must be unique")
        seen.add(one.id)
    return tuple(questions)
