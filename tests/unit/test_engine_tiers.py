"""Blocks in memory over blocks on disk; bounds of attention from abstracts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from rag.engine import EngineError  # noqa: E402
from rag.engine.blocks import KvBlock, make_block  # noqa: E402
from rag.engine.rotate import rotate  # noqa: E402
from rag.engine.store import KvStore  # noqa: E402
from rag.engine.tiers import KvTiers, abstract  # noqa: E402
from tests.unit.test_engine_model import shared, some_ids  # noqa: E402


def block(seed: int, size: int = 10) -> KvBlock:
    draw = torch.Generator().manual_seed(seed)
    keys, values = (torch.randn(2, 2, size, 8, generator=draw).to(torch.bfloat16) for _ in range(2))
    return KvBlock(tuple(range(seed, seed + size)), keys, values, "model")


SIZE = block(0).size_bytes


def found(tiers: KvTiers, one: KvBlock) -> KvBlock | None:
    return tiers.get(one.ids, "model", "p")


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000), size=st.integers(1, 40), tokens=st.integers(1, 17), start=st.integers(0, 4000),
    scale=st.sampled_from([1e-3, 1.0, 300.0]), kind=st.sampled_from([torch.float32, torch.bfloat16]),
)  # fmt: skip
def test_no_dot_product_passes_the_bound(
    seed: int, size: int, tokens: int, start: int, scale: float, kind: Any
) -> None:
    draw = torch.Generator().manual_seed(seed)
    keys = (torch.randn(2, 3, size, 16, generator=draw) * scale).to(kind)
    query = torch.randn(3, 2, 16, generator=draw)
    frequencies = 1 / 10_000.0 ** (torch.arange(8) / 8)
    told = abstract(KvBlock(tuple(range(size)), keys, keys, "model"), tokens)
    for layer in range(2):
        bounds = told.bound(query, layer, start=start, frequencies=frequencies)
        assert bounds.shape == (3, 2, -(-size // tokens))
        assert bool(bounds.isfinite().all())
        products = query @ rotate(keys[layer].float(), start, frequencies).transpose(1, 2)
        for group in range(bounds.shape[-1]):
            assert bool((products[..., group * tokens : (group + 1) * tokens].amax(-1) <= bounds[..., group]).all())


def test_the_bound_of_one_token_is_its_product_and_narrows_with_the_group() -> None:
    one, query = block(3, 12), torch.randn(2, 1, 8, generator=torch.Generator().manual_seed(1))
    frequencies = torch.ones(4)
    exact = query @ one.k[0].float().transpose(1, 2)
    assert torch.allclose(abstract(one, 1).bound(query, 0, start=0, frequencies=frequencies), exact, atol=1e-3)
    narrow = abstract(one, 4).bound(query, 0, start=0, frequencies=frequencies).amax(-1)
    wide = abstract(one, 12).bound(query, 0, start=0, frequencies=frequencies).amax(-1)
    assert bool((narrow <= wide + 1e-4).all())
    with pytest.raises(EngineError, match="at least one token"):
        abstract(one, 0)


def test_memory_never_holds_more_than_its_bytes_and_the_least_used_goes() -> None:
    tiers = KvTiers(max_bytes=3 * SIZE)
    for seed in range(3):
        assert tiers.put(block(seed), "p", ["doc"])
    assert found(tiers, block(0)) is not None  # used: 1 is the oldest now
    tiers.put(block(9), "p", ["doc"])
    assert (len(tiers), tiers.size_bytes) == (3, 3 * SIZE)
    assert found(tiers, block(1)) is None
    assert found(tiers, block(0)) is not None
    tiers.put(block(5, 20), "p", ["doc"])
    assert tiers.size_bytes <= 3 * SIZE
    assert not tiers.put(block(6, 40), "p", ["doc"])  # larger than all
    assert tiers.put(block(9), "p", ["other"])  # again: counted once
    assert tiers.size_bytes == sum(held.block.size_bytes for held in tiers._held.values()) <= 3 * SIZE
    assert len(tiers._abstracts) == len(tiers)  # nothing is told of what is gone


def test_names_are_ids_model_policy_and_type() -> None:
    tiers = KvTiers(max_bytes=1 << 20)
    tiers.put(block(0), "p", ["doc"])
    assert tiers.get(block(0).ids, "model", "p") is not None
    assert tiers.get(block(0).ids, "another", "p") is None
    assert tiers.get(block(0).ids, "model", "q") is None
    assert tiers.get(block(0).ids, "model", "p", dtype="int8") is None
    assert tiers.get(block(0).ids[:-1], "model", "p") is None
    assert (tiers.stats.memory, tiers.stats.disk, tiers.stats.missing) == (1, 0, 4)


def test_what_left_memory_comes_from_disk_and_is_counted(tmp_path: Path) -> None:
    with KvStore(tmp_path, max_bytes=1 << 20) as store:
        tiers = KvTiers(max_bytes=SIZE, store=store, tokens=4)
        first, second = block(0), block(1)
        tiers.put(first, "p", ["a"])
        tiers.put(second, "p", ["b"])
        assert len(tiers) == 1
        told = tiers.abstract(first.ids, "model", "p")
        assert told is not None  # known without loading
        assert tiers.stats.loaded_bytes == 0
        assert torch.equal(told.high, abstract(first, 4).high)
        again = found(tiers, first)
        assert again is not None
        assert torch.equal(again.k, first.k)
        assert (tiers.stats.disk, tiers.stats.loaded_bytes, tiers.size_bytes) == (1, SIZE, SIZE)
        assert found(tiers, first) is again  # now it is in memory
        assert (tiers.stats.memory, tiers.stats.disk) == (1, 1)
        assert tiers.abstract_bytes == 2 * told.size_bytes
    with KvStore(tmp_path, max_bytes=1 << 20) as store:
        fresh = KvTiers(max_bytes=SIZE, store=store)
        assert fresh.abstract(first.ids, "model", "p") is None  # not on disk: made at the first load
        assert found(fresh, first) is not None
        assert fresh.abstract(first.ids, "model", "p") is not None


def test_a_block_goes_with_its_last_owner_from_both_tiers(tmp_path: Path) -> None:
    with KvStore(tmp_path, max_bytes=1 << 20) as store:
        for tiers in (KvTiers(max_bytes=1 << 20), KvTiers(max_bytes=1 << 20, store=store)):
            tiers.put(block(0), "p", ["a", "b"])
            tiers.put(block(1), "p", ["a"])
            assert tiers.drop("a") == 1
            assert found(tiers, block(1)) is None
            assert found(tiers, block(0)) is not None
            assert tiers.drop("b") == 1
            assert (len(tiers), tiers.size_bytes, tiers.abstract_bytes) == (0, 0, 0)
        assert len(store) == 0
        tiers.put(block(2), "p", ["c"])
        loaded = KvTiers(max_bytes=1 << 20, store=store)
        assert found(loaded, block(2)) is not None  # from disk, its owners known to the store alone
        assert loaded.drop("c") == 1
        assert found(loaded, block(2)) is None


def test_settings_out_of_range_say_so() -> None:
    for most, tokens in ((-1, 64), (1, 0)):
        with pytest.raises(EngineError, match="max_bytes must be"):
            KvTiers(max_bytes=most, tokens=tokens)
    with pytest.raises(EngineError, match="at least one owner"):
        KvTiers(max_bytes=1).put(block(0), "p", [])


def test_a_real_block_survives_the_trip(tmp_path: Path) -> None:
    model, ids = shared(), some_ids(30)
    made = make_block(model, ids)
    with KvStore(tmp_path, max_bytes=1 << 20) as store:
        KvTiers(max_bytes=0, store=store).put(made, "p", ["a"], dtype="fp32")
        back = KvTiers(max_bytes=1 << 20, store=store).get(ids, model.fingerprint, "p", dtype="fp32")
    assert back is not None
    assert torch.equal(back.k, made.k)
