"""What every selector promises, checked on every module of the room.

An action that starts with `skip-` leaves a candidate out, every other action takes it: that is how a ledger is
replayed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rag.embedders.hashing import HashingEmbedder
from rag.protocols import Selector
from rag.text import assemble
from rag.tokens import WordCounter
from rag.types import Bubble, Chunk, Document, Hit, Span
from tests.corpora import MemoryCorpus, plugins_of, topic_documents

EMBEDDER = HashingEmbedder(buckets=128)
COUNTER = WordCounter()
QUESTION = "Which parasite harms the hive in winter?"
BUDGETS = (1, 10, 25, 40, 60, 90, 130, 200, 400, 5000)
PLUGINS = plugins_of("retrievers.selectors")


@pytest.fixture(scope="module", params=list(PLUGINS))
def make(request: pytest.FixtureRequest) -> Callable[..., Selector]:
    """Makes the selector with another budget."""
    plugin = PLUGINS[request.param](embedder=EMBEDDER, counter=COUNTER)

    def with_budget(budget: int) -> Selector:
        made: Selector = dataclasses.replace(plugin, budget=budget)
        return made

    return with_budget


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MemoryCorpus]:
    """The topics as sentences and as pairs of sentences, laid over each other, and a copy of one document."""
    documents = topic_documents()
    documents.append(Document(text=documents[0].text, source="copy-of-bees.md"))
    chunks = [chunk for document in documents for chunk in overlapping(document)]
    yield (made := MemoryCorpus(tmp_path_factory.mktemp("selector"), documents, chunks, embedder=EMBEDDER))
    made.close()


def overlapping(document: Document) -> list[Chunk]:
    """A chunk for every sentence and one for every two neighbouring sentences, in reading order."""
    text = document.text
    ends = [at for at in range(1, len(text) + 1) if text[at - 1] == "." and text[at : at + 1] in ("", " ")]
    starts = [0, *ends[:-1]]
    single = list(zip(starts, ends, strict=True))
    pairs = list(zip(starts, ends[1:], strict=False))
    return [Chunk.cut(document, a, b, counter=COUNTER, chunker="sentence") for a, b in sorted(single + pairs)]


def hits_of(corpus: MemoryCorpus, order: Sequence[int]) -> list[Hit]:
    """Chunks of these rows as hits with falling scores."""
    chunks = corpus.chunks(list(order))
    return [
        Hit(chunk=chunk, score=round(1.0 - at / (len(chunks) + 1), 6), rank=at + 1, retriever="test")
        for at, chunk in enumerate(chunks)
    ]


def orders(size: int) -> Any:
    return st.lists(st.integers(0, size - 1), unique=True, max_size=24)


def covered(bubble: Bubble, hits: Sequence[Hit]) -> int:
    """Characters of the offered hits that are in the bubble, in their own document or as a copy of a chosen chunk."""
    chosen: dict[str, list[Span]] = {}
    copies: dict[str, int] = {}
    for hit, spans in zip(bubble.hits, bubble.spans, strict=True):
        chosen.setdefault(hit.chunk.doc_id, []).extend(spans)
        copies[hit.chunk.key] = sum(map(len, spans))
    total: dict[str, int] = {}
    for hit in hits:
        span = hit.chunk.span
        places = {at for one in chosen.get(hit.chunk.doc_id, ()) for at in range(one.start, one.end)}
        here = len(places & set(range(span.start, span.end)))
        total[hit.chunk.text] = max(total.get(hit.chunk.text, 0), here, copies.get(hit.chunk.key, 0))
    return sum(total.values())


ORDERS = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@ORDERS
@given(data=st.data())
def test_budget_ledger_and_order(make: Callable[..., Selector], corpus: MemoryCorpus, data: st.DataObject) -> None:
    hits = hits_of(corpus, data.draw(orders(len(corpus))))
    budget = data.draw(st.sampled_from(BUDGETS))
    bubble = make(budget).select(QUESTION, hits, corpus)
    assert bubble.question == QUESTION
    assert bubble.budget == budget
    assert bubble.token_count == COUNTER.count(assemble(bubble.texts)) <= budget
    check_spans(bubble)
    check_ledger(bubble, hits)
    check_source(bubble, hits, corpus)
    check_duplicates(bubble)
    assert [hit.chunk.id for hit in bubble.hits] == in_reading_order(bubble)


def check_spans(bubble: Bubble) -> None:
    """What is kept of a chunk lies in it, in order and apart, and no character of a document is chosen twice."""
    seen: set[tuple[str, int]] = set()
    for hit, spans in zip(bubble.hits, bubble.spans, strict=True):
        assert spans
        assert all(hit.chunk.span.contains(span) and len(span) for span in spans)
        assert all(left.end < right.start for left, right in pairwise(spans)), "touching parts are one"
        places = {(hit.chunk.doc_id, at) for span in spans for at in range(span.start, span.end)}
        if bubble.kept:
            assert not places & seen
        seen |= places


def check_ledger(bubble: Bubble, hits: Sequence[Hit]) -> None:
    decided = [(decision.chunk_id, decision.span) for decision in bubble.decisions]
    assert len(decided) == len(set(decided)), "one decision a candidate"
    assert {hit.chunk.id for hit in hits} <= {chunk_id for chunk_id, _ in decided}, "every candidate is decided"
    taken: dict[str, list[Span | None]] = {}
    for decision in bubble.decisions:
        if not decision.action.startswith("skip-"):
            taken.setdefault(decision.chunk_id, []).append(decision.span)
    assert taken.keys() == {hit.chunk.id for hit in bubble.hits}
    for hit, spans in zip(bubble.hits, bubble.spans, strict=True):
        parts = [one or hit.chunk.span for one in taken[hit.chunk.id]]
        replayed = {at for one in parts for at in range(one.start, one.end)}
        assert replayed == {at for one in spans for at in range(one.start, one.end)}
    assert all(decision.reason and decision.tokens >= 0 for decision in bubble.decisions)


def check_source(bubble: Bubble, hits: Sequence[Hit], corpus: MemoryCorpus) -> None:
    """Chosen are hits, or chunks of the corpus from documents of hits."""
    known = {hit.chunk.doc_id for hit in hits}
    for hit in bubble.hits:
        assert corpus.chunks(corpus.rows_of([hit.chunk.id])) == [hit.chunk]
        assert hit.chunk.doc_id in known


def check_duplicates(bubble: Bubble) -> None:
    keys = [hit.chunk.key for hit in bubble.hits]
    assert len(keys) == len(set(keys))
    for one in bubble.hits:
        for other in bubble.hits:
            if not bubble.kept and one is not other and one.chunk.doc_id == other.chunk.doc_id:
                assert not other.chunk.span.contains(one.chunk.span)


def in_reading_order(bubble: Bubble) -> list[str]:
    best: dict[str, int] = {}
    for hit in bubble.hits:
        best[hit.chunk.doc_id] = min(hit.rank, best.get(hit.chunk.doc_id, hit.rank))
    return [h.chunk.id for h in sorted(bubble.hits, key=lambda h: (best[h.chunk.doc_id], h.chunk.span))]


@ORDERS
@given(data=st.data())
def test_a_larger_budget_never_covers_less(
    make: Callable[..., Selector], corpus: MemoryCorpus, data: st.DataObject
) -> None:
    hits = hits_of(corpus, data.draw(orders(len(corpus))))
    sizes = [covered(make(budget).select(QUESTION, hits, corpus), hits) for budget in BUDGETS]
    assert sizes == sorted(sizes)


def test_enough_budget_covers_the_best_hit(make: Callable[..., Selector], corpus: MemoryCorpus) -> None:
    hits = hits_of(corpus, range(0, len(corpus), 3))
    bubble = make(5000).select(QUESTION, hits, corpus)
    assert covered(bubble, hits[:1]) == len(hits[0].chunk.text)


def test_same_input_same_bubble(make: Callable[..., Selector], corpus: MemoryCorpus) -> None:
    hits = hits_of(corpus, range(0, len(corpus), 2))
    assert make(120).select(QUESTION, hits, corpus) == make(120).select(QUESTION, hits, corpus)


def test_no_hits_empty_bubble(make: Callable[..., Selector], corpus: MemoryCorpus) -> None:
    assert make(100).select(QUESTION, [], corpus) == Bubble(
        question=QUESTION, hits=(), token_count=0, budget=100, decisions=()
    )


def test_one_hit(make: Callable[..., Selector], corpus: MemoryCorpus) -> None:
    [hit] = hits_of(corpus, [4])
    bubble = make(500).select(QUESTION, [hit], corpus)
    assert hit.chunk.id in {chosen.chunk.id for chosen in bubble.hits}


def test_copies_are_kept_once(make: Callable[..., Selector], corpus: MemoryCorpus) -> None:
    """The last document is a copy of the first: same keys, other ids."""
    [first] = corpus.chunks([0])
    copies = [row for row, chunk in enumerate(corpus.chunks(range(len(corpus)))) if chunk.key == first.key]
    assert len(copies) == 2
    bubble = make(5000).select(QUESTION, hits_of(corpus, copies), corpus)
    assert [hit.chunk.key for hit in bubble.hits].count(first.key) == 1


def test_works_without_vectors(make: Callable[..., Selector], corpus: MemoryCorpus, tmp_path: Path) -> None:
    chunks = corpus.chunks(range(len(corpus)))
    documents = [corpus.document(doc_id) for doc_id in dict.fromkeys(chunk.doc_id for chunk in chunks)]
    plain = MemoryCorpus(tmp_path, documents, chunks)
    hits = hits_of(plain, range(0, len(plain), 2))
    bubble = make(200).select(QUESTION, hits, plain)
    assert bubble.hits
    check_ledger(bubble, hits)
