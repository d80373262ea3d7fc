"""`rag eval select` on a tiny made-up set with the hashing embedder: figures by hand, references, report, command."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from eval.chunks.vectors import CountingEmbedder
from eval.cli import eval_app
from eval.select import rows as rows_module
from eval.select.counting import CountingCounter, counters_of
from eval.select.indexes import opened
from eval.select.measures import held
from eval.select.references import reference
from eval.select.report import markdown, report_of, timings_of, write
from eval.select.rows import Asking, Row, selected
from eval.select.run import Evaluation, evaluate, run
from eval.select.sets import SETS, Asked, asked_of, read_asked
from eval.select.settings import Settings, label_of
from eval.sets import Place, Question
from rag import registry
from rag.embedders.hashing import HashingEmbedder
from rag.errors import ConfigError, RagError, UsageError
from rag.protocols import Corpus, Selector
from rag.text import TokenMap, assemble
from rag.tokens import WordCounter
from rag.types import Bubble, Chunk, Document, Hit, Span

TOPICS = ("mill", "harbour", "ledger", "orchard", "valve", "bridge", "lantern", "quarry")


def text_of(topic: str) -> str:
    lines = [f"The {topic} has a part {number} that its keeper calls item {number}." for number in range(12)]
    return "\n\n".join(" ".join(lines[at : at + 3]) for at in range(0, 12, 3))


def tiny(poisoned: Sequence[str] = ()) -> Asked:
    """Two questions a document; the second has two pieces of evidence, one of them in another document."""
    texts = {f"{topic}.txt": text_of(topic) for topic in TOPICS}
    questions = []
    for at, topic in enumerate(TOPICS):
        other = TOPICS[(at + 1) % len(TOPICS)]
        one = (place(topic, 2),)
        questions.append(Question(id=f"{topic}-1", text=f"what is {topic} part 2", evidence=one))
        two = (place(topic, 7), place(other, 4))
        questions.append(Question(id=f"{topic}-2", text=f"{topic} part 7 and {other} part 4", evidence=two))
    return asked_of("tiny", texts, tuple(questions), "all", poisoned=frozenset(poisoned), chunker=CHUNKER)


def place(topic: str, number: int) -> Place:
    at = text_of(topic).index(f"The {topic} has a part {number} ")
    return f"{topic}.txt", at, text_of(topic).index(".", at) + 1


CHUNKER: Any = {"use": "recursive", "max_tokens": 45}
SETTINGS = Settings(
    data=Path("none"), half="all", retrievers=({"use": "bm25", "k": 20},), embedder="hashing",
    budgets=(50, 20, 100), counters=("embedder",), resamples=200,
)  # fmt: skip


def evaluated(**changes: Any) -> tuple[Evaluation, Settings]:
    settings = replace(SETTINGS, **changes)
    return evaluate(settings, [tiny()], lambda line: None), settings


def row_of(done: Evaluation, selector: str, budget: int) -> Row:
    return next(row for row in done.sets["tiny"].rows if (row.selector, row.budget) == (selector, budget))


def mean(row: Row, name: str) -> float:
    return sum(row.scores(name)) / len(row.measured)


class TestMeasures:
    text = "One two three. Four five six.\n\nSeven eight nine."
    document = Document(text=text, source="d")

    def bubble(self, *spans: tuple[int, int], budget: int = 99, tokens: int | None = None) -> Bubble:
        chunk = Chunk.cut(self.document, 0, len(self.text), counter=WordCounter(), chunker="x")
        hit = Hit(chunk=chunk, score=1.0, rank=1, retriever="x")
        kept = (tuple(Span(*one) for one in spans),)
        made = Bubble(question="q", hits=(hit,), token_count=0, budget=budget, decisions=(), kept=kept)
        count = WordCounter().count(assemble(made.texts))
        return replace(made, token_count=count if tokens is None else tokens)

    def scores(self, bubble: Bubble, evidence: Sequence[tuple[int, int]], **options: Any) -> dict[str, float]:
        places = [(self.document.id, start, end) for start, end in evidence]
        found = held(bubble, places, 99, WordCounter(), {self.document.id: self.text}, **options)
        assert found.broken == ()
        return dict(found.scores)

    def test_by_hand(self) -> None:
        # evidence 0-14 and 31-49; kept 0-8 and 31-49: 8 + 18 of 32, all of the second piece
        scores = self.scores(self.bubble((0, 8), (31, 49)), [(0, 14), (31, 49)])
        assert scores == {
            "recall": 26 / 32, "precision": 1.0, "all": 0.0, "any": 1.0, "tokens": 6.0, "poisoned": 0.0,
            "poisoned_share": 0.0,
        }  # fmt: skip

    def test_evidence_and_text_that_overlap_count_once(self) -> None:
        scores = self.scores(self.bubble((0, 14), (7, 29)), [(0, 14), (4, 14)])
        assert (scores["recall"], scores["precision"], scores["all"]) == (1.0, 14 / 29, 1.0)

    def test_white_space_between_sentences_is_not_missed(self) -> None:
        scores = self.scores(self.bubble((15, 29), (31, 49)), [(15, 49)])
        assert scores["recall"] == 32 / 34
        assert scores["all"] == scores["any"] == 1.0
        assert self.scores(self.bubble((15, 28), (31, 49)), [(15, 49)])["all"] == 0.0

    def test_an_empty_bubble_holds_nothing(self) -> None:
        nothing = Bubble(question="q", hits=(), token_count=0, budget=5, decisions=())
        assert set(self.scores(nothing, [(0, 14)]).values()) == {0.0}

    def test_poison_is_counted(self) -> None:
        scores = self.scores(self.bubble((0, 14)), [(0, 14)], poisoned={self.document.id})
        assert (scores["poisoned"], scores["poisoned_share"]) == (1.0, 1.0)

    def test_broken_laws_are_named(self) -> None:
        gold, texts = [(self.document.id, 0, 3)], {self.document.id: self.text}
        broken = held(self.bubble((0, 14), tokens=3), gold, 2, WordCounter(), texts).broken
        assert broken == ("over the budget", "token_count is not what the text has")
        assert held(self.bubble((0, 14)), gold, 9, WordCounter(), {self.document.id: "x"}).broken == (
            "a text that its document does not have",
        )


class TestCounting:
    def test_calls_and_characters(self) -> None:
        counting = CountingCounter(WordCounter())
        assert counting.count("one two") == 2
        assert counting.offsets("one") == [(0, 3)]
        assert counting.count_slice("one two", 4, 7) == 1
        assert (counting.calls, counting.characters) == (3, 13)
        assert TokenMap(counting, "one two three").count(4, 13) == 2
        assert (counting.calls, counting.characters) == (4, 26)

    def test_the_embedder_is_the_counter_that_is_always_there(self) -> None:
        found, absent = counters_of(["embedder"], HashingEmbedder())
        assert (list(found), absent) == (["embedder"], {})
        with pytest.raises(UsageError, match="--counter words"):
            counters_of(["words"], HashingEmbedder())


class TestEvaluation:
    def test_the_oracle_has_all_and_chance_has_less(self) -> None:
        done, _ = evaluated()
        oracle, top, random = (row_of(done, name, 50) for name in ("(oracle)", "top-k", "(random)"))
        assert set(oracle.scores("recall")) == set(oracle.scores("all")) == set(oracle.scores("precision")) == {1.0}
        assert mean(random, "recall") < mean(top, "recall") < 1.0
        facts = done.sets["tiny"].facts
        assert facts["held_by_hits"]["bm25 k=20"] == {"recall": 1.0, "all": 1.0, "poisoned": 0.0}
        assert (facts["questions"], facts["documents"]) == (16, 8)

    def test_an_oracle_is_cut_at_the_budget(self) -> None:
        done, _ = evaluated(budgets=(5,))
        row = row_of(done, "(oracle)", 5)
        assert set(row.scores("tokens")) == {5.0}
        assert all(0 < one < 1 for one in row.scores("recall"))

    def test_every_row_obeys_the_laws_and_more_tokens_hold_no_less(self) -> None:
        done, settings = evaluated()
        rows = report_of(done, settings)["sets"]["tiny"]["rows"]
        assert len(rows) == 5 * 3  # top-k, mmr and three references at three budgets
        assert all(row["broken"] == {} and row["less_than_with_a_smaller_budget"] == 0 for row in rows)
        assert [row["budget"] for row in rows[:3]] == [20, 50, 100]
        gains = {row["selector"]: row["gain"] for row in rows}
        assert (gains["(random)"], gains["(oracle)"]) == (0.0, 1.0)

    def test_a_selector_that_reads_the_evidence_wins_significantly(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def build(kind: str, spec: Any, **options: Any) -> Any:
            return Knowing() if spec["use"] == "knowing" else registry.build(kind, spec, **options)

        monkeypatch.setattr(rows_module, "build", build)
        done, settings = evaluated(selectors=("knowing",), budgets=(60,))
        assert set(row_of(done, "knowing", 60).scores("recall")) == {1.0}
        found = report_of(done, settings)["sets"]["tiny"]["comparisons"]
        recall = next(one for one in found if one["measure"] == "recall")
        assert recall["selector"] == "knowing"
        assert recall["low"] > 0
        assert recall["p_holm"] < 0.05

    def test_the_baseline_against_itself_differs_by_nothing(self) -> None:
        done, settings = evaluated(selectors=({"use": "top-k", "k": 0},))
        found = report_of(done, settings)["sets"]["tiny"]["comparisons"]
        assert {one["selector"] for one in found} == {"top-k k=0"}
        assert {(one["low"], one["mean"], one["high"], one["p_holm"]) for one in found} == {(0.0, 0.0, 0.0, 1.0)}

    def test_poisoned_chunks_are_reported(self) -> None:
        done = evaluate(SETTINGS, [tiny(poisoned=["mill.txt"])], lambda line: None)
        row = row_of(done, "top-k", 100)
        asked = zip(row.scores("poisoned"), done.sets["tiny"].questions, strict=True)
        assert {question.id: count for count, question in asked}["mill-1"] == 2.0
        assert 0 < mean(row, "poisoned") < 2
        assert done.sets["tiny"].facts["held_by_hits"]["bm25 k=20"]["poisoned"] > 0
        assert "poisoned_share" in markdown(report_of(done, SETTINGS))


class Knowing(Selector):
    """Knows the places of the evidence, and looks nothing up in the hits' order."""

    def select(self, question: str, hits: Sequence[Hit], corpus: Corpus) -> Bubble:
        gold = next(one.evidence for one in tiny().questions if one.text == question)
        chosen = []
        for hit in hits:
            source = Path(corpus.document(hit.chunk.doc_id).source).name
            inside = [Span(a, b) for name, a, b in gold if name == source and hit.chunk.span.contains(Span(a, b))]
            if inside:
                chosen.append((hit, tuple(inside)))
        made = Bubble(
            question=question, hits=tuple(hit for hit, _ in chosen), token_count=0, budget=60, decisions=(),
            kept=tuple(spans for _, spans in chosen),
        )  # fmt: skip
        return replace(made, token_count=WordCounter().count(assemble(made.texts)))


