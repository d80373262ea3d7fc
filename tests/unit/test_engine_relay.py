"""Answers that are read again: their keys and values come from the run that wrote them."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")

from rag.engine import EngineError, InterruptedPrefillError  # noqa: E402
from rag.engine.blocks import KvBlock, make_block  # noqa: E402
from rag.engine.budget import prefill_within  # noqa: E402
from rag.engine.budget.sink_recent import SinkRecent  # noqa: E402
from rag.engine.chunks import prefill_chunks  # noqa: E402
from rag.engine.decode import generate  # noqa: E402
from rag.engine.model import FAMILIES  # noqa: E402
from rag.engine.prefill import Prefill, prefill  # noqa: E402
from rag.engine.repair.epic import Epic  # noqa: E402
from rag.engine.repair.naive import Naive  # noqa: E402
from rag.engine.repair.relay import RELAY, Relay, cut_answer, relayed  # noqa: E402
from rag.engine.tiers import KvTiers  # noqa: E402
from tests.unit.test_engine_model import shared, some_ids, tiny  # noqa: E402

FIRST, PREFIX, BETWEEN, QUESTION = (some_ids(size, seed=size) for size in (30, 11, 5, 7))


def answered(model: Any, count: int = 20, stops: tuple[int, ...] = ()) -> tuple[list[int], KvBlock]:
    run = prefill(model, FIRST)
    answer = list(generate(model, run.cache, run.logits, max_new_tokens=count, stops=stops))
    block = cut_answer(model, run.cache, len(FIRST), answer)
    assert block is not None
    return answer, block


def follow(model: Any, parts: list[Any], policy: Any, prefix: list[int] = PREFIX, **asked: Any) -> Prefill:
    return prefill_chunks(model, prefill(model, prefix).cache, prefix, parts, policy, **asked)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_was_decoded_is_what_a_prefill_there_gives(family: str) -> None:
    model = shared(family)
    answer, block = answered(model)
    assert list(block.ids) == answer[:-1]  # the last one never ran
    made = make_block(model, answer[:-1], FIRST)
    assert torch.allclose(block.k, made.k, atol=1e-3)
    assert torch.allclose(block.v, made.v, atol=1e-3)


def test_before_a_stop_the_whole_answer_ran() -> None:
    model = shared()
    answer, _ = answered(model)
    stop = answer[7]
    short, block = answered(model, stops=(stop,))
    assert list(block.ids) == short == answer[: answer.index(stop)]


@pytest.mark.parametrize("family", FAMILIES)
def test_with_everything_repaired_it_is_a_full_prefill(family: str) -> None:
    model = shared(family)
    answer, block = answered(model)
    ids = [*PREFIX, *BETWEEN, *answer, *QUESTION]
    full = prefill(model, ids)
    for policy in (Relay(share=1), Relay(k=19, share=0), Relay(share=1, layers=3)):
        done = follow(model, [BETWEEN, block, answer[-1:], QUESTION], policy)
        assert torch.allclose(done.logits, full.logits, atol=1e-4)
        for ours, theirs in zip(done.cache.read(0, len(ids)), full.cache.read(0, len(ids)), strict=True):
            assert torch.allclose(ours, theirs, atol=1e-4)
        assert done.repaired == 19


def test_behind_the_same_text_nothing_deviates() -> None:
    model = shared()
    answer, block = answered(model)
    done = follow(model, [block, QUESTION], Naive(), prefix=FIRST)
    assert torch.allclose(done.logits, prefill(model, [*FIRST, *answer[:-1], *QUESTION]).logits, atol=1e-3)


def test_the_tokens_that_deviate_most_are_repaired_and_no_more() -> None:
    model = tiny(num_hidden_layers=4)
    _, block = answered(model)
    parts = [BETWEEN, block, QUESTION]
    naive = follow(model, parts, Naive()).cache.read(0, 42)
    full = prefill(model, [*PREFIX, *BETWEEN, *block.ids, *QUESTION]).cache.read(0, 42)
    done = follow(model, parts, Relay(k=3, share=0.25))
    ours = done.cache.read(0, 42)
    assert done.repaired == 3 + 4  # of the other 16
    spots = range(16, 35)
    changed = {p for p in spots if not torch.equal(ours[1][3][:, p], naive[1][3][:, p])}
    far = [
        sum(
            float((new[1][:, p] - old[1][:, p]).square().sum() / old[1][:, p].square().sum())
            for new, old in zip(full, naive, strict=True)
        )
        for p in spots
    ]
    most = sorted(range(3, 19), key=lambda at: -far[at])[:4]
    assert changed == {16, 17, 18, *(16 + at for at in most)}
    for layer in (0, 1):  # the look was exact, whatever was repaired after it
        assert torch.allclose(ours[0][layer], full[0][layer], atol=1e-3)


def test_no_look_is_epic_and_nothing_is_naive() -> None:
    model = shared()
    _, block = answered(model)
    parts = [BETWEEN, block, QUESTION]
    for ours, theirs in ((Relay(k=4, layers=0), Epic(k=4, first=True)), (Relay(k=0, share=0), Naive())):
        assert torch.equal(follow(model, parts, ours).logits, follow(model, parts, theirs).logits)


def test_it_can_be_interrupted_and_done_again() -> None:
    model = shared()
    _, block = answered(model)
    with pytest.raises(InterruptedPrefillError):
        follow(model, [block, QUESTION], Relay(), keep_going=lambda done, total: False)
    again = follow(model, [block, QUESTION], Relay())
    assert torch.equal(again.logits, follow(model, [block, QUESTION], Relay()).logits)


def test_answers_are_found_by_their_ids_and_for_their_model_only() -> None:
    model, other = shared(), tiny(seed=9)
    answer, block = answered(model)
    tiers = KvTiers(max_bytes=1 << 20)
    tiers.put(block, RELAY, ["flow"])
    assert [len(part) for part in relayed(tiers, model, answer)] == [19, 1]
    assert [len(part) for part in relayed(tiers, model, answer[:-1])] == [19]
    changed = [*answer[:3], answer[3] % 90 + 4, *answer[4:]]
    assert relayed(tiers, model, changed) == [changed]
    assert relayed(tiers, other, answer) == [answer]
    assert relayed(tiers, model, []) == []
    with pytest.raises(EngineError, match="made by the model"):
        follow(other, [block, QUESTION], Relay())
    tiers.drop("flow")
    assert relayed(tiers, model, answer) == [answer]


def test_an_answer_behind_a_cut_prompt_is_not_reused() -> None:
    model = shared()
    run = prefill_within(model, FIRST, SinkRecent(budget=20))
    answer = list(generate(model, run.cache, run.logits, max_new_tokens=5))
    with pytest.raises(EngineError, match="moved or cut down"):
        cut_answer(model, run.cache, len(FIRST), answer)
    fresh = prefill(model, FIRST)
    assert cut_answer(model, fresh.cache, len(FIRST), answer) is None


@pytest.mark.parametrize("wrong", [{"k": -1}, {"share": 1.2}, {"layers": 1}, {"layers": -2}])
def test_settings_out_of_range_say_so(wrong: dict[str, Any]) -> None:
    with pytest.raises(EngineError, match="relay: k must be"):
        Relay(**wrong)
