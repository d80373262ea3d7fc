"""The papers' tables on small documents: post-processing, ranks, and reports that say what they should."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from eval.chunks.data import Pool, Structured
from eval.papers.adaptive import LEAST, MERGED, MOST, PAPER, adaptive_table, finished
from eval.papers.idc import bm25, hybrid, idc_table
from eval.papers.report import markdown, write
from eval.sets import Question
from rag.embedders.hashing import HashingEmbedder
from rag.types import Document

WORDS = ("harbour", "ledger", "copper", "orchard", "vessel", "river", "lantern", "granite")


def characters(start: int, end: int) -> int:
    return end - start


def prose(sentences: int, seed: int) -> str:
    draw = np.random.default_rng(seed)
    made = [" ".join(draw.choice(WORDS, size=9)).capitalize() + ". " for _ in range(sentences)]
    return "".join(text + ("\n\n" if at % 7 == 6 else "") for at, text in enumerate(made)).strip()


def structured(name: str, seed: int) -> Structured:
    text = prose(120, seed)
    borders = tuple(at + 2 for at in range(len(text)) if text.startswith("\n\n", at))
    pairs = tuple(((at, at + 7), (at + 60, at + 65)) for at in range(0, len(text) - 100, 400))
    pages = tuple(range(0, len(text), 1500))
    return Structured(document=Document(text=text, source=name), blocks=borders, pairs=pairs, pages=pages)


def test_post_processing_cuts_what_is_long_and_joins_what_is_short() -> None:
    long = [(0, MOST + 400)]
    assert finished(long, characters, [500, 900, 5000]) == [(0, 500), (500, 900), (900, MOST + 400)]
    assert finished([(0, 500), (500, 700)], characters, [600]) == [(0, 500), (500, 700)]
    short = [(0, LEAST - 1), (LEAST - 1, 300), (300, 310), (310, 600)]
    assert finished(short, characters, []) == [(0, 310), (310, 600)]
    full = [(0, MERGED - 5), (MERGED - 5, MERGED + 5)]
    assert finished(full, characters, []) == [(0, MERGED - 5), (MERGED - 5, MERGED + 5)]


def test_adaptive_table_has_the_papers_rows_and_chooses_the_best_mean() -> None:
    found = adaptive_table([structured("a.md", 1), structured("b.md", 2)], HashingEmbedder(), str)
    rows = {row["method"]: row for row in found["rows"]}
    assert list(rows) == list(PAPER)
    assert sum(found["chosen"].values()) == 2
    candidates = [row["ours"]["mean"] for name, row in rows.items() if name.endswith("*")]
    assert rows["adaptive"]["ours"]["mean"] >= max(candidates) - 1e-9
    assert rows["sentence (5 a chunk)"]["mean_tokens"] < rows["recursive 600*"]["mean_tokens"]
    for row in found["rows"]:
        assert all(0 <= value <= 100 for value in row["ours"].values())


def pool() -> Pool:
    text = prose(60, 3) + " The zeppelin landed in Trondheim. " + prose(60, 4)
    at = text.index("Trondheim")
    place = ("a.txt", at, at + len("Trondheim"))
    question = Question(text="Where did the zeppelin land?", evidence=(place,), id="q")
    return Pool(documents={"a.txt": Document(text=text, source="a.txt")}, questions=(question,), hashes={})


def test_idc_table_finds_the_one_chunk_with_the_answer() -> None:
    found = idc_table(pool(), HashingEmbedder(), str)
    rows = {row["method"]: row["ours"] for row in found["rows"]}
    assert len(rows) == 6
    for name, ours in rows.items():
        assert ours["R@1"] == ours["MRR"] == ours["inside one chunk"] == 1.0, name


def test_an_answer_that_no_chunk_holds_is_never_found() -> None:
    one = pool()
    broken = Question(text=one.questions[0].text, evidence=(("a.txt", 0, len(one.documents["a.txt"].text)),), id="q")
    rows = idc_table(Pool(documents=one.documents, questions=(broken,), hashes={}), HashingEmbedder(), str)["rows"]
    assert all(set(row["ours"].values()) == {0.0} for row in rows)


def test_hybrid_weighs_scores_of_one_scale() -> None:
    dense, lexical = np.array([0.0, 0.1, 0.2]), np.array([30.0, 0.0, 0.0])
    expected = 0.6 * (dense - 0.1) / dense.std() + 0.4 * (lexical - 10.0) / lexical.std()
    assert np.allclose(hybrid(dense, lexical), expected)
    assert np.allclose(hybrid(np.ones(3), np.zeros(3)), 0.0)


def test_bm25_scores_only_what_shares_a_word() -> None:
    scores = bm25(["the copper vessel", 'a "quoted" orchard', "copper copper"], 'copper? "nothing" AND')
    assert scores[1] == 0.0
    assert scores[2] > scores[0] > 0.0
    assert not bm25(["text"], "?!").any()


@pytest.mark.parametrize("name", ["papers.json", "papers.md"])
def test_the_report_prints_both_numbers(name: str, tmp_path: Path) -> None:
    report = {
        "embedder": "hashing",
        "tokens": "words",
        "adaptive_chunking": adaptive_table([structured("a.md", 1)], HashingEmbedder(), str),
        "idc": idc_table(pool(), HashingEmbedder(), str),
    }
    write(report, tmp_path)
    text = (tmp_path / name).read_text(encoding="utf-8")
    assert "recursive 1100*" in text
    assert "0.917" in text
    if name.endswith(".json"):
        assert json.loads(text)["idc"]["questions"] == 1
    else:
        assert text == markdown(report)
        assert "/ 90.7" in text