class Embedding(Selector):
    """Embeds what it is given, to be counted."""

    def __init__(self, embedder: CountingEmbedder) -> None:
        self._embedder = embedder

    def select(self, question: str, hits: Sequence[Hit], corpus: Corpus) -> Bubble:
        self._embedder.embed([hit.chunk.text for hit in hits])
        return Bubble(question=question, hits=(), token_count=0, budget=1, decisions=())


def test_work_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows_module, "build", lambda kind, spec, services, path: Embedding(services["embedder"]))
    with opened(tiny(), HashingEmbedder(), CHUNKER, None) as indexed:
        question = indexed.asked.questions[0]
        hits = indexed.hits({"use": "bm25", "k": 3}, question.text)
        gold = [indexed.evidence(one.evidence) for one in indexed.asked.questions]
        asking = Asking(indexed=indexed, retriever="r", hits=[hits] * 16, gold=gold, poisoned=frozenset())
        row = selected(asking, "x", "x", "embedder", WordCounter(), 9, HashingEmbedder())
    assert {(one.candidates, one.embedded, one.counter_calls) for one in row.work} == {(3, 3, 0)}
    assert len(row.cpu_ms) == 16


class TestIndex:
    def test_a_cached_index_is_found_again_and_embeds_nothing(self, tmp_path: Path) -> None:
        counts = []
        for _ in range(2):
            embedder = CountingEmbedder(inner=HashingEmbedder())
            with opened(tiny(), embedder, CHUNKER, tmp_path) as indexed:
                assert indexed.chunks > len(TOPICS)
                assert sorted(indexed.text_of.values()) == sorted(tiny().texts.values())
            counts.append(embedder.counts["texts"])
        assert counts[1] == 0
        assert len(list((tmp_path / "indexes").iterdir())) == 1

    def test_a_document_that_does_not_come_back_as_it_is_is_an_error(self) -> None:
        broken = replace(tiny(), texts={**tiny().texts, "mill.txt": "\ufeff" + text_of("mill")})
        with (
            pytest.raises(RagError, match=r"1 documents with evidence.*mill\.txt"),
            opened(broken, HashingEmbedder(), CHUNKER, None),
        ):
            pass


