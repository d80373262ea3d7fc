"""Rerankers: the mix of two scores, and what each method measures."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from rag.embedders.hashing import HashingEmbedder
from rag.errors import ConfigError, MissingError
from rag.protocols import Corpus, Filter, Retriever, Searcher
from rag.tokens import WordCounter
from rag.types import Chunk, Document, Hit
from retrievers import cross_encoder, late_interaction
from retrievers._rerank import min_max
from retrievers.bm25 import Bm25Retriever
from retrievers.cross_encoder import CrossEncoderRetriever
from retrievers.late_interaction import LateInteractionRetriever
from retrievers.query_likelihood import QueryLikelihoodRetriever
from tests.corpora import MemoryCorpus, plugins_of
from tests.fakes import FakeGenerator, FakeModel, WithinEmbedder

TEXTS = (
    "The mill ground rye and barley for the village.",
    "The copper price of the mill rose in March.",
    "Copper was dear. In another year the mill had a fire, and the price of grain fell.",
    "Nobody kept a ledger of the price.",
)
QUESTION = "What was the copper price of the mill?"


class Fixed(Retriever):
    """Finds all chunks of a view in row order, with the scores that it is given."""

    k = 10

    def __init__(self, scores: Sequence[float]) -> None:
        self.scores = scores
        self.asked: list[tuple[int, Filter | None]] = []

    def open(self, corpus: Corpus) -> Searcher:
        return FixedSearcher(self, corpus)


class FixedSearcher(Searcher):
    def __init__(self, retriever: Fixed, corpus: Corpus) -> None:
        self._retriever, self._corpus = retriever, corpus

    def close(self) -> None:
        pass

    def search(self, question: str, k: int, where: Filter | None = None) -> list[Hit]:
        self._retriever.asked.append((k, where))
        chunks = self._corpus.chunks([int(row) for row in self._corpus.rows(where)][:k])
        pairs = enumerate(zip(chunks, self._retriever.scores, strict=False), start=1)
        return [
            Hit(chunk=chunk, score=score, rank=rank, retriever="fixed", parts={"own": 9.0})
            for rank, (chunk, score) in pairs
        ]


class Pairs:
    """A cross-encoder that gives the logits it is told, by the first word of the text."""

    def __init__(self, logits: dict[str, float], max_length: int | None = None) -> None:
        self.logits, self.max_length = logits, max_length
        self.calls: list[tuple[int, int]] = []

    def predict(
        self, pairs: list[tuple[str, str]], *, batch_size: int, show_progress_bar: bool, activation_fn: Any
    ) -> Any:
        self.calls.append((len(pairs), batch_size))
        return activation_fn(np.array([self.logits[text.split()[0]] for _, text in pairs]))

    def tokenizer(self, questions: list[str], texts: list[str], *, truncation: bool, verbose: bool) -> Any:
        assert not truncation
        return {"input_ids": [[0] * len(f"{a} {b}".split()) for a, b in zip(questions, texts, strict=True)]}


def corpus_of(directory: Path, texts: Sequence[str] = TEXTS, *, embedder: Any = None) -> MemoryCorpus:
    documents = [Document(text=text, source=f"{at}.md", meta={"number": at}) for at, text in enumerate(texts)]
    chunks = [Chunk.cut(d, 0, len(d.text), counter=WordCounter(), chunker="whole") for d in documents]
    return MemoryCorpus(directory, documents, chunks, embedder=embedder)


def found(retriever: Any, corpus: Corpus, question: str = QUESTION, k: int = 10, where: Filter | None = None) -> Any:
    searcher = retriever.open(corpus)
    try:
        return searcher.search(question, k, where)
    finally:
        searcher.close()


def rows(corpus: Corpus, hits: Sequence[Hit]) -> list[int]:
    return corpus.rows_of([hit.chunk.id for hit in hits])


@pytest.fixture
def pairs(monkeypatch: pytest.MonkeyPatch) -> Pairs:
    model = Pairs({"The": 0.0, "Copper": 2.0, "Nobody": -3.0})
    monkeypatch.setattr(cross_encoder, "load_cross_encoder", lambda name: model)
    return model


# the base


@pytest.mark.parametrize(("weight", "order"), [(1.0, [2, 0, 1, 3]), (0.2, [0, 1, 2, 3])])
def test_the_two_scores_are_mixed(tmp_path: Path, pairs: Pairs, weight: float, order: list[int]) -> None:
    """Ties go by row, and both scores stand in the parts."""
    corpus, inner = corpus_of(tmp_path), Fixed([8.0, 7.0, 4.0, 0.0])
    hits = found(CrossEncoderRetriever(model="m", retriever=inner, weight=weight), corpus)
    assert rows(corpus, hits) == order
    second = {0: 0.5, 1: 0.5, 2: 1 / (1 + math.exp(-2.0)), 3: 1 / (1 + math.exp(3.0))}
    first = dict(enumerate([1.0, 0.875, 0.5, 0.0]))
    for row, hit in zip(order, hits, strict=True):
        assert hit.score == pytest.approx(weight * second[row] + (1 - weight) * first[row], abs=2e-6)
        assert hit.parts["cross-encoder"] == pytest.approx(second[row])
        assert hit.parts["fixed"] == inner.scores[row]
        assert (hit.parts["fixed.rank"], hit.parts["own"]) == (row + 1.0, 9.0)
        assert hit.retriever == "cross-encoder"


def test_only_the_pool_is_scored_and_the_rest_follows(tmp_path: Path, pairs: Pairs) -> None:
    corpus, inner = corpus_of(tmp_path), Fixed([8.0, 7.0, 4.0, 0.0])
    hits = found(CrossEncoderRetriever(model="m", retriever=inner, pool=2, batch_size=7), corpus, k=4)
    assert pairs.calls == [(2, 7)]
    assert rows(corpus, hits) == [0, 1, 2, 3]
    assert hits[3].score < hits[2].score < 0
    assert "cross-encoder" not in hits[2].parts
    assert hits[2].parts["fixed"] == 4.0
    assert [hit.rank for hit in hits] == [1, 2, 3, 4]


def test_the_pool_is_wider_than_k_and_the_filter_goes_inside(tmp_path: Path, pairs: Pairs) -> None:
    corpus, inner = corpus_of(tmp_path), Fixed([8.0, 7.0, 4.0, 0.0])
    where = {"meta.number": {"gt": 0}}
    hits = found(CrossEncoderRetriever(model="m", retriever=inner), corpus, k=1, where=where)
    assert inner.asked == [(50, where)]
    assert rows(corpus, hits) == [2]


def test_a_score_that_is_no_number_counts_as_the_worst(tmp_path: Path, pairs: Pairs) -> None:
    pairs.logits["Copper"] = math.nan
    corpus = corpus_of(tmp_path)
    hits = found(CrossEncoderRetriever(model="m", retriever=Fixed([4.0, 3.0, 2.0, 1.0])), corpus)
    assert rows(corpus, hits) == [0, 1, 2, 3]
    assert hits[2].score == hits[3].score == pytest.approx(1 / (1 + math.exp(3.0)), abs=1e-6)


def test_scaling() -> None:
    assert min_max([]) == []
    assert min_max([2.0, 2.0]) == [1.0, 1.0]
    assert min_max([3.0, 1.0, 2.0]) == [1.0, 0.0, 0.5]


@pytest.mark.parametrize("name", ["cross-encoder", "query-likelihood", "late-interaction", "rule-rerank"])
@pytest.mark.parametrize("bad", [{"k": 0}, {"pool": 0}, {"weight": 0.0}, {"weight": 1.5}])
def test_ranges(name: str, bad: dict[str, Any]) -> None:
    made = plugins_of("retrievers")[name](embedder=HashingEmbedder(), counter=WordCounter(), generator=FakeGenerator())
    with pytest.raises(ConfigError, match=f"{name}.*{next(iter(bad))}"):
        replace(made, **bad)
    assert made.uses_vectors  # as hybrid inside
    assert not replace(made, retriever=Bm25Retriever()).uses_vectors


# cross-encoder


def test_a_cross_encoder_needs_a_model(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Set model to a folder or to a hub id"):
        CrossEncoderRetriever(retriever=Bm25Retriever()).open(corpus_of(tmp_path))
    with pytest.raises(ConfigError, match="batch_size"):
        CrossEncoderRetriever(retriever=Bm25Retriever(), batch_size=0)


def test_the_model_is_loaded_at_the_first_search_and_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loads: list[str] = []

    def load(name: str) -> Pairs:
        loads.append(name)
        return Pairs({"The": 0.0, "Copper": 2.0, "Nobody": -3.0})

    monkeypatch.setattr(cross_encoder, "load_cross_encoder", load)
    searcher = CrossEncoderRetriever(model="a/b", retriever=Bm25Retriever()).open(corpus_of(tmp_path))
    assert loads == []
    assert searcher.search(QUESTION, 3) == searcher.search(QUESTION, 3)
    assert loads == ["a/b"]


def test_truncation_is_reported(tmp_path: Path, pairs: Pairs) -> None:
    pairs.max_length = 18  # the question has 8 words
    hits = found(CrossEncoderRetriever(model="m", retriever=Fixed([4.0, 3.0, 2.0, 1.0])), corpus_of(tmp_path))
    lost = {hit.chunk.text: hit.parts["cross-encoder.truncated"] for hit in hits}
    assert lost == {text: float(max(0, 8 + len(text.split()) - 18)) for text in TEXTS}
    assert max(lost.values()) > 0


def test_logits_of_any_size() -> None:
    assert cross_encoder._logistic(-1e4) == 0.0
    assert cross_encoder._logistic(1e4) == 1.0
    assert cross_encoder._logistic(0.0) == 0.5
    assert math.isnan(cross_encoder._logistic(math.nan))


def test_a_model_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cache is asked first, then the hub; a folder is never looked for on the hub; no pickles."""
    tried: list[tuple[str, bool]] = []

    def absent(name: str, *, local_files_only: bool, model_kwargs: dict[str, Any]) -> Any:
        assert model_kwargs == {"use_safetensors": True}
        tried.append((name, local_files_only))
        raise OSError("no connection")

    monkeypatch.setitem(sys.modules, "sentence_transformers", SimpleNamespace(CrossEncoder=absent))
    with pytest.raises(MissingError, match=r"no connection.*hf download no/model"):
        cross_encoder.load_cross_encoder("no/model")
    with pytest.raises(MissingError, match="folder"):
        cross_encoder.load_cross_encoder(str(tmp_path))
    assert tried == [("no/model", True), ("no/model", False), (str(tmp_path), True)]
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(MissingError, match=r"chunkwise\[local\]"):
        cross_encoder.load_cross_encoder("no/model")


