"""Budgets: what stays is what the policy names, and decoding goes on as if the rest had been masked."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")

from rag.engine import EngineError  # noqa: E402
from rag.engine.attend import WindowVotes  # noqa: E402
from rag.engine.budget import KvBudget, prefill_within  # noqa: E402
from rag.engine.budget.sink_recent import SinkRecent  # noqa: E402
from rag.engine.budget.snapkv import SnapKv  # noqa: E402
from rag.engine.decode import generate  # noqa: E402
from rag.engine.draft import SuffixDraft  # noqa: E402
from rag.engine.model import FAMILIES  # noqa: E402
from rag.engine.prefill import prefill  # noqa: E402
from rag.engine.prefix import PrefixPool  # noqa: E402
from tests.unit.test_engine_model import shared, some_ids, tiny  # noqa: E402

IDS = some_ids(50, seed=5)
BUDGETS: list[KvBudget] = [SinkRecent(budget=20, sink=3), SnapKv(budget=20, window=6, sink=2, kernel=3)]


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_gone_is_as_if_masked(family: str) -> None:
    model = shared(family)
    done = prefill_within(model, IDS, SinkRecent(budget=20, sink=3))
    assert torch.allclose(done.logits, prefill(model, IDS).logits, atol=1e-4)
    assert (done.cache.length, done.cache.dropped, done.computed) == (20, 30, 50)
    full = prefill(model, IDS).cache
    seen = torch.ones(1, 1, 2, 52, dtype=torch.bool)
    seen[..., 3:33] = False
    seen[0, 0, 0, 51] = False
    with torch.no_grad():
        expected = model.model(
            input_ids=torch.tensor([[7, 8]]),
            past_key_values=full,
            attention_mask=seen,
            position_ids=torch.tensor([[50, 51]]),
        ).logits[0]
    assert torch.allclose(model.run([7, 8], done.cache, keep=2), expected, atol=1e-4)


@pytest.mark.parametrize("budget", BUDGETS)
def test_a_prompt_that_fits_stays_whole(budget: KvBudget) -> None:
    model = shared()
    done = prefill_within(model, IDS[:20], budget)
    assert (done.cache.length, done.cache.moved) == (20, False)
    longer = prefill_within(model, IDS[:21], budget)
    assert (longer.cache.length, longer.cache.dropped, longer.cache.moved) == (20, 1, True)


def test_votes_are_the_model_s_attention_and_the_highest_stay() -> None:
    model = tiny()
    budget = SnapKv(budget=20, window=6, sink=2, kernel=1)
    done = prefill_within(model, IDS, budget)
    model.model.set_attn_implementation("eager")
    with torch.no_grad():
        layers = model.model(input_ids=torch.tensor([IDS]), output_attentions=True).attentions
    full = prefill(model, IDS).cache.read(0, 50)[0]
    kept = done.cache.read(0, 20)[0]
    for number, weights in enumerate(layers):
        votes = weights[0, :, -6:].reshape(2, 2, 6, 50).sum((1, 2))
        for head in range(2):
            best = votes[head, 2:44].argsort(descending=True)[:12] + 2
            slots = sorted([0, 1, *best.tolist(), *range(44, 50)])
            assert torch.allclose(kept[number, head], full[number, head, slots], atol=1e-4)


def test_neighbours_of_a_wanted_token_stay_too() -> None:
    votes = torch.zeros(1, 30)
    votes[0, 12] = 5.0
    chosen = SnapKv(budget=8, window=2, sink=1, kernel=5).slots(30, WindowVotes({0: votes}), 1)
    assert chosen[0].tolist() == [[0, 10, 11, 12, 13, 14, 28, 29]]


@pytest.mark.parametrize("budget", BUDGETS)
def test_decoding_with_drafts_goes_on_as_without(budget: KvBudget) -> None:
    model, texts = shared(), []
    for draft in (None, SuffixDraft(IDS * 2, threshold=0.05)):
        done = prefill_within(model, IDS, budget)
        texts.append(list(generate(model, done.cache, done.logits, max_new_tokens=15, draft=draft)))
    assert texts[0] == texts[1]


def test_such_a_cache_starts_no_other_prompt_and_is_not_repaired() -> None:
    model = shared()
    cache = prefill_within(model, IDS, BUDGETS[0]).cache
    with pytest.raises(EngineError, match="no other prompt"):
        PrefixPool(max_bytes=1 << 20).store(IDS[:20], cache)
    with pytest.raises(EngineError, match="30 tokens of this cache are gone"):
        model.run([1], cache, slots=[5])
    with pytest.raises(EngineError, match="the start of no prompt"):
        prefill(model, IDS, cache)
    assert cache.kv_layers[0].buffers()[0].shape[2] == 20  # the memory is given back
    cache.reset()
    assert (cache.dropped, cache.moved) == (0, False)


@pytest.mark.parametrize(
    ("budget", "wrong"),
    [(SinkRecent, {"sink": 9}), (SnapKv, {"window": 0}), (SnapKv, {"kernel": 4}), (SnapKv, {"window": 8})],
)
def test_ranges_are_checked(budget: Any, wrong: dict[str, int]) -> None:
    with pytest.raises(EngineError, match=r"sink-recent|snapkv"):
        budget(**{"budget": 9, **wrong})
    with pytest.raises(EngineError, match="votes on what stands before"):
        _too_wide()


def _too_wide() -> None:
    class Wide(SinkRecent):
        @property
        def window(self) -> int:
            return 99

    prefill_within(shared(), IDS, Wide(budget=20))
