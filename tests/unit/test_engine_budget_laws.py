"""What every budget keeps to, whichever way it chooses."""

from __future__ import annotations

import importlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

import rag.engine.budget  # noqa: E402
from rag.engine import EngineError  # noqa: E402
from rag.engine.attend import WindowVotes  # noqa: E402
from rag.engine.budget import KvBudget, observed_prefill, prefill_within  # noqa: E402
from rag.engine.budget._choose import largest, top_slots  # noqa: E402
from rag.engine.budget._merge import evicted_of, weighed_in  # noqa: E402
from rag.engine.budget.critic import Critic  # noqa: E402
from rag.engine.budget.d2o import D2o  # noqa: E402
from rag.engine.budget.ems import Ems  # noqa: E402
from rag.engine.budget.prefixkv import PrefixKv  # noqa: E402
from rag.engine.budget.sink_recent import SinkRecent  # noqa: E402
from rag.engine.budget.snapkv import SnapKv  # noqa: E402
from rag.engine.cache import KvCache  # noqa: E402
from rag.engine.decode import generate  # noqa: E402
from rag.engine.draft import SuffixDraft  # noqa: E402
from rag.engine.model import FAMILIES  # noqa: E402
from rag.engine.prefill import prefill  # noqa: E402
from rag.engine.prefix import PrefixPool  # noqa: E402
from tests.unit.test_engine_model import shared, some_ids, tiny  # noqa: E402

IDS = some_ids(60, seed=5)
BUDGETS: dict[str, Any] = {
    "critic": Critic(budget=20, window=6, sink=2),
    "d2o": D2o(budget=20, sink=2),
    "ems": Ems(budget=20, window=6, sink=2, tau=0.1),
    "prefixkv": PrefixKv(budget=20, start_size=2),
    "sink_recent": SinkRecent(budget=20, sink=2),
    "snapkv": SnapKv(budget=20, window=6, sink=2, kernel=3),
}
LAST = {"critic": 6, "d2o": 1, "ems": 6, "prefixkv": 1, "sink_recent": 18, "snapkv": 6}
"""The last tokens that each keeps in every layer and head."""
every = pytest.mark.parametrize("name", BUDGETS)


def slots_of(budget: KvBudget, length: int = 60) -> list[Any]:
    _, votes = observed_prefill(shared(), IDS[:length], window=budget.window, whole=budget.whole)
    return budget.slots(length, votes, 3)


def test_every_file_has_one_and_is_here() -> None:
    folder = Path(next(iter(rag.engine.budget.__path__)))
    names = [file.stem for file in sorted(folder.glob("*.py")) if not file.stem.startswith("_")]
    assert names == sorted(BUDGETS)
    for name in names:
        assert importlib.import_module(f"rag.engine.budget.{name}").__all__ == [type(BUDGETS[name]).__name__]
        assert type(BUDGETS[name])().budget >= 256


@every
def test_a_budget_that_is_not_less_than_the_prompt_changes_nothing(name: str) -> None:
    model = shared()
    plain = prefill(model, IDS)
    for size in (60, 61, 1000):
        done = prefill_within(model, IDS, replace(BUDGETS[name], budget=size))
        assert torch.equal(done.logits, plain.logits)
        for ours, theirs in zip(done.cache.read(0, 60), plain.cache.read(0, 60), strict=True):
            assert torch.equal(ours, theirs)
        assert (done.cache.dropped, done.cache.moved, done.cache.attention) == (0, False, {})


@every
@pytest.mark.parametrize("length", [21, 37, 60])
def test_no_more_is_kept_than_the_budget_and_each_slot_once(name: str, length: int) -> None:
    chosen = slots_of(BUDGETS[name], length)
    counts = [one.shape[-1] for one in chosen]
    assert 18 * 3 < sum(counts) <= 20 * 3
    for one in chosen:
        assert bool((one.diff(dim=-1) > 0).all())
        assert int(one.min()) >= 0
        assert int(one.max()) < length
        for row in one.tolist():
            assert {0, 1, *range(length - LAST[name], length)} <= set(row)
    done = prefill_within(shared(), IDS[:length], BUDGETS[name])
    assert [layer.length for layer in done.cache.kv_layers] == counts
    assert done.cache.length + done.cache.dropped == length
    assert sum(layer.buffers()[0].shape[2] for layer in done.cache.kv_layers) == sum(counts)  # memory is given back


