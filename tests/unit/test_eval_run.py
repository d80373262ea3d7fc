"""`rag eval run` on a tiny made-up set with the hashing embedder: same bytes, caches, failures, comparisons, sweeps."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from eval.chunks.measures import corrected
from eval.datasets import Dataset, DatasetQuestion
from eval.runs import asking
from eval.runs.outcomes import BUDGETS, prefixes
from eval.runs.results import results_of, rounded
from eval.runs.run import Done, run
from eval.runs.scoring import FAILURES, PROXIES, STAGES
from eval.runs.settings import RunSettings, config_hash, labelled
from rag.config import PipelineConfig
from rag.errors import ConfigError, InputError, UsageError
from rag.pipeline import Pipeline
from rag.tokens import WordCounter
from rag.types import Chunk, Document, Hit

pytest.importorskip("ir_measures")
pytest.importorskip("rouge_score")

TOPICS = ("mill", "harbour", "ledger", "orchard", "valve", "bridge")
CONFIG = PipelineConfig(
    chunker={"use": "recursive", "max_tokens": 40},
    embedder="hashing",
    retriever={"use": "bm25", "k": 8},
    selector={"use": "top-k", "budget": 90},
    generator="extractive",
    near_duplicates="off",
)


def text_of(topic: str) -> str:
    lines = [f"The {topic} has a part {number} that its keeper calls item {number}." for number in range(12)]
    return "\n\n".join(" ".join(lines[at : at + 3]) for at in range(0, 12, 3))


def place(topic: str, number: int) -> tuple[str, int, int]:
    at = text_of(topic).index(f"The {topic} has a part {number} ")
    return f"{topic}.txt", at, text_of(topic).index(".", at) + 1


def tiny(name: str = "tiny") -> Dataset:
    questions = [
        DatasetQuestion(
            id=f"{topic}-{number}",
            text=f"what does the keeper of the {topic} call part {number}",
            evidence=(place(topic, number),),
            answers=(f"item {number}",),
        )
        for topic in TOPICS
        for number in (2, 7)
    ]
    questions.append(DatasetQuestion(id="none", text="zebra quantum violin", evidence=(), answerable=False))
    return Dataset(name=name, texts={f"{t}.txt": text_of(t) for t in TOPICS}, questions=tuple(questions))


def settings(tmp_path: Path, **changes: Any) -> RunSettings:
    given: dict[str, Any] = {
        "datasets": (tiny(),), "configs": {"base": CONFIG}, "cache": tmp_path / "cache", "workers": 0, "resamples": 200,
    }  # fmt: skip
    return RunSettings(**{**given, **changes})


@contextmanager
def no_bar(title: str) -> Iterator[Callable[[int, int, str], None]]:
    yield lambda done, total, text: None


def done_of(given: RunSettings) -> Done:
    return run(given, lambda line: None, no_bar)


def text_of_results(given: RunSettings) -> str:
    return json.dumps(results_of(done_of(given)), sort_keys=True)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The questions that reach the pipeline."""
    seen: list[str] = []
    ask = Pipeline.ask

    def noted(self: Pipeline, question: str, *given: Any, **named: Any) -> Any:
        seen.append(question)
        return ask(self, question, *given, **named)

    monkeypatch.setattr(Pipeline, "ask", noted)
    return seen


# ------------------------------------------------------------------ the same bytes, from any cache


def test_the_results_are_the_same_bytes_cold_cached_and_in_another_process(tmp_path: Path, asked: list[str]) -> None:
    cold = text_of_results(settings(tmp_path))
    assert len(asked) == len(tiny().questions)
    assert text_of_results(settings(tmp_path)) == cold
    assert len(asked) == len(tiny().questions), "a cached run asks nothing"
    assert not list(tmp_path.rglob("runs.sqlite*")), "traces are not kept"
    assert text_of_results(settings(tmp_path, cache=tmp_path / "other", workers=2)) == cold
    assert "seconds" not in cold


def test_a_run_goes_on_where_it_was_killed(tmp_path: Path, asked: list[str]) -> None:
    whole = text_of_results(settings(tmp_path))
    (kept,) = (tmp_path / "cache" / "answers").glob("*.jsonl")
    lines = kept.read_text(encoding="utf-8").splitlines(keepends=True)
    kept.write_text("".join(lines[:6]) + lines[6][:40], encoding="utf-8")  # a line that a kill has cut
    there = sum('"outcome"' in line for line in lines[:6])
    asked.clear()
    assert text_of_results(settings(tmp_path)) == whole
    assert len(asked) == len(tiny().questions) - there
    asked.clear()
    assert text_of_results(settings(tmp_path)) == whole
    assert not asked


def test_an_interrupt_keeps_the_blocks_before_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ask, count = Pipeline.ask, 0

    def stops(self: Pipeline, *given: Any, **named: Any) -> Any:
        nonlocal count
        count += 1
        if count > 9:
            raise KeyboardInterrupt
        return ask(self, *given, **named)

    monkeypatch.setattr(Pipeline, "ask", stops)
    with pytest.raises(KeyboardInterrupt):
        done_of(settings(tmp_path))
    monkeypatch.setattr(Pipeline, "ask", ask)
    (kept,) = (tmp_path / "cache" / "answers").glob("*.jsonl")
    assert kept.read_text(encoding="utf-8").count('"outcome"') == asking._BLOCK
    assert done_of(settings(tmp_path)).runs[0].questions


