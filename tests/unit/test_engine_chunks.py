"""Chunk reuse: with everything repaired it is a full prefill, and every piece of less is counted."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from rag.engine import EngineError, InterruptedPrefillError  # noqa: E402
from rag.engine.blocks import KvBlock, make_block  # noqa: E402
from rag.engine.chunks import assemble, complete, prefill_chunks  # noqa: E402
from rag.engine.layout import lay_out  # noqa: E402
from rag.engine.model import FAMILIES, EngineModel  # noqa: E402
from rag.engine.prefill import greedy, prefill  # noqa: E402
from rag.engine.repair.all import All  # noqa: E402
from rag.engine.repair.epic import Epic  # noqa: E402
from rag.engine.repair.naive import Naive  # noqa: E402
from rag.engine.rotate import rotate  # noqa: E402
from tests.unit.test_engine_model import SCALINGS, shared, some_ids, tiny  # noqa: E402

PREFIX, QUESTION = some_ids(11, seed=1), some_ids(7, seed=2)


def blocks_of(model: EngineModel) -> list[KvBlock]:
    return [make_block(model, some_ids(length, seed=length)) for length in (13, 5, 20)]


def parts_of(model: EngineModel) -> list[KvBlock | list[int]]:
    """As in a prompt: a head of new tokens before each block, the question last."""
    parts: list[KvBlock | list[int]] = []
    for mark, block in enumerate(blocks_of(model)):
        parts += [some_ids(3, seed=40 + mark), block]
    return [*parts, QUESTION]


def everything(parts: list[KvBlock | list[int]]) -> list[int]:
    return PREFIX + [token for part in parts for token in (part.ids if isinstance(part, KvBlock) else part)]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", FAMILIES)
def test_all_repaired_is_a_full_prefill(family: str, attention: str) -> None:
    model = tiny(family)
    model.model.set_attn_implementation(attention)
    parts = parts_of(model)
    full = prefill(model, everything(parts))
    done = prefill_chunks(model, prefill(model, PREFIX).cache, PREFIX, parts, All())
    assert torch.allclose(done.logits, full.logits, atol=1e-4)
    for ours, theirs in zip(done.cache.read(0, 65), full.cache.read(0, 65), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-4)
    assert (done.computed, done.reused, done.repaired) == (54, 11, 38)
    expected = list(greedy(model, full.cache, full.logits, max_new_tokens=10))
    assert list(greedy(model, done.cache, done.logits, max_new_tokens=10)) == expected


@pytest.mark.parametrize("scaling", SCALINGS[1:], ids=lambda scaling: str(scaling["rope_type"]))
def test_a_block_that_saw_its_true_prefix_needs_no_repair(scaling: dict[str, object]) -> None:
    model = tiny(rope_parameters=scaling)
    chunk = some_ids(30, seed=3)
    block = make_block(model, chunk, before=PREFIX)
    done = prefill_chunks(model, prefill(model, PREFIX).cache, PREFIX, [block, QUESTION], Naive())
    assert torch.allclose(done.logits, prefill(model, PREFIX + chunk + QUESTION).logits, atol=1e-3)
    assert (done.computed, done.reused, done.repaired) == (7, 41, 0)


def test_naive_differs_and_a_prefix_of_repairs_is_exact_where_it_stands() -> None:
    model = shared()
    blocks = blocks_of(model)
    parts: list[KvBlock | list[int]] = [*blocks, QUESTION]
    full = prefill(model, everything(parts))
    naive = prefill_chunks(model, prefill(model, PREFIX).cache, PREFIX, parts, Naive())
    assert not torch.allclose(naive.logits, full.logits, atol=0.1)
    cache = prefill(model, PREFIX).cache
    layout = lay_out(PREFIX, parts)
    assemble(model, cache, layout)
    complete(model, cache, layout, range(11, 20))  # nothing before these is approximate, so they come out exact
    for ours, theirs, left in zip(cache.read(0, 20), full.cache.read(0, 20), naive.cache.read(0, 20), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-4)
        assert not torch.allclose(left, theirs, atol=0.1)
    for ours, left in zip(cache.read(20, 49), naive.cache.read(20, 49), strict=True):
        assert torch.equal(ours, left)  # what was not named stays


@given(seed=st.integers(0, 1000), chunk_tokens=st.integers(1, 60))
@settings(max_examples=20)
def test_chunks_of_the_pass_change_nothing(seed: int, chunk_tokens: int) -> None:
    model = shared()
    parts = parts_of(model)
    layout = lay_out(PREFIX, parts)
    draw = torch.rand(len(layout), generator=torch.Generator().manual_seed(seed))
    wanted = [p for place in layout.placed for p in range(place.start, place.stop) if draw[p] < 0.3]
    results = []
    for size in (chunk_tokens, 1000):
        cache = prefill(model, PREFIX).cache
        assemble(model, cache, layout)
        results.append(complete(model, cache, layout, wanted, chunk_tokens=size))
    assert torch.allclose(results[0].logits, results[1].logits, atol=1e-4)
    assert results[0].computed == len(wanted) + len(layout.fresh)


def test_an_interrupted_pass_can_be_done_again() -> None:
    model = shared()
    layout = lay_out(PREFIX, parts_of(model))
    cache, wanted = prefill(model, PREFIX).cache, range(14, 20)
    assemble(model, cache, layout)
    with pytest.raises(InterruptedPrefillError, match="stopped after 6 of 22"):
        complete(model, cache, layout, wanted, chunk_tokens=3, keep_going=lambda done, total: done < 6)
    again = complete(model, cache, layout, wanted)
    clean = prefill(model, PREFIX).cache
    assemble(model, clean, layout)
    assert torch.allclose(again.logits, complete(model, clean, layout, wanted).logits, atol=1e-4)


def test_a_longer_cache_is_cut_to_the_prefix_and_the_blocks_stay_as_they_are() -> None:
    model = shared()
    parts = parts_of(model)
    kept = [part.k.clone() for part in parts if isinstance(part, KvBlock)]
    one = prefill_chunks(model, prefill(model, PREFIX + some_ids(30)).cache, PREFIX, parts, Epic(k=4))
    two = prefill_chunks(model, prefill(model, PREFIX).cache, PREFIX, parts, Epic(k=4))
    assert torch.allclose(one.logits, two.logits, atol=1e-4)
    blocks = [part for part in parts if isinstance(part, KvBlock)]
    assert all(torch.equal(block.k, before) for block, before in zip(blocks, kept, strict=True))


def test_what_cannot_work_says_so() -> None:
    model = shared()
    block = make_block(model, some_ids(5))
    cache = prefill(model, PREFIX).cache
    with pytest.raises(EngineError, match="last part of a prompt must be new ids"):
        lay_out(PREFIX, [QUESTION, block])
    with pytest.raises(EngineError, match="last part"):
        lay_out(PREFIX, [])
    with pytest.raises(EngineError, match="holds 11 tokens of a prefix of 12"):
        assemble(model, cache, lay_out([*PREFIX, 5], [block, QUESTION]))
    with pytest.raises(EngineError, match="position 3 is in no block"):
        complete(model, cache, lay_out(PREFIX, [block, QUESTION]), [3, 12])
    with pytest.raises(EngineError, match="make it again"):
        assemble(tiny(seed=7), cache, lay_out(PREFIX, [block, QUESTION]))
    with pytest.raises(EngineError, match="chunk_tokens"):
        complete(model, cache, lay_out(PREFIX, [block, QUESTION]), chunk_tokens=0)


def test_neighbours_are_written_as_each_of_them_alone() -> None:
    model = shared()
    first, second, third = blocks_of(model)
    layout = lay_out(PREFIX, [first, second, some_ids(3), third, QUESTION])
    together, alone = (prefill(model, PREFIX).cache for _ in range(2))
    assemble(model, together, layout)
    alone.reserve(len(layout))
    for place in layout.placed:
        alone.write(place.start, rotate(place.block.k, place.start, model.frequencies), place.block.v)
        for ours, theirs in zip(together.read(0, place.stop), alone.read(0, place.stop), strict=True):
            assert torch.equal(ours[:, :, place.start :], theirs[:, :, place.start :])
