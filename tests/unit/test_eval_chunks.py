"""`rag eval chunks` on a tiny made-up set with the hashing embedder: halves, guard, sizes, laws, report."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from eval.chunks._texts import hard_texts
from eval.chunks.conformance import broken_laws, conformance
from eval.chunks.contenders import LOST, Contender, Cut, Peer, Piece, find_peers, ours_of
from eval.chunks.data import LeakGuard, half_of, pool_of, read_structured
from eval.chunks.matching import match_size
from eval.chunks.protocol import Scorer, costs
from eval.chunks.report import dressed, markdown
from eval.chunks.run import Settings, evaluate
from eval.chunks.vectors import CachedEmbedder, CountingEmbedder
from eval.cli import eval_app
from eval.sets import Question, QuestionSet
from rag.embedders.hashing import HashingEmbedder
from rag.errors import ConfigError, UsageError
from rag.tokens import WordCounter
from rag.types import Document
from tests.fakes import WithinEmbedder

TOPICS = ("mill", "harbour", "ledger", "orchard", "valve", "bridge", "lantern", "quarry")


def text_of(topic: str) -> str:
    lines = [
        f"The {topic} has a part numbered {number} which the {topic} keeper calls item {number}."
        for number in range(12)
    ]
    return "\n\n".join(" ".join(lines[at : at + 3]) for at in range(0, 12, 3))


def tiny() -> QuestionSet:
    texts = {f"{topic}.txt": text_of(topic) for topic in TOPICS}
    questions = []
    for topic in TOPICS:
        for number in (2, 7):
            at = text_of(topic).index(f"The {topic} has a part numbered {number} ")
            evidence = ((f"{topic}.txt", at, at + 40),)
            words = f"what would someone call the {topic} piece with number {number} today"
            questions.append(Question(id=f"{topic}-{number}", text=words, evidence=evidence))
    return QuestionSet(name="tiny", texts=texts, questions=tuple(questions))


class Fixed(Contender):
    """Chunks of exactly `value` characters."""

    def __init__(self, jump: int = 0) -> None:
        self.name, self.knob, self.jump, self.calls = "fake", "chars", jump, 0

    def range(self, target: float) -> tuple[int, int]:
        return 1, 4096

    def cut(self, documents: Mapping[str, Document], value: int) -> Cut:
        self.calls += 1
        if value < self.jump:
            raise ConfigError("too small")
        pieces = [
            Piece((name, at, min(at + value, len(document.text))), document.text[at : at + value], 1)
            for name, document in documents.items()
            for at in range(0, len(document.text), value)
        ]
        return Cut(pieces=tuple(pieces))


def test_halves_are_fixed_and_part_the_questions() -> None:
    dev, test, every = (pool_of([tiny()], half) for half in ("dev", "test", "all"))
    assert {one.id for one in dev.questions} | {one.id for one in test.questions} == {one.id for one in every.questions}
    assert not {one.id for one in dev.questions} & {one.id for one in test.questions}
    assert [half_of(f"set/{number}") for number in range(8)] == [half_of(f"set/{number}") for number in range(8)]
    assert 400 < sum(half_of(f"set/{number}") == "dev" for number in range(1000)) < 600


def test_evidence_keeps_its_place_and_the_digest_sees_a_changed_question() -> None:
    pool = pool_of([tiny()], "all")
    name, start, _ = pool.questions[0].evidence[0]
    assert pool.documents[name].text[start:].startswith("The mill has a part numbered 2 ")
    other = QuestionSet(name="tiny", texts=tiny().texts, questions=tiny().questions[1:])
    assert pool_of([other], "all").hashes != pool.hashes


class TestLeakGuard:
    guard = LeakGuard(tiny().questions, [Document(text=text, source=name) for name, text in tiny().texts.items()])

    def test_a_question_is_found_whatever_its_case_and_surroundings(self) -> None:
        asked = tiny().questions[3]
        assert asked.id in self.guard.leaks([f"Intents: {asked.text.upper()}?!"])
        assert self.guard.leaks(["what would someone", "the mill", *tiny().texts.values()]) == []

    def test_it_looks_into_parameters_and_into_files_that_they_name(self, tmp_path: Path) -> None:
        asked = tiny().questions[0].text
        (tmp_path / "log.txt").write_text(f"first line\n{asked}\n")
        self.guard.check({"use": "x", "sources": ["headings"], "log": str(tmp_path / "other.txt")}, "x")
        self.guard.check({"use": "x", "intents": ["", "\0", "long " * 400, str(tmp_path)]}, "x")
        for spec in ({"use": "x", "intents": ["a", asked]}, {"use": "x", "log": str(tmp_path / "log.txt")}):
            with pytest.raises(UsageError, match="mill-2"):
                self.guard.check(spec, "x")

    def test_words_that_the_documents_hold_are_no_leak(self) -> None:
        asked = Question(id="q", text="the mill has a part numbered 2 which", evidence=())
        heading = LeakGuard([asked], [Document(text=text_of("mill"), source="m")])
        assert heading.leaks([asked.text]) == []
        assert LeakGuard([asked], []).leaks([asked.text]) == ["q"]


class TestSizes:
    documents: Mapping[str, Document] = MappingProxyType({"a": Document(text="x" * 20_000, source="a")})

    @pytest.mark.parametrize("target", [50, 350, 777])
    def test_the_knob_is_found_in_few_steps(self, target: int) -> None:
        contender = Fixed()
        match = match_size(contender, self.documents, target)
        assert match.within
        assert abs(match.cut.mean_chars - target) <= 0.05 * target
        assert contender.calls <= 12

    def test_an_unreachable_size_is_said(self) -> None:
        match = match_size(Fixed(jump=600), self.documents, 200)
        assert not match.within
        assert match.value >= 600

    def test_no_value_at_all_is_an_error(self) -> None:
        with pytest.raises(ConfigError, match="chars"):
            match_size(Fixed(jump=10_000), self.documents, 200)

    def test_a_real_chunker_is_matched(self) -> None:
        pool = pool_of([tiny()], "all")
        for name in ("sentence", "fixed"):
            assert match_size(ours_of(name, HashingEmbedder()), pool.documents, 286).within


class TestContenders:
    def test_the_knob_is_the_target_where_there_is_one(self) -> None:
        assert ours_of("recursive", HashingEmbedder()).knob == "max_tokens"
        assert ours_of({"use": "recursive", "knob": "min_tokens"}, HashingEmbedder()).knob == "min_tokens"
        assert ours_of({"use": "semantic", "buffer": 2}, HashingEmbedder()).name == "semantic (buffer=2)"
        with pytest.raises(UsageError, match="nothing"):
            ours_of({"use": "recursive", "knob": "nothing"}, HashingEmbedder())

    def test_work_is_counted(self) -> None:
        pool = pool_of([tiny()], "all")
        cut = ours_of("semantic", HashingEmbedder()).cut(pool.documents, 60)
        counter = WordCounter()
        tokens = sum(counter.count(document.text) for document in pool.documents.values())
        facts = costs(cut, pool.documents, HashingEmbedder().counter, tokens)
        assert facts["encoder_texts"] == 12 * len(TOPICS)  # each sentence once
        assert facts["encoder_passes"] == 1.0
        assert facts["characters_per_character"] == 1.0
        assert facts["over_limit"] == 0
        assert ours_of("sentence", HashingEmbedder()).cut(pool.documents, 60).encoder_texts == 0

    def test_a_peer_runs_in_a_child_and_its_chunks_are_placed(self, tmp_path: Path) -> None:
        peer = fake_peer(tmp_path, "[(text[:4].upper(), 0, 4), (text[4:], None, None)] if text else []")
        cut = peer.cut({"d": Document(text="abcdefgh", source="d")}, 5)
        assert [piece.place for piece in cut.pieces] == [(LOST, 0, 4), ("d", 4, 8)]
        assert cut.encoder_tokens is None

    def test_absent_peers_are_listed_with_the_reason(self) -> None:
        present, absent = find_peers(["/nonexistent/python"], "model", WordCounter())
        assert present == []
        assert {"chonkie", "langchain", "llama_index", "semchunk", "semantic_text_splitter"} == set(absent)
        assert all(absent.values())


def fake_peer(folder: Path, expression: str) -> Peer:
    path = folder / "fake.py"
    path.write_text(
        f"PACKAGES = ()\nMODULES = ()\nCHUNKERS = {{'fake': lambda size, model: lambda text: {expression}}}\n"
    )
    return Peer(name="fake", module=path, python=sys.executable, model="", counter=WordCounter(), versions={})


class TestLaws:
    def laws(self, first: Any, text: str = "one two  three.\r\nfour", limit: int = 3) -> list[str]:
        return broken_laws(text, first, first, limit, WordCounter().count)

    def test_what_is_right_breaks_nothing(self) -> None:
        text = "one two  three.\r\nfour"
        assert self.laws([["one two  ", 0, 9], ["three.\r\n", 9, 17], ["four", 17, 21]]) == []
        assert self.laws([], text="") == []
        assert self.laws([], text=" \n") == []
        assert broken_laws(text, [[text, 0, 21]], [[text, 0, 21]], 5, WordCounter().count) == []

    @pytest.mark.parametrize(
        ("parts", "broken"),
        [
            ([["one two", 0, 7], ["three.", 9, 15], ["four", 17, 21]], ["lossless"]),
            ([["one two  ", None, None], ["three.\r\n", 9, 17], ["four", 17, 21]], ["exact"]),
            ([["one two  three.\r\n", 0, 17], ["four", 17, 21]], ["within"]),
            ([["one two  ", 0, 9], ["three.\r", 9, 16], ["\nfour", 16, 21]], ["whole"]),
            ([["ONE two  ", 0, 9], ["three.\r\n", 9, 17], ["four", 17, 21]], ["exact", "lossless"]),
            ([], ["lossless"]),
            ({"error": "boom"}, ["runs"]),
        ],
    )
    def test_each_law_can_be_broken(self, parts: Any, broken: list[str]) -> None:
        assert self.laws(parts) == broken

    def test_headers_count_as_tokens_and_one_character_may_be_over(self) -> None:
        assert self.laws([["one two", 0, 7, "head head\none two"]], text="one two") == ["within"]
        family = "\U0001f468\u200d\U0001f469"
        assert broken_laws(family, [[family, 0, 3]], [[family, 0, 3]], 1, len) == []

    def test_two_rounds_that_differ(self) -> None:
        assert broken_laws("ab", [["ab", 0, 2]], [["a", 0, 1], ["b", 1, 2]], 9, len) == ["deterministic"]

    def test_a_lossy_chunker_is_caught_and_named(self, tmp_path: Path) -> None:
        lossy = fake_peer(tmp_path, "[(part, text.find(part), text.find(part) + len(part)) for part in text.split()]")
        found = conformance(lossy, WordCounter(), sizes=(64,)).failed
        assert {"prose@64", "mixed@64", "crlf@64"} <= set(found["lossless"])
        assert not found["runs"]
        assert "empty@64" not in found["lossless"]

    def test_a_crash_is_a_cell_and_not_the_end(self, tmp_path: Path) -> None:
        crashing = fake_peer(tmp_path, "[(text, 0, len(text))] if 'x' not in text else 1 / 0")
        verdict = conformance(crashing, WordCounter(), sizes=(8,), texts={"good": "one two", "bad": "x"})
        assert verdict.failed["runs"] == ["bad@8"]
        assert "ZeroDivisionError" in verdict.errors["bad@8"]

    def test_ours_pass(self) -> None:
        embedder = HashingEmbedder()
        verdict = conformance(ours_of("sentence", embedder), embedder.counter, sizes=(64,))
        assert not any(verdict.failed.values())
        assert verdict.cells == len(hard_texts())


class TestVectors:
    def test_a_second_run_embeds_nothing(self, tmp_path: Path) -> None:
        for expected in (3, 0):
            counting = CountingEmbedder(inner=HashingEmbedder())
            cached = CachedEmbedder(inner=counting, folder=tmp_path)
            vectors = cached.embed(["one", "two", "one"])
            question = cached.embed_question("one")
            assert np.array_equal(vectors, HashingEmbedder().embed(["one", "two", "one"]))
            assert np.array_equal(question, HashingEmbedder().embed_question("one"))
            assert counting.counts["texts"] == expected
            cached.embed(["two"])
            assert counting.counts["texts"] == expected

    def test_other_models_and_damaged_files_are_not_read(self, tmp_path: Path) -> None:
        CachedEmbedder(inner=HashingEmbedder(), folder=tmp_path).embed(["one"])
        other = CountingEmbedder(inner=HashingEmbedder(buckets=64))
        CachedEmbedder(inner=other, folder=tmp_path).embed(["one"])
        assert other.counts["texts"] == 1
        for path in tmp_path.rglob("*.npy"):
            path.write_bytes(b"damaged")
        again = CountingEmbedder(inner=HashingEmbedder())
        CachedEmbedder(inner=again, folder=tmp_path).embed(["one"])
        assert again.counts["texts"] == 1


class TestScorer:
    def test_a_chunk_per_evidence_scores_full_marks_and_lost_chunks_score_nothing(self) -> None:
        pool = pool_of([tiny()], "all")
        exact = [Piece(question.evidence[0], question.text, 9) for question in pool.questions]
        scorer = Scorer.of(pool, HashingEmbedder())
        scores = scorer.score(Cut(pieces=tuple(exact)))
        assert all(
            scores[name].min() == 1.0 for name in ("recall", "recall@200tokens", "contained@1", "precision_omega")
        )
        lost = tuple(Piece((LOST, 0, 40), question.text, 9) for question in pool.questions)
        assert scorer.score(Cut(pieces=lost))["recall@4000chars"].max() == 0.0

    def test_a_token_budget_cuts_the_last_chunk_at_its_tokens(self) -> None:
        pool = pool_of([tiny()], "all")
        scorer = Scorer.of(pool, HashingEmbedder())
        place = ("tiny/mill.txt", 0, 80)
        tokens = WordCounter().count(pool.documents["tiny/mill.txt"].text[:80])
        assert scorer._trim(place, tokens, {place: tokens}) == (place, tokens)
        part, cost = scorer._trim(place, 4, {place: tokens})
        assert part is not None
        assert cost == WordCounter().count(pool.documents["tiny/mill.txt"].text[: part[2]]) == 4
        assert scorer._trim(place, 0, {place: tokens}) == (None, 0)


class TestReport:
    settings = Settings(
        data=Path("none"), chunkers=("sentence", "fixed"), sizes=(250,), max_tokens=(24,), embedder="hashing",
        laws=False, resamples=200, half="all",
    )  # fmt: skip

    def report(self, **changes: Any) -> dict[str, Any]:
        from dataclasses import replace

        settings = replace(self.settings, **changes)
        pool = pool_of([tiny()], "all")
        guard = LeakGuard(pool.questions, pool.documents.values())
        return dressed(evaluate(settings, pool, guard, [], lambda line: None), settings)

    def test_the_report_is_json_and_the_same_every_time(self) -> None:
        first, again = self.report(), self.report()
        assert {row["status"] for row in first["rows"]} == {"ok"}
        assert len(first["rows"]) == 4
        assert [row["scores"] for row in first["rows"]] == [row["scores"] for row in again["rows"]]
        assert first["comparisons"] == again["comparisons"]
        assert {one["chunker"] for one in first["comparisons"]} == {"fixed"}
        assert all(one["low"] <= one["mean"] <= one["high"] for one in first["comparisons"])
        assert json.loads(json.dumps(first))["sets"] == {"tiny": pool_of([tiny()], "all").hashes["tiny"]}
        shown = markdown(first)
        assert "## 250 characters" in shown
        assert "| minus sentence |" in shown

    def test_packing_against_itself_under_another_name_differs_by_nothing(self) -> None:
        found = self.report(chunkers=("sentence", {"use": "sentence", "label": "again"}))["comparisons"]
        assert {(one["low"], one["mean"], one["high"]) for one in found} == {(0.0, 0.0, 0.0)}

    def test_a_chunker_that_is_told_the_questions_is_refused(self) -> None:
        with pytest.raises(UsageError, match="intents must be made without them"):
            self.report(chunkers=({"use": "sentence", "label": tiny().questions[0].text},))


def test_structure_is_read_from_its_files(tmp_path: Path) -> None:
    corpus = {"doc_id": "d", "text": "# One\n\nThe act. It holds.", "meta": {"split_points": [0, 7, 25]}}
    (tmp_path / "corpus.jsonl").write_text(json.dumps(corpus) + "\n")
    (tmp_path / "coref.jsonl").write_text(
        json.dumps({"doc_id": "d", "entity_pron_mentions": [[[7, 14], [16, 18]], [[7, 9]]]})
    )
    (found,) = read_structured(tmp_path)
    assert found.blocks == (0, 7, 25)
    assert found.pairs == (((7, 14), (16, 18)),)
    assert found.document.text == corpus["text"]


def test_the_command_writes_both_reports(tmp_path: Path) -> None:
    folder = tmp_path / "data" / "covidqa"
    folder.mkdir(parents=True)
    made = tiny()
    rows: dict[str, list[dict[str, Any]]] = {
        "corpus": [{"doc_id": name[:-4], "text": text} for name, text in made.texts.items()],
        "queries": [{"query_id": one.id, "text": one.text} for one in made.questions],
        "evidence": [
            {"query_id": one.id, "doc_id": name[:-4], "start": start, "end": end}
            for one in made.questions
            for name, start, end in one.evidence
        ],
    }
    for name, lines in rows.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    given = ["--data", str(tmp_path / "data"), "--out", str(tmp_path / "out"), "--set", "covidqa", "--no-laws"]
    given += ["--embedder", "hashing", "--chunker", "recursive", "--size", "250", "--half", "all", "--quiet"]
    done = CliRunner().invoke(eval_app, ["chunks", *given], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    report = json.loads((tmp_path / "out" / "chunks.json").read_text())
    assert [row["chunker"] for row in report["rows"]] == ["sentence", "recursive"]
    assert (tmp_path / "out" / "chunks.md").read_text().startswith("# Chunk evaluation")


@pytest.mark.parametrize(("option", "value"), [("--half", "most"), ("--set", "nonsense"), ("--chunker", "[1, 2]")])
def test_wrong_options_are_usage_errors(tmp_path: Path, option: str, value: str) -> None:
    given = ["--data", str(tmp_path), "--out", str(tmp_path / "out"), option, value]
    with pytest.raises(UsageError, match=value.split(",")[0].strip("[]")):
        CliRunner().invoke(eval_app, ["chunks", *given], catch_exceptions=False)


def test_structure_measures_come_with_their_correlation_to_size(tmp_path: Path) -> None:
    text = text_of("mill")
    borders = [0, *(at + 2 for at in range(len(text)) if text.startswith("\n\n", at)), len(text)]
    (tmp_path / "corpus.jsonl").write_text(
        json.dumps({"doc_id": "d", "text": text, "meta": {"split_points": borders}}) + "\n"
    )
    pair = [[text.index("keeper"), text.index("keeper") + 6], [text.index("item 1"), text.index("item 1") + 6]]
    (tmp_path / "coref.jsonl").write_text(json.dumps({"doc_id": "d", "entity_pron_mentions": [pair]}))
    settings = Settings(
        data=tmp_path, chunkers=("sentence",), sizes=(), max_tokens=(16, 48, 250), embedder="hashing", laws=False
    )
    none = pool_of([], "all")
    report = evaluate(settings, none, LeakGuard([], []), read_structured(tmp_path), lambda line: None)
    rows = report["structure"]["rows"]
    assert [row["RC"] for row in rows] == [0.0, 1.0, 1.0]
    assert rows[0]["BI"] < 1.0
    assert rows[-1]["BI"] == 1.0  # one chunk parts nothing
    assert set(report["structure"]["size_alone"]) == {"BI", "RC"}
    assert "## Structure (CLAIR)" in markdown(dressed(report, settings))


def test_an_entry_point_may_be_a_whole_sub_command(tmp_path: Path) -> None:
    made = tmp_path / "thing-1.dist-info"
    made.mkdir()
    (made / "METADATA").write_text("Metadata-Version: 2.1\nName: thing\nVersion: 1\n")
    (made / "entry_points.txt").write_text("[rag.commands]\nrate = eval.cli:eval_app\n")
    code = "import typer.testing, rag.cli.main as m; print(typer.testing.CliRunner().invoke(m.app, ['rate']).output)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True, text=True, check=True, env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )  # fmt: skip
    assert "chunks" in done.stdout
    assert "cannot be loaded" not in done.stderr


def test_chunks_that_are_read_with_the_text_around_are_scored_with_those_vectors(tmp_path: Path) -> None:
    pool = pool_of([tiny()], "all")
    inner = WithinEmbedder()
    embedder = CachedEmbedder(inner=inner, folder=tmp_path)
    late = ours_of({"use": "late", "context_tokens": 20, "alpha": 1}, embedder).cut(pool.documents, 20)
    plain = ours_of("sentence", embedder).cut(pool.documents, 20)
    assert [piece.place for piece in late.pieces] == [piece.place for piece in plain.pieces]
    scorer = Scorer.of(pool, embedder)
    matrix = scorer._matrix(late.pieces)
    pieces = [piece.chunk.within(pool.documents[piece.place[0]].text) for piece in late.pieces if piece.chunk]
    assert len(pieces) == len(matrix)
    assert np.allclose(matrix, inner.embed_within(pieces))
    assert not np.allclose(matrix, scorer._matrix(plain.pieces))
    asked = len(inner.within)
    Scorer.of(pool, CachedEmbedder(inner=inner, folder=tmp_path))._matrix(late.pieces)
    assert len(inner.within) == asked, "kept on disk"
    total = sum(embedder.counter.count(document.text) for document in pool.documents.values())
    passes = [costs(cut, pool.documents, embedder.counter, total)["index_passes"] for cut in (plain, late)]
    assert passes[0] == pytest.approx(1.0, abs=0.01)
    assert passes[1] > 1.5
