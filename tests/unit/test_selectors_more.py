"""gradient, auto-merge, budget-auto and its calibration, elbow, mcts: by hand-worked examples and laws of their own."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eval.chunks.data import half_of
from eval.select.calibrate import calibrated_theta
from rag.embedders.hashing import HashingEmbedder
from rag.errors import ConfigError, UsageError
from rag.text import assemble
from rag.tokens import WordCounter
from rag.types import Bubble, Chunk, Document, Hit, Span
from retrievers.selectors._rationales import declarative, named, rationales
from retrievers.selectors._tree import Tree, Utility, greedy_set
from retrievers.selectors.auto_merge import AutoMergeSelector, siblings
from retrievers.selectors.budget_auto import BudgetAutoSelector
from retrievers.selectors.elbow import ElbowSelector, elbow, paired
from retrievers.selectors.gradient import GradientSelector, share_of_best, until_drop
from retrievers.selectors.mcts import MctsSelector
from tests.corpora import MemoryCorpus, topic_corpus

COUNTER = WordCounter()
EMBEDDER = HashingEmbedder(buckets=256)
QUESTION = "Which parasite harms the hive in winter?"


def hits_of(chunks: Sequence[Chunk], scores: Sequence[float] = ()) -> list[Hit]:
    return [
        Hit(chunk=chunk, score=scores[at] if scores else 1.0 / (at + 1), rank=at + 1, retriever="test")
        for at, chunk in enumerate(chunks)
    ]


def actions(bubble: Bubble) -> dict[str, str]:
    return {decision.chunk_id: decision.action for decision in bubble.decisions}


# gradient


def test_ratio_ends_at_the_first_drop() -> None:
    scores = [0.9, 0.8, 0.5, 0.1, 0.09]
    assert until_drop(scores, 0.3, 1) == [True, True, True, False, False], "0.1 < 0.3 * 0.5, and it stays ended"
    assert until_drop(scores, 0.7, 1) == [True, True, False, False, False]
    assert until_drop(scores, 0.7, 4) == [True, True, True, True, True], "0.09 is 0.9 of the one before it"
    assert until_drop([0.5, 0.0, 0.0], 0.0, 1) == [True, False, False]
    assert until_drop([], 0.3, 7) == []


def test_share_of_best_looks_at_the_largest_only() -> None:
    assert share_of_best([0.5, 0.8, 0.57, 0.55], 0.7, 1) == [True, True, True, False], "0.56 is the limit"
    assert share_of_best([-0.2, -0.1, -0.3], 0.7, 2) == [True, True, False]


def test_gradient_reads_cosines_unless_there_are_none(tmp_path: Path) -> None:
    corpus = topic_corpus(tmp_path, EMBEDDER)
    chunks = corpus.chunks(range(6))
    hits = hits_of(chunks, [1.0, 1.0, 1.0, 0.5, 0.5, 0.5])
    asked = chunks[4].embed_text
    with_vectors = GradientSelector(counter=COUNTER, embedder=EMBEDDER, r=0.99).select(asked, hits, corpus)
    assert {hit.chunk.id for hit in with_vectors.hits} == {chunks[0].id, chunks[4].id}, "the first, and the best cosine"
    without = GradientSelector(counter=COUNTER, r=0.99).select(asked, hits, corpus)
    assert {hit.chunk.id for hit in without.hits} == {chunk.id for chunk in chunks[:3]}


# auto-merge


def family_corpus(directory: Path, children: int) -> MemoryCorpus:
    """Two parents of `children` sentences of five tokens each, and a third with one."""
    text = "".join(f"P{at // children} says number {at}. " for at in range(2 * children + 1))
    document = Document(text=text, source="family.md")
    cuts = [0, *(at + 2 for at in range(len(text)) if text.startswith(". ", at))]
    spans = [Span(a, b) for a, b in pairwise(cuts)]
    parents = [Span(spans[at].start, spans[min(at + children, len(spans)) - 1].end) for at in (0, children)]
    parents.append(spans[-1])
    chunks = [
        Chunk.cut(document, one.start, one.end, counter=COUNTER, chunker="t", parent=parents[at // children])
        for at, one in enumerate(spans)
    ]
    return MemoryCorpus(directory, [document], chunks)


def test_half_of_the_children_bring_the_parent(tmp_path: Path) -> None:
    corpus = family_corpus(tmp_path, 4)
    chunks = corpus.chunks(range(len(corpus)))
    hits = hits_of([chunks[6], chunks[2], chunks[0]], [0.9, 0.8, 0.7])
    bubble = AutoMergeSelector(counter=COUNTER, budget=100).select(QUESTION, hits, corpus)
    assert [hit.chunk.id for hit in bubble.hits] == [chunks[at].id for at in (0, 1, 2, 3, 6)], "2 of 4, 1 of 4"
    assert actions(bubble)[chunks[1].id] == "merge"
    assert actions(bubble)[chunks[2].id] == "take"
    strict = AutoMergeSelector(counter=COUNTER, budget=100, ratio=0.75).select(QUESTION, hits, corpus)
    assert [hit.chunk.id for hit in strict.hits] == [chunks[at].id for at in (0, 2, 6)]


def test_a_parent_with_more_hits_comes_first(tmp_path: Path) -> None:
    """0.8 + 0.5 * 0.7 is above 0.9, 0.8 + 0.1 * 0.7 is not; a small budget shows who was first."""
    corpus = family_corpus(tmp_path, 4)
    chunks = corpus.chunks(range(len(corpus)))
    hits = hits_of([chunks[6], chunks[2], chunks[0]], [0.9, 0.8, 0.7])
    one = AutoMergeSelector(counter=COUNTER, budget=5).select(QUESTION, hits, corpus)
    assert [hit.chunk.id for hit in one.hits] == [chunks[6].id]
    other = AutoMergeSelector(counter=COUNTER, budget=5, bonus=0.5).select(QUESTION, hits, corpus)
    assert [hit.chunk.id for hit in other.hits] == [chunks[2].id]


@pytest.mark.parametrize("children", [1, 3, 9, 40])
def test_all_siblings_are_found(tmp_path: Path, children: int) -> None:
    corpus = family_corpus(tmp_path, children)
    chunks = corpus.chunks(range(len(corpus)))
    for at in (0, children - 1, children, 2 * children):
        family = siblings(chunks[at], corpus)
        assert family == [one for one in chunks if one.parent == chunks[at].parent]


# budget-auto


def kept(bubble: Bubble) -> set[tuple[str, int]]:
    pairs = zip(bubble.hits, bubble.spans, strict=True)
    return {(hit.chunk.doc_id, at) for hit, spans in pairs for span in spans for at in range(span.start, span.end)}


def auto(theta: float, per: Literal["sentence", "token"] = "token") -> BudgetAutoSelector:
    return BudgetAutoSelector(counter=COUNTER, embedder=EMBEDDER, budget=5000, theta=theta, per=per)


@pytest.mark.parametrize(
    ("per", "thetas"), [("token", (-1000, 0.0, 0.01, 0.03, 0.1, 1000)), ("sentence", (-1000, 0, 0.2, 0.6, 2, 1000))]
)
def test_a_larger_theta_takes_a_part_of_it(
    tmp_path: Path, per: Literal["sentence", "token"], thetas: Sequence[float]
) -> None:
    corpus = topic_corpus(tmp_path, EMBEDDER)
    hits = hits_of(corpus.chunks(range(len(corpus))))
    bubbles = [auto(theta, per).select(QUESTION, hits, corpus) for theta in thetas]
    sets = [kept(bubble) for bubble in bubbles]
    assert all(small <= large for large, small in pairwise(sets))
    assert len({len(one) for one in sets}) >= 4, "the thresholds tell apart"
    best = hits[0].chunk
    assert sets[-1] == {(best.doc_id, at) for at in range(best.span.start, best.span.end)}, "the best hit stays"
    assert "skip-gain" in {decision.action for decision in bubbles[-1].decisions}
    assert "skip-gain" not in {decision.action for decision in bubbles[0].decisions}


def test_two_questions_get_different_budgets(tmp_path: Path) -> None:
    corpus = topic_corpus(tmp_path, EMBEDDER)
    hits = hits_of(corpus.chunks(range(len(corpus))))
    narrow = auto(0.03).select("varroa mite", hits, corpus)
    broad = auto(0.03).select("winter hive bridge deck dough salt honey cables towers", hits, corpus)
    assert narrow.token_count != broad.token_count
    assert max(narrow.token_count, broad.token_count) < auto(-1000).select("varroa mite", hits, corpus).token_count


DEV = [name for name in (f"q{at}" for at in range(2000)) if half_of(name) == "dev"]


def test_calibration_finds_the_largest_theta_that_holds() -> None:
    """ln(10) / 200 = 0.0115, its root 0.1073: means of .99, .95, .90 have bounds .883, .843, .793."""
    means = {0.01: 0.99, 0.02: 0.95, 0.03: 0.90, 0.04: 1.0}
    asked: list[float] = []

    def recall(theta: float, question: str) -> float:
        asked.append(theta)
        return means[theta]

    found = calibrated_theta(recall, DEV[:100], [0.04, 0.02, 0.03, 0.01], target=0.8)
    assert found.theta == 0.02
    assert found.slack == pytest.approx(0.10730, abs=1e-5)
    assert [one.theta for one in found.tested] == [0.01, 0.02, 0.03], "nothing is tried after the first that fails"
    assert len(asked) == 300
    assert calibrated_theta(recall, DEV[:100], [0.01], target=0.9).theta is None


def test_calibration_keeps_its_promise() -> None:
    """Made-up recalls of mean exactly under the target pass in at most alpha of the draws."""
    passed = 0
    for seed in range(200):
        drawn = np.random.default_rng(seed).random(100) < 0.899
        recalls = dict(zip(DEV, drawn.astype(float), strict=False))
        found = calibrated_theta(lambda _, name, known=recalls: known[name], DEV[:100], [1.0], target=0.9)  # type: ignore[misc]
        passed += found.theta is not None
    assert passed <= 20


def test_calibration_refuses_what_breaks_the_bound() -> None:
    def whole(theta: float, question: str) -> float:
        return 1.0

    other = next(name for name in (f"q{at}" for at in range(99)) if half_of(name) == "test")
    with pytest.raises(UsageError, match="test half"):
        calibrated_theta(whole, [DEV[0], other], [0.1], target=0.9)
    with pytest.raises(UsageError, match="twice"):
        calibrated_theta(whole, [DEV[0], DEV[0]], [0.1], target=0.9)
    with pytest.raises(UsageError, match="at least one"):
        calibrated_theta(whole, [], [0.1], target=0.9)
    with pytest.raises(UsageError, match="alpha"):
        calibrated_theta(whole, DEV[:2], [0.1], target=0.9, alpha=0.0)
    with pytest.raises(UsageError, match="recall"):
        calibrated_theta(lambda theta, name: 1.5, DEV[:2], [0.1], target=0.9)


# elbow


def test_elbow_by_hand() -> None:
    """Drops .05 .05 .30 .05: mean .1125, deviation .108, so only the third is more than one deviation above."""
    scores = [0.90, 0.85, 0.80, 0.50, 0.45]
    assert elbow(scores, "z") == elbow(scores, "max-gap") == 3
    assert elbow([0.9, 0.8, 0.7, 0.6], "z") == 1, "equal drops: the first of equal rises between drops"
    assert [elbow([0.5] * n, "z") for n in (1, 2)] == [1, 1]


def test_the_z_rule_degenerates_where_scores_fall_fastest_at_the_top() -> None:
    """A second, deeper drop further down is never seen; the largest gap finds it."""
    scores = [0.80, 0.70, 0.69, 0.68, 0.67, 0.54, 0.53, *(0.52 - at / 100 for at in range(20))]
    assert elbow(scores, "z") == 1
    assert elbow(scores, "max-gap") == 5


def test_each_rationale_has_another_chunk() -> None:
    scores = np.array([[0.9, 0.1, 0.2], [0.8, 0.3, 0.4], [0.9, 0.5, 0.6], [1.0, 1.0, 1.0]])
    assert paired(scores) == [0, 2, 1], "the first has the first; then the best that is free"


def test_rationales_are_rules_on_the_question() -> None:
    assert declarative("Who was Ada Lovelace?") == "Ada Lovelace was"
    assert declarative("Which parasite harms the hive?") == "parasite harms the hive"
    assert declarative("Tell me about bees.") == ""
    assert named("When did Tacoma Narrows fail, in 1940?") == "Tacoma Narrows 1940"
    assert named("Bridges fail") == ""
    told = rationales("When did Tacoma Narrows fail?", ["wind twisting wind motion", "salt and dough"])
    assert told[0] == "When did Tacoma Narrows fail?"
    assert told[-1].startswith("When did Tacoma Narrows fail? wind")
    assert len(told) == len(set(told))
    assert rationales("bees", ["bees"]) == ["bees"], "what says the same is one rationale"


def test_neighbours_of_what_is_taken_come_last(tmp_path: Path) -> None:
    corpus = topic_corpus(tmp_path, EMBEDDER)
    hits = hits_of(corpus.chunks(range(0, len(corpus), 2)))
    made: dict[str, Any] = {"counter": COUNTER, "embedder": EMBEDDER, "budget": 5000}
    plain = ElbowSelector(window=0, **made).select(QUESTION, hits, corpus)
    wide = ElbowSelector(window=1, **made).select(QUESTION, hits, corpus)
    taken = {hit.chunk.id for hit in plain.hits}
    expected = {one.id for chunk_id in taken for one in corpus.neighbours(chunk_id, 1, 1)} | taken
    assert {hit.chunk.id for hit in wide.hits} == expected > taken
    order = [decision.action for decision in wide.decisions if not decision.action.startswith("skip-")]
    assert order == sorted(order, key=lambda action: action == "expand")


# mcts


def instance(seed: int, size: int = 14) -> tuple[Utility, list[int]]:
    random = np.random.default_rng(seed)
    vectors = random.normal(size=(size, 8))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    share = random.random(6)
    relevance = np.clip(vectors @ vectors[0], 0.0, None)
    similarity = (vectors @ vectors.T).astype(np.float32)
    utility = Utility(random.random((size, 6)) < 0.3, share / share.sum(), relevance, similarity, 1.0)
    return utility, [int(cost) for cost in random.integers(20, 200, size)]


def searched(utility: Utility, costs: Sequence[int], budget: int, limit: int) -> frozenset[int]:
    tree = Tree(utility, costs, root=frozenset(), budget=budget, limit=limit, c=1.41, lam=0.1, width=8)
    return frozenset(tree.search())


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), budget=st.integers(0, 900))
def test_the_tree_is_never_worse_than_greedy(seed: int, budget: int) -> None:
    utility, costs = instance(seed)
    found = searched(utility, costs, budget, 400)
    reference = instance(seed)[0]
    assert sum(costs[at] for at in found) <= budget
    assert utility(found) >= reference(greedy_set(reference, costs, budget)) - 1e-9


def test_the_tree_finds_what_greedy_misses() -> None:
    better = 0
    for seed in range(20):
        utility, costs = instance(seed)
        greedy = utility(greedy_set(utility, costs, 500))
        better += utility(searched(instance(seed)[0], costs, 500, 400)) > greedy + 1e-9
    assert better >= 8


@pytest.mark.parametrize("limit", [1, 5, 30, 100, 400])
def test_evaluations_are_bounded_and_counted(limit: int) -> None:
    utility, costs = instance(3)
    searched(utility, costs, 500, limit)
    assert utility.calls <= limit
    assert utility.calls == limit or limit == 400, "small limits are used up"


def test_a_small_tree_is_searched_to_its_end() -> None:
    """All sets of 6 items within the budget, by hand: the best of them is found, and the search ends by itself."""
    utility, costs = instance(5, size=6)
    found = searched(utility, costs, 250, 10_000)
    sets = [frozenset(at for at in range(6) if mask >> at & 1) for mask in range(64)]
    best = max(utility(one) for one in sets if sum(costs[at] for at in one) <= 250)
    assert utility(found) == pytest.approx(best, abs=1e-9)


def test_levels_grow_into_each_other(tmp_path: Path) -> None:
    """A level far under the size of the corpus: the law of the larger budget holds over the levels, too."""
    corpus = topic_corpus(tmp_path, EMBEDDER)
    hits = hits_of(corpus.chunks(range(len(corpus))))
    for level, evaluations in ((10, 1000), (25, 1000), (25, 12), (60, 200)):
        before: set[tuple[str, int]] = set()
        for budget in (5, 20, 40, 41, 60, 90, 150, 400, 5000):
            made = MctsSelector(counter=COUNTER, embedder=EMBEDDER, budget=budget, level=level, evaluations=evaluations)
            bubble = made.select(QUESTION, hits, corpus)
            assert bubble.token_count == COUNTER.count(assemble(bubble.texts)) <= budget
            assert len(kept(bubble)) >= len(before)
            before = kept(bubble)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (GradientSelector, {"rule": "steep"}),
        (GradientSelector, {"min_k": 0}),
        (GradientSelector, {"g": 1.5}),
        (AutoMergeSelector, {"ratio": 0.0}),
        (AutoMergeSelector, {"budget": 0}),
        (BudgetAutoSelector, {"theta": float("nan")}),
        (BudgetAutoSelector, {"weights": (1.0,)}),
        (BudgetAutoSelector, {"pool": 0}),
        (BudgetAutoSelector, {"per": "word"}),
        (ElbowSelector, {"rule": "kneedle"}),
        (ElbowSelector, {"window": -1}),
        (MctsSelector, {"evaluations": 0}),
        (MctsSelector, {"lam": -0.1}),
    ],
)
def test_ranges(kind: Any, options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(options))):
        kind(counter=COUNTER, **options)
