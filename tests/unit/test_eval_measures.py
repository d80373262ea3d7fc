"""Measures against what their references publish, and against the references themselves."""

from __future__ import annotations

import re
import string
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eval.measures.answers import (
    abstention,
    abstention_f1,
    exact_match,
    normalised,
    plain,
    rouge_l,
    token_f1,
)
from eval.measures.grounding import citation_precision, citation_recall, contained_facts, facts, k_precision
from eval.measures.intervals import f1_interval, intervals
from eval.measures.ranking import RANKING, ranking_scores, relevant_chunks, write_trec

ir_measures = pytest.importorskip("ir_measures")


# ------------------------------------------------------------------ answers


def squad_normalize(text: str) -> str:
    """`normalize_answer` of SQuAD's evaluate-v2.0.py, as published."""
    text = "".join(ch for ch in text.lower() if ch not in set(string.punctuation))
    return " ".join(re.sub(re.compile(r"\b(a|an|the)\b", re.UNICODE), " ", text).split())


def squad_f1(gold: str, pred: str) -> float:
    """`compute_f1` of the same script."""
    gold_toks, pred_toks = squad_normalize(gold).split(), squad_normalize(pred).split()
    num_same = sum((Counter(gold_toks) & Counter(pred_toks)).values())
    if len(gold_toks) == 0 or len(pred_toks) == 0:
        return int(gold_toks == pred_toks)
    if num_same == 0:
        return 0
    precision, recall = num_same / len(pred_toks), num_same / len(gold_toks)
    return (2 * precision * recall) / (precision + recall)


PUBLISHED = (
    ("1976", "1976", 1.0, 1.0),
    ("1999", "1976", 0.0, 0.0),
    ("Beyonce", "Beyoncé and Bruno Mars", 0.0, 0.0),
    ("climate change", "climate change", 1.0, 1.0),
)
"""The examples of the metric `squad` of Hugging Face's `evaluate`: answer, reference, EM, F1."""


@pytest.mark.parametrize(("answer", "reference", "em", "f1"), PUBLISHED)
def test_squad_published_examples(answer: str, reference: str, em: float, f1: float) -> None:
    assert exact_match(answer, [reference]) == em
    assert token_f1(answer, [reference]) == f1


words = st.text(alphabet="abAn the.,'!éΩ-0 9\t", max_size=30)


@given(words, words)
def test_one_reference_is_scored_as_the_script_does(answer: str, reference: str) -> None:
    assert normalised(answer) == squad_normalize(answer)
    assert token_f1(answer, [reference]) == pytest.approx(squad_f1(reference, answer))
    assert exact_match(answer, [reference]) == float(squad_normalize(answer) == squad_normalize(reference))


def test_the_best_reference_counts_and_articles_do_not() -> None:
    assert exact_match("The  Eiffel Tower!", ["a bridge", "eiffel tower"]) == 1.0
    assert token_f1("the tall tower", ["tower of Pisa", "tall tower"]) == 1.0
    assert 0 < token_f1("tower of London", ["tower of Pisa"]) < 1


def test_without_a_reference_only_no_answer_is_right() -> None:
    assert exact_match("", []) == token_f1("", []) == 1.0
    assert exact_match("something", []) == token_f1("something", []) == 0.0


def test_rouge_l_is_that_of_the_package() -> None:
    scorer = pytest.importorskip("rouge_score.rouge_scorer")
    target, said = "The quick brown fox jumps over the lazy dog", "The quick brown dog jumps on the log."
    expected = scorer.RougeScorer(["rougeL"]).score(target, said)["rougeL"].fmeasure
    assert rouge_l(said, ["other words", target]) == pytest.approx(expected)
    assert expected == pytest.approx(0.5882, abs=1e-3)  # 5 of 8 and of 9 words in order


def test_marks_are_no_part_of_an_answer() -> None:
    assert plain("It opened in 1870 [1]. It closed [12].") == "It opened in 1870. It closed."


def test_abstention_f1_by_hand() -> None:
    outcomes = [abstention(*one) for one in ((True, False), (True, True), (False, False), (False, True))]
    assert outcomes == [(1, 0, 0), (0, 1, 0), (0, 0, 1), (0, 0, 0)]
    assert abstention_f1(outcomes) == pytest.approx(2 / (2 + 1 + 1))
    assert abstention_f1([(0, 0, 0)]) == 0.0


# ------------------------------------------------------------------ rankings

QRELS = {"Q0": {"D0": 0, "D1": 1}, "Q1": {"D0": 0, "D3": 2}}
RUN = {"Q0": ["D0", "D1"], "Q1": ["D3", "D0"]}
"""The example of ir-measures' documentation; its scores are 1.2 and 1.0, 2.4 and 3.6, so this is the order."""


