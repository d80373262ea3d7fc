"""Batches behind a shared context, and prompts grouped by what they share: equal to runs of their own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from rag.engine import EngineError, attend  # noqa: E402
from rag.engine.decode import generate  # noqa: E402
from rag.engine.grouping import PromptGroup, group_prompts, lots  # noqa: E402
from rag.engine.model import FAMILIES, EngineModel  # noqa: E402
from rag.engine.prefill import prefill  # noqa: E402
from rag.engine.prefix import PrefixPool  # noqa: E402
from rag.engine.share import generate_batch, generate_many, prefill_batch  # noqa: E402
from tests.unit.test_engine_model import shared, some_ids, tiny  # noqa: E402

CONTEXT = some_ids(37, seed=3)
SUFFIXES = [some_ids(length, seed=length) for length in (5, 1, 9, 9, 3)]


def alone(model: EngineModel, ids: list[int], **options: Any) -> list[int]:
    done = prefill(model, ids)
    return list(generate(model, done.cache, done.logits, **options))


def texts_of(tokens: Iterator[tuple[int, int]], rows: int) -> list[list[int]]:
    texts: list[list[int]] = [[] for _ in range(rows)]
    for row, token in tokens:
        texts[row].append(token)
    return texts


@pytest.mark.parametrize("scores", [1, 300, 1 << 24])
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_those_of_separate_runs(family: str, scores: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model = shared(family)
    monkeypatch.setattr(attend, "_SCORES", scores)
    context = prefill(model, CONTEXT).cache
    before = context.read(0, 37)
    batch = prefill_batch(model, context, SUFFIXES)
    for row, suffix in enumerate(SUFFIXES):
        assert torch.allclose(batch.logits[row], prefill(model, [*CONTEXT, *suffix]).logits, atol=1e-5, rtol=1e-5)
    for token in (7, 8):
        batch.step([token + row for row in range(5)])
    for row, suffix in enumerate(SUFFIXES):
        expected = prefill(model, [*CONTEXT, *suffix, 7 + row, 8 + row]).logits
        assert torch.allclose(batch.logits[row], expected, atol=1e-5, rtol=1e-5)
    after = context.read(0, 37)
    assert context.length == 37
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_texts_are_those_of_separate_runs_and_ended_rows_leave(temperature: float) -> None:
    model = shared()
    context = prefill(model, CONTEXT).cache
    options: dict[str, Any] = {"max_new_tokens": 12, "temperature": temperature, "seed": 4}
    plain = [alone(model, [*CONTEXT, *suffix], **options) for suffix in SUFFIXES]
    options["stops"] = [plain[0][3], (plain[2][5], plain[2][6])]
    expected = [alone(model, [*CONTEXT, *suffix], **options) for suffix in SUFFIXES]
    assert len({len(text) for text in expected}) > 1
    assert texts_of(generate_batch(model, context, SUFFIXES, **options), 5) == expected


def test_the_context_is_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model, passed = tiny(), list[int]()
    model.model.base_model.embed_tokens.register_forward_hook(lambda _, given, __: passed.append(given[0].numel()))
    got = generate_many(model, [[*CONTEXT, *suffix] for suffix in SUFFIXES], max_new_tokens=4)
    assert passed == [37, 5 * 9, 5, 5, 5]
    assert got == [alone(model, [*CONTEXT, *suffix], max_new_tokens=4) for suffix in SUFFIXES]


@given(
    lengths=st.lists(st.integers(1, 30), min_size=1, max_size=12), rows=st.integers(1, 5), tokens=st.integers(1, 90),
    room=st.integers(0, 9),
)  # fmt: skip
def test_lots_hold_every_member_once_and_no_more_than_they_may(
    lengths: list[int], rows: int, tokens: int, room: int
) -> None:
    group = PromptGroup(tuple(reversed(range(len(lengths)))), 7)
    made = lots(group, [[0] * (7 + length) for length in lengths], rows=rows, tokens=tokens, room=room)
    assert sorted(number for lot in made for number in lot) == list(range(len(lengths)))
    for lot in made:
        assert len(lot) <= rows
        assert len(lot) == 1 or len(lot) * (max(lengths[number] for number in lot) + room) <= tokens
    order = [lengths[number] for lot in made for number in lot]
    assert order == sorted(order)  # so that least is padded


@pytest.mark.parametrize(("rows", "tokens"), [(1, 1 << 16), (2, 1 << 16), (16, 1 << 16), (16, 14)])
@pytest.mark.parametrize("pooled", [False, True])
def test_many_prompts_in_any_order(rows: int, tokens: int, pooled: bool) -> None:
    model, other = shared(), some_ids(20, seed=9)
    prompts = [
        [*CONTEXT, 5],
        [*other, 3, 4],
        [*CONTEXT, 6, 7],
        some_ids(4),
        [*other, 9],
        [*CONTEXT, 5],
        [*CONTEXT[:30], 8],
    ]
    pool = PrefixPool(max_bytes=1 << 24, block_tokens=8, salt=model.fingerprint.encode()) if pooled else None
    got = generate_many(model, prompts, max_new_tokens=6, rows=rows, tokens=tokens, pool=pool)
    assert got == [alone(model, prompt, max_new_tokens=6) for prompt in prompts]


def test_what_cannot_be_a_batch_is_refused() -> None:
    model = shared()
    context = prefill(model, CONTEXT).cache
    with pytest.raises(EngineError, match="none of them empty"):
        prefill_batch(model, context, [[1], []])
    with pytest.raises(EngineError, match="at least one token"):
        prefill_batch(model, model.new_cache(), [[1]])
    context.attention = {"mass": None}
    with pytest.raises(EngineError, match="own way"):
        prefill_batch(model, context, [[1]])
    cut = prefill(model, CONTEXT)
    cut.cache.keep([torch.arange(20)[None]] * model.layers)
    with pytest.raises(EngineError, match="17 tokens of this context are gone"):
        prefill_batch(model, cut.cache, [[1]])
    sliding = tiny("mistral", sliding_window=8)
    with pytest.raises(EngineError, match="slides over 8 tokens"):
        prefill_batch(sliding, prefill(sliding, CONTEXT).cache, [[1]])
    with pytest.raises(EngineError, match="rows must be >= 1"):
        generate_many(model, [[1]], max_new_tokens=1, rows=0)
    with pytest.raises(EngineError, match="tokens >= 1"):
        generate_many(model, [[1]], max_new_tokens=1, tokens=0)


# grouping

PROMPTS = st.lists(st.lists(st.integers(0, 1), min_size=1, max_size=5), max_size=6)


def common(prompts: list[list[int]]) -> int:
    """The longest prefix that all share and none is."""
    most = min(len(one) for one in prompts) - 1
    return next((n for n in range(most, 0, -1) if len({tuple(one[:n]) for one in prompts}) == 1), 0)


def most_saved(prompts: list[list[int]], least: int) -> int:
    """By trying every partition."""
    if not prompts:
        return 0
    first, rest = prompts[0], prompts[1:]
    best = 0
    for chosen in range(1 << len(rest)):
        with_first = [one for at, one in enumerate(rest) if chosen >> at & 1]
        others = [one for at, one in enumerate(rest) if not chosen >> at & 1]
        shared_tokens = common([first, *with_first])
        gained = len(with_first) * shared_tokens if shared_tokens >= least else 0
        best = max(best, gained + most_saved(others, least))
    return best


@settings(max_examples=60)
@given(PROMPTS, st.integers(1, 3))
def test_no_other_grouping_saves_more(prompts: list[list[int]], least: int) -> None:
    groups = group_prompts(prompts, least=least)
    assert sorted(number for group in groups for number in group.members) == list(range(len(prompts)))
    for group in groups:
        assert len(group.members) == 1 or group.prefix >= least
        assert group.prefix <= common([prompts[number] for number in group.members]) if group.prefix else True
        assert (group.prefix == 0) == (len(group.members) == 1)
    assert sum(group.saved for group in groups) == most_saved(prompts, least)


def test_groups_that_share_a_start_are_neighbours() -> None:
    a, b = [1] * 10, [1] * 5 + [2] * 5
    prompts = [[*a, 7], [3] * 4, [*b, 7], [*a, 8], [*b, 8]]
    groups = group_prompts(prompts, least=6)
    assert [(group.members, group.prefix) for group in groups] == [((0, 3), 10), ((2, 4), 10), ((1,), 0)]


def test_a_chain_of_prompts_needs_no_recursion() -> None:
    prompts = [[1] * length for length in range(1, 1500, 3)]
    assert sum(len(group.members) for group in group_prompts(prompts)) == len(prompts)


def test_wrong_prompts_are_refused() -> None:
    with pytest.raises(EngineError, match="prompt 1 is empty"):
        group_prompts([[1], []])
    with pytest.raises(EngineError, match="least must be >= 1"):
        group_prompts([[1]], least=0)
    assert group_prompts([]) == []