def test_a_model_of_several_numbers_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    made = SimpleNamespace(CrossEncoder=lambda name, **_: SimpleNamespace(num_labels=3))
    monkeypatch.setitem(sys.modules, "sentence_transformers", made)
    with pytest.raises(ConfigError, match="3 numbers a pair"):
        cross_encoder.load_cross_encoder("nli/model")


@pytest.mark.slow
def test_a_real_cross_encoder(tmp_path: Path) -> None:
    """A tiny one with random weights: loaded from its folder, its own sigmoid not applied twice."""
    made: Any = pytest.importorskip("sentence_transformers")
    built: Any = pytest.importorskip("transformers")
    words = sorted({word for text in (*TEXTS, QUESTION) for word in text.lower().replace(".", " .").split()})
    vocabulary = tmp_path / "vocab.txt"
    vocabulary.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]))
    size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = built.BertConfig(vocab_size=5 + len(words), max_position_embeddings=24, num_labels=1, **size)
    built.BertForSequenceClassification(config).save_pretrained(tmp_path / "model")
    built.BertTokenizerFast(str(vocabulary), model_max_length=24).save_pretrained(tmp_path / "model")
    corpus = corpus_of(tmp_path / "index")
    hits = found(CrossEncoderRetriever(model=str(tmp_path / "model"), retriever=Bm25Retriever()), corpus)
    known = made.CrossEncoder(str(tmp_path / "model")).predict([(QUESTION, hit.chunk.text) for hit in hits])
    assert [hit.score for hit in hits] == pytest.approx([float(value) for value in known], abs=1e-5)
    cut = {hit.chunk.text: hit.parts["cross-encoder.truncated"] for hit in hits}
    assert cut[TEXTS[2]] > 0  # 24 tokens are read
    assert cut[TEXTS[3]] == 0