@every
def test_the_same_prompt_keeps_the_same(name: str) -> None:
    model = tiny(seed=3)
    for first, second in zip(
        *(prefill_within(model, IDS, BUDGETS[name]).cache.kv_layers for _ in range(2)), strict=True
    ):
        for ours, theirs in zip(first.buffers(), second.buffers(), strict=True):
            assert torch.equal(ours, theirs)
            assert bool(ours.isfinite().all())


@every
@pytest.mark.parametrize("family", FAMILIES)
def test_the_logits_are_exact_and_decoding_goes_on(name: str, family: str) -> None:
    model = shared(family)
    done = prefill_within(model, IDS, BUDGETS[name])
    assert torch.allclose(done.logits, prefill(model, IDS).logits, atol=1e-4)
    start = done.cache.length
    text = list(generate(model, done.cache, done.logits, max_new_tokens=12))
    assert len(text) == 12
    assert done.cache.length == start + 11
    assert done.cache.length + done.cache.dropped == 71
    after = model.run([text[-1]], done.cache)
    assert bool(after.isfinite().all())


@every
def test_one_token_at_a_time_several_at_once_and_drafts_are_the_same(name: str) -> None:
    model = shared()
    caches = [prefill_within(model, IDS, BUDGETS[name]) for _ in range(4)]
    steps = torch.cat([model.run([token], caches[0].cache) for token in (7, 8, 9)])
    assert torch.allclose(model.run([7, 8, 9], caches[1].cache, keep=3), steps, atol=1e-4)
    texts = [
        list(generate(model, one.cache, one.logits, max_new_tokens=15, draft=draft))
        for one, draft in zip(caches[2:], (None, SuffixDraft(IDS * 2, threshold=0.05)), strict=True)
    ]
    assert texts[0] == texts[1]
    caches[1].cache.crop(-2)  # the last two of three are forgotten in every layer
    assert torch.allclose(model.run([8], caches[1].cache), steps[1:2], atol=1e-4)


@pytest.mark.parametrize("name", ["critic", "prefixkv", "sink_recent", "snapkv"])
def test_without_merging_it_is_as_if_the_rest_were_masked(name: str) -> None:
    """Layer by layer, since layers keep different tokens: in the next token's attention the others weigh nothing."""
    model = tiny()
    chosen = slots_of_model(model, BUDGETS[name])
    expected = masked_logits(model, chosen)
    done = prefill_within(model, IDS, BUDGETS[name])
    assert torch.allclose(model.run([7], done.cache), expected, atol=1e-4)


def slots_of_model(model: Any, budget: KvBudget) -> list[Any]:
    _, votes = observed_prefill(model, IDS, window=budget.window, whole=budget.whole)
    return budget.slots(60, votes, 3)


def masked_logits(model: Any, chosen: list[Any]) -> Any:
    """A layer's mask is put in front of its attention, one row for each query head."""
    cache, hooks = prefill(model, IDS).cache, []
    for layer, slots in zip(model.model.base_model.layers, chosen, strict=True):
        seen = torch.zeros(slots.shape[0], 61, dtype=torch.bool).scatter(1, slots, True)
        seen[:, 60] = True
        rows = seen.expand(2, -1).repeat_interleave(2, dim=0)[None, :, None]

        def with_mask(_: Any, args: Any, given: dict[str, Any], rows: Any = rows) -> Any:
            return args, {**given, "attention_mask": rows}

        hooks.append(layer.self_attn.register_forward_pre_hook(with_mask, with_kwargs=True))
    try:
        with torch.no_grad():
            out = model.model(
                input_ids=torch.tensor([[7]]),
                past_key_values=cache,
                position_ids=torch.tensor([[60]]),
                attention_mask=torch.ones(1, 1, 1, 61, dtype=torch.bool),
            )
    finally:
        for hook in hooks:
            hook.remove()
    return out.logits[0]


def test_all_votes_are_the_model_s_attention() -> None:
    model = tiny()
    _, votes = observed_prefill(model, IDS, window=6, whole=True, chunk_tokens=17)  # several passes
    model.model.set_attn_implementation("eager")
    with torch.no_grad():
        layers = model.model(input_ids=torch.tensor([IDS]), output_attentions=True).attentions
    for number, weights in enumerate(layers):
        received = weights[0].reshape(2, 2, 60, 60).sum((1, 2))
        entropy = -(weights[0] * weights[0].clamp_min(1e-30).log()).sum(-1).mean(0)
        assert torch.allclose(votes.received[number], received, atol=1e-4)
        assert torch.allclose(votes.entropy[number], entropy, atol=1e-3)
        assert torch.allclose(votes.of_layer[number], weights[0, :, -6:].reshape(2, 2, 6, 60).sum((1, 2)), atol=1e-4)