class TestSettings:
    def test_labels(self) -> None:
        assert label_of({"use": "mmr", "lam": 0.5, "pool": 9}) == "mmr lam=0.5, pool=9"
        assert list(SETTINGS.labelled) == ["top-k", "mmr"]

    def test_a_budget_in_a_spec_and_an_unknown_name_are_refused(self) -> None:
        with pytest.raises(UsageError, match="leave the budget out"):
            replace(SETTINGS, selectors=({"use": "mmr", "budget": 9},)).check()
        with pytest.raises(ConfigError, match="tpo-k"):
            replace(SETTINGS, selectors=("tpo-k",)).check()

    def test_a_selector_that_is_told_a_question_is_refused(self, tmp_path: Path) -> None:
        asked = tiny()
        long = replace(asked.questions[0], text="who keeps the second part of the old mill today")
        asked = replace(asked, questions=asked.questions[1:], every=(long, *asked.questions[1:]))
        (tmp_path / "weights.txt").write_text(f"first\n{long.text}\n")
        for spec in ({"use": "x", "words": [long.text]}, {"use": "x", "file": str(tmp_path / "weights.txt")}):
            with pytest.raises(UsageError, match="made without them"):
                replace(SETTINGS, selectors=(spec,)).check_leaks(asked)
        replace(SETTINGS, selectors=({"use": "x", "words": ["any other four words"]},)).check_leaks(asked)


