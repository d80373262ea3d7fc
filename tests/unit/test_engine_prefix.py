"""Exact prefix reuse: the same tokens as a full prefill, and a pool that keeps its promises."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from rag.engine import EngineError, InterruptedPrefillError  # noqa: E402
from rag.engine.cache import KvCache  # noqa: E402
from rag.engine.prefill import greedy, prefill  # noqa: E402
from rag.engine.prefix import PrefixPool, prefill_with_prefix  # noqa: E402
from tests.unit.test_engine_model import shared, some_ids  # noqa: E402

BLOCK_BYTES = 2 * 2 * 4 * 8 * 4  # layers x (k, v: one head, 4 tokens, 8 dimensions, float32)


def fake(ids: list[int]) -> KvCache:
    """A cache whose numbers are its token ids."""
    cache = KvCache(2)
    filled = torch.tensor(ids, dtype=torch.float32)[None, None, :, None].expand(2, 1, len(ids), 8)
    cache.append(filled, filled)
    return cache


def pool_of(blocks: int, **changes: Any) -> PrefixPool:
    return PrefixPool(max_bytes=blocks * BLOCK_BYTES, block_tokens=4, **changes)


def held(pool: PrefixPool, ids: list[int]) -> int:
    with pool.lease(ids) as lease:
        return lease.tokens


# Prompts over a few shared parts, so that they begin alike, part ways in the middle of a block, and come again.
parts = st.lists(st.integers(0, 4), min_size=1, max_size=5)


@given(prompts=st.lists(parts, min_size=2, max_size=5), block_tokens=st.sampled_from([1, 4, 16]))
@settings(max_examples=25)
def test_greedy_tokens_are_those_of_a_full_prefill(prompts: list[list[int]], block_tokens: int) -> None:
    model = shared()
    pool = PrefixPool(max_bytes=60 * model.token_bytes, block_tokens=block_tokens)  # too small for everything
    for prompt in prompts:
        ids = [token for part in prompt for token in some_ids(9 + part, seed=part)]
        full, reused = prefill(model, ids), prefill_with_prefix(model, ids, pool)
        assert reused.computed + reused.reused == len(ids)
        assert torch.allclose(reused.logits, full.logits, atol=1e-3)
        expected = list(greedy(model, full.cache, full.logits, max_new_tokens=8))
        assert list(greedy(model, reused.cache, reused.logits, max_new_tokens=8)) == expected
        assert pool.size_bytes <= pool.max_bytes
        assert pool.leased == 0


def test_only_the_rest_is_computed() -> None:
    model, pool = shared(), PrefixPool(max_bytes=1 << 20, block_tokens=8)
    ids = some_ids(64)
    assert prefill_with_prefix(model, ids, pool).reused == 0
    assert len(pool) == 8
    again = prefill_with_prefix(model, ids, pool)
    assert (again.reused, again.computed) == (56, 8)  # the last token has to run: its logits are asked for
    longer = prefill_with_prefix(model, ids + some_ids(5, seed=9), pool)
    assert (longer.reused, longer.computed) == (64, 5)
    other = prefill_with_prefix(model, [*ids[:20], 3, *ids[21:]], pool)
    assert other.reused == 16


def test_the_same_block_behind_another_start_is_another_block() -> None:
    pool = pool_of(100)
    pool.store([1] * 4 + [5, 6, 7, 8], fake([1] * 4 + [5, 6, 7, 8]))
    assert held(pool, [2] * 4 + [5, 6, 7, 8]) == 0
    assert held(pool, [5, 6, 7, 8]) == 0
    assert held(pool, [1] * 4 + [5, 6, 7, 8, 9]) == 8
    assert held(pool, [1] * 4 + [5, 6, 7]) == 4


def test_equal_hashes_are_not_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PrefixPool, "_key", lambda self, parent, ids: b"same")
    pool = pool_of(100)
    assert pool.store([1, 2, 3, 4], fake([1, 2, 3, 4])) == 1
    assert held(pool, [1, 2, 3, 5]) == 0
    assert held(pool, [1, 2, 3, 4, 1, 2, 3, 4]) == 4  # not twice: it does not follow itself
    assert pool.store([1, 2, 3, 5], fake([1, 2, 3, 5])) == 0
    assert held(pool, [1, 2, 3, 4]) == 4


def test_salts_keep_pools_apart() -> None:
    one, two = pool_of(9, salt=b"one"), pool_of(9, salt=b"two")
    for pool in (one, two):
        pool.store([1, 2, 3, 4], fake([1, 2, 3, 4]))
    assert not one._blocks.keys() & two._blocks.keys()


def test_a_lease_copies_what_was_stored() -> None:
    pool, ids = pool_of(9), [1, 2, 3, 4, 5, 6, 7, 8]
    pool.store(ids, fake(ids))
    cache = KvCache(2)
    with pool.lease([*ids, 9], most=7) as lease:
        assert lease.tokens == 4
        lease.copy_into(cache)
    assert cache.read(0, 4)[0][0, 0, :, 0].tolist() == ids[:4]
    with pytest.raises(EngineError, match="open lease"):
        lease.copy_into(KvCache(2))


def test_least_recently_used_goes_first_and_never_above_the_cap() -> None:
    pool = pool_of(3)
    for first in (10, 20, 30):
        pool.store([first] * 4, fake([first] * 4))
    assert held(pool, [10] * 4) == 4
    pool.store([40] * 4, fake([40] * 4))
    assert [held(pool, [first] * 4) for first in (10, 20, 30, 40)] == [4, 0, 4, 4]
    assert pool.size_bytes == pool.max_bytes == sum(block.size_bytes for block in pool._blocks.values())


def test_chains_are_evicted_from_their_end() -> None:
    pool = pool_of(3)
    ids = [1] * 4 + [2] * 4 + [3] * 4
    pool.store(ids, fake(ids))
    pool.store([9] * 4, fake([9] * 4))
    assert held(pool, ids) == 8
    assert held(pool, [9] * 4) == 4


def test_a_leased_block_stays() -> None:
    pool = pool_of(2)
    ids = [1] * 4 + [2] * 4
    pool.store(ids, fake(ids))
    lease = pool.lease(ids)
    assert pool.leased == 2
    assert pool.store([9] * 4, fake([9] * 4)) == 0  # no room that may be taken
    pool.clear()
    assert len(pool) == 2
    lease.release()
    lease.release()  # twice is once
    assert pool.leased == 0
    pool.clear()
    assert (len(pool), pool.size_bytes) == (0, 0)


def test_a_prompt_larger_than_the_pool_keeps_its_start() -> None:
    pool = pool_of(2)
    ids = [token for token in range(5) for _ in range(4)]
    assert pool.store(ids, fake(ids)) == 2
    assert held(pool, ids) == 8
    assert pool.leased == 0


def test_dear_and_used_blocks_outlive_cheap_ones() -> None:
    pool = pool_of(3, eviction="cost", cost=lambda start, stop: 100.0 if start else 1.0)
    ids = [1] * 4 + [2] * 4
    pool.store(ids, fake(ids))  # its second block is dear
    pool.store([8] * 4, fake([8] * 4))
    pool.store([9] * 4, fake([9] * 4))
    assert [held(pool, ids), held(pool, [8] * 4), held(pool, [9] * 4)] == [8, 0, 4]
    for first in range(20, 20 + 500):  # in the end age wins over cost
        pool.store([first] * 4, fake([first] * 4))
    assert held(pool, ids) < 8


def test_an_interrupted_prefill_returns_its_lease_and_keeps_its_work() -> None:
    model, pool = shared(), PrefixPool(max_bytes=1 << 20, block_tokens=4)
    ids = some_ids(40)
    prefill_with_prefix(model, ids[:20], pool)
    with pytest.raises(InterruptedPrefillError):
        prefill_with_prefix(model, ids, pool, chunk_tokens=4, keep_going=lambda done, total: done < 30)
    assert pool.leased == 0
    again = prefill_with_prefix(model, ids, pool)
    assert again.reused == 32
    assert torch.allclose(again.logits, prefill(model, ids).logits, atol=1e-4)


def test_wrong_settings_say_so() -> None:
    for changes in ({"max_bytes": -1}, {"block_tokens": 0}, {"eviction": "cost"}, {"eviction": "fifo"}):
        with pytest.raises(EngineError, match=r"max_bytes|eviction"):
            PrefixPool(**({"max_bytes": 1} | changes))
    with pytest.raises(EngineError, match="holds 4 of 5"):
        pool_of(1).store([1] * 5, fake([1] * 4))
