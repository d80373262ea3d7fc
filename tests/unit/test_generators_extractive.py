"""The generator extractive: what it quotes, what it refuses, how it scores."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from numpy.typing import NDArray

from rag import Pipeline, PipelineConfig
from rag.embedders.hashing import HashingEmbedder
from rag.errors import ConfigError
from rag.generators._sentences import context_sentences
from rag.generators._support import content_words, coverage, supports
from rag.generators.extractive import ExtractiveGenerator
from rag.prompt import NOT_FOUND
from rag.types import Block, Document, Span
from tests.contracts.test_generator import CUT, DOCUMENTS, HANDBOOK, QUESTION, WHOLE, ask, context, piece


def test_off_topic_questions_are_not_answered() -> None:
    made = ask(ExtractiveGenerator(embedder=HashingEmbedder()), context("Which volcano erupted in Iceland?", *WHOLE))
    assert made.text == NOT_FOUND
    assert made.sentences == made.citations == made.supported == ()
    assert made.notes["support"] < made.notes["threshold"] == 0.38


def test_line_ends_inside_a_sentence_become_spaces_in_the_answer_only() -> None:
    made = ask(ExtractiveGenerator(embedder=HashingEmbedder(), max_sentences=1), context(QUESTION, *WHOLE))
    assert "by the finance director" in made.text
    assert "by the\nfinance director" in made.citations[0].text
    assert made.text == " ".join(made.citations[0].text.split()) + " [2]"


def test_more_sentences_come_best_first_and_say_something_else() -> None:
    text = "Soup costs 3 EUR. Soup costs 3 EUR today. A salad costs 4 EUR. Soup is served warm."
    menu = Document(text=text, source="menu")
    DOCUMENTS[menu.id] = menu
    generator = ExtractiveGenerator(embedder=HashingEmbedder(), keep_within=0.1, min_support=0.0)
    made = ask(generator, context("What does soup cost?", piece(menu, 0, len(text))))
    assert made.citations[0].text == "Soup costs 3 EUR."
    assert len(made.citations) == 3
    assert "Soup costs 3 EUR today." not in made.text
    one = ask(ExtractiveGenerator(embedder=HashingEmbedder()), context("What does soup cost?", piece(menu, 0, 17)))
    assert one.text == "Soup costs 3 EUR. [1]"


def test_headings_and_questions_do_not_answer() -> None:
    text = "# Refund of travel costs\n\nWho refunds travel costs?\n\nPayroll refunds travel costs in May."
    faq = Document(text=text, source="faq.md", blocks=(Block(span=Span(0, 24), kind="heading", level=1),))
    DOCUMENTS[faq.id] = faq
    made = ask(
        ExtractiveGenerator(embedder=HashingEmbedder(), max_sentences=1),
        context("Who refunds travel costs?", piece(faq, 0, len(text))),
    )
    assert made.text == "Payroll refunds travel costs in May. [1]"


def test_a_table_row_is_read_with_its_header_and_the_header_never_answers() -> None:
    text = "# Hotel limits\n\nCity | Limit per night\nParis | 210 EUR\nLyon | 150 EUR\n"
    rows = [(16, 38), (39, 54), (55, 69)]
    blocks = [Block(span=Span(0, 14), kind="heading", level=1), Block(span=Span(16, 69), kind="table")]
    blocks += [Block(span=Span(*row), kind="row") for row in rows]
    table = Document(text=text, source="hotels.md", blocks=tuple(blocks))
    DOCUMENTS[table.id] = table
    made = ask(
        ExtractiveGenerator(embedder=HashingEmbedder(), max_sentences=1),
        context("What is the hotel limit per night in Paris?", piece(table, 0, len(text))),
    )
    assert made.text == "Paris | 210 EUR [1]"
    below = piece(table, 39, len(text))  # a chunk that starts below the header row still knows it
    assert ask(ExtractiveGenerator(embedder=HashingEmbedder()), context("hotel limit Lyon?", below)).citations


def test_only_what_was_kept_is_read() -> None:
    whole = piece(HANDBOOK, 0, CUT)
    start = HANDBOOK.text.index("Receipts")
    kept = type(whole)(
        chunk_id=whole.chunk_id,
        doc_id=whole.doc_id,
        span=whole.span,
        text=HANDBOOK.text[start : CUT - 2],
        kept=(Span(start, start + 20), Span(start + 20, CUT - 2)),
    )
    sentences = context_sentences(context(QUESTION, kept), DOCUMENTS)
    assert [sentence.text for sentence in sentences] == ["Receipts are handed in within thirty days."]


def test_overlapping_pieces_give_each_sentence_once() -> None:
    sentences = context_sentences(context(QUESTION, *WHOLE, *WHOLE), DOCUMENTS)
    assert len({(s.document.id, s.span) for s in sentences}) == len(sentences)
    assert {s.mark for s in sentences} == {1, 2, 3}
    assert [s.text for s in sentences if s.heading] == ["# Travel", "# Hotels"]


def test_long_tables_are_read_line_by_line() -> None:
    rows = "\n".join(f"| item {n} | {n * 3} EUR |" for n in range(40))
    table = Document(text=rows, source="t", blocks=(Block(span=Span(0, len(rows)), kind="table"),))
    DOCUMENTS[table.id] = table
    sentences = context_sentences(context("x", piece(table, 0, len(rows))), DOCUMENTS)
    assert len(sentences) == 40
    made = ask(
        ExtractiveGenerator(embedder=HashingEmbedder(), max_sentences=1),
        context("What does item 17 cost?", piece(table, 0, len(rows))),
    )
    assert made.text == "| item 17 | 51 EUR | [1]"


def test_coverage_weighs_rare_and_absent_words_most() -> None:
    texts = ["the committee met", "the committee met in Oslo", "the committee ate"]
    low, high, none = coverage("Where did the committee meet in Oslo?", texts)
    assert high > low
    assert none == low
    absent = coverage("committee zebra", texts)
    assert max(absent) < 0.5
    assert coverage("who is it?", texts) == [0.0, 0.0, 0.0]
    assert content_words("The approvals were approved in 2024") == ["approval", "approv", "2024"]


def test_over_long_sentences_are_scored_by_their_head() -> None:
    class Strict(HashingEmbedder):
        fingerprint = "strict"  # type: ignore[assignment]

        def embed(self, texts):  # type: ignore[no-untyped-def]
            assert all(self.counter.count(text) <= (self.counter.limit or 0) for text in texts)
            return super().embed(texts)

    scores = supports("zebra?", ["zebra " * 900, "short zebra"], Strict(), 0.5)
    assert len(scores) == 2


@pytest.mark.parametrize("wrong", [{"max_sentences": 0}, {"min_support": 1.5}, {"lexical_weight": -0.1}])
def test_wrong_parameters_are_named(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=f"extractive: {next(iter(wrong))}"):
        ExtractiveGenerator(embedder=HashingEmbedder(), **wrong)  # type: ignore[arg-type]


class _Meaning(HashingEmbedder):
    """Counts what it reads, and is taken to know meanings."""

    matches_meaning = True
    read: ClassVar[list[str]] = []

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        self.read.extend(texts)
        return super().embed(texts)


def test_sentences_whose_vectors_the_corpus_keeps_are_not_embedded_again(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("The office closes in June. Soup is served warm. Dr. Okafor moves to Leipzig.\n")
    pipeline = Pipeline(PipelineConfig.from_dict({"embedder": "hashing", "selector": "top-k"}))
    embedder = _Meaning()
    vars(pipeline)["embedder"] = embedder
    with pipeline.index(tmp_path, tmp_path / "idx") as index:
        embedder.read.clear()
        first = pipeline.ask("When does the office close?", index)
        assert "The office closes in June." in embedder.read
        embedder.read.clear()
        again = pipeline.ask("When does the office close?", index)
    assert set(embedder.read) <= {"When does the office close?"}
    assert (again.text, again.citations) == (first.text, first.citations)