class TestReport:
    def test_it_repeats_byte_for_byte_but_for_the_times(self, tmp_path: Path) -> None:
        for name in ("one", "two"):
            done, settings = evaluated(cache=tmp_path / "cache" if name == "two" else None)
            write(done, settings, tmp_path / name)
        for name in ("select.json", "select.md", "questions.jsonl"):
            assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
        times = json.loads((tmp_path / "one" / "timings.json").read_text())
        assert {"median_cpu_ms", "selector", "budget"} <= set(times["rows"][0])

    def test_the_raw_rows_give_the_means(self, tmp_path: Path) -> None:
        done, settings = evaluated(budgets=(50,))
        report = write(done, settings, tmp_path)
        raw = [json.loads(line) for line in (tmp_path / "questions.jsonl").read_text().splitlines()]
        for row in report["sets"]["tiny"]["rows"]:
            mine = [one for one in raw if one["selector"] == row["selector"]]
            assert len(mine) == 16
            assert sum(one["recall"] for one in mine) / 16 == pytest.approx(row["scores"]["recall"], abs=1e-4)
        assert raw[0]["kept"][0][0] in tiny().texts
        by_document = report["sets"]["tiny"]["rows"][0]["recall_by_document"]
        assert set(by_document) == {*tiny().texts, "macro"}

    def test_markdown_has_the_tables(self) -> None:
        done, settings = evaluated()
        shown = markdown(report_of(done, settings), timings_of(done))
        for line in ("## tiny", "| minus top-k |", "recall@100", "| (oracle) |", "CPU milliseconds"):
            assert line in shown


class TestClaims:
    def claims(self, name: str, **changes: Any) -> list[dict[str, Any]]:
        settings = replace(SETTINGS, selectors=({"use": "top-k", "k": 1},), **changes)
        report = report_of(evaluate(settings, [replace(tiny(), name=name)], lambda line: None), settings)
        assert ("## Goals" in markdown(report)) == bool(report["claims"])
        return list(report["claims"])

    def test_recall_is_held_against_its_goal(self) -> None:
        (one,) = self.claims("chroma_redundant", budgets=(50, 800))
        assert (one["goal"], one["holds"], one["claim"].split(", ")[1]) == (0.95, False, "800 tokens of the embedder")

    def test_one_chunk_is_behind_on_all_evidence(self) -> None:
        (one,) = self.claims("hotpotqa_200", budgets=(800,))
        assert one["value"] < 0 < one["goal"]
        assert [claim["holds"] for claim in self.claims("covidqa")] == [False] * 3

    def test_other_sets_have_no_goals(self) -> None:
        assert self.claims("tiny") == []


def data_folder(root: Path) -> Path:
    """A poison set: two clean documents, a poisoned one, evidence with roles, a question without any."""
    folder = root / "poisonedrag_nq"
    folder.mkdir(parents=True)
    rows: dict[str, list[dict[str, Any]]] = {
        "corpus": [
            {"doc_id": "mill", "text": text_of("mill"), "meta": {"role": "clean"}},
            {"doc_id": "orchard", "text": text_of("orchard").replace("item 9", "item\x009")},
            {"doc_id": "bad", "text": "what is mill part 2. It is item 5.", "meta": {"role": "poison"}},
        ],
        "queries": [{"query_id": "q", "text": "what is mill part 2"}, {"query_id": "none", "text": "nothing"}],
        "evidence": [
            {"query_id": "q", "doc_id": "mill", "start": 0, "end": 40, "role": "clean"},
            {"query_id": "q", "doc_id": "bad", "start": 0, "end": 9, "role": "counterfactual"},
        ],
    }
    for name, lines in rows.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return root


