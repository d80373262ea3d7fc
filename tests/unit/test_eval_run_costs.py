"""Likelihood of the reference answers, and what a question costs, on the tiny set of test_eval_run.py."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from eval.report import markdown
from eval.runs.comparing import compare
from eval.runs.likelihood import gold_nats, likelihood, nats_per_token, references
from eval.runs.results import results_of, timings_of
from rag.answer import GenerationStats, Prompt, Segment
from rag.errors import InputError
from rag.generators.extractive import ExtractiveGenerator
from rag.pipeline import Pipeline
from tests.fakes import FakeModel, hashed
from tests.unit.test_eval_run import CONFIG, done_of, settings, tiny

pytest.importorskip("ir_measures")
pytest.importorskip("rouge_score")

DENSE = CONFIG.merged({"retriever": {"use": "faiss-dense", "k": 8}, "selector": "bubble"}, where="test")


def prompt_of(text: str) -> Prompt:
    return Prompt(segments=(Segment(role="question", text=text, key="k"),))


# ------------------------------------------------------------------ the measure


def test_nats_are_the_mean_of_the_tokens_behind_the_prompt() -> None:
    model = FakeModel(lambda token, before: float(len(token)))
    found = nats_per_token(model, "item 2", "Question: which?")
    assert model.scored == [(" item 2", "Question: which?")]
    told = model.losses(" item 2", after="Question: which?")
    assert told is not None
    assert found == sum(nats for _, _, nats in told) / len(told)
    nats_per_token(model, "item 2", "Answer:\n")
    assert ("item 2", "Answer:\n") in model.scored, "no second space"
    assert nats_per_token(FakeModel(None), "item 2", "x") is None


def test_references_differ_in_words() -> None:
    assert references(["The Mill", "mill.", " ", "a bridge ", "x", "y", "z"]) == ("The Mill", "a bridge", "x", "y")


def test_the_likeliest_reference_counts_and_no_prompt_is_no_chance() -> None:
    assert likelihood({"a b": 2.0, "c": 0.5}, ["a b", "c"]) == {"gold_nats": 0.5, "gold_probability": math.exp(-0.5)}
    assert likelihood({"c": None}, ["c"]) == {"gold_probability": 0.0}
    assert gold_nats(FakeModel(hashed), Prompt(), ["c"]) == {"c": None}
    assert gold_nats(None, prompt_of("x"), ["c"]) is None
    assert gold_nats(FakeModel(None), prompt_of("x"), ["c"]) is None


# ------------------------------------------------------------------ in a run


@pytest.fixture
def telling(monkeypatch: pytest.MonkeyPatch) -> FakeModel:
    """A generator that tells likelihoods, has made a prompt and counts tokens; it fails for the orchard."""
    model, ask = FakeModel(hashed), Pipeline.ask

    def told(self: Pipeline, question: str, *given: Any, **named: Any) -> Any:
        if "orchard" in question:
            raise InputError("no orchard")
        answer = ask(self, question, *given, **named)
        stats = GenerationStats(prompt_tokens=9, new_tokens=2, reused_tokens=4, ttft_seconds=0.5, total_seconds=1.0)
        return replace(answer, prompt=prompt_of(f"Q: {question}"), stats=stats)

    monkeypatch.setattr(Pipeline, "ask", told)
    monkeypatch.setattr(ExtractiveGenerator, "text_model", property(lambda self: model))
    return model


def test_a_run_has_the_likelihood_with_interval_and_direction(tmp_path: Path, telling: FakeModel) -> None:
    done = done_of(settings(tmp_path))
    (one,) = results_of(done)["runs"]
    assert one["absent"] == {}
    nats, chance = one["measures"]["gold_nats"], one["measures"]["gold_probability"]
    assert (nats["better"], nats["cost"], chance["better"]) == ("lower", False, "higher")
    assert nats["low"] <= nats["mean"] <= nats["high"]
    assert (nats["n"], chance["n"]) == (10, 12), "an error has no nats, and counts as zero where higher is better"
    rows = {row["query_id"]: row["scores"] for row in one["questions"]}
    question = tiny().questions[0]
    expected = nats_per_token(FakeModel(hashed), question.answers[0], f"Q: {question.text}")
    assert rows[question.id]["gold_nats"] == pytest.approx(expected, abs=1e-6)
    assert rows["orchard-2"]["gold_probability"] == 0.0
    assert "gold_nats" not in rows["orchard-2"]
    assert "gold_probability" not in rows["none"], "what nothing answers has no reference"
    asked = len(telling.scored)
    again = results_of(done_of(settings(tmp_path)))
    assert again["runs"] == [one]
    assert len(telling.scored) == asked, "kept"


def test_another_reference_is_weighed_and_the_others_stay(tmp_path: Path, telling: FakeModel) -> None:
    done_of(settings(tmp_path))
    telling.scored.clear()
    first = replace(tiny().questions[0], answers=("item 2", "number two"))
    done_of(settings(tmp_path, datasets=(replace(tiny(), questions=(first, *tiny().questions[1:])),)))
    assert {text for text, _ in telling.scored} == {" item 2", " number two"}
    assert len(telling.scored) == 2


def test_what_depends_on_the_order_stays_out_of_the_results(tmp_path: Path, telling: FakeModel) -> None:
    done = done_of(settings(tmp_path))
    results, (times,) = results_of(done), timings_of(done)["runs"]
    (one,) = results["runs"]
    assert one["measures"]["prompt_tokens"]["mean"] == 9.0
    assert one["measures"]["new_tokens"]["cost"]
    assert not {"reused_tokens", "ttft_seconds", "bytes_loaded"} & one["measures"].keys()
    assert "reused" not in json.dumps(results)
    assert times["costs"]["reused_tokens"]["p50"] == 4
    assert times["costs"]["ttft_seconds"]["p50"] == 0.5


def test_a_generator_that_does_not_tell_has_a_line_and_no_zero(tmp_path: Path) -> None:
    results = results_of(done_of(settings(tmp_path)))
    (one,) = results["runs"]
    assert not {"gold_nats", "gold_probability", "prompt_tokens"} & one["measures"].keys()
    assert set(one["absent"]) == {"gold_nats", "gold_probability", "prompt_tokens", "new_tokens"}
    said = markdown(results)
    assert "Not measured: gold\\_nats, gold\\_probability of A, since the generator extractive does not tell" in said
    assert compare(results, results, resamples=200)["comparisons"]


def test_a_set_without_references_says_nothing_of_likelihoods(tmp_path: Path, telling: FakeModel) -> None:
    bare = replace(tiny(), questions=tuple(replace(one, answers=()) for one in tiny().questions if one.answerable))
    (one,) = results_of(done_of(settings(tmp_path, datasets=(bare,))))["runs"]
    assert one["absent"] == {}
    assert not telling.scored


# ------------------------------------------------------------------ the encoder


def costs(given: Any) -> dict[str, dict[str, float]]:
    rows = results_of(done_of(given))["runs"][0]["questions"]
    names = ("encoder_calls", "encoder_texts", "encoder_characters", "sentence_vectors")
    return {row["query_id"]: {name: row["scores"][name] for name in names} for row in rows}


def test_full_text_search_asks_the_encoder_nothing(tmp_path: Path) -> None:
    assert {value for row in costs(settings(tmp_path)).values() for value in row.values()} == {0.0}


def test_what_the_encoder_reads_is_counted_alike_in_any_order(tmp_path: Path) -> None:
    pytest.importorskip("faiss")
    forth = costs(settings(tmp_path, configs={"base": DENSE}))
    for question in tiny().questions:
        row = forth[question.id]
        assert row["encoder_calls"] == row["encoder_texts"] == 2.0, "the retriever and the selector read the question"
        assert row["encoder_characters"] == 2 * len(question.text)
        assert row["sentence_vectors"] > 0
    back = replace(tiny(), questions=tuple(reversed(tiny().questions)))
    assert costs(settings(tmp_path / "b", configs={"base": DENSE}, datasets=(back,))) == forth
    alone = costs(settings(tmp_path / "c", configs={"base": DENSE}, datasets=(tiny().part("all", 1),)))
    assert alone["mill-2"] == forth["mill-2"]


def test_sentences_that_the_index_did_not_hold_are_told_apart(tmp_path: Path) -> None:
    pytest.importorskip("faiss")
    done = done_of(settings(tmp_path, configs={"base": DENSE}))
    (times,) = timings_of(done)["runs"]
    assert times["costs"]["sentences_embedded"]["sum"] == 0, "ingestion has embedded them all"


@pytest.mark.models
def test_the_local_model_tells_the_same_twice(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    local = CONFIG.merged({"generator": {"use": "local", "max_new_tokens": 4, "dtype": "float32"}}, where="test")
    few = tiny().part("all", 2)
    found = [results_of(done_of(settings(tmp_path / name, configs={"local": local}, datasets=(few,)))) for name in "ab"]
    assert found[0] == found[1]
    (one,) = found[0]["runs"]
    assert one["absent"] == {}
    assert 0 < one["measures"]["gold_nats"]["mean"] < 12
    assert one["measures"]["prompt_tokens"]["mean"] > 90
