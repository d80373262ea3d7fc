"""`rag eval compress` on made-up text: figures by hand, references, laws, report."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from eval.compress.measures import says, survived
from eval.compress.references import REFERENCES, parts_of
from eval.compress.report import markdown, report_of, timings_of, write
from eval.compress.rows import Row
from eval.compress.run import Evaluation, evaluate
from eval.compress.settings import Settings
from eval.select.sets import asked_of
from eval.sets import Question
from rag.errors import UsageError
from rag.spans.pieces import aim, context_of, joined
from rag.text import assemble
from rag.tokens import WordCounter
from rag.types import Bubble, Chunk, Document, Hit, Span
from tests.corpora import MemoryCorpus

TOPICS = ("mill", "harbour", "ledger", "orchard", "valve", "bridge", "lantern", "quarry")
COUNTER = WordCounter()
SETTINGS = Settings(
    data=Path("none"), half="all", retriever={"use": "bm25", "k": 20}, embedder="hashing", generator="extractive",
    compressors=(), rates=(0.5, 0.25), budget=120, resamples=200,
)  # fmt: skip


def tiny() -> Any:
    texts, questions = {}, []
    for topic in TOPICS:
        lines = [f"The {topic} has a part {number} that its keeper calls item {number}." for number in range(12)]
        texts[f"{topic}.txt"] = text = "\n\n".join(" ".join(lines[at : at + 3]) for at in range(0, 12, 3))
        start = text.index(lines[2])
        place = (f"{topic}.txt", start, start + len(lines[2]))
        questions.append(
            Question(id=topic, text=f"what is {topic} part 2", evidence=(place,), answers=("Item  2", "nothing"))
        )
    return asked_of("tiny", texts, tuple(questions), "all", chunker={"use": "recursive", "max_tokens": 45})


@pytest.fixture(scope="module")
def done() -> Evaluation:
    return evaluate(SETTINGS, [tiny()], lambda line: None)


def row_of(done: Evaluation, name: str, rate: float) -> Row:
    return next(row for row in done.sets["tiny"].rows if (row.compressor, row.rate) == (name, rate))


def mean(row: Row, name: str) -> float:
    return sum(value or 0.0 for value in row.scores(name)) / len(row.measured)


class TestMeasures:
    text = "Item 1,250 is red. Item 2 is blue. Item 3 is green."
    document = Document(text=text, source="d")
    chunk = Chunk.cut(document, 0, len(text), counter=COUNTER, chunker="x")
    hits = (Hit(chunk=chunk, score=1.0, rank=1, retriever="x"),)
    bubble = Bubble(question="q", hits=hits, token_count=COUNTER.count(text), budget=99, decisions=())

    def measured(self, *spans: tuple[int, int], target: int = 99) -> Any:
        context = context_of(self.bubble, [joined(Span(*one) for one in spans)], COUNTER, "x")
        parts = [(0, Span(0, 19)), (0, Span(19, 35)), (0, Span(35, len(self.text)))]
        evidence = [(self.document.id, 19, 34)]
        return survived(
            self.bubble, context, parts, evidence=evidence, answers=("2 is BLUE", "absent"), target=target,
            counter=COUNTER, verbatim=True,
        )  # fmt: skip

    def test_a_kept_sentence(self) -> None:
        found = self.measured((19, 35))
        assert (found.scores["recall"], found.scores["kept"], found.scores["answer"]) == (1.0, 1.0, 1.0)
        assert (found.scores["numbers"], found.broken) == (1.0, ())

    def test_a_number_that_is_cut_in_two(self) -> None:
        found = self.measured((0, 7), (35, len(self.text)))  # "Item 1,", and the sentence with 3
        assert found.scores["numbers"] == 0.5
        assert (found.scores["recall"], found.scores["answer"]) == (0.0, 0.0)

    def test_too_long_is_a_broken_law(self) -> None:
        assert self.measured((0, 19), target=3).broken == ("over the target",)

    @pytest.mark.parametrize(
        ("text", "answer", "expected"),
        [("The  BIG\ndog", "big dog", True), ("the big", "bigger", False), ("anything", " ", False)],
    )
    def test_says(self, text: str, answer: str, expected: bool) -> None:
        assert says(text, answer) is expected


def test_parts_tile_what_the_bubble_kept(tmp_path: Path) -> None:
    text = "One is here. Two is there. Three is gone."
    document = Document(text=text, source="d")
    chunk = Chunk.cut(document, 0, len(text), counter=COUNTER, chunker="x")
    bubble = Bubble(
        question="q", hits=(Hit(chunk=chunk, score=1.0, rank=1, retriever="x"),), token_count=0, budget=9,
        decisions=(), kept=((Span(4, 20),),),
    )  # fmt: skip

    class Texts:
        def document(self, doc_id: str) -> Document:
            return document

    corpus: MemoryCorpus = Texts()  # type: ignore[assignment]
    assert parts_of(bubble, corpus) == [(0, Span(4, 13)), (0, Span(13, 20))]


def test_references(done: Evaluation) -> None:
    for rate in SETTINGS.rates:
        rows = {name: row_of(done, name, rate) for name in REFERENCES}
        assert mean(rows["(oracle)"], "kept") == 1.0
        assert mean(rows["(random)"], "kept") < mean(rows["(oracle)"], "kept")
        for row in rows.values():
            for context, tokens in zip(row.contexts, row.source_tokens, strict=True):
                assert context.token_count <= aim(tokens, None, rate)
            assert not any(found.broken for found in row.measured)
    whole = row_of(done, "none", 1.0)
    assert [score for score in whole.scores("kept") if score is not None] == [1.0] * len(TOPICS)
    assert mean(whole, "answer") == 1.0


def test_truncation_keeps_a_beginning(done: Evaluation) -> None:
    for short, whole in zip(row_of(done, "(truncate)", 0.5).contexts, row_of(done, "none", 1.0).contexts, strict=True):
        assert assemble(p.text for p in whole.pieces).startswith(assemble(p.text for p in short.pieces))


def test_the_report_repeats(done: Evaluation, tmp_path: Path) -> None:
    first = write(done, SETTINGS, tmp_path / "a")
    write(evaluate(SETTINGS, [tiny()], lambda line: None), SETTINGS, tmp_path / "b")
    for name in ("compress.json", "compress.md", "questions.jsonl"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert first["sets"]["tiny"]["questions"] == len(TOPICS)
    assert len((tmp_path / "a" / "questions.jsonl").read_text().splitlines()) == len(TOPICS) * 9
    assert "(oracle)" in markdown(first, timings_of(done))
    assert json.loads((tmp_path / "a" / "timings.json").read_text())["kind"] == "compressor-timings"


def test_the_baseline_must_be_there(done: Evaluation) -> None:
    with pytest.raises(UsageError, match="--baseline nobody"):
        report_of(done, replace(SETTINGS, baseline="nobody"))


def test_a_compressor_as_baseline_is_compared_with_references_in_answers_and_likelihood() -> None:
    settings = replace(SETTINGS, compressors=("sentence-prune",), baseline="sentence-prune", rates=(0.5,))
    found = evaluate(settings, [tiny()], lambda line: None)
    rows = found.sets["tiny"].rows
    nats = {
        at: [float(row.compressor == "sentence-prune") - 2.0 - one / 8 for one in range(6)]
        for at, row in enumerate(rows)
    }
    report = report_of(replace(found, sets={"tiny": replace(found.sets["tiny"], likelihoods=nats)}), settings)
    made = {one["compressor"]: one for one in report["sets"]["tiny"]["comparisons"]}
    assert set(made) == {"(truncate)", "(top-k)", "(random)"}
    assert made["(random)"]["likelihood"] == {"mean": -1.0, "low": -1.0, "high": -1.0, "questions": 6}
    assert made["(random)"]["answer"]["questions"] == len(TOPICS)
    claims = {one["claim"]: one for one in report["claims"]}
    lead = "(+1.000 [+1.000, +1.000], 6 questions), lower end"
    name = f"tiny, rate 0.5: sentence-prune makes the gold answer likelier than (random) {lead}"
    assert claims[name]["holds"]
    assert any("keeps more answer strings than (truncate)" in text for text in claims)
    assert "minus sentence-prune" in markdown(report)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"compressors": ({"use": "none", "rate": 0.5},)}, "leave target and rate out"),
        ({"rates": (1.5,)}, "--rate"),
    ],
)
def test_settings_that_cannot_be(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        replace(SETTINGS, **changes).check()