# query likelihood


class Reader(FakeModel):
    """Expects words that stand in what it has read."""

    def losses(self, text: str, *, after: str = "") -> list[tuple[int, int, float]] | None:
        self.scored.append((text, after))
        read, ends, made = set(after.lower().replace("?", " ").replace(".", " ").split()), 0, []
        for word in text.split():
            start = text.index(word, ends)
            ends = start + len(word)
            made.append((start, ends, 1.0 if word.lower().strip("?") in read else 5.0))
        return made


def test_query_likelihood_is_a_mean_over_the_question(tmp_path: Path) -> None:
    model, corpus = Reader(nats=None), corpus_of(tmp_path)
    inner = Fixed([4.0, 3.0, 2.0, 1.0])
    one = QueryLikelihoodRetriever(retriever=inner, generator=FakeGenerator(model=model), weight=1.0)
    hits = found(one, corpus, question="The copper price in March?")
    assert rows(corpus, hits) == [1, 2, 3, 0]
    assert [hit.parts["query-likelihood"] for hit in hits] == pytest.approx([-1.0, -9 / 5, -17 / 5, -21 / 5])
    assert {text for text, _ in model.scored} == {" The copper price in March?"}
    assert all(any(text in after for text in TEXTS) for _, after in model.scored)


def test_the_chunk_is_bounded_and_the_cost_counted(tmp_path: Path) -> None:
    model, corpus = Reader(nats=None), corpus_of(tmp_path)
    given = FakeGenerator(model=model)
    one = QueryLikelihoodRetriever(retriever=Fixed([4.0, 3.0, 2.0, 1.0]), generator=given, max_tokens=5, pool=2)
    hits = found(one, corpus, k=2)
    assert len(model.scored) == 2
    for text, (_, after) in zip(TEXTS, model.scored, strict=False):
        end = WordCounter().offsets(text)[4][1]
        assert text[:end] in after
        assert text[: end + 2] not in after
    assert {hit.parts["query-likelihood.tokens"] for hit in hits} == {5.0 + 8.0}
    with pytest.raises(ConfigError, match="max_tokens"):
        replace(one, max_tokens=0)


