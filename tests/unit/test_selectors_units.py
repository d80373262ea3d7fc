"""The parts that bubbles are made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eval.bench._select_parts import worked
from rag.embedders.hashing import HashingEmbedder
from rag.registry import build
from rag.spans.units import units_of
from rag.text import SentenceStarts, assemble
from rag.tokens import RememberingCounter, WordCounter
from rag.types import Block, Chunk, Document, Hit, Span
from tests.corpora import MemoryCorpus
from tests.unit.test_selectors_bubble import corpus_of, hits_of, whole, windows

if TYPE_CHECKING:
    from rag.protocols import Vectors


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


def test_a_twin_is_the_same_text_of_another_document_and_shared_first_words_are_not_enough(tmp_path: Path) -> None:
    texts = ("Tea is sold here. Milk is sold here.", "Tea is  sold\nhere. Tea is sold there.", "Tea is sold here.")
    documents = [Document(text=text, source=f"{number}.md") for number, text in enumerate(texts)]
    corpus = corpus_of(tmp_path, documents, None)
    found = units_of(hits_of([whole(one) for one in documents]), corpus, 600)
    said = {(unit.doc_id, " ".join(unit.text.split())): number for number, unit in enumerate(found.units)}
    first = said[documents[0].id, "Tea is sold here."]
    twins = {number: twin for number, twin in enumerate(found.twins) if twin >= 0}
    assert twins == {said[document.id, "Tea is sold here."]: first for document in documents[1:]}


def test_a_copy_has_the_header_too(tmp_path: Path) -> None:
    text = "Tea is sold here."
    documents = [Document(text=text, source=f"{number}.md") for number in range(3)]
    chunks = [
        Chunk.cut(document, 0, len(text), counter=WordCounter(), chunker="x", header=header)
        for document, header in zip(documents, ("", "", "Shop"), strict=True)
    ]
    found = units_of(hits_of(chunks), MemoryCorpus(tmp_path, documents, chunks), 600)
    assert found.copies == {1: chunks[0].id}


def _plain(document: Document, hits: Sequence[Hit]) -> list[tuple[Span, int, tuple[int, ...], int]]:
    """(span, owner, holders, weight) of the units of one document, by looking at every hit for every unit."""
    spans = [hit.chunk.span for hit in hits]
    starts = SentenceStarts(document)
    found: list[tuple[Span, int, tuple[int, ...], int]] = []
    at, owner = min(span.start for span in spans), -1
    stop = max(span.end for span in spans)
    while at < stop:
        if not any(span.start <= at < span.end for span in spans):
            at, owner = min(span.start for span in spans if span.start > at), -1
            continue
        end = at
        while end < stop and any(span.start <= end < span.end or span.end == end > at for span in spans):
            end += 1  # to the end of the region
        ends = [*starts.between(at, end), end]
        visible = at + len(document.text[at:end]) - len(document.text[at:end].lstrip())
        end = next((cut for cut in ends if cut > visible), ends[-1])
        says = at + len(document.text[at:end].rstrip())
        here = [place for place, span in enumerate(spans) if span.start <= at < span.end]
        holders = [place for place in here if spans[place].end >= says]
        if owner not in holders:
            ordered = sorted(here, key=lambda place: (spans[place].start, -spans[place].end, place))
            fresh = not any(unit[0].end == at for unit in found)
            first = ordered[0] if fresh and ordered[0] in holders else None
            owner = max(holders or here, key=lambda p: (spans[p].end, -p)) if first is None else first
        span = Span(at, min(end, spans[owner].end))
        weight = sum(max(0, min(one.end, span.end) - max(one.start, span.start)) for one in spans)
        found.append((span, owner, tuple(holders or [owner]), weight))
        at = span.end
    return found


@given(st.data())
def test_units_are_those_of_a_plain_search(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    parts = st.sampled_from(["One is. ", "Two are here.  ", "x", "\n\n", "word ", "A b c. ", "字。"])
    text = "Start. " + "".join(data.draw(st.lists(parts, min_size=2, max_size=20)))
    document = Document(text=text, source="a.md")
    edges = st.tuples(st.integers(0, len(text) - 1), st.integers(1, 40))
    drawn = data.draw(st.lists(edges, min_size=1, max_size=6))
    spans = dict.fromkeys((start, min(len(text), start + size)) for start, size in drawn)
    chunks = [Chunk.cut(document, a, b, counter=WordCounter(), chunker="x") for a, b in spans]
    unique = list({chunk.text: chunk for chunk in chunks}.values())  # copies are left out
    hits = hits_of(unique)
    corpus = MemoryCorpus(tmp_path_factory.mktemp("units"), [document], unique)
    found = [(unit.span, unit.owner, unit.holders, unit.weight) for unit in units_of(hits, corpus, 600).units]
    assert found == _plain(document, hits)


class _Counting(RememberingCounter):
    """Notes how many characters are tokenised, and how often."""

    additive = True
    name, limit = "words", None

    def __init__(self) -> None:
        self.calls = self.characters = 0
        self._inner = WordCounter()

    def count(self, text: str) -> int:
        self.calls += 1
        self.characters += len(text)
        return self._inner.count(text)

    def offsets(self, text: str) -> list[tuple[int, int]]:
        self.calls += 1
        self.characters += len(text)
        return self._inner.offsets(text)


@dataclass(frozen=True, kw_only=True)
class _Asked(HashingEmbedder):
    """Notes how many texts every call embeds."""

    texts: list[int] = field(default_factory=list)

    def embed(self, texts: Sequence[str]) -> Vectors:
        self.texts.append(len(texts))
        return super().embed(texts)


def _hundred(folder: Path) -> tuple[MemoryCorpus, list[Hit]]:
    """100 hits of five sentences each, every word of its own document and place."""
    documents = []
    for number in range(10):
        said = [f"Mill {number} ground {at} sacks of wheat{number}x{at} for baker{at}. " for at in range(50)]
        documents.append(Document(text="".join(said), source=f"{number}.md"))
    chunks = []
    for document in documents:
        starts = [0, *SentenceStarts(document).between(0, len(document.text)), len(document.text)][::5]
        chunks += [Chunk.cut(document, a, b, counter=WordCounter(), chunker="x") for a, b in pairwise(starts)]
    return MemoryCorpus(folder, documents, chunks), hits_of(chunks)


@pytest.mark.parametrize("use", ["bubble", "mig"])
def test_work_for_a_hundred_hits(use: str, tmp_path: Path) -> None:
    """Counted: the pool is tokenised once and embedded at once, few gains are computed, no text is assembled to try."""
    corpus, hits = _hundred(tmp_path)
    assert len(hits) == 100
    counter, embedder = _Counting(), _Asked()
    spec = {"use": use, "budget": 300, "pool": 160}
    selector = build("selector", spec, services={"counter": counter, "embedder": embedder})
    with worked() as work:
        bubble = selector.select("Which mill ground wheat for baker7?", hits, corpus)
    units = [decision for decision in bubble.decisions if decision.span is not None]
    taken = sum(decision.action in ("take", "expand") for decision in units)
    assert (len(units), sorted(embedder.texts)) == (160, [1, 160])
    assert taken > 20
    assert bubble.token_count == WordCounter().count(assemble(bubble.texts)) <= 300
    pool = sum(len(decision.span) for decision in units if decision.span is not None)
    # the separator, the pool, the final text; an edge word or two
    assert counter.calls <= 6
    assert counter.characters <= pool + sum(map(len, bubble.texts)) + 200
    assert work["gains"] <= 160 + 20 * taken  # a plain greedy search computes 160 for each that is taken
    assert {decision.tokens for decision in bubble.decisions if decision.span is None} == {0}


@pytest.mark.parametrize("use", ["top-k", "mmr"])
def test_whole_chunks_are_tokenised_once(use: str, tmp_path: Path) -> None:
    corpus, hits = _hundred(tmp_path)
    counter = _Counting()
    bubble = build("selector", {"use": use, "budget": 400}, services={"counter": counter}).select("x", hits, corpus)
    offered = [decision for decision in bubble.decisions if decision.tokens]
    texts = {hit.chunk.id: hit.chunk.text for hit in hits}
    assert len(bubble.hits) > 2
    assert counter.characters <= sum(len(texts[decision.chunk_id]) for decision in offered) + 10
    assert bubble.token_count == WordCounter().count(assemble(bubble.texts)) <= 400


def test_a_seam_without_white_space_is_counted_as_it_is(tmp_path: Path) -> None:
    """Units are cut inside of a word: the counts of the parts do not add up, the budget holds nonetheless."""
    text = "x" * 90 + " end."
    document = Document(text=text, source="a.md")
    corpus = corpus_of(tmp_path, [document], None)
    for budget in range(1, 8):
        spec = {"use": "bubble", "budget": budget, "unit_chars": 20}
        bubble = build("selector", spec, services={"counter": WordCounter()}).select(
            "end", hits_of([whole(document)]), corpus
        )
        assert bubble.token_count == WordCounter().count(assemble(bubble.texts)) <= budget
        if budget >= 3:
            assert bubble.texts == (text,)  # one word, the next, and the mark: three, where the parts count seven
