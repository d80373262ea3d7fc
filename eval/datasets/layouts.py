"""Sets that are folders: exact spans (our layout), BEIR, TREC."""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from eval.datasets.model import Dataset, DatasetQuestion, file_name
from eval.select.sets import SETS
from eval.sets import Place, read_rows
from rag.errors import UsageError

__all__ = ["is_beir", "is_spans", "is_trec", "read_beir", "read_spans", "read_trec"]

_LEVELS = ("sentence", "paragraph")
"""Where evidence rows have levels, the first of these that is there is scored: a single word lies in any chunk."""


def is_spans(path: Path) -> bool:
    return all((path / f"{name}.jsonl").is_file() for name in ("corpus", "queries", "evidence"))


def read_spans(path: Path) -> Dataset:
    """Documents, questions and evidence with exact places; a question with neither evidence nor answer is unanswerable.

    Level, role and file type of sets that `rag eval select` knows are taken from there.
    """
    known = SETS.get(path.name)
    suffix = known.suffix if known else ".txt"
    rows = read_rows(path / "evidence.jsonl")
    levels = {row.get("level") for row in rows}
    level = known.level if known and known.level else next((one for one in _LEVELS if one in levels), None)
    role = known.gold_role if known else None
    evidence: dict[str, list[Place]] = {}
    for row in rows:
        if _wanted(row.get("level"), level) and _wanted(row.get("role"), role):
            place = (file_name(str(row["doc_id"]), suffix), int(row["start"]), int(row["end"]))
            evidence.setdefault(str(row["query_id"]), []).append(place)
    texts = {
        file_name(str(row["doc_id"]), suffix): str(row["text"]).replace("\0", " ")  # NUL makes a file binary
        for row in read_rows(path / "corpus.jsonl")
    }
    _check_places(path, texts, evidence)
    questions = tuple(_asked(row, tuple(evidence.get(str(row["query_id"]), ())), suffix) for row in _queries(path))
    return Dataset(name=path.name, texts=texts, questions=questions)


def _queries(path: Path) -> list[dict[str, Any]]:
    return read_rows(path / "queries.jsonl")


def _asked(row: Mapping[str, Any], evidence: tuple[Place, ...], suffix: str) -> DatasetQuestion:
    answers = tuple(str(one) for one in row.get("answers") or ())
    relevant = {file_name(str(one), suffix): 1 for one in row.get("relevant_docs") or ()}
    return DatasetQuestion(
        id=str(row["query_id"]),
        text=str(row["text"]),
        evidence=evidence,
        answers=answers,
        relevant={} if evidence else relevant,
        answerable=bool(evidence or answers or relevant),
    )


def _wanted(found: str | None, asked: str | None) -> bool:
    return asked is None or found is None or found == asked


def _check_places(path: Path, texts: Mapping[str, str], evidence: Mapping[str, Sequence[Place]]) -> None:
    for query, places in evidence.items():
        for name, start, end in places:
            if name not in texts:
                raise UsageError(f"{path}/evidence.jsonl: question {query} has evidence in {name}, not in the corpus")
            if not 0 <= start < end <= len(texts[name]):
                raise UsageError(
                    f"{path}/evidence.jsonl: question {query} has evidence at {start}-{end} of {name}, which has "
                    f"{len(texts[name])} characters"
                )


def is_beir(path: Path) -> bool:
    return all((path / name).is_file() for name in ("corpus.jsonl", "queries.jsonl")) and _qrels_of(path) is not None


def read_beir(path: Path) -> Dataset:
    """BEIR: relevance of whole documents, title and text joined as BEIR's own models read them.

    The judgements of the test split are taken, else dev, else train. Questions without any are left out.
    """
    qrels = _qrels_of(path)
    if qrels is None:
        raise UsageError(f"{path}: no qrels/test.tsv, dev.tsv or train.tsv, and no qrels.tsv")
    relevant: dict[str, dict[str, int]] = {}
    with qrels.open(encoding="utf-8", newline="") as lines:
        for row in csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE):
            if len(row) >= 3 and row[2].strip().lstrip("-").isdigit() and int(row[2]) > 0:
                relevant.setdefault(row[0], {})[file_name(row[1])] = int(row[2])
    return Dataset(name=path.name, texts=_corpus(path), questions=_judged(read_rows(path / "queries.jsonl"), relevant))


def _corpus(path: Path) -> dict[str, str]:
    rows = read_rows(path / "corpus.jsonl")
    return {
        file_name(str(row.get("_id", row.get("doc_id")))): "\n".join(
            part for part in (str(row.get("title") or ""), str(row["text"])) if part
        ).replace("\0", " ")
        for row in rows
    }


def _judged(
    rows: Sequence[Mapping[str, Any]], relevant: Mapping[str, Mapping[str, int]]
) -> tuple[DatasetQuestion, ...]:
    named = [(str(row.get("_id", row.get("query_id"))), str(row["text"])) for row in rows]
    return tuple(
        DatasetQuestion(id=name, text=text, evidence=(), relevant=dict(relevant[name]))
        for name, text in named
        if name in relevant
    )


def _qrels_of(path: Path) -> Path | None:
    names = ("qrels/test.tsv", "qrels/dev.tsv", "qrels/train.tsv", "qrels.tsv")
    return next((path / name for name in names if (path / name).is_file()), None)


def is_trec(path: Path) -> bool:
    return path.is_dir() and bool(_first(path, "topics*") and _first(path, "qrels*"))


def read_trec(path: Path) -> Dataset:
    """TREC: topics (SGML with <num> and <title>, or lines of number, tab, text), qrels, and documents.

    Documents are `corpus.jsonl`, or the files in `docs/`, whose names without suffix are the ids of the qrels.
    """
    import ir_measures

    topics, qrels = _first(path, "topics*"), _first(path, "qrels*")
    if topics is None or qrels is None:
        raise UsageError(f"{path}: a TREC set needs a topics* and a qrels* file")
    texts = _corpus(path) if (path / "corpus.jsonl").is_file() else _text_files(path / "docs")
    names = {name.rsplit(".", 1)[0]: name for name in texts}
    relevant: dict[str, dict[str, int]] = {}
    read: Any = ir_measures.read_trec_qrels
    for one in read(str(qrels)):
        if one.relevance > 0:
            name = names.get(one.doc_id, file_name(one.doc_id))
            relevant.setdefault(one.query_id, {})[name] = one.relevance
    rows = [{"_id": name, "text": text} for name, text in _topics(topics.read_text(encoding="utf-8"))]
    return Dataset(name=path.name, texts=texts, questions=_judged(rows, relevant))


_TOPIC = re.compile(r"<num>\s*(?:Number:)?\s*(\S+?)\s*(?:</num>)?\s*<title>\s*(?:Topic:)?\s*(.*?)\s*(?=<|\Z)", re.S)


def _topics(text: str) -> list[tuple[str, str]]:
    if "<num>" in text:
        return [(found[1], " ".join(found[2].split())) for found in _TOPIC.finditer(text)]
    pairs = (line.split("\t", 1) for line in text.splitlines() if "\t" in line)
    return [(number.strip(), words.strip()) for number, words in pairs]


def _text_files(folder: Path) -> dict[str, str]:
    found = sorted(path for path in folder.glob("*") if path.is_file()) if folder.is_dir() else []
    if not found:
        raise UsageError(f"{folder}: no documents; a TREC set needs corpus.jsonl or files in docs/")
    return {path.name: path.read_text(encoding="utf-8") for path in found}


def _first(path: Path, pattern: str) -> Path | None:
    return next((one for one in sorted(path.glob(pattern)) if one.is_file()), None)
