"""The leak guard finds test questions among intents, in other words or none, and leaves honest intents alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from chunkers.intent_driven import IntentDrivenChunker
from rag.embedders.hashing import HashingEmbedder
from rag.errors import ConfigError, RagError
from rag.leaks import LeakGuard
from rag.tokens import WordCounter
from rag.types import Document
from tests.texts import plain


def make(**fields) -> IntentDrivenChunker:
    return IntentDrivenChunker(counter=WordCounter(limit=254), embedder=HashingEmbedder(), **fields)


class TestLeakGuard:
    questions = ("Where does the mill stand?", "Who approves payments above 5,000 EUR?")

    def test_the_same_words_leak(self) -> None:
        guard = LeakGuard(questions=self.questions)
        (leak,) = guard.find(["What about valves?", "where does the MILL stand", "Where does it stand?"])
        assert (leak.question, leak.cosine) == (self.questions[0], 1.0)
        with pytest.raises(RagError, match="mill"):
            guard.check(["where does the MILL stand"])

    def test_nearly_the_same_vector_leaks(self) -> None:
        guard = LeakGuard(questions=self.questions, embedder=HashingEmbedder())
        other_order = "does the mill stand where"
        assert [leak.intent for leak in guard.find([other_order, "What about the mill?"])] == [other_order]
        assert not LeakGuard(questions=self.questions).find([other_order])

    def test_intents_without_words_and_guards_without_questions_pass(self) -> None:
        embedder = HashingEmbedder()
        LeakGuard(questions=("???", *self.questions), embedder=embedder).check(["", "?!"])
        LeakGuard(questions=(), embedder=embedder).check(["Where does the mill stand?"])

    def test_questions_in_a_log_are_caught_and_heuristic_intents_pass(self, tmp_path: Path) -> None:
        document = Document(text=plain(90), source="plain")
        log = tmp_path / "log.txt"
        log.write_text("Where stands the mill, between the streams?", encoding="utf-8")
        guard = LeakGuard(questions=("where stands the mill between the streams",), embedder=HashingEmbedder())
        _, leaky = make(sources=("query-log",), questions=str(log)).decide(document)
        with pytest.raises(RagError, match="1 of 1"):
            guard.check(leaky["intents"])
        _, honest = make().decide(document)
        assert honest["intents"]
        guard.check(honest["intents"])

    def test_a_level_out_of_range_is_refused(self) -> None:
        with pytest.raises(ConfigError, match="level"):
            LeakGuard(questions=(), level=1.5)
