"""Following names from a hit to what is about them: what the contract of retrievers does not say."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rag.embedders.hashing import HashingEmbedder
from rag.errors import ConfigError
from rag.protocols import Corpus, Filter, Searcher
from rag.tokens import WordCounter
from rag.types import Chunk, Document, Hit
from retrievers._names import capitals_in, inside, mentions_in, names_in, parts_of, subjects_of
from retrievers.bm25 import Bm25Retriever
from retrievers.bridge import BridgeRetriever
from retrievers.selectors.bubble import BubbleSelector
from tests.corpora import MemoryCorpus, topic_corpus

EMBEDDER = HashingEmbedder()
QUESTION = "Where was the director of the film Copper Morning born?"
FILM = "Copper Morning is a film of 1931 and the last work of Orla Venn."
PERSON = "Orla Venn (1890 to 1950) came from Tromvik."
NOISE = [f"The film number {at} was the work of a director who was born somewhere." for at in range(20)]


def made(**changes: Any) -> BridgeRetriever:
    return replace(BridgeRetriever(retriever=Bm25Retriever(), embedder=EMBEDDER), **changes)


def corpus_of(directory: Path, texts: list[str], embedder: HashingEmbedder | None = EMBEDDER) -> MemoryCorpus:
    documents = [Document(text=text, source=f"{at}.md", title=f"note {at}") for at, text in enumerate(texts)]
    return topic_corpus(directory, embedder, documents)


def found(retriever: Any, corpus: MemoryCorpus, question: str = QUESTION, k: int = 5, **where: Any) -> list[str]:
    searcher = retriever.open(corpus)
    try:
        return [hit.chunk.text for hit in searcher.search(question, k, **where)]
    finally:
        searcher.close()


@pytest.mark.parametrize("embedder", [EMBEDDER, None])
def test_a_chunk_that_shares_no_word_with_the_question_is_reached_by_name(
    tmp_path: Path, embedder: HashingEmbedder | None
) -> None:
    corpus = corpus_of(tmp_path, [*NOISE, FILM, PERSON], embedder)
    assert PERSON not in found(Bm25Retriever(), corpus, k=100)
    assert found(made(embedder=embedder), corpus, k=2) == [FILM, PERSON]
    assert PERSON not in found(made(embedder=embedder, links=0), corpus, k=100)


def test_the_scale_of_the_first_round_does_not_matter(tmp_path: Path) -> None:
    """Cosines, sums and logits alike: twice the scores less 40 is the same first round."""

    class Moved(Searcher):
        def __init__(self, inner: Searcher) -> None:
            self.inner = inner

        def search(self, question: str, k: int, where: Filter | None = None) -> list[Hit]:
            return [replace(hit, score=2 * hit.score - 40) for hit in self.inner.search(question, k, where)]

        def close(self) -> None:
            self.inner.close()

    class Scaled(Bm25Retriever):
        def open(self, corpus: Corpus) -> Searcher:
            return Moved(super().open(corpus))

    corpus = corpus_of(tmp_path, [*NOISE, FILM, PERSON])
    assert found(made(retriever=Scaled()), corpus, k=30) == found(made(), corpus, k=30)


def test_a_bubble_gives_credit_to_what_a_link_reached(tmp_path: Path) -> None:
    corpus = corpus_of(tmp_path, [*NOISE, FILM, PERSON])
    searcher = made().open(corpus)
    hits = searcher.search(QUESTION, 100)
    searcher.close()
    plain = BubbleSelector(counter=WordCounter(), budget=15)
    held = ["".join(replace(plain, linked=linked).select(QUESTION, hits, corpus).texts) for linked in (0.0, 100.0)]
    assert [PERSON in text for text in held] == [False, True]


def test_a_filter_binds_what_is_looked_up(tmp_path: Path) -> None:
    texts = [*NOISE, FILM, PERSON]
    corpus = corpus_of(tmp_path, texts)
    allowed = {"source": {"ne": f"{texts.index(PERSON)}.md"}}
    assert PERSON in found(made(), corpus, k=30)
    assert PERSON not in found(made(), corpus, k=30, where=allowed)


def test_a_chunk_about_a_name_of_the_question_rises(tmp_path: Path) -> None:
    about = "Orla Venn and the boats of the northern islands, told by those who sailed with her for many years."
    said = "A talk with Orla Venn."
    corpus = corpus_of(tmp_path, ["Orla Venn sailed. Orla Venn rowed.", said, said + " Boats.", about])
    question = "boats Orla Venn talk with"
    without, rising = (found(made(named=named, links=0), corpus, question, 4) for named in (0.0, 1.0))
    assert rising.index(about) < without.index(about)
    assert rising[0] == without[0]


def test_where_nothing_links_the_order_is_that_of_the_inner_retriever(tmp_path: Path) -> None:
    texts = ["salt and water", "water and flour", "flour, water, salt and time", "an oven"]
    corpus = corpus_of(tmp_path, texts)
    assert found(made(), corpus, "water, salt") == found(Bm25Retriever(), corpus, "water, salt")


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("It was led by Ann de la Cour, of Tromvik.", [("it",), ("ann", "de", "la", "cour"), ("tromvik",)]),
        ("the University of Tromvik", [("university", "of", "tromvik")]),
        ("a film of 1931, no name", []),
        ("Ann. Bert", [("ann",), ("bert",)]),
        ("", []),
    ],
)  # fmt: skip
def test_names_are_runs_of_capitalised_words(text: str, names: list[tuple[str, ...]]) -> None:
    assert names_in(text) == names


def test_a_text_without_cased_letters_is_one_run() -> None:
    [name] = names_in("蜂の巣は暖かい")
    assert inside(("蜂",), name)
    assert not inside(("巣", "蜂"), name)


def test_what_a_chunk_is_about() -> None:
    document = Document(text="The Long Voyage is a play.", source="x.txt", title="Long_Voyage_play")
    chunk = Chunk.cut(document, 0, len(document.text), counter=WordCounter(), chunker="test")
    assert subjects_of(chunk, document) == {("long", "voyage", "play"), ("long", "voyage")}


def test_the_first_name_counts_only_where_a_document_or_section_opens() -> None:
    document = Document(text="# Boats\n\nThe Long Voyage is a play. Orla Venn wrote it.", source="x.md", title="note")
    at = document.text.index("Orla")
    opening, middle = (
        Chunk.cut(document, start, len(document.text), counter=WordCounter(), chunker="test") for start in (0, at)
    )
    assert subjects_of(opening, document) > {("note",)}
    assert subjects_of(middle, document) == {("note",)}


@pytest.mark.parametrize(
    ("sentence", "names", "capitals"),
    [
        ("After that, Ann Bell sang.", [("ann", "bell")], {"ann", "bell"}),
        ("Ann Bell sang.", [("ann", "bell")], {"ann", "bell"}),
        ("He sang.", [], set()),
        ("It was led by E. V. Bell", [("e",), ("v",), ("bell",)], {"e", "v", "bell"}),
        ("", [], set()),
    ],
)
def test_a_word_that_opens_a_sentence_is_not_yet_a_name(
    sentence: str, names: list[tuple[str, ...]], capitals: set[str]
) -> None:
    assert mentions_in(sentence) == names
    assert capitals_in(sentence) == capitals


@pytest.mark.parametrize(("said", "links"), [("baker", 0), ("Baker", 1)])
def test_a_link_needs_the_capital(tmp_path: Path, said: str, links: int) -> None:
    texts = [*NOISE, f"Copper Morning is a film with the {said} in it.", "Baker, of the film."]
    searcher = made().open(corpus_of(tmp_path, texts))
    try:
        assert sum("link.rank" in hit.parts for hit in searcher.search(QUESTION, 100)) == links
    finally:
        searcher.close()


def test_parts_of_a_name() -> None:
    assert sorted(parts_of([("a", "b"), ("b",)])) == [("a",), ("a", "b"), ("b",)]


@pytest.mark.parametrize(
    "changes", [{"k": 0}, {"seeds": 0}, {"links": -1}, {"named": 1.5}, {"weight": -0.1}, {"pool": -1}, {"rrf_k": -1}]
)
def test_ranges(changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="bridge"):
        made(**changes)
