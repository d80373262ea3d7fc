"""Drafts: the automaton counts what is there, guesses come from the longest match, and grow and stop by results."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("torch")

from rag.engine import EngineError
from rag.engine.automaton import SuffixAutomaton
from rag.engine.draft import Draft, PromptLookup, SuffixDraft

TEXTS = st.lists(st.integers(0, 2), max_size=40)


def built(text: list[int]) -> SuffixAutomaton:
    known = SuffixAutomaton()
    for token in text:
        known.append(token)
    return known


def places(text: list[int], part: list[int]) -> list[int]:
    """Where `part` ends in `text`."""
    return [at for at in range(len(part), len(text) + 1) if text[at - len(part) : at] == part]


@given(TEXTS, st.lists(st.integers(0, 2), min_size=1, max_size=5))
def test_occurrences_are_those_in_the_text(text: list[int], part: list[int]) -> None:
    assert built(text).occurrences(part) == len(places(text, part))


@given(TEXTS)
def test_the_longest_repeat_and_its_likeliest_continuation(text: list[int]) -> None:
    known = built(text)
    state, length = known.longest_repeat()
    repeats = [n for n in range(len(text)) if len(places(text, text[len(text) - n :])) > 1]
    assert length == max(repeats, default=0)
    if not length:
        return
    after = [text[at] for at in places(text, text[-length:]) if at < len(text)]
    token, share, _ = known.likeliest(state)
    best = max(after.count(one) for one in after)
    assert (token, share) == (min(one for one in after if after.count(one) == best), best / len(after))


def test_a_text_of_one_token_is_appended_in_bounded_steps() -> None:
    known = built([7] * 500)
    assert known.longest_repeat()[1] == 499
    assert known.occurrences([7] * 499) == 2
    assert known.occurrences([7]) < 500  # as told: short suffixes of such a text are counted too low


def test_prompt_lookup_takes_the_longest_and_latest_ngram() -> None:
    text = [1, 2, 3, 4, 9, 2, 3, 5, 8, 1, 2, 3]
    assert PromptLookup(text, ngram=3, tokens=2).propose(10) == [4, 9]
    assert PromptLookup(text, ngram=2, tokens=2).propose(10) == [5, 8]
    assert PromptLookup(text, ngram=2).propose(1) == [5]
    assert PromptLookup([1, 2, 3]).propose(5) == []
    assert PromptLookup([]).propose(5) == []


def test_the_suffix_draft_prefers_the_longer_match_and_then_the_commoner_one() -> None:
    longer = SuffixDraft([1, 2, 3, 4, 5, 9, 3, 8, 9, 3, 8, 1, 2, 3])
    assert longer.propose(1) == [4]
    commoner = SuffixDraft([3, 4, 5, 3, 8, 6, 3, 8, 7, 3], threshold=0.01)
    assert commoner.propose(1) == [8]


def test_longer_matches_give_longer_guesses_and_none_goes_over_a_seam() -> None:
    copied = list(range(10, 60))
    short = SuffixDraft([*copied, 1, 10]).propose(99)
    long = SuffixDraft([*copied, 1, *copied[:8]]).propose(99)
    assert 0 < len(short) < len(long) <= 32
    assert long == copied[8 : 8 + len(long)]
    apart = SuffixDraft([5, 6], others=[[1, 2, 5, 6], [7, 8]])
    assert apart.propose(9) == []
    assert SuffixDraft([5], others=[[1, 2, 5, 6], [7, 8]]).propose(9) == [6]


def test_rejections_stop_the_guesses_of_that_match_length_only() -> None:
    draft = SuffixDraft([10, 11, 12, 1, 10])
    assert draft.propose(9)
    for _ in range(4):
        draft.learn(len(draft.propose(9)), 0)
    assert draft.propose(9) == []
    copied = list(range(20, 40))
    draft.extend([*copied, 2, *copied[:10]])
    assert draft.propose(4) == copied[10:14]


def test_what_was_right_makes_guesses_longer() -> None:
    def length(hits: int) -> int:
        text = [*range(10, 60), 1, 10, 11]
        draft = SuffixDraft(text)
        for _ in range(hits):
            guess = draft.propose(99)
            draft.learn(len(guess), len(guess))
        return len(draft.propose(99))

    assert length(0) < length(1) <= length(5) == 32


@pytest.mark.parametrize("wrong", [{"threshold": 0.0}, {"threshold": 1.1}, {"most": 0}, {"least_match": 0}])
def test_ranges_are_checked(wrong: dict[str, float]) -> None:
    with pytest.raises(EngineError, match="suffix draft"):
        SuffixDraft([1], **wrong)  # type: ignore[arg-type]
    with pytest.raises(EngineError, match="prompt lookup"):
        PromptLookup([1], ngram=0)


def test_both_are_drafts() -> None:
    drafts: list[Draft] = [PromptLookup([1]), SuffixDraft([1])]
    for draft in drafts:
        draft.extend([1])
        draft.learn(0, 0)
        assert draft.propose(0) == []
