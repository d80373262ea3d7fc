"""Every format, made small: what is read, that it is recognised, and what is said of a broken one."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from eval.chunks.data import half_of
from eval.datasets import FORMATS, read_dataset
from eval.datasets.model import file_name, located
from rag.errors import UsageError

TEXT = "The mill opened in 1870. It closed in 1939."


def lines(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def spans(folder: Path) -> Path:
    lines(folder / "corpus.jsonl", [{"doc_id": "mill", "text": TEXT}, {"doc_id": "a/b", "text": "Nothing."}])
    lines(
        folder / "queries.jsonl",
        [
            {"query_id": "q1", "text": "When did it open?", "answers": ["1870"]},
            {"query_id": "q2", "text": "Who owned it?", "answers": []},
        ],
    )
    lines(
        folder / "evidence.jsonl",
        [
            {"query_id": "q1", "doc_id": "mill", "start": 19, "end": 23, "level": "answer"},
            {"query_id": "q1", "doc_id": "mill", "start": 0, "end": 24, "level": "sentence"},
        ],
    )
    return folder


def beir(folder: Path) -> Path:
    lines(folder / "corpus.jsonl", [{"_id": "D1", "title": "Mill", "text": TEXT}, {"_id": "D2", "text": "Other."}])
    lines(folder / "queries.jsonl", [{"_id": "1", "text": "mill"}, {"_id": "2", "text": "not judged"}])
    (folder / "qrels").mkdir()
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\n1\tD1\t2\n1\tD2\t0\n", encoding="utf-8")
    return folder


def trec(folder: Path) -> Path:
    (folder / "docs").mkdir(parents=True)
    (folder / "docs" / "D1.txt").write_text(TEXT, encoding="utf-8")
    topic = "<top>\n<num> Number: 301\n<title> old\n  mills\n<desc> Description: x\n</top>\n"
    (folder / "topics.txt").write_text(topic, encoding="utf-8")
    (folder / "qrels.txt").write_text("301 0 D1 1\n301 0 D9 0\n", encoding="utf-8")
    return folder


def squad(folder: Path) -> Path:
    folder.mkdir(parents=True)
    answers = [{"text": "1870", "answer_start": 19}, {"text": "1870", "answer_start": 19}]
    asked = [
        {"id": "s1", "question": "When did it open?", "answers": answers, "is_impossible": False},
        {"id": "s2", "question": "Who owned it?", "answers": [], "is_impossible": True},
    ]
    paragraphs = [{"context": "First.", "qas": []}, {"context": TEXT, "qas": asked}]
    data = {"version": "v2.0", "data": [{"title": "Mill", "paragraphs": paragraphs}]}
    (folder / "dev.json").write_text(json.dumps(data), encoding="utf-8")
    return folder / "dev.json"


def chroma(folder: Path) -> Path:
    (folder / "corpora").mkdir(parents=True)
    (folder / "corpora" / "mill.md").write_text(TEXT, encoding="utf-8")
    found = [{"content": "It closed in 1939.", "start_index": 25, "end_index": 43}]
    with (folder / "questions_df.csv").open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(["question", "references", "corpus_id"])
        table.writerow(["When did it close?", json.dumps(found), "mill"])
    return folder


def plain(folder: Path) -> Path:
    (folder / "docs").mkdir(parents=True)
    (folder / "docs" / "mill.txt").write_text(TEXT, encoding="utf-8")
    rows: list[dict[str, Any]] = [
        {"question": "When did it open?", "answers": ["1870"], "evidence": [{"source": "mill.txt", "text": "in 1870"}]},
        {"query": "Where?", "evidence": [{"source": "mill.txt", "start": 0, "end": 8}], "id": "where"},
        {"text": "Who owned it?", "answerable": False},
    ]
    lines(folder / "questions.jsonl", rows)
    return folder


MADE = {"spans": spans, "beir": beir, "trec": trec, "squad": squad, "chroma": chroma, "table": plain}


@pytest.mark.parametrize("name", list(FORMATS))
def test_a_format_is_recognised_and_read(name: str, tmp_path: Path) -> None:
    path = MADE[name](tmp_path / "set")
    assert next(found for found, (fits, _, _) in FORMATS.items() if fits(path)) == name
    found = read_dataset(path)
    assert found == read_dataset(path, name)
    assert found.questions
    for question in found.questions:
        for document, start, end in question.evidence:
            if found.folder is None:
                assert found.texts[document][start:end]


def test_spans_take_sentences_and_keep_unanswerable_questions(tmp_path: Path) -> None:
    found = read_dataset(spans(tmp_path / "set"))
    first, second = found.questions
    assert first.evidence == (("mill.txt", 0, 24),)
    assert (first.answerable, second.answerable, second.evidence) == (True, False, ())
    assert sorted(found.texts) == ["a%2Fb.txt", "mill.txt"]


def test_beir_and_trec_judge_documents(tmp_path: Path) -> None:
    one, other = read_dataset(beir(tmp_path / "b")), read_dataset(trec(tmp_path / "t"))
    assert [question.relevant for question in one.questions] == [{"D1.txt": 2}]
    assert one.texts["D1.txt"].startswith("Mill\nThe mill")
    assert [(question.id, question.text) for question in other.questions] == [("301", "old mills")]
    assert other.questions[0].relevant == {"D1.txt": 1}


def test_squad_places_are_exact_in_the_joined_article(tmp_path: Path) -> None:
    found = read_dataset(squad(tmp_path / "s"))
    name, start, end = found.questions[0].evidence[0]
    assert found.texts[name][start:end] == "1870"
    assert found.texts[name].startswith("First.\n\nThe mill")
    assert found.questions[0].answers == ("1870",)
    assert not found.questions[1].answerable


def test_chroma_references_are_places(tmp_path: Path) -> None:
    found = read_dataset(chroma(tmp_path / "c"))
    assert found.questions[0].evidence == (("mill.md", 25, 43),)
    assert found.questions[0].answers == ("It closed in 1939.",)


def test_a_table_has_quotes_places_and_unanswerable_questions(tmp_path: Path) -> None:
    found = read_dataset(plain(tmp_path / "p"))
    first, second, third = found.questions
    assert first.quotes == (("mill.txt", "in 1870"),)
    assert second.evidence == (("mill.txt", 0, 8),)
    assert (second.id, third.answerable) == ("where", False)
    assert found.folder == tmp_path / "p" / "docs"


def test_a_csv_table_with_documents_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "files").mkdir()
    (tmp_path / "asked.csv").write_text('question,answer\n"When, exactly?",1870\n', encoding="utf-8")
    found = read_dataset(tmp_path / "asked.csv", documents=tmp_path / "files")
    assert (found.name, found.questions[0].text, found.questions[0].answers) == ("asked", "When, exactly?", ("1870",))
    with pytest.raises(UsageError, match="--docs"):
        read_dataset(tmp_path / "asked.csv")


def test_errors_name_the_thing_and_the_fix(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such folder"):
        read_dataset(tmp_path / "none")
    with pytest.raises(UsageError, match=r"not a known format.*beir"):
        read_dataset(tmp_path)
    with pytest.raises(UsageError, match="--format nope"):
        read_dataset(tmp_path, "nope")
    broken = squad(tmp_path / "s")
    broken.write_text(broken.read_text(encoding="utf-8").replace('"answer_start": 19', '"answer_start": 18'))
    with pytest.raises(UsageError, match="does not stand at 18"):
        read_dataset(broken)
    folder = spans(tmp_path / "outside")
    lines(folder / "evidence.jsonl", [{"query_id": "q1", "doc_id": "mill", "start": 0, "end": 999}])
    with pytest.raises(UsageError, match="43 characters"):
        read_dataset(folder)


def test_two_questions_with_one_id_are_an_error(tmp_path: Path) -> None:
    folder = spans(tmp_path / "set")
    lines(folder / "queries.jsonl", [{"query_id": "q1", "text": "a"}, {"query_id": "q1", "text": "b"}])
    with pytest.raises(UsageError, match="'q1'"):
        read_dataset(folder)


def test_halves_are_those_of_the_other_evaluations(tmp_path: Path) -> None:
    found = read_dataset(spans(tmp_path / "set"))
    parts = {half: {q.id for q in found.questions if half_of(f"set/{q.id}") == half} for half in ("dev", "test")}
    for half in ("dev", "test"):
        if parts[half]:
            assert {q.id for q in found.part(half).questions} == parts[half]
    assert len(found.part("all", 1).questions) == 1
    assert len(found.part("all", 1).every) == 2


def test_digests_change_with_what_they_are_of(tmp_path: Path) -> None:
    one = read_dataset(spans(tmp_path / "set"))
    lines(tmp_path / "set" / "corpus.jsonl", [{"doc_id": "mill", "text": TEXT + " More."}])
    other = read_dataset(tmp_path / "set")
    assert one.documents_digest != other.documents_digest
    assert one.questions_digest == other.questions_digest
    assert one.questions_digest != one.part("all", 1).questions_digest


@pytest.mark.parametrize("name", ["plain", "a/b", "..", ".hidden", "a\nb", "é" * 300, " ", "C:x?"])
def test_any_id_becomes_a_file_that_is_ingested(name: str, tmp_path: Path) -> None:
    made = file_name(name)
    (tmp_path / made).write_text("x", encoding="utf-8")
    assert os.listdir(tmp_path) == [made]
    assert not made.startswith(".")


def test_quotes_are_found_where_they_are_alone() -> None:
    texts = {"a": "one two", "b": "two three three"}
    assert located(texts, "", "one") == ("a", 0, 3)
    assert located(texts, "", "two") is None  # in both
    assert located(texts, "", "three") is None  # twice
    assert located(texts, "b", "two") == ("b", 0, 3)
    assert located(texts, "a", "three") is None


@pytest.mark.data
def test_the_public_sets_are_read() -> None:
    data = Path(os.environ.get("CHUNKWISE_DATA") or Path(__file__).parents[2] / ".." / "shared" / "data")
    if not data.is_dir():
        pytest.skip("the public evaluation data is not there; set CHUNKWISE_DATA")
    expected = {"chroma_chunking": 373, "squad_long": 800, "hotpotqa_200": 200, "clapnq_dev": 599, "scifact": 300}
    for name, count in expected.items():
        found = read_dataset(data / name)
        assert len(found.questions) == count
    assert not all(question.answerable for question in read_dataset(data / "clapnq_dev").questions)
