"""Public evaluation sets on disk: documents, questions, and the exact places of their evidence."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rag.errors import UsageError

__all__ = ["Place", "Question", "QuestionSet", "read_rows", "read_set", "write_texts"]

Place = tuple[str, int, int]
"""Document, start, end: half-open code points, as evidence rows have them."""


@dataclass(frozen=True, kw_only=True)
class Question:
    """A question, the places of its evidence, at least one, and accepted answers where the set has any."""

    text: str
    evidence: tuple[Place, ...]
    id: str = ""
    answers: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class QuestionSet:
    """Document name -> text, and the questions about them."""

    name: str
    texts: Mapping[str, str]
    questions: tuple[Question, ...]


def read_set(folder: Path, level: str | None = None) -> QuestionSet:
    """The set in `folder` (corpus.jsonl, queries.jsonl, evidence.jsonl); UsageError when it is not there.

    Documents are named as the files that they will be written to. `level`: of evidence rows that have a level, only
    those with this one; None takes every row.
    """
    rows = {name: read_rows(folder / f"{name}.jsonl") for name in ("corpus", "queries", "evidence")}
    texts = {f"{row['doc_id']}.txt": row["text"] for row in rows["corpus"]}
    evidence: dict[str, list[Place]] = {}
    for row in rows["evidence"]:
        if level is None or row.get("level", level) == level:
            evidence.setdefault(row["query_id"], []).append((f"{row['doc_id']}.txt", row["start"], row["end"]))
    questions = tuple(
        Question(
            text=row["text"],
            evidence=tuple(evidence[row["query_id"]]),
            id=row["query_id"],
            answers=tuple(row.get("answers") or ()),
        )
        for row in rows["queries"]
        if row["query_id"] in evidence
    )
    return QuestionSet(name=folder.name, texts=texts, questions=questions)


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSON Lines file of the data; UsageError that names the option when it cannot be read."""
    try:
        with path.open(encoding="utf-8", newline="\n") as lines:
            return [json.loads(line) for line in lines if line.strip()]
    except OSError as error:
        raise UsageError(
            f"cannot read {path} ({error.strerror}). Give the folder of the public evaluation data with --data DIR "
            f"or CHUNKWISE_DATA"
        ) from error


def write_texts(texts: Mapping[str, str], folder: Path) -> None:
    """The documents as files in `folder`, once: a file beside it says that all of them are there."""
    done = folder.with_name(f"{folder.name}.done")
    if done.is_file():
        return
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        (folder / name).write_bytes(text.encode("utf-8"))
    done.touch()
