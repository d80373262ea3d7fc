"""The parts that bubbles are made of."""

from __future__ import annotations

from pathlib import Path

from rag.types import Block, Document, Span
from retrievers.selectors._units import units_of
from tests.corpora import MemoryCorpus
from tests.unit.test_selectors_bubble import corpus_of, hits_of, whole, windows


def test_units_tile_the_hits_and_overlaps_belong_to_one(tmp_path: Path) -> None:
    text = "One is here. Two is there. Three is far. Four is near. Five is gone."
    document = Document(text=text, source="a.md")
    chunks = windows(document, 30, 10)
    corpus = MemoryCorpus(tmp_path, [document], chunks)
    units = units_of(hits_of(chunks), corpus, 600).units
    assert "".join(unit.text for unit in units) == text
    assert sum(unit.weight for unit in units) == sum(len(chunk.text) for chunk in chunks)
    for unit in units:
        assert all(chunks[place].span.overlaps(unit.span) for place in unit.holders)
        assert chunks[unit.owner].span.contains(unit.span)


def test_rows_items_and_code_are_units(tmp_path: Path) -> None:
    text = "Intro one. Intro two.\n- First. Still first.\n- Second.\nx = 1. y = 2.\n"
    at = text.index
    blocks = (
        Block(span=Span(at("- F"), at("- S")), kind="list"),
        Block(span=Span(at("- S"), at("x =")), kind="list"),
        Block(span=Span(at("x ="), len(text)), kind="code"),
    )
    document = Document(text=text, source="a.md", blocks=blocks)
    corpus = corpus_of(tmp_path, [document], None)
    found = [unit.text for unit in units_of(hits_of([whole(document)]), corpus, 600).units]
    assert found[-3:] == ["- First. Still first.\n", "- Second.\n", "x = 1. y = 2.\n"]
    assert len(found) == 5


def test_long_units_are_parted(tmp_path: Path) -> None:
    document = Document(text="word " * 200 + "x" * 300, source="a.md")
    corpus = corpus_of(tmp_path, [document], None)
    units = units_of(hits_of([whole(document)]), corpus, 100).units
    assert max(len(unit.text) for unit in units) <= 101
    assert "".join(unit.text for unit in units) == document.text
