"""Scores and gates of the published context bubble, worked out by hand."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from rag.types import Block, Bubble, Chunk, Document, Hit, Span
from tests.corpora import MemoryCorpus
from tests.unit.test_selectors_bubble import COUNTER, corpus_of, hits_of, made

PAPER = (
    ("ice ice alpha", "s"),
    ("ice beta gamma delta", "s"),
    ("ice ice alpha omega", "s"),
    ("nothing of the kind", "t"),
)
"""tf of "ice": 2, 1, 2, 0; tokens 3, 4, 4, 4; median 4; penalties 4/7, 1/2, 1/2, 1/2; scores 1.142857, .5, 1, 0."""


def paper_case(directory: Path) -> tuple[MemoryCorpus, list[Hit]]:
    documents = []
    for at, (text, section) in enumerate(PAPER):
        head = f"# {section}\n"
        blocks = (Block(span=Span(0, len(head)), kind="heading", level=1),)
        documents.append(Document(text=head + text, source=f"{at}.md", blocks=blocks))
    chunks = [
        Chunk.cut(d, len(f"# {s}\n"), len(d.text), counter=COUNTER, chunker="x")
        for d, (_, s) in zip(documents, PAPER, strict=True)
    ]
    return MemoryCorpus(directory, documents, chunks), hits_of(chunks)


def outcome(bubble: Bubble, hits: Sequence[Hit]) -> dict[int, str]:
    rank = {hit.chunk.id: hit.rank for hit in hits}
    return {rank[d.chunk_id]: d.reason.split(":")[0] for d in bubble.decisions}


def test_paper_scores_and_gates_by_hand(tmp_path: Path) -> None:
    corpus, hits = paper_case(tmp_path)
    bubble = made(objective="paper", budget=100).select("ice", hits, corpus)
    rank = {hit.chunk.id: hit.rank for hit in hits}
    assert {rank[d.chunk_id]: d.relevance for d in bubble.decisions} == {1: 1.142857, 3: 1.0, 2: 0.5, 4: 0.0}
    assert [rank[d.chunk_id] for d in bubble.decisions] == [1, 3, 2, 4]
    assert outcome(bubble, hits) == {
        1: "passed_all_gates",
        3: "too_redundant",  # 2 of its 3 words are said: .67 >= .55
        2: "passed_all_gates",  # 1 of 4
        4: "low_relevance",
    }
    first = bubble.decisions[0]
    assert dict(first.parts) == pytest.approx(
        {"tf": 2.0, "boost": 0.0, "length_penalty": 0.571429, "score_raw": 2.0, "score": 1.142857}
    )


def test_paper_budget_gate_comes_first(tmp_path: Path) -> None:
    corpus, hits = paper_case(tmp_path)
    bubble = made(objective="paper", budget=6).select("ice", hits, corpus)
    assert outcome(bubble, hits) == {1: "passed_all_gates", **dict.fromkeys((2, 3, 4), "budget_exceeded")}


def test_paper_goes_on_to_smaller_chunks_when_asked(tmp_path: Path) -> None:
    texts = ("ice ice ice of many many many words here", "ice", "ice ice")
    corpus = corpus_of(tmp_path, [Document(text=text, source=f"{at}.md") for at, text in enumerate(texts)])
    hits = hits_of(corpus.chunks(range(3)))
    options = {"objective": "paper", "budget": 5, "theta": 1000.0}
    assert made(**options).select("ice", hits, corpus).hits == ()
    assert made(**options, stop_at_budget=False).select("ice", hits, corpus).texts == ("ice ice",)


def test_paper_section_gate_and_its_guard(tmp_path: Path) -> None:
    """A tenth of 40 tokens is 4: the best chunk fits (3), a second of its section (4) does not; the slack takes it."""
    corpus, hits = paper_case(tmp_path)
    options = {"objective": "paper", "budget": 40, "section_share": 0.1}
    assert outcome(made(**options).select("ice", hits, corpus), hits)[2] == "section_budget_exceeded"
    assert outcome(made(**options, reallocate=True).select("ice", hits, corpus), hits)[2] == "passed_all_gates"
    deadlock = made(objective="paper", budget=40, section_share=0.01).select("ice", hits, corpus)
    assert outcome(deadlock, hits)[1] == "passed_all_gates"


def test_paper_boosts_and_keywords_lift_a_chunk_without_the_word(tmp_path: Path) -> None:
    corpus, hits = paper_case(tmp_path)
    lifts: tuple[dict[str, Any], ...] = ({"boosts": {"t": 6.5}}, {"keywords": {"kind": 6.5}})
    for options in lifts:
        bubble = made(objective="paper", budget=100, **options).select("ice", hits, corpus)
        assert bubble.decisions[0].chunk_id == hits[3].chunk.id
        assert bubble.decisions[0].relevance == 3.25