def test_query_likelihood_needs_a_model_that_tells(tmp_path: Path) -> None:
    corpus = corpus_of(tmp_path)
    for generator in (None, SimpleNamespace(text_model=None, counter=WordCounter())):
        with pytest.raises(ConfigError, match="Set generator: local"):
            QueryLikelihoodRetriever(retriever=Bm25Retriever(), generator=generator).open(corpus)
    silent = FakeGenerator(model=FakeModel(nats=None))
    with pytest.raises(ConfigError, match=r"tells no likelihoods.*Set generator: local"):
        found(QueryLikelihoodRetriever(retriever=Bm25Retriever(), generator=silent), corpus)
    hits = found(QueryLikelihoodRetriever(retriever=Fixed([2.0, 1.0]), generator=silent), corpus, question="  ")
    assert rows(corpus, hits) == [0, 1]
    assert hits[0].parts["query-likelihood.tokens"] == 0.0


# late interaction


class Letters(HashingEmbedder):
    """The vector of a token depends on the token alone; notes what was read."""

    read: list[str] = []  # noqa: RUF012 (cleared by the tests)

    @property
    def reads_within(self) -> bool:
        return True

    def embed_within(self, pieces: Sequence[tuple[str, int, int]]) -> Any:
        self.read.extend({text for text, _, _ in pieces})
        return self.embed([text[start:end] for text, start, end in pieces])


def test_late_interaction_is_the_mean_of_the_best_cosines(tmp_path: Path) -> None:
    corpus, embedder = corpus_of(tmp_path), Letters(buckets=4096)
    one = LateInteractionRetriever(retriever=Fixed([4.0, 3.0, 2.0, 1.0]), embedder=embedder, weight=1.0)
    hits = found(one, corpus, question="copper price, barley!")
    values = {row: hit.parts["late-interaction"] for row, hit in zip(rows(corpus, hits), hits, strict=True)}
    assert values == pytest.approx({0: 1 / 3, 1: 2 / 3, 2: 2 / 3, 3: 1 / 3}, abs=0.01)  # punctuation does not count
    assert rows(corpus, hits) == [1, 2, 0, 3]


