"""A part of a block: the same tokens, each key turned to its new place, and nothing else touched."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest

torch = pytest.importorskip("torch")

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from rag.engine import EngineError  # noqa: E402
from rag.engine.blocks import AttentionBefore, KvBlock, make_block  # noqa: E402
from rag.engine.chunks import prefill_chunks  # noqa: E402
from rag.engine.donor import DonorMean  # noqa: E402
from rag.engine.observed import make_observed_block  # noqa: E402
from rag.engine.prefill import prefill  # noqa: E402
from rag.engine.prune import prune_block, runs  # noqa: E402
from rag.engine.repair.all import All  # noqa: E402
from rag.engine.repair.blend import Blend  # noqa: E402
from rag.engine.repair.cache_craft import CacheCraft  # noqa: E402
from rag.engine.repair.epic import Epic  # noqa: E402
from rag.engine.repair.first_variance import FirstVariance  # noqa: E402
from rag.engine.repair.naive import Naive  # noqa: E402
from rag.engine.repair.variance import Variance  # noqa: E402
from rag.engine.rotate import rotate  # noqa: E402
from tests.unit.test_engine_model import shared, some_ids  # noqa: E402


def block_of(tokens: int, seed: int = 0) -> KvBlock:
    """Random keys and values of the shape that the shared model has, with a variance and an attention."""
    random = torch.Generator().manual_seed(seed)
    keys, values = (torch.randn(3, 2, tokens, 16, generator=random) for _ in range(2))
    seen = AttentionBefore(("a", "b"), torch.rand(tokens, 2, generator=random), torch.rand(tokens, generator=random))
    variance = torch.rand(tokens, generator=random)
    return KvBlock(tuple(range(tokens)), keys, values, "model", variance=variance, seen=seen)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 24).flatmap(lambda n: st.tuples(st.just(n), st.sets(st.integers(0, n - 1), min_size=1))))
def test_every_key_is_turned_by_what_is_missing_before_it(case: tuple[int, set[int]]) -> None:
    tokens, chosen = case
    block, frequencies, rows = block_of(tokens), shared().frequencies, sorted(chosen)
    kept = prune_block(block, rows, frequencies)
    assert kept.ids == tuple(rows)
    for place, row in enumerate(rows):
        assert torch.equal(kept.k[:, :, place], rotate(block.k[:, :, row], place - row, frequencies))
        assert torch.equal(kept.v[:, :, place], block.v[:, :, row])
    assert torch.equal(kept.variance, block.variance[rows])  # type: ignore[index]
    assert kept.seen is not None and block.seen is not None  # noqa: PT018
    assert kept.seen.behind == block.seen.behind
    assert torch.equal(kept.seen.inter, block.seen.inter[rows])
    assert torch.equal(kept.seen.intra, block.seen.intra[rows])
    if len(rows) == tokens:
        assert kept is block


@settings(max_examples=60, deadline=None)
@given(st.sets(st.integers(0, 40)))
def test_runs_cover_the_rows_and_nothing_between(chosen: set[int]) -> None:
    rows = sorted(chosen)
    made = runs(rows)
    assert [row for start, stop in made for row in range(start, stop)] == rows
    assert all(left[1] < right[0] for left, right in pairwise(made))


def test_pruning_twice_is_pruning_once() -> None:
    block, frequencies = block_of(20), shared().frequencies
    once = prune_block(block, [2, 3, 9, 15], frequencies)
    twice = prune_block(prune_block(block, [1, 2, 3, 8, 9, 15, 19], frequencies), [1, 2, 4, 5], frequencies)
    assert once.ids == twice.ids
    assert torch.allclose(once.k, twice.k, atol=1e-5)
    assert torch.equal(once.v, twice.v)


def test_what_a_block_lacks_its_parts_lack() -> None:
    bare = replace(block_of(5), variance=None, seen=None)
    kept = prune_block(bare, [0, 4], shared().frequencies)
    assert (kept.variance, kept.seen, kept.fingerprint) == (None, None, "model")


@pytest.mark.parametrize("rows", [[], [3, 2], [1, 1], [-1, 2], [0, 5]])
def test_rows_that_are_no_part_are_refused(rows: list[int]) -> None:
    with pytest.raises(EngineError, match="ascending"):
        prune_block(block_of(5), rows, shared().frequencies)


def test_what_is_kept_saw_what_is_dropped_and_repair_takes_it_back() -> None:
    model, prefix, tail = shared(), some_ids(5), some_ids(4, seed=9)
    whole = make_block(model, some_ids(30, seed=2))
    rows = [*range(8, 14), *range(20, 25)]
    kept = prune_block(whole, rows, model.frequencies)
    short = make_block(model, kept.ids)
    assert not torch.allclose(kept.v, short.v, atol=1e-2)  # the shortened text is encoded otherwise
    ids = [*prefix, *kept.ids, *tail]
    full = prefill(model, ids)
    exact = prefill_chunks(model, prefill(model, prefix).cache, prefix, [kept, tail], All())
    assert torch.allclose(exact.logits, full.logits, atol=1e-3)
    pruned = prefill_chunks(model, prefill(model, prefix).cache, prefix, [kept, tail], Naive())
    assert (pruned.reused, pruned.computed) == (len(prefix) + len(kept), len(tail))
    assert not torch.allclose(pruned.logits, full.logits, atol=1e-3)


def test_policies_repair_parts_of_blocks() -> None:
    model, prefix, tail = shared(), some_ids(5), some_ids(4, seed=9)
    donors = [some_ids(12, seed=7), some_ids(12, seed=8)]
    means = DonorMean(model, prefix, donors)
    chunks = [some_ids(20, seed=seed) for seed in (2, 3)]
    rows = [2, 3, 4, 11, 12, 19]
    mean = [prune_block(means.block(chunk), rows, model.frequencies) for chunk in chunks]
    observed = [make_observed_block(model, chunk, prefix, donors) for chunk in chunks]
    for policy in (Naive(), Epic(k=2), Variance(share=0.5), FirstVariance(k=2, share=0.5), Blend(), CacheCraft()):
        parts = [prune_block(one, rows, model.frequencies) for one in observed] if policy == CacheCraft() else mean
        done = prefill_chunks(model, prefill(model, prefix).cache, prefix, [*parts, tail], policy)
        assert done.logits.isfinite().all()
        assert done.reused + done.computed == len(prefix) + 2 * len(rows) + len(tail)
        assert (done.repaired > 0) == (policy != Naive()), policy
    chosen = {(place, row) for place, one in enumerate(mean) for row in range(6) if one.variance is not None}
    assert len(chosen) == 12  # the variance of what is left decides, no more of it than there are tokens