def test_rankings_are_scored_as_ir_measures_scores_its_own_example() -> None:
    qrels = [ir_measures.Qrel(q, d, grade) for q, grades in QRELS.items() for d, grade in grades.items()]
    scored = {"Q0": {"D0": 1.2, "D1": 1.0}, "Q1": {"D0": 2.4, "D3": 3.6}}
    run = [ir_measures.ScoredDoc(q, d, score) for q, docs in scored.items() for d, score in docs.items()]
    measures = [ir_measures.parse_measure(name) for name in RANKING]
    expected = {(m.query_id, str(m.measure)): m.value for m in ir_measures.iter_calc(measures, qrels, run)}
    found = ranking_scores(QRELS, RUN)
    assert {(q, name): value for q, scores in found.items() for name, value in scores.items()} == pytest.approx(
        expected
    )
    assert found["Q0"]["nDCG@10"] == pytest.approx(0.6309, abs=1e-4)
    assert (found["Q0"]["RR"], found["Q1"]["RR"]) == (0.5, 1.0)


def test_a_question_without_a_ranking_scores_zero() -> None:
    assert ranking_scores(QRELS, {"Q0": ["D1"]})["Q1"] == dict.fromkeys(RANKING, 0.0)
    assert ranking_scores(QRELS, {})["Q0"] == dict.fromkeys(RANKING, 0.0)


def test_equal_scores_cannot_reorder_a_ranking() -> None:
    found = ranking_scores({"Q": {"a": 1}}, {"Q": ["z", "a", "m"]})
    assert found["Q"]["RR"] == 0.5


def test_trec_files_come_back_through_ir_measures(tmp_path: Path) -> None:
    write_trec(tmp_path, QRELS, RUN)
    qrels = list(ir_measures.read_trec_qrels(str(tmp_path / "qrels.txt")))
    run = list(ir_measures.read_trec_run(str(tmp_path / "run.trec")))
    measure = ir_measures.parse_measure("RR")
    assert ir_measures.calc_aggregate([measure], qrels, run)[measure] == pytest.approx(0.75)


def test_relevant_are_chunks_that_hold_half_of_the_evidence_or_lie_in_it() -> None:
    chunks = {"d": [(0, 100), (100, 200), (200, 300)]}
    assert relevant_chunks([("d", 90, 140)], chunks) == {"d:100-200": 1}  # 10 of 50 in the first one
    assert relevant_chunks([("d", 50, 290)], chunks) == {"d:0-100": 1, "d:100-200": 1, "d:200-300": 1}
    assert relevant_chunks([("other", 0, 5)], chunks) == {}


# ------------------------------------------------------------------ grounding and intervals


def test_citations_against_evidence() -> None:
    evidence = [("d", 0, 10), ("d", 50, 60)]
    cited = [("d", 0, 30), ("d", 30, 49), ("e", 0, 10), ("d", 8, 20)]
    assert citation_precision(cited, evidence) == 0.25  # the last one shares 2 of 10 characters
    assert citation_recall(cited, evidence) == 0.5
    assert citation_precision([], evidence) == citation_recall([], evidence) == 0.0


def test_proxies_fall_with_what_the_context_does_not_say() -> None:
    context = ["Mill Harbour opened in 1870 with 12 cranes."]
    assert k_precision("The harbour opened with cranes", context) == 1.0
    assert k_precision("The harbour closed", context) == 0.5
    assert facts("It was Mill Harbour in 1870.") == ["1870", "Mill Harbour"]
    assert contained_facts("There was Mill Harbour in 1870", context) == 1.0
    assert contained_facts("There was Mill Harbour in 1871", context) == 0.5
    assert contained_facts("nothing to check", []) == 1.0


def test_intervals_hold_the_mean_and_repeat() -> None:
    scores = {"a": [0.0, 1.0, 1.0, 0.0, 1.0], "b": [0.5] * 5, "few": [1.0], "none": []}
    found = intervals(scores, resamples=500, seed=1)
    assert found == intervals(scores, resamples=500, seed=1)
    mean, low, high = found["a"]
    assert mean == pytest.approx(0.6)
    assert low < mean < high
    assert found["b"] == (0.5, 0.5, 0.5)
    assert "none" not in found


def test_interval_of_the_abstention_f1() -> None:
    outcomes = [(1, 0, 0)] * 6 + [(0, 1, 0)] * 2 + [(0, 0, 0)] * 10
    mean, low, high = f1_interval(outcomes, resamples=500, seed=0)
    assert mean == pytest.approx(12 / 14)
    assert low < mean < high <= 1
