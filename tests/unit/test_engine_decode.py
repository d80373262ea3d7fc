"""Decoding with drafts gives what decoding without them gives: tokens, distribution, cache."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from rag.engine import EngineError  # noqa: E402
from rag.engine.decode import Stop, StopGate, chooser, generate  # noqa: E402
from rag.engine.draft import Draft, PromptLookup, SuffixDraft  # noqa: E402
from rag.engine.model import EngineModel  # noqa: E402
from rag.engine.prefill import greedy, prefill  # noqa: E402
from tests.unit.test_engine_model import VOCABULARY, shared, some_ids, tiny  # noqa: E402


class Scripted:
    """A draft that guesses what it is told to, right or wrong, and notes what it learns."""

    def __init__(self, guesses: Iterator[list[int]]) -> None:
        self.guesses, self.text, self.learned = guesses, list[int](), list[tuple[int, int]]()

    def extend(self, ids: Sequence[int]) -> None:
        self.text += ids

    def propose(self, most: int) -> list[int]:
        return next(self.guesses, [])[:most]

    def learn(self, proposed: int, accepted: int) -> None:
        self.learned.append((proposed, accepted))


class Oracle(Scripted):
    """Knows the text that will come."""

    def __init__(self, text: Sequence[int]) -> None:
        super().__init__(iter(()))
        self.to_come = list(text)

    def propose(self, most: int) -> list[int]:
        return self.to_come[len(self.text) :][:most]


def written(model: EngineModel, ids: list[int], **options: Any) -> tuple[list[int], int]:
    """(tokens, tokens in the cache afterwards)."""
    done = prefill(model, ids)
    return list(generate(model, done.cache, done.logits, **options)), done.cache.length


PROMPTS = st.lists(st.lists(st.integers(3, 20), min_size=1, max_size=6), min_size=1, max_size=3)


@settings(max_examples=25)
@given(PROMPTS, st.integers(1, 40), st.sampled_from([0.0, 0.3, 1.0, 4.0]), st.integers(0, 9))
def test_drafts_change_nothing(parts: list[list[int]], most: int, temperature: float, seed: int) -> None:
    """At every temperature, with the same seed: the draws are the same, so the distribution is."""
    model, prompt = shared(), [token for part in parts for token in part * 3]
    options = {"max_new_tokens": most, "temperature": temperature, "seed": seed}
    expected = written(model, prompt, **options)
    guesses = iter([some_ids(1 + n % 7, seed=n) for n in range(most)])
    drafts: list[Draft] = [PromptLookup(prompt), SuffixDraft(prompt, threshold=0.05), Scripted(guesses)]
    for draft in [*drafts, Oracle(expected[0])]:
        assert written(model, prompt, draft=draft, **options) == expected


def test_right_guesses_save_passes_and_wrong_ones_cost_none(monkeypatch: pytest.MonkeyPatch) -> None:
    model, ids = tiny(), some_ids(9)
    expected, _ = written(model, ids, max_new_tokens=24)
    passes: list[int] = []
    inner = EngineModel.run

    def counted(self: EngineModel, step: Sequence[int], *args: Any, **options: Any) -> Any:
        passes.append(len(step))
        return inner(self, step, *args, **options)

    monkeypatch.setattr(EngineModel, "run", counted)
    written(model, ids, max_new_tokens=24, draft=Oracle(expected))
    assert passes == [9, 23]  # the last token is never run
    passes.clear()
    wrong = [[(token + 1) % VOCABULARY] for token in expected[1:]]
    draft = Scripted(iter(wrong))
    written(model, ids, max_new_tokens=24, draft=draft)
    assert len(passes) == 24
    assert draft.learned == [(1, 0)] * 22
    assert draft.text == expected


def test_the_distribution_with_a_draft_is_the_model_s_own() -> None:
    """All sequences of two tokens over five, by enumeration, against draws with a draft that is sometimes right."""
    model = tiny(vocab_size=5, initializer_range=0.5, bos_token_id=None, eos_token_id=None)
    prompt = [0, 3, 1, 4, 2, 3, 1]
    done = prefill(model, prompt)
    first = torch.softmax(done.logits, -1)
    expected: dict[tuple[int, ...], float] = {}
    for token in range(5):
        done.cache.truncate(len(prompt))
        second = torch.softmax(model.run([token], done.cache)[-1], -1)
        expected.update({(token, other): float(first[token] * second[other]) for other in range(5)})
    assert sum(expected.values()) == pytest.approx(1, abs=1e-5)
    best = max(expected, key=lambda pair: expected[pair])
    seen: Counter[tuple[int, ...]] = Counter()
    draws, hits = 1500, 0
    for seed in range(draws):
        done.cache.truncate(len(prompt))
        draft = Scripted(iter([[best[1]]]))
        got = generate(model, done.cache, done.logits, max_new_tokens=3, draft=draft, temperature=1, seed=seed)
        seen[tuple(got)[:2]] += 1
        hits += draft.learned[0][1]
    assert 0 < hits < draws
    pairs = [pair for pair in product(range(5), repeat=2) if expected[pair] * draws >= 5]
    rest = 1 - sum(expected[pair] for pair in pairs)
    cells = [(seen[pair], expected[pair] * draws) for pair in pairs]
    cells.append((draws - sum(seen[pair] for pair in pairs), rest * draws))
    chi = sum((found - wanted) ** 2 / wanted for found, wanted in cells if wanted > 1e-9)
    limit = len(cells) + 4 * (2 * len(cells)) ** 0.5  # four standard deviations over the mean of chi square
    assert chi < limit
    uniform = sum((draws / 25 - expected[pair] * draws) ** 2 / (expected[pair] * draws) for pair in pairs)
    assert uniform > limit  # another distribution would have been seen


def test_greedy_is_a_case_of_it() -> None:
    model, ids = shared(), some_ids(12)
    done = prefill(model, ids)
    assert list(greedy(model, done.cache, done.logits, max_new_tokens=9)) == written(model, ids, max_new_tokens=9)[0]


@settings(max_examples=25)
@given(
    st.lists(st.integers(0, 2), max_size=15), st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=3), max_size=3)
)
def test_the_gate_stops_at_the_first_stop(text: list[int], stops: list[list[int]]) -> None:
    gate, given_out = StopGate([tuple(stop) for stop in stops]), []
    for at, token in enumerate(text):
        given_out += gate.push(token)
        ended = [len(stop) for stop in stops if text[max(0, at + 1 - len(stop)) : at + 1] == stop]
        assert gate.closed == bool(ended)
        if ended:
            assert given_out == text[: at + 1 - max(ended)]
            assert gate.rest() == []
            return
        assert text[: len(given_out)] == given_out
        assert not any(len(stop) == 1 for stop in stops) or len(given_out) >= at + 1 - 2
    assert [*given_out, *gate.rest()] == text


@pytest.mark.parametrize("draft", [None, "oracle"])
def test_stops_end_the_text_and_leave_the_cache_before_them(draft: str | None) -> None:
    model, ids = shared(), some_ids(12)
    text, _ = written(model, ids, max_new_tokens=20)
    stops: list[Stop] = [(text[5], text[6], text[7]), (text[9], -5)]
    at = next(n for n in range(20) if tuple(text[n : n + 3]) == stops[0])
    got, held = written(model, ids, max_new_tokens=20, stops=stops, draft=Oracle(text) if draft else None)
    assert got == text[:at]
    assert held == 12 + at + 2  # all but the last token of the stop
    cut, _ = written(model, ids, max_new_tokens=at + 2, stops=stops)
    assert cut == text[: at + 2]  # what only began a stop is text


@pytest.mark.parametrize("taken", [1, 2, 7])
def test_a_caller_may_stop_early_and_go_on_with_the_cache(taken: int) -> None:
    model, ids = shared(), some_ids(12)
    text, _ = written(model, ids, max_new_tokens=20)
    done = prefill(model, ids)
    tokens = generate(model, done.cache, done.logits, max_new_tokens=20, draft=Oracle(text))
    for _ in range(taken):
        next(tokens)
    tokens.close()  # type: ignore[attr-defined]
    assert done.cache.length == 12 + taken - 1
    logits = model.run([text[taken - 1]], done.cache)[-1]
    assert list(generate(model, done.cache, logits, max_new_tokens=20 - taken)) == text[taken:]


def test_nothing_is_written_where_nothing_is_asked_for() -> None:
    assert written(shared(), some_ids(5), max_new_tokens=0) == ([], 5)


def test_wrong_values_are_refused() -> None:
    with pytest.raises(EngineError, match="temperature must be >= 0, not -1"):
        chooser(-1, 0)
    with pytest.raises(EngineError, match="at least one token"):
        StopGate([()])


def test_a_guess_that_runs_into_a_stop_is_learned() -> None:
    model, ids = shared("llama"), some_ids(12)
    text, _ = written(model, ids, max_new_tokens=8)
    draft = Oracle(text)
    got, held = written(model, ids, max_new_tokens=8, draft=draft, stops=[(text[2], text[3])])
    ends = next(at for at in range(7) if text[at : at + 2] == text[2:4])
    assert (got, held) == (text[:ends], len(ids) + ends + 1)
    assert draft.learned == [(6, ends + 1)]  # of those after the first token, up to the end of the stop
