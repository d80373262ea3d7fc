"""Texts without markup: lines that are paragraphs, titles among them, and sentences that hold sentences."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chunkers._lines import inner_stops, lines_of
from chunkers._pack import Ruler
from chunkers._segment import Atoms
from chunkers.intent_driven import IntentDrivenChunker
from rag.embedders.hashing import HashingEmbedder
from rag.tokens import WordCounter
from rag.types import Document

COUNTER = WordCounter(limit=254)
FIRST = "The mill stands where the two streams meet, and its wheel turns all year."
SECOND = "Nobody had asked why the gate was left open after the ledger was closed."
ARTICLE = f" = The mill = \n {FIRST} {SECOND} \n {SECOND} {FIRST} \n = The gate = \n {SECOND} {FIRST}\n"
WRAPPED = (
    "The mill stands where the two streams meet and its\nwheel turns all year, says the book that was found in\nthe \
tower. Nobody had asked why the gate was left open after\nthe ledger was closed\n"
)


def make(**fields) -> IntentDrivenChunker:
    given = {"counter": COUNTER, "embedder": HashingEmbedder(), "sources": (), "min_tokens": 0, **fields}
    return IntentDrivenChunker(**given)


def lines_at(text: str, places: tuple[int, ...]) -> list[str]:
    return [text[at:].splitlines()[0].strip() for at in places]


class TestLines:
    def test_paragraphs_and_titles_of_a_text_with_one_paragraph_a_line(self) -> None:
        found = lines_of(ARTICLE)
        assert lines_at(ARTICLE, found.titles) == ["= The mill =", "= The gate ="]
        assert len(found.paragraphs) == 5

    @pytest.mark.parametrize("text", [WRAPPED, "", " \n ", "name | 12 | the amount that was paid in 2011 | 55\n" * 9])
    def test_wrapped_lines_and_tables_say_nothing(self, text: str) -> None:
        assert lines_of(text) == lines_of("")

    def test_line_ends_of_any_kind(self) -> None:
        found = [lines_of(ARTICLE.replace("\n", end)) for end in ("\n", "\r\n", "\r")]
        assert {(len(one.paragraphs), len(one.titles)) for one in found} == {(5, 2)}

    @given(st.text(alphabet='aB1.!"(\n\\ 。', max_size=60))
    def test_places_are_visible_characters_and_stops_lie_inside(self, text: str) -> None:
        found = lines_of(text)
        assert set(found.titles) <= set(found.paragraphs)
        assert not [at for at in found.paragraphs if text[at].isspace()]
        stops = inner_stops(text, 1, len(text))
        assert stops == sorted(set(stops))
        assert not [at for at in stops if not 1 < at < len(text)]


class TestLongSentences:
    QUOTED = f"[{{'content': \"{FIRST} {SECOND}\\n{FIRST} {SECOND}\", 'role': 'user'}}]"

    def atoms(self, long_chars: int | None) -> Atoms:
        document = Document(text=self.QUOTED, source="log.txt")
        return Atoms.of(document, Ruler(document, COUNTER, max_tokens=254, max_chars=3000), None, long_chars)

    def test_a_quote_is_cut_at_its_stops(self) -> None:
        assert len(self.atoms(100)) >= 4
        assert "".join(self.atoms(100).texts) == self.QUOTED
        assert any(text.startswith("Nobody") for text in self.atoms(100).texts)

    def test_not_below_the_length_and_not_unless_asked(self) -> None:
        assert self.atoms(None).ends == self.atoms(len(self.QUOTED)).ends

    def test_the_chunker_follows_its_target(self) -> None:
        document = Document(text=self.QUOTED * 4, source="log.txt")
        longest = {
            split: max(len(chunk.text) for chunk in make(target_chars=150, split_long=split).chunk(document))
            for split in (True, False)
        }
        assert longest[True] < 300
        assert longest[True] < longest[False]


class TestPriors:
    def starts(self, **fields) -> list[str]:
        weights = {"w_coherence": 0.0, "w_size": 0.2, "target_chars": 160}
        document = Document(text=ARTICLE * 2, source="wiki.txt")
        return [chunk.text.strip().splitlines()[0] for chunk in make(**weights, **fields).chunk(document)]

    def test_chunks_begin_where_lines_do_and_titles_stay_with_their_text(self) -> None:
        found = self.starts()
        assert "= The gate =" in [start.strip() for start in found]
        chunks = make(target_chars=60, w_size=0.2).chunk(Document(text=ARTICLE * 2, source="wiki.txt"))
        assert not [chunk for chunk in chunks if chunk.text.strip().endswith("=")]

    def test_off_it_sees_blank_lines_only(self) -> None:
        chunker = make(line_paragraphs=False)
        score = chunker.score(chunker.atoms(Document(text=ARTICLE * 2, source="wiki.txt")))
        assert not score.prior.any()
        lined = make()
        assert lined.score(lined.atoms(Document(text=ARTICLE * 2, source="wiki.txt"))).prior.any()