def test_another_config_or_another_document_is_another_answer(tmp_path: Path, asked: list[str]) -> None:
    done_of(settings(tmp_path))
    asked.clear()
    wider = CONFIG.merged({"selector": {"use": "top-k", "budget": 60}}, where="test")
    done_of(settings(tmp_path, configs={"base": wider}))
    assert len(asked) == len(tiny().questions)
    indexes = {path.name for path in (tmp_path / "cache" / "indexes").iterdir()}
    changed = replace(tiny(), texts={**tiny().texts, "mill.txt": text_of("mill") + " More."})
    done_of(settings(tmp_path, datasets=(changed,)))
    assert len({path.name for path in (tmp_path / "cache" / "indexes").iterdir()}) == 2 * len(indexes)


def test_one_question_alone_has_the_answer_that_it_has_among_others(tmp_path: Path) -> None:
    full = results_of(done_of(settings(tmp_path)))
    alone = results_of(done_of(settings(tmp_path, cache=tmp_path / "b", datasets=(tiny().part("all", 1),))))
    assert alone["runs"][0]["questions"][0] == full["runs"][0]["questions"][0]


# ------------------------------------------------------------------ figures


def test_the_results_follow_the_schema(tmp_path: Path) -> None:
    found = results_of(done_of(settings(tmp_path)))
    (one,) = found["runs"]
    assert found["sets"]["tiny"]["questions"] == len(one["questions"]) == sum(one["failures"].values())
    assert set(one["failures"]) == set(FAILURES)
    assert [step["stage"] for step in one["waterfall"]] == list(STAGES)
    values = [step["value"] for step in one["waterfall"]]
    assert values[0] == 1.0
    assert values == sorted(values, reverse=True), "nothing comes back that an earlier stage lost"
    assert [point["tokens"] for point in one["curve"]] == list(BUDGETS)
    recalls = [point["recall"] for point in one["curve"]]
    assert recalls == sorted(recalls)
    assert one["measures"]["nDCG@10"]["n"] == 12  # the question without an answer has no ranking to score
    assert one["measures"]["em"]["n"] == 13
    assert all(figure["proxy"] == (name in PROXIES) for name, figure in one["measures"].items())
    assert one["measures"]["context_tokens"]["better"] == "lower"
    for row in one["questions"]:
        for piece in row["context"]:
            text = text_of(piece["source"].removesuffix(".txt"))
            assert piece["text"] == text[piece["start"] : piece["end"]]
            assert text[max(0, piece["start"] - 40) : piece["end"]].endswith(piece["before"] + piece["text"])
        assert all(proof["text"] in text_of(proof["source"].removesuffix(".txt")) for proof in row["evidence"])


def test_span_scores_are_those_of_the_house(tmp_path: Path) -> None:
    row = results_of(done_of(settings(tmp_path)))["runs"][0]["questions"][1]
    kept = [(piece["source"], s, e) for piece in row["context"] for s, e in piece["kept"]]
    expected = corrected([place("mill", 7)], kept, kept)
    for name in ("recall", "precision", "iou"):
        assert row["scores"][f"span_{name}"] == pytest.approx(expected[f"{name}_corrected"], abs=1e-6)


def test_a_question_that_fails_scores_zero_and_is_asked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ask = Pipeline.ask

    def breaks(self: Pipeline, question: str, *given: Any, **named: Any) -> Any:
        if "mill" in question:
            raise InputError("no such model") if "2" in question else ValueError("a plugin's bug")
        return ask(self, question, *given, **named)

    monkeypatch.setattr(Pipeline, "ask", breaks)
    (one,) = results_of(done_of(settings(tmp_path)))["runs"]
    bad = [row for row in one["questions"] if row["failure"] == "error"]
    assert [row["error"] for row in bad] == ["InputError: no such model", "ValueError: a plugin's bug"]
    assert one["failures"]["error"] == 2
    assert all(value == 0 for row in bad for value in row["scores"].values())
    assert {"nDCG@10", "f1", "span_recall", "citation_recall"} <= set(bad[0]["scores"])
    assert one["measures"]["f1"]["n"] == 13
    monkeypatch.setattr(Pipeline, "ask", ask)
    assert results_of(done_of(settings(tmp_path)))["runs"][0]["failures"]["error"] == 0


def test_an_error_of_every_question_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def breaks(self: Pipeline, *given: Any, **named: Any) -> Any:
        raise ConfigError("no such thing")

    monkeypatch.setattr(Pipeline, "ask", breaks)
    with pytest.raises(ConfigError):
        done_of(settings(tmp_path))


def failure_of(given: RunSettings, query: str = "mill-2") -> str | None:
    rows = results_of(done_of(given))["runs"][0]["questions"]
    return next(row["failure"] for row in rows if row["query_id"] == query)  # type: ignore[no-any-return]