# single policies


def test_prefixkv_gives_layers_the_same_share_of_their_attention() -> None:
    flat, steep = torch.ones(2, 40), torch.tensor([2.0**-i for i in range(40)]).expand(2, -1)
    budget = PrefixKv(budget=20, start_size=1)
    chosen = budget.slots(40, WindowVotes(received={0: flat, 1: steep, 2: flat}), 3)
    counts = [one.shape[-1] for one in chosen]
    assert counts[0] == counts[2] > 25 > 10 > counts[1]
    held = [float(v.sum(0)[one[0]].sum() / v.sum()) for v, one in zip((flat, steep), chosen[:2], strict=True)]
    assert held[1] >= held[0] - 1 / 40


def test_d2o_gives_dense_layers_more_and_what_one_cannot_use_to_the_others() -> None:
    flat, uneven = torch.ones(2, 40), torch.arange(40.0).expand(2, -1)
    counts = [one.shape[-1] for one in D2o(budget=20, sink=2).slots(40, WindowVotes(received={0: flat, 1: uneven}), 2)]
    assert counts[0] > 20 > counts[1]
    assert sum(counts) == 40
    full = D2o(budget=39, sink=2).slots(40, WindowVotes(received={0: flat, 1: uneven}), 2)
    assert [one.shape[-1] for one in full] == [40, 38]


def test_d2o_merges_above_a_threshold_that_moves() -> None:
    keys = torch.eye(4)[[0, 1, 2, 3, 0, 3]][None]  # slots 4 and 5 go: one like slot 0, one like slot 3
    keys[0, 5] += torch.eye(4)[2] * 1.0  # cosine with slots 2 and 3: .7
    kept = torch.tensor([[0, 1, 2, 3]])
    values = torch.arange(6.0)[None, :, None].expand(1, 6, 4).clone()
    made = D2o(budget=20, sink=0).merge(0, keys, values, kept, WindowVotes())
    assert made is not None
    assert made[1][0, 0, 0] == pytest.approx(2.0)  # the mean of 0 and 4: as alike as can be
    assert made[1][0, 1:, 0].tolist() == [1.0, 2.0, 3.0]  # .7 is below the mean .85 that moved towards 1
    none = D2o(budget=20, sink=1).merge(0, keys, values, kept, WindowVotes())
    assert none is not None
    assert torch.equal(none[1][0], values[0, :4])  # the sink takes nothing


def test_ems_takes_the_larger_of_both_scores_and_loses_what_is_like_nothing() -> None:
    far, near = torch.zeros(1, 30), torch.zeros(1, 30)
    far[0, 5], near[0, 9] = 1.0, 1.0
    votes = WindowVotes(of_layer={0: near}, received={0: far}, whole=True)
    chosen = Ems(budget=6, window=2, sink=1).slots(30, votes, 1)[0]
    assert {0, 5, 9, 28, 29} <= set(chosen[0].tolist())
    keys, values = torch.randn(1, 30, 8, generator=torch.Generator().manual_seed(0)), torch.randn(1, 30, 8)
    made = Ems(budget=6, window=2, sink=1, tau=1.5).merge(0, keys, values, chosen, votes)
    assert made is not None
    assert torch.equal(made[0], keys[:, chosen[0]])
    assert torch.equal(made[1], values[:, chosen[0]])


def test_a_merge_is_the_weighted_mean_of_what_went_to_a_slot() -> None:
    keys = torch.randn(2, 12, 8, generator=torch.Generator().manual_seed(1))
    kept = torch.tensor([[0, 3, 7], [1, 2, 11]])
    evicted = evicted_of(keys, kept)
    assert evicted.slots.shape == (2, 9)
    own, weights = torch.rand(2, 3) + 0.1, torch.rand(2, 9)
    made = weighed_in(keys, kept, own, evicted, weights)
    for head in range(2):
        for place in range(3):
            rows, shares = [keys[head, kept[head, place]]], [own[head, place]]
            for at in range(9):
                slot = int(evicted.slots[head, at])
                like = torch.cosine_similarity(keys[head, slot][None], keys[head, kept[head]])
                assert int(like.argmax()) == int(evicted.nearest[head, at])
                if int(evicted.nearest[head, at]) == place:
                    rows.append(keys[head, slot])
                    shares.append(weights[head, at])
            mean = sum(r * s for r, s in zip(rows, shares, strict=True)) / sum(shares)
            assert torch.allclose(made[head, place], mean, atol=1e-5)


