"""Sets that are a file: SQuAD JSON, Chroma's chunking CSV, plain tables of questions."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from eval.datasets.model import Dataset, DatasetQuestion, file_name
from eval.sets import Place, read_rows
from rag.errors import UsageError

__all__ = ["is_chroma", "is_squad", "is_table", "read_chroma", "read_squad", "read_table"]

_TEXTS = ("question", "query", "text")
_LARGEST_FIELD = 1 << 24


def is_squad(path: Path) -> bool:
    if path.suffix != ".json" or not path.is_file():
        return False
    with path.open(encoding="utf-8") as file:
        head = file.read(2000)
    return '"data"' in head or '"paragraphs"' in head


def read_squad(path: Path) -> Dataset:
    """SQuAD 1 or 2: one document an article, its paragraphs joined by empty lines; answers keep their exact places.

    ValueError when an answer is not at its `answer_start`.
    """
    texts: dict[str, str] = {}
    questions: list[DatasetQuestion] = []
    for number, article in enumerate(json.loads(path.read_text(encoding="utf-8"))["data"]):
        name = file_name(str(article.get("title") or f"article-{number}"))
        name = name if name not in texts else file_name(f"{name}-{number}")
        text = ""
        for paragraph in article["paragraphs"]:
            text += "\n\n" if text else ""
            questions += (_of_squad(row, name, len(text), paragraph["context"]) for row in paragraph["qas"])
            text += paragraph["context"]
        texts[name] = text
    return Dataset(name=path.stem, texts=texts, questions=tuple(questions))


def _of_squad(row: Mapping[str, Any], name: str, offset: int, context: str) -> DatasetQuestion:
    answers = row.get("answers") or []
    places: list[Place] = []
    for one in answers:
        start = int(one["answer_start"])
        if context[start : start + len(one["text"])] != one["text"]:
            raise ValueError(f"question {row['id']}: {one['text']!r} does not stand at {start}")
        places.append((name, offset + start, offset + start + len(one["text"])))
    return DatasetQuestion(
        id=str(row["id"]),
        text=str(row["question"]),
        evidence=tuple(dict.fromkeys(places[:1])),  # annotators mark the same answer several times
        answers=tuple(dict.fromkeys(str(one["text"]) for one in answers)),
        answerable=not row.get("is_impossible", False) and bool(answers),
    )


def is_chroma(path: Path) -> bool:
    table = _chroma_table(path)
    if table is None:
        return False
    with table.open(encoding="utf-8", newline="") as lines:
        return {"question", "references", "corpus_id"} <= set(next(csv.reader(lines), []))


def read_chroma(path: Path) -> Dataset:
    """Chroma's chunking_evaluation: a CSV with question, references (JSON with exact places) and corpus_id."""
    table = _chroma_table(path)
    if table is None:
        raise UsageError(f"{path}: no questions_df.csv")
    questions, texts = [], {}
    for number, row in enumerate(_csv(table)):
        source = table.parent / "corpora" / f"{row['corpus_id']}.md"
        name = file_name(row["corpus_id"], ".md")
        if name not in texts:
            texts[name] = _read_text(source)
        found = json.loads(row["references"])
        for one in found:
            if texts[name][one["start_index"] : one["end_index"]] != one["content"]:
                raise ValueError(f"row {number + 1}: a reference does not stand at {one['start_index']} of {source}")
        questions.append(
            DatasetQuestion(
                id=f"{row['corpus_id']}-{number:04d}",
                text=row["question"],
                evidence=tuple((name, int(one["start_index"]), int(one["end_index"])) for one in found),
                answers=tuple(str(one["content"]) for one in found),
            )
        )
    return Dataset(name=table.parent.name if table.stem == "questions_df" else table.stem, texts=texts,
                   questions=tuple(questions))  # fmt: skip


def _chroma_table(path: Path) -> Path | None:
    table = path / "questions_df.csv" if path.is_dir() else path
    return table if table.suffix == ".csv" and table.is_file() else None


def is_table(path: Path) -> bool:
    return _table_file(path) is not None


def read_table(path: Path, documents: Path | None = None) -> Dataset:
    """Questions of a CSV or JSONL file, about the files of a folder (`documents`, else `docs` beside the table).

    Columns: question (or query, text); perhaps id, answers (one, or a JSON list), evidence (a JSON list of
    {"source", "start", "end"} or {"source", "text"}; a plain text is a quote from any document), answerable.
    Documents are parsed as `rag ingest` does, and quotes are looked for in what comes out.
    """
    table = _table_file(path)
    if table is None:
        raise UsageError(f"{path}: no questions.csv or questions.jsonl")
    folder = documents or table.parent / "docs"
    if not folder.is_dir():
        raise UsageError(f"{table}: its documents are looked for in {folder}, which is no folder; name it with --docs")
    rows = _csv(table) if table.suffix == ".csv" else read_rows(table)
    questions = tuple(_of_table(row, number) for number, row in enumerate(rows, start=1))
    name = table.parent.name if table.stem == "questions" else table.stem
    return Dataset(name=name, folder=folder, questions=questions)


def _of_table(row: Mapping[str, Any], number: int) -> DatasetQuestion:
    text = next((str(row[key]) for key in _TEXTS if row.get(key)), "")
    if not text.strip():
        raise ValueError(f"row {number} has no question; columns: {', '.join(map(str, row))}")
    places: list[Place] = []
    quotes: list[tuple[str, str]] = []
    for one in _listed(row.get("evidence")):
        if isinstance(one, Mapping) and "start" in one:
            places.append((str(one["source"]), int(one["start"]), int(one["end"])))
        elif isinstance(one, Mapping):
            quotes.append((str(one.get("source") or ""), str(one["text"])))
        else:
            quotes.append(("", str(one)))
    answers = tuple(str(one) for one in _listed(row.get("answers", row.get("answer"))))
    said = row.get("answerable")
    no = said is False or str(said).strip().lower() in ("false", "no", "0")
    return DatasetQuestion(
        id=str(row.get("id") or row.get("query_id") or f"q{number:04d}"),
        text=text, evidence=tuple(places), quotes=tuple(quotes), answers=answers, answerable=not no,
    )  # fmt: skip


def _listed(value: Any) -> list[Any]:
    if value is None or value == "":
        return []
    if isinstance(value, str) and value.lstrip().startswith(("[", "{")):
        try:
            value = json.loads(value)
        except json.JSONDecodeError:
            return [value]
    return list(value) if isinstance(value, list) else [value]


def _table_file(path: Path) -> Path | None:
    candidates: Iterable[Path] = [path]
    if path.is_dir():
        candidates = [path / f"questions{suffix}" for suffix in (".jsonl", ".csv")]
    return next((one for one in candidates if one.is_file() and one.suffix in (".csv", ".jsonl")), None)


def _csv(path: Path) -> Iterator[dict[str, Any]]:
    before = csv.field_size_limit(_LARGEST_FIELD)
    try:
        with path.open(encoding="utf-8-sig", newline="") as lines:
            yield from csv.DictReader(lines)
    finally:
        csv.field_size_limit(before)


def _read_text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8")
    except OSError as error:
        raise UsageError(f"cannot read {path} ({error.strerror}); Chroma's set keeps its documents there") from error