def test_chunks_are_read_once(tmp_path: Path) -> None:
    Letters.read.clear()
    searcher = LateInteractionRetriever(retriever=Fixed([4.0, 3.0, 2.0, 1.0]), embedder=Letters()).open(
        corpus_of(tmp_path)
    )
    first = searcher.search(QUESTION, 4)
    assert sorted(text.strip() for text in Letters.read) == sorted([QUESTION, *TEXTS])
    assert [hit.score for hit in searcher.search(QUESTION, 4)] == [hit.score for hit in first]
    assert [text.strip() for text in Letters.read].count(TEXTS[0]) == 1


def test_what_is_kept_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(late_interaction, "_KEPT_TOKENS", 20)
    scorer = late_interaction._LateScorer(Letters())
    chunks = corpus_of(tmp_path).chunks([0, 1, 2, 3])
    bounded = scorer(QUESTION, chunks)
    assert scorer._tokens == sum(len(integers) for integers, _ in scorer._packed.values()) <= 20
    assert chunks[3].key in scorer._packed
    monkeypatch.setattr(late_interaction, "_KEPT_TOKENS", 10_000)
    assert late_interaction._LateScorer(Letters())(QUESTION, chunks) == bounded


def test_eight_bits_cost_little() -> None:
    """Each value is off by half a scale at most, and the similarity of random states by less than .002."""
    random = np.random.default_rng(7)
    vectors = random.standard_normal((200, 384)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    asked = vectors[:20] + 0.05 * random.standard_normal((20, 384)).astype(np.float32)
    asked /= np.linalg.norm(asked, axis=1, keepdims=True)
    integers, scales = late_interaction._pack(vectors)
    assert integers.dtype == np.int8
    assert integers.nbytes + scales.nbytes < vectors.nbytes / 3.9
    assert (np.abs(integers * scales[:, None] - vectors) <= 0.5001 * scales[:, None]).all()
    exact = float((asked @ vectors.T).max(axis=1).mean())
    assert late_interaction._similarity(asked, (integers, scales)) == pytest.approx(exact, abs=0.002)
    empty = late_interaction._pack(np.zeros((0, 384), dtype=np.float32))
    assert late_interaction._similarity(asked, empty) == 0.0
    zeros, ones = late_interaction._pack(np.zeros((2, 8), dtype=np.float32))
    assert not zeros.any()
    assert ones.tolist() == [1.0, 1.0]


def test_late_interaction_needs_states_of_tokens(tmp_path: Path) -> None:
    for embedder in (None, HashingEmbedder()):
        with pytest.raises(ConfigError, match="embedder: minilm"):
            LateInteractionRetriever(retriever=Bm25Retriever(), embedder=embedder).open(corpus_of(tmp_path))


def test_questions_are_read_up_to_the_limit(tmp_path: Path) -> None:
    embedder = WithinEmbedder(max_tokens=12)
    one = LateInteractionRetriever(retriever=Fixed([2.0, 1.0]), embedder=embedder)
    corpus = corpus_of(tmp_path)
    assert len(found(one, corpus, question="copper " * 500)) == 2
    assert len(found(one, corpus, question="?!")) == 2
    assert max(len(text.split()) for text, _, _ in embedder.within) <= 12


@pytest.mark.models
def test_late_interaction_with_minilm(tmp_path: Path) -> None:
    """Token states see their context: the bank of a river is not the bank with money."""
    from rag.embedders.minilm import MinilmEmbedder

    texts = ("The bank lends money to the farmers.", "They sat on the bank and watched the river.")
    corpus = corpus_of(tmp_path, texts)
    one = LateInteractionRetriever(retriever=Fixed([1.0, 1.0]), embedder=MinilmEmbedder(), weight=1.0)
    assert rows(corpus, found(one, corpus, question="a bank beside a stream")) == [1, 0]
    assert rows(corpus, found(one, corpus, question="a bank that gives credit")) == [0, 1]
    for hit in found(one, corpus, question=texts[0]):
        assert (hit.parts["late-interaction"] > 0.999) == (hit.chunk.text == texts[0])