class TestSets:
    def test_poison_is_known_and_can_be_left_out(self, tmp_path: Path) -> None:
        data = data_folder(tmp_path)
        both, clean = (read_asked(data, name, "all") for name in ("poisonedrag_nq", "poisonedrag_nq_clean"))
        assert both.poisoned == {"bad.txt"}
        assert set(clean.texts) == {"mill.txt", "orchard.txt"}
        assert clean.poisoned == frozenset()
        assert [one.evidence for one in both.questions] == [(("mill.txt", 0, 40),)]
        assert both.questions[0].id == clean.questions[0].id == "poisonedrag_nq/q"
        assert "item 9" in both.texts["orchard.txt"]  # a NUL byte becomes a space
        assert both.digest != clean.digest

    def test_unknown_sets_and_empty_halves(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="chroma_redundant"):
            read_asked(tmp_path, "chroma", "all")
        data, halves = data_folder(tmp_path), []
        for half in ("dev", "test"):
            try:
                halves.append(len(read_asked(data, "poisonedrag_nq", half).questions))
            except UsageError:
                halves.append(0)
        assert sorted(halves) == [0, 1]

    @pytest.mark.data
    @pytest.mark.parametrize("name", sorted(SETS))
    def test_evidence_lies_where_the_data_says(self, name: str, data_dir: Path) -> None:
        asked = read_asked(data_dir, name, "all")
        assert len(asked.questions) >= 36
        for question in asked.questions:
            assert all(0 <= start < end <= len(asked.texts[source]) for source, start, end in question.evidence)
        assert bool(asked.poisoned) == (bool(SETS[name].poison_roles) and not SETS[name].clean)


def test_the_command(tmp_path: Path) -> None:
    data, out = data_folder(tmp_path / "data"), tmp_path / "out"
    given = ["select", "--data", str(data), "--out", str(out), "--set", "poisonedrag_nq", "--half", "all"]
    given += ["--embedder", "hashing", "--retriever", "{use: bm25, k: 9}", "--counter", "embedder"]
    given += ["--selector", "{use: mmr, lam: 0.5}", "--budget", "40", "--budget", "80", "--resamples", "100"]
    given += ["--chunker", "{use: recursive, max_tokens: 45}", "--cache", str(tmp_path / "cache"), "--json", "--quiet"]
    result = CliRunner().invoke(eval_app, given, catch_exceptions=False)
    assert result.exit_code == 0
    report = json.loads((out / "select.json").read_text())
    assert report["budgets"] == [40, 80]
    assert {row["selector"] for row in report["sets"]["poisonedrag_nq"]["rows"]} == {
        "top-k", "mmr lam=0.5", "(random)", "(lead)", "(oracle)",
    }  # fmt: skip
    assert json.loads(result.stdout)["sets"].keys() == {"poisonedrag_nq"}
    with pytest.raises(UsageError, match="--half"):
        CliRunner().invoke(eval_app, ["select", "--data", "x", "--out", "y", "--half", "b"], catch_exceptions=False)


def test_run_checks_before_it_reads(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--budget"):
        run(replace(SETTINGS, data=tmp_path, budgets=(0,)), lambda line: None)


def test_references_are_selectors_like_others() -> None:
    texts = [f"word{number} here" for number in range(4)]
    document = Document(text="\n\n".join(texts), source="d")
    counter = WordCounter()
    hits = []
    for rank, number in enumerate((2, 0, 3, 1), start=1):
        at = document.text.index(texts[number])
        chunk = Chunk.cut(document, at, at + len(texts[number]), counter=counter, chunker="x")
        hits.append(Hit(chunk=chunk, score=1 / rank, rank=rank, retriever="x"))
    corpus: Any = None
    lead = reference("(lead)", counter, 4, []).select("q", hits, corpus)
    assert lead.texts == ("word0 here", "word1 here")
    orders = {reference("(random)", counter, 2, []).select(f"q{n}", hits, corpus).texts for n in range(20)}
    assert len(orders) > 1
    gold = [(document.id, 0, 5), (document.id, len(document.text) - 10, len(document.text))]
    oracle = reference("(oracle)", counter, 9, gold).select("q", hits, corpus)
    assert oracle.texts == ("word0", "word3 here")  # in the order of the hits
