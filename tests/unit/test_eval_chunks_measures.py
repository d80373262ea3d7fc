"""Scores by hand, laws of the measures, and a bootstrap that finds nothing where there is nothing."""

from __future__ import annotations

from dataclasses import astuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eval.chunks.intrinsic import block_integrity, reference_completeness
from eval.chunks.measures import area, budgeted_recall, chroma, contained, corrected, covered, merged, trimmed
from eval.chunks.stats import differences, holm, spearman
from eval.sets import Place

EVIDENCE: list[Place] = [("a", 10, 20), ("a", 30, 40)]
FOUND: list[Place] = [("a", 0, 15), ("b", 0, 100), ("a", 10, 25)]
TOUCHING: list[Place] = [("a", 0, 15), ("a", 10, 25), ("a", 20, 30)]


def test_chroma_by_hand() -> None:
    # of 20 evidence characters 10 are found; retrieved 15 + 100 + 15 with the overlap; missed 10
    # omega: chunks 0-30 touch the evidence (20-30 with its ends only) and cover 10; 30-40 is uncovered: 10 / (30 + 10)
    assert chroma(EVIDENCE, FOUND, TOUCHING) == {
        "recall": 10 / 20,
        "precision": 10 / 130,
        "iou": 10 / 140,
        "precision_omega": 10 / 40,
    }


def test_corrected_by_hand() -> None:
    # retrieved as a set: 25 + 100; omega: 20-30 shares no character, so 10 / (25 + 10)
    assert corrected(EVIDENCE, FOUND, TOUCHING) == {
        "recall_corrected": 10 / 20,
        "precision_corrected": 10 / 125,
        "iou_corrected": 10 / 135,
        "precision_omega_corrected": 10 / 35,
    }


def test_evidence_that_is_listed_twice_counts_twice_upstream_only() -> None:
    twice = [("a", 0, 10), ("a", 0, 10)]
    assert chroma(twice, [("a", 0, 10)], [("a", 0, 10)])["recall"] == 0.5
    assert corrected(twice, [("a", 0, 10)], [("a", 0, 10)])["recall_corrected"] == 1.0


def test_nothing_found() -> None:
    assert set(chroma(EVIDENCE, [], []).values()) == {0.0}
    assert set(corrected(EVIDENCE, [("b", 0, 9)], []).values()) == {0.0}


def test_budgeted_recall_by_hand() -> None:
    # 15 characters of the first chunk hold 5 of 20; room for 5 of "b"; then b whole and the third chunk
    assert budgeted_recall(EVIDENCE, FOUND, [12, 20, 115, 120, 1000], trimmed) == [
        2 / 20,
        5 / 20,
        5 / 20,
        5 / 20,
        10 / 20,
    ]


def test_budget_goes_on_where_the_smaller_one_stopped() -> None:
    assert budgeted_recall([("a", 0, 10)], [("a", 0, 10)], [4, 8, 10, 50], trimmed) == [0.4, 0.8, 1.0, 1.0]


def test_a_chunk_that_does_not_fit_and_cannot_be_cut_ends_the_walk() -> None:
    whole_only = lambda place, room: (place, place[2] - place[1]) if place[2] - place[1] <= room else (None, 0)  # noqa: E731
    ranked = [("a", 0, 8), ("a", 8, 10)]
    assert budgeted_recall([("a", 0, 10)], ranked, [5, 8, 10], whole_only) == [0.0, 0.8, 1.0]


def test_area_is_the_mean_height_over_the_log_of_the_budget() -> None:
    assert area([100, 200, 400], [0.0, 1.0, 1.0]) == pytest.approx(0.75)
    assert area([100, 1000], [0.3, 0.3]) == pytest.approx(0.3)


def test_contained() -> None:
    assert contained(EVIDENCE, [("a", 5, 25)]) == 0.5
    assert contained(EVIDENCE, [("a", 0, 15), ("a", 15, 50), ("b", 0, 50)]) == 0.5
    assert contained(EVIDENCE, []) == 0.0


PLACES = st.lists(
    st.tuples(st.sampled_from("ab"), st.integers(0, 30), st.integers(1, 12)).map(lambda p: (p[0], p[1], p[1] + p[2])),
    min_size=1,
    max_size=6,
)


def characters(places: list[Place]) -> set[tuple[str, int]]:
    return {(name, at) for name, start, end in places for at in range(start, end)}


@settings(max_examples=40)
@given(PLACES, PLACES)
def test_intervals_agree_with_sets_of_characters(evidence: list[Place], found: list[Place]) -> None:
    wanted, got = characters(evidence), characters(found)
    assert characters(merged(found)) == got
    assert sum(end - start for _, start, end in merged(found)) == len(got)
    assert covered(evidence, found) == len(wanted & got)
    scores = corrected(evidence, found, found)
    assert scores["recall_corrected"] == len(wanted & got) / len(wanted)
    assert scores["precision_corrected"] == len(wanted & got) / len(got)
    assert scores["iou_corrected"] == len(wanted & got) / len(wanted | got)


