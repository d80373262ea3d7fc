"""Scoring arithmetic on examples small enough to check by hand, and laws of the document cutter."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eval.bench._corpus import cut_documents, locate, make_text, read_set, recall, trim, write_documents
from rag.errors import UsageError


def test_recall_by_hand() -> None:
    # evidence: a[0:10] and a[20:30], 20 characters; found: a[5:25] covers 5 + 5 of them
    assert recall([("a", 0, 10), ("a", 20, 30)], [("a", 5, 25)]) == 0.5
    assert recall([("a", 0, 10)], [("b", 0, 10)]) == 0.0
    assert recall([("a", 0, 10)], []) == 0.0


def test_a_character_counts_once() -> None:
    assert recall([("a", 0, 10), ("a", 5, 10)], [("a", 0, 5), ("a", 0, 5)]) == 0.5


def test_trim_cuts_the_place_that_crosses_the_budget() -> None:
    ranked = [("a", 100, 130), ("a", 0, 50), ("b", 7, 9)]
    assert trim(ranked, 40) == [("a", 100, 130), ("a", 0, 10)]
    assert trim(ranked, 1000) == ranked
    assert trim(ranked, 0) == []


@given(st.lists(st.tuples(st.just("a"), st.integers(0, 30), st.integers(31, 60)), min_size=1, max_size=4))
def test_recall_of_the_evidence_itself_is_whole(places: list[tuple[str, int, int]]) -> None:
    assert recall(places, places) == 1.0
    assert 0.0 <= recall(places, [("a", 0, 35)]) <= 1.0


def test_locate_searches_forward() -> None:
    texts = {"a": "one two one two", "b": "one"}
    chunks = [("a", "one two"), ("b", "one"), ("a", "one"), ("a", "two")]
    assert locate(chunks, texts) == [("a", 0, 7), ("b", 0, 3), ("a", 8, 11), ("a", 12, 15)]


def test_locate_reports_what_was_altered_and_goes_on() -> None:
    assert locate([("a", "Alpha"), ("a", "beta"), ("a", "")], {"a": "alpha beta"}) == [None, ("a", 6, 10), None]


LINES = st.lists(st.text("ab \n", min_size=1, max_size=20), min_size=1, max_size=30)


@given(LINES, st.integers(1, 40), st.integers(0, 3))
def test_documents_are_line_starts_of_the_text_and_never_too_long(lines: list[str], size: int, seed: int) -> None:
    text = "\n".join(lines)
    documents = cut_documents([text], 1, size, seed) if text.strip() else {}
    for document in documents.values():
        at = text.find(document)
        assert len(document) <= size
        assert at >= 0
    assert documents == (cut_documents([text], 1, size, seed) if text.strip() else {})


def test_documents_are_cut_at_line_ends_and_drawn_with_the_seed() -> None:
    text = "".join(f"line {number:02}\n" for number in range(100))
    every = cut_documents([text], 50, 15, 0)  # two lines reach 15 characters
    assert "".join(every.values()) == "".join(f"line {at:02}\nline {at + 1:02}\n"[:15] for at in range(0, 100, 2))
    assert cut_documents([text], 10, 15, 1) == cut_documents([text], 10, 15, 1)
    assert list(cut_documents([text], 10, 15, 1).values()) != list(cut_documents([text], 10, 15, 2).values())
    assert list(cut_documents([text], 3, 15, 1)) == ["0000.txt", "0001.txt", "0002.txt"]
    with pytest.raises(UsageError, match="--documents 99"):
        cut_documents([text], 99, 15, 0)


def test_made_text_gives_enough_different_documents() -> None:
    text = make_text(["red", "green", "blue", "four"], 20_000, 0)
    documents = cut_documents([text], 10, 1000, 0)
    assert len(set(documents.values())) == 10
    assert text == make_text(["red", "green", "blue", "four"], 20_000, 0)


def test_documents_are_written_byte_for_byte(tmp_path: Path) -> None:
    write_documents({"a.txt": "é\r\nx\n"}, tmp_path / "new")
    assert (tmp_path / "new" / "a.txt").read_bytes() == "é\r\nx\n".encode()


def test_a_set_is_read_and_questions_without_evidence_are_left_out(tmp_path: Path) -> None:
    rows = {
        "corpus": [{"doc_id": "a", "text": "alpha beta"}],
        "queries": [{"query_id": "1", "text": "first?"}, {"query_id": "2", "text": "none?"}],
        "evidence": [{"query_id": "1", "doc_id": "a", "start": 6, "end": 10}],
    }
    for name, lines in rows.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = read_set(tmp_path)
    assert found.texts == {"a.txt": "alpha beta"}
    assert [(one.text, one.evidence) for one in found.questions] == [("first?", (("a.txt", 6, 10),))]


def test_a_missing_set_says_how_to_give_it(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="CHUNKWISE_DATA"):
        read_set(tmp_path / "absent")


@pytest.mark.data
def test_the_public_set_is_consistent(data_dir: Path) -> None:
    found = read_set(data_dir / "chroma_chunking")
    assert len(found.questions) == 373
    assert all(
        0 <= start < end <= len(found.texts[document])
        for one in found.questions
        for document, start, end in one.evidence
    )
    assert len(cut_documents(found.texts.values(), 200, 1500, 0)) == 200
