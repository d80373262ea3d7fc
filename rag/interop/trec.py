"""Results and documents of an index in the files that evaluation tools read: TREC runs and qrels, BEIR folders."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rag.errors import UsageError
from rag.index import Index
from rag.interop._common import OpenIndex, PipelineLike, positive

if TYPE_CHECKING:
    from rag.protocols import Filter
    from rag.types import Hit

__all__ = ["Judgements", "Unit", "export_beir", "search_all", "write_qrels", "write_run"]

Unit = Literal["chunk", "document"]
"""What is ranked or judged: chunks by their id, or documents by theirs, each by its best chunk."""
Judgements = Mapping[str, Mapping[str, int]]
"""Question id -> id of a chunk or document -> grade."""

_AT_ONCE = 512


def search_all(
    questions: Mapping[str, str],
    index: Index | str | Path,
    *,
    k: int = 100,
    where: Filter | None = None,
    pipeline: PipelineLike = None,
) -> dict[str, list[Hit]]:
    """Question id -> the best `k` chunks, for questions by id."""
    positive("k", k)
    opened = OpenIndex(index, pipeline)
    try:
        return {name: [one.hit for one in opened.search(text, k, where)] for name, text in questions.items()}
    finally:
        opened.close()


def write_run(
    path: str | Path, results: Mapping[str, Sequence[Hit]], *, unit: Unit = "chunk", tag: str = "chunkwise"
) -> int:
    """A TREC run: `question Q0 id rank score tag`; the number of lines.

    trec_eval sorts by score, in single precision, and breaks ties by id. A score that does not fall is written as the
    next smaller such number, so that the order of the hits stands. UsageError for an id with white space.
    """
    lines = []
    for question, hits in results.items():
        for rank, (name, score) in enumerate(_falling(_ranked(hits, unit)), start=1):
            lines.append(f"{_word(question)} Q0 {_word(name)} {rank} {score} {_word(tag)}")
    _write(Path(path), lines)
    return len(lines)


def write_qrels(path: str | Path, judgements: Judgements) -> int:
    """TREC qrels: `question 0 id grade`; the number of lines. UsageError for an id with white space."""
    lines = [
        f"{_word(question)} 0 {_word(name)} {int(grade)}"
        for question, grades in judgements.items()
        for name, grade in grades.items()
    ]
    _write(Path(path), lines)
    return len(lines)


def export_beir(
    index: Index | str | Path,
    folder: str | Path,
    *,
    questions: Mapping[str, str] | None = None,
    judgements: Judgements | None = None,
    unit: Unit = "chunk",
    split: str = "test",
) -> dict[str, int]:
    """A BEIR folder: `corpus.jsonl`, `queries.jsonl`, `qrels/SPLIT.tsv`; how many lines each got.

    Ids are ours. A chunk's `metadata` has its document, source, place and section. UsageError when judgements name
    something that is not in the corpus, or a question that is not there.
    """
    target = Path(folder)
    (target / "qrels").mkdir(parents=True, exist_ok=True)
    opened = index if isinstance(index, Index) else Index.open(index)
    try:
        with (target / "corpus.jsonl").open("w", encoding="utf-8", newline="\n") as out:
            names = {_put(out, row) for row in (_chunks(opened) if unit == "chunk" else _documents(opened))}
    finally:
        if opened is not index:
            opened.close()
    with (target / "queries.jsonl").open("w", encoding="utf-8", newline="\n") as out:
        asked = {_put(out, {"_id": name, "text": text, "metadata": {}}) for name, text in (questions or {}).items()}
    judged = [(query, name, int(grade)) for query, rows in (judgements or {}).items() for name, grade in rows.items()]
    for query, name, _ in judged:
        if query not in asked or name not in names:
            what, missing = ("question", query) if query not in asked else (unit, name)
            raise UsageError(f"judgements name the {what} {missing!r}, which is not exported; leave that line out")
    lines = [
        "query-id\tcorpus-id\tscore",
        *(f"{_word(query)}\t{_word(name)}\t{grade}" for query, name, grade in judged),
    ]
    _write(target / "qrels" / f"{split}.tsv", lines)
    return {"corpus": len(names), "queries": len(asked), "qrels": len(judged)}


def _ranked(hits: Sequence[Hit], unit: Unit) -> Iterator[tuple[str, float]]:
    """(id, score), best first; a document stands where its best chunk does."""
    seen: set[str] = set()
    for hit in sorted(hits, key=lambda one: one.rank):
        name = hit.chunk.id if unit == "chunk" else hit.chunk.doc_id
        if name not in seen:
            seen.add(name)
            yield name, float(hit.score)


def _falling(ranked: Iterable[tuple[str, float]]) -> Iterator[tuple[str, str]]:
    """Scores in single precision that fall strictly, nine digits, which name such a number exactly."""
    import numpy as np

    last = np.float32(np.inf)
    for name, score in ranked:
        last = min(np.float32(score), np.nextafter(last, np.float32(-np.inf)))
        yield name, f"{last:.9g}"


def _chunks(index: Index) -> Iterator[dict[str, Any]]:
    corpus = index.corpus
    rows = [int(row) for row in corpus.rows()]
    for at in range(0, len(rows), _AT_ONCE):
        for chunk in corpus.chunks(rows[at : at + _AT_ONCE]):
            place = {"doc_id": chunk.doc_id, "start": chunk.span.start, "end": chunk.span.end}
            about = {"source": corpus.source(chunk.doc_id), "section": " > ".join(chunk.section)}
            yield {"_id": chunk.id, "title": chunk.header, "text": chunk.text, "metadata": {**place, **about}}


def _documents(index: Index) -> Iterator[dict[str, Any]]:
    for one in index.store.documents():
        found = index.corpus.document(one.id)
        yield {"_id": found.id, "title": found.title, "text": found.text, "metadata": {"source": found.source}}


def _put(out: Any, row: Mapping[str, Any]) -> str:
    out.write(json.dumps(row, ensure_ascii=False) + "\n")
    return str(row["_id"])


def _write(path: Path, lines: Iterable[str]) -> None:
    with path.open("w", encoding="utf-8", newline="\n") as out:
        out.writelines(f"{line}\n" for line in lines)


def _word(text: str) -> str:
    if not text or text.split() != [text]:
        raise UsageError(f"the id {text!r} is empty or holds white space, which separates the fields of a TREC file")
    return text