def test_a_failure_is_named_by_the_stage_that_lost_the_evidence(tmp_path: Path) -> None:
    wrong = replace(tiny().questions[0], answers=("nobody says this",))
    far = replace(wrong, text="zebra ledger part 7", evidence=(place("mill", 2),))
    unknown = replace(wrong, evidence=(("gone.txt", 0, 40),))
    for question, stage in ((far, "retrieve"), (unknown, "parse")):
        data = replace(tiny(), questions=(question,))
        assert failure_of(settings(tmp_path, datasets=(data,))) == stage
    narrow = CONFIG.merged({"selector": {"use": "top-k", "budget": 1}}, where="test")
    data = replace(tiny(), questions=(wrong,))
    assert failure_of(settings(tmp_path, datasets=(data,), configs={"n": narrow})) == "select"


def test_an_unanswerable_question_is_right_when_nothing_is_said(tmp_path: Path) -> None:
    (one,) = results_of(done_of(settings(tmp_path)))["runs"]
    row = one["questions"][-1]
    assert (row["query_id"], row["failure"], row["scores"]["em"]) == ("none", None, 1.0)
    assert one["measures"]["abstention_f1"]["mean"] == 1.0


def test_judged_documents_are_ranked_as_documents(tmp_path: Path) -> None:
    asked = DatasetQuestion(id="q", text="what is the mill", evidence=(), relevant={"mill.txt": 1, "bridge.txt": 1})
    data = replace(tiny(), questions=(asked,))
    (one,) = results_of(done_of(settings(tmp_path, datasets=(data,))))["runs"]
    assert one["measures"]["R@10"]["mean"] == one["waterfall"][1]["value"]
    assert one["curve"] == []
    assert "span_recall" not in one["measures"]
    assert {hit["gold"] for hit in one["questions"][0]["hits"] if hit["source"] == "mill.txt"} == {True}


def test_quotes_are_found_in_files_that_are_parsed(tmp_path: Path) -> None:
    folder = tmp_path / "docs"
    (folder / "deep").mkdir(parents=True)
    (folder / "deep" / "mill.md").write_text("# Mill\r\n\r\nThe mill opened in 1870.\r\n", encoding="utf-8", newline="")
    quote = DatasetQuestion(id="q", text="when did the mill open", evidence=(), quotes=(("deep/mill.md", "in 1870"),))
    data = Dataset(name="own", folder=folder, questions=(quote,))
    found = results_of(done_of(settings(tmp_path, datasets=(data,))))
    assert found["sets"]["own"]["documents"] == 1
    row = found["runs"][0]["questions"][0]
    assert row["evidence"][0]["text"] == "in 1870"
    assert row["scores"]["span_recall"] == 1.0


def test_prefixes_hold_what_fits_and_part_of_the_next() -> None:
    document = Document(text=" ".join(f"w{at}" for at in range(500)), source="d")
    counter = WordCounter(limit=None)
    cuts = [(at, document.text.index(f"w{at} "), document.text.index(f" w{at + 150} ")) for at in (0, 150, 300)]
    chunks = [Chunk.cut(document, start, end, counter=counter, chunker="x") for _, start, end in cuts]
    hits = [Hit(chunk=chunk, score=1.0, rank=rank, retriever="r") for rank, chunk in enumerate(chunks, start=1)]
    found = prefixes(hits, counter)
    spent = [chunk.token_count for chunk in chunks]
    assert [whole for whole, _ in found] == [1, 2, 3, 3]
    part = document.text[chunks[1].span.start : found[0][1]]
    assert counter.count(part) + spent[0] == BUDGETS[0]
    assert found[-1][1] == 0


def test_rounded_has_no_minus_zero_and_no_nan() -> None:
    text = json.dumps(rounded({"a": -1e-9, "b": [0.12345678, float("nan")], "c": (1,)}))
    assert text == '{"a": 0.0, "b": [0.123457, null], "c": [1]}'


# ------------------------------------------------------------------ what is refused


def test_a_config_that_knows_the_questions_is_refused(tmp_path: Path) -> None:
    asked = tiny().questions[3].text
    knows = CONFIG.merged({"chunker": {"use": "regex", "pattern": asked}}, where="test")
    with pytest.raises(UsageError, match="config bad: its parameters hold 2 of the questions"):
        done_of(settings(tmp_path, configs={"bad": knows}))


def test_names_are_unique(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="two sets have the same name"):
        settings(tmp_path, datasets=(tiny(), tiny()))
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "rag.yaml").write_text("generator: extractive\n", encoding="utf-8")
    paths = [tmp_path / folder / "rag.yaml" for folder in ("a", "b")]
    assert list(labelled(paths)) == ["rag", "b/rag"]
    assert list(labelled([])) == ["default"]


def test_the_hash_of_a_config_leaves_out_how_it_is_run() -> None:
    assert config_hash(CONFIG) == config_hash(replace(CONFIG, executor={"use": "processes"}))
    assert config_hash(CONFIG) != config_hash(replace(CONFIG, generator={"use": "extractive", "max_sentences": 1}))
