"""What is protected, in which words, and what the survival report counts."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compressors._words import parts_of
from rag.spans.pieces import context_of
from rag.spans.protected import KINDS, Protector, forced, survival
from rag.text import sentence_spans
from rag.tokens import WordCounter
from rag.types import Block, Bubble, Chunk, Document, Hit, Span
from tests.corpora import MemoryCorpus

COUNTER = WordCounter()


def found(text: str, kind: str, **given: object) -> list[str]:
    document = Document(text=text, source="x", **given)  # type: ignore[arg-type]
    protector = Protector(document)
    sentences = protector.sentences(Span(0, len(text)))
    return [text[one.start : one.end] for sentence in sentences for one in protector.spans(sentence)[kind]]


@pytest.mark.parametrize(
    ("kind", "text", "spans"),
    [
        ("number", "It grew by 1,234.5 and -7% to 3/4.", ["1,234.5", "-7%", "3/4"]),
        ("number", "Some two thousand eggs, twenty-one hives, someone.", ["two thousand", "twenty-one"]),
        ("number", "Es wuchs um 1.234,5 auf ٣٤ und 12 000.", ["1.234,5", "٣٤", "12", "000"]),
        ("date", "It was 7 November 1940, or Nov. 7, 1940.", ["7 November 1940", "Nov. 7, 1940"]),
        ("date", "Due 2026-11-22T10:00 or 22.11.2026 at 14:30.", ["2026-11-22T10:00", "22.11.2026", "14:30"]),
        ("date", "会议在2026年11月22日举行。", ["2026年11月22日"]),
        ("unit", "Walk 5 km at 20 km/h for 12 hours.", ["5 km", "20 km/h", "12 hours"]),
        ("unit", "It cost US$5.3 million or 20 % of € 30 bn.", ["US$5.3 million", "20 %", "€ 30 bn"]),
        ("unit", "At thirty-four degrees and 310.5MPa.", ["thirty-four degrees", "310.5MPa"]),
        ("negation", "He did not go, and nobody didn't stay.", ["not go", "nobody didn't"]),
        ("negation", "Das ist nicht erlaubt und kein Fehler.", ["nicht erlaubt", "kein Fehler"]),
        ("negation", "Il n'a jamais vu cela.", ["n'", "jamais vu"]),
        ("negation", "北京不是城市。", ["不是"]),
        ("negation", "A note on knots and nonsense.", []),
        ("entity", "The Tacoma Narrows deck met wind in Olympia.", ["Tacoma Narrows", "Olympia"]),
        ("entity", "Bridges fall. Rivets of the Bank of England shear.", ["Bank of England"]),
        ("entity", "NASA came. Paris slept, and so did all of Paris.", ["NASA", "Paris", "Paris"]),
        ("entity", "Leon Moisseiff said so. I said that I did.", ["Leon Moisseiff"]),
        ("entity", "It may rain in May. He said: “The deck of The Hague fell.”", ["May", "The Hague"]),
        ("entity", "这里没有大写字母。", []),
        (
            "code",
            "Run `deck --width` or call foo_bar(a, b) in /usr/lib/x.",
            ["`deck --width`", "foo_bar(a, b)", "/usr/lib/x."],
        ),
        ("quote", 'He said "never again" and “not now” twice.', ['"never again"', "“not now”"]),
        ("quote", "Sie rief „Halt“ und «Stop».", ["„Halt“", "«Stop»"]),
        ("quote", "The board isn't 5\" wide, it's 6.", []),
        ("address", "See https://example.org/a?b=1, or a.b@c.org.", ["https://example.org/a?b=1", "a.b@c.org"]),
    ],
)
def test_what_is_found(kind: str, text: str, spans: list[str]) -> None:
    assert found(text, kind) == spans


def test_a_quote_over_sentences_is_protected_in_the_first_and_the_last() -> None:
    text = "He said “It fell at noon. It was loud” and left."
    assert "“It fell at noon." in found(text, "quote")[0]
    assert found(text, "quote")[-1].endswith("It was loud”")


def test_code_blocks_of_the_parser_are_code() -> None:
    text = "Words.\n\nx = 1\ny = two\n\nWords again.\n"
    assert "".join(found(text, "code", blocks=(Block(span=Span(8, 21), kind="code"),))) == "x = 1\ny = two"


texts = st.text(st.sampled_from("aB1 .,\"'`“”(-_/@:\n不n't%€ é"), max_size=80)


@given(texts)
def test_spans_lie_in_their_sentence_and_units_tile_it(text: str) -> None:
    document = Document(text=text, source="x")
    protector = Protector(document)
    sentences = protector.sentences(Span(0, len(text)))
    assert sentences == [one for one in sentence_spans(document) if len(one)]
    for sentence in sentences:
        for kind, spans in protector.spans(sentence).items():
            assert kind in KINDS
            assert all(sentence.contains(one) and text[one.start : one.end].strip() for one in spans)
            assert all(a.end < b.start for a, b in pairwise(spans))


@given(texts)
def test_units_are_whole_words_and_no_number_is_parted(text: str) -> None:
    document = Document(text="x" + text, source="x")
    bubble, corpus = bubble_of(document)
    for part in parts_of(bubble, corpus, COUNTER):
        assert [*part.units] == sorted(part.units)
        assert part.units[0].start == part.span.start
        assert part.units[-1].end == part.span.end
        assert all(a.end == b.start for a, b in pairwise(part.units))
        for unit in part.units[1:]:
            assert not re.match(r"\s", document.text[unit.start])
            assert not re.search(r"\w\Z", document.text[: unit.start]) or "不" in document.text
        protected = Protector(document).union(part.span)
        assert list(part.forced) == [any(unit.overlaps(one) for one in protected) for unit in part.units]
    corpus.close()


def bubble_of(document: Document) -> tuple[Bubble, MemoryCorpus]:
    chunk = Chunk.cut(document, 0, len(document.text), counter=COUNTER, chunker="whole")
    hit = Hit(chunk=chunk, score=1.0, rank=1, retriever="test")
    bubble = Bubble(question="?", hits=(hit,), token_count=chunk.token_count, budget=1000, decisions=())
    return bubble, MemoryCorpus(Path(), [document], [chunk])


def test_survival_tells_a_span_that_was_cut() -> None:
    text = "It rained 25 mm on Monday. It did not rain on 26 May."
    bubble, corpus = bubble_of(Document(text=text, source="x"))
    cut = context_of(bubble, [(Span(0, 11), Span(16, 27))], COUNTER, "test")
    assert cut.pieces[0].text == "It rained 2on Monday. "[:10] + text[10:11] + text[16:27]
    told = survival(bubble, cut, corpus)
    assert told["unit"] == (1, 0, 1)
    assert told["number"] == (1, 0, 2)
    assert told["entity"] == (1, 1, 2)
    assert told["negation"] == (0, 0, 1)
    assert survival(bubble, context_of(bubble, [()], COUNTER, "test"), corpus)["number"] == (0, 0, 2)
    corpus.close()


def test_forced_units_touch_a_protected_span() -> None:
    assert forced([Span(0, 3), Span(3, 6), Span(6, 9)], [Span(2, 3), Span(8, 12)]) == [True, False, True]
    assert forced([Span(0, 3)], []) == [False]


@pytest.mark.timeout(30)
@pytest.mark.parametrize(
    "seed",
    ["a", "1", "1,", '"', "“", "a.", "a_", "(", "/a", "n't ", "A ", "two ", "-a ", "1:", "no ", "@a.", "a@", "$1 "],
)
def test_a_hostile_text_is_read_in_proportion_to_its_length(seed: str) -> None:
    """Half a second here; a pattern that reads a row anew from each of its characters needs minutes."""
    text = (seed * 60_000)[:60_000]
    Protector(Document(text=text, source="x")).spans(Span(0, len(text)))
