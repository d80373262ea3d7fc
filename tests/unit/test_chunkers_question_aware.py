"""The chunker question-aware: ChunkScore, the choice by it, and completions that only ever stand in headers."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from chunkers._chunk_score import ModelIndependence, Windows, dispersion, scaled, spread, vector_independence
from chunkers._integrity import reviewed
from chunkers._segment import Atoms
from chunkers.cluster_semantic import ClusterSemanticChunker
from chunkers.fixed import FixedChunker
from chunkers.intent_driven import IntentDrivenChunker
from chunkers.metrics._base import Cuts, Sentences
from chunkers.question_aware import QuestionAwareChunker
from chunkers.recursive import RecursiveChunker
from rag.embedders.hashing import HashingEmbedder
from rag.errors import ConfigError
from rag.generators.extractive import ExtractiveGenerator
from rag.generators.local import LocalGenerator
from rag.protocols import Chunker, TextModel, TokenLoss
from rag.text import TokenMap, sentence_spans
from rag.tokens import WordCounter
from rag.types import Block, Chunk, Document, Span
from tests.fakes import FakeGenerator, FakeModel, hashed
from tests.texts import markdown_document, plain

COUNTER = WordCounter()
STORY = (
    "The Harbour Trust was founded in 1893 by three merchants of the town. "
    "The Harbour Trust owns 41 cranes and two tugs. "
    "It sold four of them to a yard in the south after the long strike. "
    "Every crane is checked by an engineer of the yard in spring. "
    "However, no report was kept for the years of the war. "
    "Boats pay a fee by length. The fee is due on the first day of each month. "
)


def document(text: str = STORY, **given: Any) -> Document:
    return Document(text=text, source="story.txt", **given)


def chunker(**given: Any) -> QuestionAwareChunker:
    embedder = HashingEmbedder()
    candidates = (RecursiveChunker(counter=COUNTER), ClusterSemanticChunker(counter=COUNTER, embedder=embedder))
    values: dict[str, Any] = {"counter": COUNTER, "embedder": embedder, "max_tokens": 100, "candidates": candidates}
    return QuestionAwareChunker(**(values | given))


def decided(made: QuestionAwareChunker, given: Document | None = None) -> tuple[list[Chunk], dict[str, Any]]:
    given = given or document(plain(60))
    chunks, record = made.decide(given)
    assert record is not None
    assert json.loads(json.dumps(record)) == record
    assert "".join(chunk.text for chunk in chunks) == given.text
    return chunks, dict(record)


@dataclass(frozen=True)
class Told(TextModel):
    """Answers with one line; `leans` is in the prompt of a passage that it says "no" to."""

    answer: str = ""
    leans: str = "\0"
    asked: list[str] = field(default_factory=list)

    def complete(self, prompt: str, *, max_tokens: int, stop: Sequence[str] = ()) -> str:
        self.asked.append(prompt)
        return self.answer

    def losses(self, text: str, *, after: str = "") -> list[TokenLoss] | None:
        likely = "no" if self.leans in after else "yes"
        return [(0, len(text), 1.0 if text.strip() == likely else 3.0)]


def told(**given: Any) -> FakeGenerator:
    return FakeGenerator(model=Told(**given))  # type: ignore[arg-type]


def cuts_at(text: str, ends: Sequence[int]) -> Cuts:
    edges = [0, *ends]
    return Cuts(*(np.array(row) for row in (edges[:-1], edges[1:], [1] * len(ends))))


class TestChunkScore:
    @pytest.mark.parametrize("count", [1, 2, 7, 40])
    def test_dispersion_is_the_log_determinant_of_the_centred_gram_matrix(self, count: int) -> None:
        rows = np.random.default_rng(count).normal(size=(count, 16))
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        centred = rows - rows.mean(axis=0)
        gram = np.array([[float(a @ b) for b in centred] for a in centred]) + 1e-3 * np.eye(count)
        assert dispersion(rows) == pytest.approx(np.log(np.linalg.eigvalsh(gram)).sum() / count, abs=1e-6)

    def test_equal_chunks_are_not_dispersed(self) -> None:
        same, apart = np.tile(np.eye(8)[0], (5, 1)), np.eye(8)[:5]
        assert dispersion(same) == pytest.approx(math.log(1e-3))
        assert dispersion(apart) > dispersion(same) + 3

    def test_scaling(self) -> None:
        assert scaled([-3.0, 1.0, -1.0]) == [0.0, 1.0, 0.5]
        assert scaled([2.0, 2.0]) == [0.5, 0.5]

    @pytest.mark.parametrize("opening", [None, 5])
    def test_model_independence_is_the_mean_ratio_of_likelihoods(self, opening: int | None) -> None:
        model, ends = FakeModel(hashed), [span.end for span in sentence_spans(document())][:4]
        tokens = TokenMap(COUNTER, STORY)
        asked = ModelIndependence(model, STORY, Windows(tokens, opening, tail=6))
        ratios = []
        for before, start, end in zip([0, *ends], ends, ends[1:], strict=False):
            words = COUNTER.offsets(STORY[start:end])
            text = STORY[start : end if opening is None else start + words[opening][0]]
            tail = STORY[before + COUNTER.offsets(STORY[before:start])[-6][0] : start]
            given, alone = (sum(n for *_, n in model.losses(text, after=after) or ()) for after in (tail, ""))
            ratios.append(min(1.0, given / alone))
        model.scored.clear()
        assert asked.of(cuts_at(STORY, ends)) == pytest.approx(sum(ratios) / 3)
        assert asked.calls == len(model.scored) == 6
        assert asked.chars == sum(len(text) + len(after) for text, after in model.scored)
        asked.of(cuts_at(STORY, ends))
        assert asked.calls == 6
        assert asked.of(cuts_at(STORY, [len(STORY)])) == 1.0

    def test_only_some_boundaries_are_asked(self) -> None:
        model = FakeModel(hashed)
        ends = [span.end for span in sentence_spans(document())]
        asked = ModelIndependence(model, STORY, Windows(TokenMap(COUNTER, STORY), 5, 6), most=2)
        asked.of(cuts_at(STORY, ends))
        assert asked.calls == 4

    def test_vector_independence_sees_where_the_topic_changes(self) -> None:
        text = "Cats purr. Cats purr loudly. Taxes rise. Taxes rise again. "
        made = Atoms.of(document(text), chunker().ruler(document(text)), HashingEmbedder())
        windows = Windows(made.ruler.tokens, 3, 3)
        values = [vector_independence(cuts_at(text, [end, len(text)]), Sentences(made), windows) for end in made.ends]
        assert max(values[:3]) == values[1] > 0.9

    def test_gain_over_random_cuts_is_bounded_and_repeatable(self) -> None:
        given = document(plain(60))
        made = Atoms.of(given, chunker().ruler(given), HashingEmbedder())
        cuts = cuts_at(given.text, made.ends[4::5])
        raw, gain = spread(cuts, Sentences(made), 8)
        assert (raw, gain) == spread(cuts, Sentences(made), 8)
        assert gain is not None
        assert -1 < gain < 1
        assert spread(cuts, Sentences(made), 0) == (raw, None)


class TestChoice:
    @pytest.mark.parametrize("objective", ["debiased", "paper"])
    @pytest.mark.parametrize("generator", [None, FakeGenerator()])
    def test_the_best_score_wins_and_is_made_of_its_parts(self, objective: Any, generator: Any) -> None:
        made = chunker(objective=objective, generator=generator, lam=0.4)
        chunks, record = decided(made)
        label = "LI" if generator else "LI_embedding"
        rows = [row for row in record["candidates"] if row.get("ChunkScore") is not None]
        assert len(rows) == (made.best_by_sd if generator else 5)
        for row in rows:
            assert row["ChunkScore"] == pytest.approx(0.4 * row[label] + 0.6 * row["SD"], abs=1e-5)
        best = max(rows, key=lambda row: row["ChunkScore"])
        assert record["winner"] == best["chunker"]
        assert best["chunks"] == len(chunks)
        own = [row for row in record["candidates"] if "SD" in row]
        assert {min(row["SD"] for row in own), max(row["SD"] for row in own)} == {0.0, 1.0}

    def test_only_the_best_by_dispersion_cost_the_model_anything(self) -> None:
        generator = FakeGenerator(name="counted", model=FakeModel(hashed))
        _, record = decided(chunker(generator=generator, best_by_sd=1, boundaries=4))
        rows = sorted((row for row in record["candidates"] if "SD" in row), key=lambda row: -row["SD"])
        assert [row["LI"] is not None for row in rows] == [True, *[False] * (len(rows) - 1)]
        assert record["cost"]["independence_calls"] == len(generator.model.scored) == 8
        longest = max(len(text) + len(after) for text, after in generator.model.scored)
        assert longest <= 12 * (chunker().opening_tokens + chunker().tail_tokens)

    def test_a_model_that_does_not_tell_likelihoods(self) -> None:
        silent = FakeGenerator(model=FakeModel(None))
        _, record = decided(chunker(generator=silent))
        assert record["independence"] == "embedding"
        assert "does not tell" in record["notes"][0]
        assert record["candidates"] == decided(chunker())[1]["candidates"]
        extractive = ExtractiveGenerator(embedder=HashingEmbedder())
        assert "no language model" in decided(chunker(generator=extractive))[1]["notes"][0]

    def test_sentences_and_outline_are_embedded_once(self) -> None:
        seen: list[str] = []

        class Noting(HashingEmbedder):
            def embed(self, texts: Sequence[str]) -> Any:
                seen.extend(texts)
                return super().embed(texts)

        embedder = Noting()
        inner = IntentDrivenChunker(counter=COUNTER, embedder=embedder)
        _, record = decided(chunker(embedder=embedder, candidates=(inner,)))
        assert len(seen) == len(set(seen)) == record["cost"]["encoder_texts"]
        assert len(seen) <= record["cost"]["sentences"] + 2 * len(record["outline"])

    def test_candidates_that_fail_or_do_not_tile_are_left_out(self) -> None:
        @dataclass(frozen=True, kw_only=True)
        class Broken(Chunker):
            def chunk(self, document: Document) -> list[Chunk]:
                raise RuntimeError("out of order")

        overlapping = FixedChunker(counter=COUNTER, overlap_tokens=8)
        _, record = decided(chunker(candidates=(overlapping, Broken()), sizes=()))
        assert "does not tile" in record["candidates"][1]["left_out"]
        assert "out of order" in record["candidates"][2]["left_out"]
        assert record["winner"] == "outline-0.5"
        assert "no other segmentation" in record["reason"]

    def test_outline_of_rules_and_of_the_model(self) -> None:
        headed = decided(chunker(), markdown_document())[1]["outline"]
        assert {"headings", "heuristic"} == {row["source"] for row in headed}
        generator = told(answer="Who founded the Harbour Trust?\nWhat is due on the first day of each month?")
        made = chunker(generator=generator, model_roles=("outline",))
        texts = [row["text"] for row in decided(made, document(STORY * 3))[1]["outline"]]
        assert "Who founded the Harbour Trust?" in texts

    def test_same_input_same_chunks(self) -> None:
        for generator in (None, FakeGenerator()):
            first, second = (decided(chunker(generator=generator), markdown_document()) for _ in range(2))
            assert first == second


def flags_at(*opens: str) -> list[Any]:
    edges = [0, *(STORY.index(words) for words in opens), len(STORY)]
    spans = [Span(a, b) for a, b in pairwise(edges)]
    return reviewed(document(), spans, [span.end for span in sentence_spans(document())])


class TestReview:
    def test_a_pronoun_whose_mention_is_cut_off(self) -> None:
        (flag,) = flags_at("It sold four")
        assert (flag.word, flag.by) == ("It", "pair")
        assert STORY[flag.start : flag.end].startswith("The Harbour Trust owns 41 cranes")

    def test_a_word_that_points_back(self) -> None:
        (flag,) = flags_at("However, no report")
        assert (flag.word, flag.by) == ("However", "opener")
        assert STORY[flag.start : flag.end].startswith("Every crane is checked")

    def test_an_opening_that_stands_alone(self) -> None:
        assert flags_at("The Harbour Trust owns", "Every crane", "Boats pay") == []

    def test_headings_are_passed_over_and_code_says_nothing(self) -> None:
        code = markdown_document()
        at = code.text.index("def rule_1(")
        ends = [span.end for span in sentence_spans(code)]
        assert reviewed(code, [Span(0, at), Span(at, len(code.text))], ends) == []
        text = "The Trust owns cranes.\n\n## Sales\n\nIt sold four of them."
        start = text.index("## Sales")
        given = document(text, blocks=(Block(span=Span(start, start + 8), kind="heading", level=2),))
        ends = [span.end for span in sentence_spans(given)]
        (flag,) = reviewed(given, [Span(0, start), Span(start, len(text))], ends)
        assert flag.word == "It"


def completed(text: str = STORY, size: int = 40, **given: Any) -> tuple[list[Chunk], dict[str, Any]]:
    """Chunks cut after every sentence or two, so that some refer back."""
    made = chunker(max_tokens=size, sizes=(0.5,), candidates=(), min_tokens=0, **({"completion_share": 0.5} | given))
    return decided(made, document(text, title="Harbour rules"))


class TestCompletion:
    def test_the_sentence_referred_to_stands_in_the_header_and_not_in_the_text(self) -> None:
        chunks, record = completed()
        assert record["flagged"] == len(record["flags"]) > 0
        by_start = {chunk.span.start: chunk for chunk in chunks}
        for row in record["flags"]:
            chunk = by_start[row["start"]]
            assert row["made_by"] == "extract"
            assert chunk.header.endswith(row["completion"])
            assert row["completion"] in STORY[: chunk.span.start]
            assert chunk.text == STORY[chunk.span.start : chunk.span.end]
        others = [chunk for chunk in chunks if chunk.span.start not in {row["start"] for row in record["flags"]}]
        assert {chunk.header for chunk in others} <= {"", "Harbour rules"}

    def test_no_share_no_completion(self) -> None:
        chunks, record = completed(completion_share=0.0)
        assert record["flagged"] == 0
        assert {chunk.header for chunk in chunks} == {"Harbour rules"}

    @pytest.mark.parametrize("size", [12, 20, 40, 64])
    @pytest.mark.parametrize("share", [0.1, 0.3, 0.5])
    def test_the_limit_holds(self, size: int, share: float) -> None:
        long = STORY.replace("The Harbour Trust owns", "The Harbour Trust, " + "as all of us know, " * 12 + "owns")
        for text in (STORY * 4, long * 2):
            chunks, record = completed(text, size, completion_share=share)
            assert max(COUNTER.count(chunk.embed_text) for chunk in chunks) <= size
            for row in record["flags"]:
                assert COUNTER.count(row["completion"] or "") <= share * size

    def test_a_sentence_of_the_model_that_says_nothing_new(self) -> None:
        said = "The Harbour Trust owns cranes and tugs."
        _, record = completed(generator=told(answer=said), model_roles=("completion",))
        made = {row["made_by"]: row for row in record["flags"]}
        assert made["model"]["completion"] == said
        assert record["cost"]["completion_calls"] == record["flagged"]

    @pytest.mark.parametrize(
        ("said", "why"),
        [("The Harbour Trust owns 42 cranes.", "foreign number"), ("The mayor owns the cranes.", "foreign word")],
    )
    def test_an_invention_of_the_model_is_refused(self, said: str, why: str) -> None:
        chunks, record = completed(generator=told(answer=said), model_roles=("completion",))
        assert {row["refused"] for row in record["flags"]} == {why}
        assert {row["made_by"] for row in record["flags"]} == {"extract"}
        assert not any(said in chunk.header for chunk in chunks)
        assert [chunk.header for chunk in chunks] == [chunk.header for chunk in completed()[0]]

    def test_the_model_reviews(self) -> None:
        given: dict[str, Any] = {"model_roles": ("review",)}
        chunks, record = completed(generator=told(leans="Boats pay"), **given)
        assert [chunk.text.startswith("Boats") for chunk in chunks].count(True) == record["flagged"] == 1
        assert record["flags"][0]["by"] == "model"
        assert record["cost"]["review_calls"] == 2 * len(chunks)
        assert completed(generator=told(leans=""), **given)[1]["flagged"] == 0


def test_what_shapes_the_chunks() -> None:
    generator = FakeGenerator()
    assert chunker(generator=generator).shaped_by == repr(generator)
    assert chunker(generator=generator, model_roles=()).shaped_by == ""
    assert chunker(generator=ExtractiveGenerator(embedder=HashingEmbedder())).shaped_by == ""
    inner = IntentDrivenChunker(
        counter=COUNTER, embedder=HashingEmbedder(), generator=generator, sources=("generator",)
    )
    assert chunker(candidates=(inner,)).shaped_by == repr(generator)


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        ({"lam": 1.2}, "lam"),
        ({"completion_share": 0.6}, "completion_share"),
        ({"sizes": (0.5, 0.0)}, "sizes"),
        ({"sizes": (), "candidates": ()}, "at least one"),
        ({"model_roles": ("judge",)}, "judge"),
        ({"objective": "best"}, "best"),
        ({"best_by_sd": 0}, "best_by_sd"),
        ({"candidates": ("recursive",)}, "built plugins"),
    ],
)
def test_fields_out_of_range_are_refused(wrong: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        chunker(**wrong)


@pytest.mark.models
def test_the_bundled_model_reads_a_chunk_more_easily_after_what_it_leans_on() -> None:
    text = (
        "The observatory on the hill was closed for nine years while its great telescope was repaired. "
        "The telescope of the observatory was repaired by a firm from Jena, and the hill was opened again. "
        "Add the flour and two eggs to the butter, stir well, and bake the dough for forty minutes. "
    )
    ends = [span.end for span in sentence_spans(document(text))]
    model = LocalGenerator().text_model
    asked = ModelIndependence(model, text, Windows(TokenMap(COUNTER, text), 32, 64))
    leaning = asked.of(cuts_at(text, [ends[0], ends[1]]))
    free = asked.of(Cuts(*(np.array(row) for row in ([ends[0], ends[1]], [ends[1], ends[2]], [1, 1]))))
    assert leaning is not None
    assert free is not None
    assert 0 < leaning < free <= 1
    assert asked.calls == 4
