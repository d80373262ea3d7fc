"""TREC runs and qrels, BEIR folders: read back by ir-measures and by our own reader of such sets."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from eval.datasets.layouts import is_beir, read_beir
from rag import Index
from rag.errors import UsageError
from rag.interop.trec import export_beir, search_all, write_qrels, write_run
from rag.types import Chunk, Hit, Span
from tests.interop_index import FILES, QUESTION, expected, make_index

QUESTIONS = {"q1": QUESTION, "q2": "When do unused days expire?"}


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_index(tmp_path_factory.mktemp("trec"))


def hit(doc_id: str, start: int, score: float, rank: int) -> Hit:
    chunk = Chunk(doc_id=doc_id, span=Span(start, start + 5), text="words", token_count=1)
    return Hit(chunk=chunk, score=score, rank=rank, retriever="test")


def test_a_run_is_scored_as_it_was_found(index: Path, tmp_path: Path) -> None:
    measures = pytest.importorskip("ir_measures", reason="chunkwise[eval] is not installed")
    results = search_all(QUESTIONS, index, k=10)
    assert [one.chunk.id for one in results["q1"]] == [one.chunk.id for one in expected(index, 10)]
    lines = write_run(tmp_path / "run.trec", results)
    assert lines == sum(len(hits) for hits in results.values())
    second = {name: hits[1].chunk.id for name, hits in results.items()}
    assert write_qrels(tmp_path / "qrels.txt", {name: {one: 1} for name, one in second.items()}) == 2
    run = list(measures.read_trec_run(str(tmp_path / "run.trec")))
    assert [one.doc_id for one in run if one.query_id == "q2"] == [one.chunk.id for one in results["q2"]]
    qrels = list(measures.read_trec_qrels(str(tmp_path / "qrels.txt")))
    assert measures.calc_aggregate([measures.RR], qrels, run) == {measures.RR: 0.5}


def test_ties_keep_their_order_and_documents_stand_by_their_best_chunk(tmp_path: Path) -> None:
    hits = [hit("bb", 0, 1.0, 1), hit("aa", 0, 1.0, 2), hit("bb", 9, 1.0, 3), hit("cc", 0, 0.25, 4)]
    write_run(tmp_path / "run", {"q": hits}, unit="document", tag="mine")
    rows = [line.split() for line in (tmp_path / "run").read_text().splitlines()]
    assert [row[:4] for row in rows] == [["q", "Q0", "bb", "1"], ["q", "Q0", "aa", "2"], ["q", "Q0", "cc", "3"]]
    assert {row[5] for row in rows} == {"mine"}
    np = pytest.importorskip("numpy")
    scores = [np.float32(row[4]) for row in rows]
    assert scores[0] == 1.0
    assert scores[0] > scores[1] > scores[2] == np.float32(0.25)


def test_a_beir_folder_has_our_ids_and_is_read_back(index: Path, tmp_path: Path) -> None:
    with Index.open(index) as opened:
        ids = {document.source: document.id for document in opened.store.documents()}
        judgements = {"q1": {ids["docs/handbook.md"]: 2}, "q2": {ids["docs/handbook.md"]: 1}}
        counts = export_beir(opened, tmp_path / "set", questions=QUESTIONS, judgements=judgements, unit="document")
        assert len(opened.corpus) > 2  # still open
    assert counts == {"corpus": 2, "queries": 2, "qrels": 2}
    assert is_beir(tmp_path / "set")
    found = read_beir(tmp_path / "set")
    assert sorted(text.partition("\n")[2] for text in found.texts.values()) == sorted(FILES.values())
    assert {one.id: one.text for one in found.questions} == QUESTIONS
    assert [len(one.relevant) for one in found.questions] == [1, 1]


def test_chunks_are_exported_with_their_places(index: Path, tmp_path: Path) -> None:
    counts = export_beir(index, tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "corpus.jsonl").read_text(encoding="utf-8").splitlines()]
    with Index.open(index) as opened:
        chunks = opened.corpus.chunks([int(row) for row in opened.corpus.rows()])
    assert [row["_id"] for row in rows] == [chunk.id for chunk in chunks]
    assert counts == {"corpus": len(chunks), "queries": 0, "qrels": 0}
    for row in rows:
        place = row["metadata"]
        assert FILES[place["source"]][place["start"] : place["end"]] == row["text"]


def test_errors_name_the_value_and_the_fix(index: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="'q 1' is empty or holds white space"):
        write_qrels(tmp_path / "qrels", {"q 1": {"a": 1}})
    with pytest.raises(UsageError, match="chunk 'nowhere', which is not exported"):
        export_beir(index, tmp_path, questions=QUESTIONS, judgements={"q1": {"nowhere": 1}})
    with pytest.raises(UsageError, match="question 'q9', which is not exported"):
        export_beir(index, tmp_path, questions=QUESTIONS, judgements={"q9": {"nowhere": 1}})
    with pytest.raises(UsageError, match="k must be at least 1"):
        search_all(QUESTIONS, index, k=0)
