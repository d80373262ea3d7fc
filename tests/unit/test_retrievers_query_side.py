"""Variants of a question, feedback words, made-up passages: what the contract of retrievers does not say."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rag.embedders.hashing import HashingEmbedder
from rag.errors import ConfigError
from rag.registry import build
from rag.text import lexical_words
from retrievers._variants import RULES, decompose, keywords, variants_of
from retrievers.bm25 import Bm25Retriever
from retrievers.faiss_dense import FaissDenseRetriever
from retrievers.hybrid import HybridRetriever
from retrievers.hyde import HydeRetriever
from retrievers.multi_query import MultiQueryRetriever
from retrievers.prf import PrfRetriever, telling_words
from tests.corpora import MemoryCorpus, topic_corpus
from tests.fakes import FakeGenerator, FakeModel

EMBEDDER = HashingEmbedder()
BM25 = Bm25Retriever()


@pytest.fixture
def corpus(tmp_path: Path) -> MemoryCorpus:
    return topic_corpus(tmp_path, EMBEDDER)


@pytest.mark.parametrize(
    ("question", "parts"),
    [
        ("What is a weigh cell and who signs it?", ["What is a weigh cell?", "who signs it?"]),
        ("Who wrote it? When was it printed?", ["Who wrote it?", "When was it printed?"]),
        ("Which is heavier, AB-200 or AB-300?", ["AB-200 heavier", "AB-300 heavier"]),
        ("What is the difference between rye and wheat?", ["rye", "wheat"]),
        ("Compare arch bridges with suspension bridges.", ["arch bridges", "suspension bridges"]),
        ("Sourdough vs yeast", ["Sourdough", "yeast"]),
        ("Were Ann Derrick and Ed Wood of the same trade?", ["Ann Derrick same trade", "Ed Wood same trade"]),
        ("How much salt and flour does a loaf need?", []),
        ("Who approves travel above 5,000 EUR?", []),
        ("", []),
    ],
)  # fmt: skip
def test_double_questions_and_comparisons_are_taken_apart(question: str, parts: list[str]) -> None:
    assert decompose(question) == parts


def test_keywords_keep_names_numbers_and_order() -> None:
    assert keywords("What is the 30-month warranty of Korvane's AB-200?") == "30-month warranty Korvane's AB-200"
    assert keywords("what is it?") == ""


@pytest.mark.parametrize("most", [1, 3, 9])
def test_variants_are_other_words_than_the_question(most: int) -> None:
    question = "What did Ingrid Solvang and Tobias Renn sign in 2023, and who approved it?"
    made = variants_of(question, RULES, most)
    assert 0 < len(made) <= most
    words = [tuple(lexical_words(one)) for one in (question, *made)]
    assert len(set(words)) == len(words)
    assert variants_of(question, RULES, most) == made


@pytest.mark.parametrize(
    "text", ["", "?", "蜂の巣", "\x00 and who", "A" * 5000, " and who" * 400, "a, " * 900 + "x or y?", "Ab " * 2000]
)
def test_no_text_breaks_the_rules(text: str) -> None:
    assert len(variants_of(text, RULES, 4)) <= 4


def test_multi_query_finds_both_halves_of_a_double_question(corpus: MemoryCorpus) -> None:
    """BM25 alone gives both places to the half with more words."""
    question = "What hangs its deck from vertical cables between two main towers, and what is a lahar?"
    found = {}
    for retriever in (BM25, MultiQueryRetriever(retriever=BM25)):
        hits = retriever.open(corpus).search(question, 2)
        found[hits[0].retriever] = [corpus.document(hit.chunk.doc_id).source for hit in hits]
    assert found == {"bm25": ["bridges.md", "bridges.md"], "multi-query": ["bridges.md", "volcano.md"]}
    assert any(name.startswith("variant") for name in hits[0].parts)


def test_agreement_of_the_parts_counts_with_sum_only(corpus: MemoryCorpus) -> None:
    """By `max` a variant adds the reciprocal of its best rank, by `sum` those of all variants."""
    question = "Which is older, sourdough yeast or arch bridges?"
    most = MultiQueryRetriever(retriever=BM25, weight=0.5, rrf_k=60)
    for fusion, merge in (("max", max), ("sum", lambda *values: sum(values))):
        for hit in replace(most, fusion=fusion).open(corpus).search(question, 20):
            ranks = [
                value for name, value in hit.parts.items() if name.startswith("variant") and name.endswith(".rank")
            ]
            own = 1 / (60 + hit.parts["question.rank"]) if "question" in hit.parts else 0.0
            assert hit.score == pytest.approx(own + merge(*(0.5 / (60 + rank) for rank in ranks), 0.0, 0.0))


def test_multi_query_takes_what_a_model_writes(corpus: MemoryCorpus) -> None:
    written = '1. "varroa mite parasite"\n- drone brood removal\n\nvarroa mite parasite\nWhich pest?\n'
    model = FakeModel(None, written)
    retriever = MultiQueryRetriever(retriever=BM25, generator=FakeGenerator(model=model), rules=("model",))
    made = retriever.variants("Which pest?")
    assert made[:2] == ("varroa mite parasite", "drone brood removal")
    assert "Which pest?" not in made
    assert any("varroa" in hit.chunk.text for hit in retriever.open(corpus).search("Which pest?", 3))
    assert "Question: Which pest?" in model.prompts[0]


@pytest.mark.parametrize("kind", ["hyde", "multi-query"])
def test_without_a_model_the_error_names_the_cure(kind: str, corpus: MemoryCorpus) -> None:
    spec: dict[str, Any] = {"use": kind, "retriever": "faiss-dense"} | ({"rules": ["model"]} if kind != "hyde" else {})
    plugin = build("retriever", spec, services={"embedder": EMBEDDER})
    with pytest.raises(ConfigError, match="generator: local"):
        plugin.open(corpus)


@pytest.mark.parametrize(
    ("plugin", "wrong"),
    [
        (MultiQueryRetriever, {"rules": ("guess",)}),
        (MultiQueryRetriever, {"rules": ()}),
        (MultiQueryRetriever, {"weight": 0.0}),
        (MultiQueryRetriever, {"fusion": "mean"}),
        (MultiQueryRetriever, {"max_variants": 0}),
        (PrfRetriever, {"terms": 0}),
        (PrfRetriever, {"weight": 1.5}),
        (PrfRetriever, {"pool": -1}),
        (HydeRetriever, {"passages": 4}),
        (HydeRetriever, {"max_tokens": 0}),
    ],
)
def test_ranges(plugin: Any, wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        plugin(retriever=BM25, **wrong)


def test_feedback_words_are_in_the_hits_and_not_in_the_question(corpus: MemoryCorpus) -> None:
    question = "varroa mite"
    hits = BM25.open(corpus).search(question, 3)
    words = telling_words(question, hits, corpus, 5)
    assert len(words) == 5
    held = set(lexical_words(" ".join(hit.chunk.text for hit in hits)))
    assert set(words) <= held - {"varroa", "mite", "the", "of", "it", "is"}


def test_feedback_adds_a_weighted_score(corpus: MemoryCorpus) -> None:
    """score = score(question) + weight * score(feedback words), and a chunk that only they find comes up."""
    retriever = PrfRetriever(retriever=BM25, weight=0.3, terms=40)
    plain = {hit.chunk.id: hit.score for hit in BM25.open(corpus).search("magma", 50)}
    hits = retriever.open(corpus).search("magma", 50)
    for hit in hits:
        expected = hit.parts.get("question", 0.0) + 0.3 * hit.parts.get("feedback", 0.0)
        assert hit.score == pytest.approx(expected)
        assert hit.parts.get("question", 0.0) == pytest.approx(plain.get(hit.chunk.id, 0.0))
    assert len(hits) > len(plain)


def test_hyde_asks_with_the_mean_vector(corpus: MemoryCorpus) -> None:
    generator = FakeGenerator(model=FakeModel(None, "varroa mite parasite of the hive " * 10))
    dense = FaissDenseRetriever(embedder=EMBEDDER)
    hits = HydeRetriever(retriever=dense, generator=generator, max_tokens=8).open(corpus).search("Which pest?", 5)
    written = generator.model.complete(generator.model.prompts[0], max_tokens=8)
    total = EMBEDDER.embed_question("Which pest?") + EMBEDDER.embed_question(written.strip())
    mean = total / np.linalg.norm(total)
    rows, matrix = corpus.vectors()
    best = sorted(zip(-(matrix @ mean).round(6), rows, strict=True))[:5]
    assert corpus.rows_of([hit.chunk.id for hit in hits]) == [int(row) for _, row in best]
    assert "varroa" in hits[0].chunk.text
    assert {hit.retriever for hit in hits} == {"hyde"}


def test_hyde_leaves_lexical_parts_their_question(corpus: MemoryCorpus) -> None:
    generator = FakeGenerator(model=FakeModel(None, "varroa mite " * 10))
    hybrid = HybridRetriever(parts=(FaissDenseRetriever(embedder=EMBEDDER), BM25))
    hits = HydeRetriever(retriever=hybrid, generator=generator).open(corpus).search("copper pest", 5)
    assert hits
    assert all("bm25" not in hit.parts for hit in hits)  # no chunk says a word of the question
    assert len(generator.model.prompts) == 1


def test_hyde_needs_something_dense(corpus: MemoryCorpus) -> None:
    with pytest.raises(ConfigError, match="must be dense"):
        HydeRetriever(retriever=BM25, generator=FakeGenerator()).open(corpus)


def test_more_passages_are_more_prompts(corpus: MemoryCorpus) -> None:
    generator = FakeGenerator()
    dense = FaissDenseRetriever(embedder=EMBEDDER)
    hyde = HydeRetriever(retriever=dense, generator=generator)
    assert replace(hyde, passages=3).open(corpus).search("Which pest?", 3)
    assert len(set(generator.model.prompts)) == 3