@settings(max_examples=40)
@given(PLACES, PLACES, st.lists(st.integers(1, 80), min_size=1, max_size=5).map(sorted))
def test_budgeted_recall_agrees_with_taking_characters_one_by_one(
    evidence: list[Place], ranked: list[Place], budgets: list[int]
) -> None:
    walk = [(name, at) for name, start, end in ranked for at in range(start, end)]
    wanted = characters(evidence)
    expected = [len(wanted & set(walk[:budget])) / len(wanted) for budget in budgets]
    assert budgeted_recall(evidence, ranked, budgets, trimmed) == expected


class TestStructure:
    def test_block_integrity_by_hand(self) -> None:
        borders = [0, 100, 200, 300]
        assert block_integrity([(0, 300)], borders) == 1.0
        assert block_integrity([(0, 150), (150, 300)], borders) == pytest.approx(2 / 3)
        assert block_integrity([(0, 105), (105, 195), (195, 300)], borders) == 1.0  # within 5 characters of an edge
        assert block_integrity([(0, 106), (106, 300)], borders) == pytest.approx(2 / 3)
        assert block_integrity([(0, 10)], []) is None

    def test_reference_completeness_by_hand(self) -> None:
        pairs = [((10, 20), (50, 55)), ((60, 62), (57, 59))]  # the second pronoun stands before its entity
        assert reference_completeness([(0, 100)], pairs) == 1.0
        assert reference_completeness([(0, 30), (30, 100)], pairs) == 0.5
        assert reference_completeness([(0, 10), (10, 55), (55, 100)], pairs) == 0.5  # a border at the end breaks
        assert reference_completeness([(0, 58), (58, 100)], pairs) == 0.5
        assert reference_completeness([(0, 10)], []) is None


class TestStatistics:
    def test_interval_agrees_with_the_formula_for_large_samples(self) -> None:
        draw = np.random.default_rng(1)
        paired = draw.normal(0.1, 1.0, size=400)
        found = differences(paired[None, :], np.zeros((1, 400)))[0]
        width = 1.96 * paired.std() / np.sqrt(400)
        assert found.mean == pytest.approx(paired.mean())
        assert found.low == pytest.approx(paired.mean() - width, abs=0.01)
        assert found.high == pytest.approx(paired.mean() + width, abs=0.01)

    def test_same_seed_same_interval_and_rows_share_the_resamples(self) -> None:
        draw = np.random.default_rng(2)
        scores, base = draw.random((3, 50)), draw.random((3, 50))
        all_rows = differences(scores, base, resamples=700, seed=5)
        assert all_rows == differences(scores, base, resamples=700, seed=5)
        alone = differences(scores[1:2], base[1:2], resamples=700, seed=5)[0]
        assert astuple(alone) == pytest.approx(astuple(all_rows[1]))

    def test_a_difference_is_found_and_has_a_small_p(self) -> None:
        found = differences(np.full((1, 40), 0.9), np.full((1, 40), 0.2), resamples=1000)[0]
        assert found.excludes_zero
        assert found.low == pytest.approx(0.7)
        assert found.p == pytest.approx(2 / 1001)

    def test_calibration_the_same_scores_in_another_order_differ_rarely(self) -> None:
        # a chunker against itself with shuffled question ids: the interval holds 0 in about 95 of 100 trials
        draw = np.random.default_rng(3)
        scores = (draw.random(150) < 0.7) * draw.random(150)
        shuffled = np.stack([draw.permutation(scores) for _ in range(200)])
        found = differences(np.tile(scores, (200, 1)), shuffled, resamples=1000)
        assert sum(not one.excludes_zero for one in found) >= 186  # 5 % of 200 fail on average; 14 is two sigma more

    def test_a_chunker_against_itself_is_exactly_zero(self) -> None:
        scores = np.random.default_rng(4).random((1, 30))
        assert differences(scores, scores, resamples=500)[0] == differences(scores, scores, resamples=500, seed=9)[0]
        assert differences(scores, scores, resamples=500)[0].p == 1.0

    def test_holm_by_hand(self) -> None:
        assert holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
        assert holm([0.5, 0.9]) == [1.0, 1.0]
        assert holm([]) == []

    def test_spearman(self) -> None:
        assert spearman([1, 2, 3, 4], [1, 4, 9, 16]) == pytest.approx(1.0)
        assert spearman([1, 2, 3], [3, 2, 1]) == pytest.approx(-1.0)
        assert spearman([1, 2, 2, 3], [1, 2, 2, 3]) == pytest.approx(1.0)
        assert spearman([1, 1, 1], [1, 2, 3]) is None
        assert spearman([1, 2], [1, 2]) is None