def test_critic_weighs_attention_and_entropy() -> None:
    got, looked = torch.zeros(2, 30), torch.zeros(30)
    got[:, 8], looked[12] = 5.0, 3.0
    votes = WindowVotes(received={0: got}, entropy={0: looked})
    assert Critic(budget=4, window=2, sink=1, w_a=1, w_e=0).slots(30, votes, 1)[0].tolist() == [[0, 8, 28, 29]]
    assert Critic(budget=4, window=2, sink=1, w_a=0, w_e=1).slots(30, votes, 1)[0].tolist() == [[0, 12, 28, 29]]
    assert Critic(budget=5, window=2, sink=1).slots(30, votes, 1)[0].tolist() == [[0, 8, 12, 28, 29]]


def test_ties_go_to_the_earlier_and_the_search_stays_under_the_sum() -> None:
    assert top_slots(torch.ones(1, 6), 3, last=1).tolist() == [[0, 1, 5]]
    assert largest(lambda x: [int(100 * x), int(10 * x)], 55) == [50, 5]
    assert largest(lambda x: [int(100 * x)], 0) == [0]


# the seam


def test_uneven_layers_are_only_decoded_from() -> None:
    model = shared()
    cache = prefill_within(model, IDS, BUDGETS["prefixkv"]).cache
    assert not cache.even
    keys = torch.zeros(3, 2, 1, 16)
    for touch in (lambda: cache.read(0, 5), lambda: cache.append(keys, keys)):
        with pytest.raises(EngineError, match="only decoded from"):
            touch()
    with pytest.raises(EngineError, match="no other prompt"):
        PrefixPool(max_bytes=1 << 20).store(IDS[:10], cache)
    with pytest.raises(EngineError, match="start of no prompt"):
        prefill(model, IDS, cache)
    cache.reserve(300)
    assert min(layer.capacity for layer in cache.kv_layers) >= 300
    cache.reset()
    assert cache.even
    assert torch.equal(model.run(IDS, cache), model.run(IDS, model.new_cache()))


def test_a_layer_may_keep_everything() -> None:
    """The first layer drops nothing; what the cache says of positions does not rest on it."""
    model = shared()
    cache = prefill(model, IDS).cache
    cache.keep([torch.arange(60)[None], torch.arange(10, 60)[None], torch.arange(60)[None]])
    assert (cache.length, cache.dropped, cache.moved) == (50, 10, True)
    model.run([5, 6], cache)
    assert [layer.length for layer in cache.kv_layers] == [62, 52, 62]
    cache.truncate(51)
    assert [layer.length for layer in cache.kv_layers] == [61, 51, 61]
    with pytest.raises(EngineError, match="slots are no positions"):
        model.run([5], cache, slots=[3])


def test_slots_are_told_for_every_layer_of_one_sequence() -> None:
    model, cache = shared(), KvCache(3)
    with pytest.raises(EngineError, match="every one of 3 layers"):
        cache.keep([torch.arange(3)[None]])
    model.model(input_ids=torch.tensor([[5, 6], [7, 8]]), past_key_values=cache)
    with pytest.raises(EngineError, match="batch of 2"):
        cache.keep([torch.arange(1)[None]] * 3)


@pytest.mark.parametrize(
    ("made", "wrong"),
    [
        (Critic, {"w_a": 0.7}), (Critic, {"window": 0}), (Critic, {"sink": 9}), (D2o, {"beta": 1.5}), (D2o, {"m": 0}),
        (D2o, {"sink": 19}), (Ems, {"tau": -2}), (Ems, {"window": 18}), (PrefixKv, {"protect_size": 0}),
        (PrefixKv, {"start_size": 20}),
    ],
)  # fmt: skip
def test_settings_out_of_range_say_so(made: Any, wrong: dict[str, float]) -> None:
    with pytest.raises(EngineError, match=f"{made.__name__.lower()}: .*not"):
        made(**{"budget": 20, "window": 16, **wrong} if made in (Critic, Ems) else {"budget": 20, **wrong})
