"""Executors on arbitrary choices, the parts that selections are made of, and what each of them chooses."""

from __future__ import annotations

import random
import sys
from itertools import pairwise
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask  # noqa: E402
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS  # noqa: E402

from rag.engine import EngineError  # noqa: E402
from rag.engine.attention import Kept, Memory, Sparse, Step, Units, read_sparsely  # noqa: E402
from rag.engine.attention._choose import fill, page_extremes, standardised, unit_extremes, upper_bound  # noqa: E402
from rag.engine.attention.chunk_block import ChunkBlock  # noqa: E402
from rag.engine.attention.dense import Dense  # noqa: E402
from rag.engine.attention.executors import EXECUTORS  # noqa: E402
from rag.engine.attention.executors.dense_mask import pair_mask  # noqa: E402
from rag.engine.attention.executors.flex import block_mask  # noqa: E402
from rag.engine.attention.executors.gather import attend_partly  # noqa: E402
from rag.engine.attention.quest import Quest  # noqa: E402
from rag.engine.attention.sink_recent import SinkRecent  # noqa: E402
from rag.engine.attention.sparse import NAME  # noqa: E402
from rag.engine.attention.tokenselect import TokenSelect  # noqa: E402
from tests.unit.test_engine_model import shared, some_ids, tiny  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
WIDTH = 16
SPANS = [(5, 17), (17, 30), (32, 45)]


def step_of(
    slots: int, places: Any = None, *, batch: int = 1, heads: int = 4, kv_heads: int = 2, seed: int = 0, **given: Any
) -> Step:
    drawn = torch.Generator().manual_seed(seed)
    places = torch.arange(slots) if places is None else torch.as_tensor(places)
    shape = (batch, heads, len(places), WIDTH)
    query = torch.randn(shape, generator=drawn)
    key, value = (torch.randn(batch, kv_heads, slots, WIDTH, generator=drawn) for _ in range(2))
    return Step(3, query, key, value, places, WIDTH**-0.5, **given)


def drawn_kept(step: Step, seed: int, *, paged: bool = False) -> Kept:
    """Any units, row blocks, recent slots and choice, of one or of all sequences and kv heads."""
    rng = random.Random(seed)
    edges = sorted(rng.sample(range(1, step.queries), min(step.queries - 1, rng.randint(0, 5))))
    rows = (0, *edges, step.queries)
    local = [rng.randint(0, int(step.places[row])) for row in rows[:-1]]
    batch, heads = rng.choice([1, step.batch]), rng.choice([1, step.kv_heads])
    torch.manual_seed(seed)
    if paged:
        size = rng.choice([1, 4, 16])
        units = Units.pages(min(local), size)
        count = rng.randint(0, len(units))
        index = torch.rand(batch, heads, len(local), len(units)).argsort(-1)[..., :count].sort(-1).values
        return Kept(units, rows, tuple(local), index=index)
    cuts = sorted(rng.sample(range(step.slots), min(step.slots, rng.randint(2, 12))))
    spans = [span for span in pairwise(cuts) if rng.random() < 0.8]
    units = Units.of_spans(spans)
    return Kept(units, rows, tuple(local), torch.rand(batch, heads, len(local), len(units)) < 0.5)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("executor", ["gather", "flex"])
@pytest.mark.parametrize("paged", [False, True], ids=["units", "pages"])
@pytest.mark.parametrize("kind", ["all", "last", "one", "some"])
def test_executors_agree_on_any_choice(seed: int, executor: str, paged: bool, kind: str) -> None:
    places = {"all": None, "last": range(20, 50), "one": [49], "some": [3, 4, 5, 9, 30, 31, 49]}[kind]
    if places is not None:
        places = list(places)
    step = step_of(50, places, batch=1 + seed % 3, kv_heads=(1, 2, 4)[seed % 3], seed=seed)
    kept = drawn_kept(step, seed, paged=paged)
    expected, given = EXECUTORS["dense_mask"](step, kept), EXECUTORS[executor](step, kept)
    assert given.shape == step.query.shape
    assert torch.allclose(given, expected, atol=2e-6)
    mask = pair_mask(step, kept).expand(step.batch, step.kv_heads, -1, -1)
    assert float(kept.pairs(step)) == int(mask.sum())
    assert float(kept.read_slots(step)) == int(mask.any(2).sum())


@pytest.mark.parametrize("executor", ["dense_mask", "gather", "flex"])
@pytest.mark.parametrize("places", [None, [49]], ids=["prefill", "decode"])
def test_a_bias_is_added_to_every_score(executor: str, places: Any) -> None:
    step, bias = step_of(50, places, batch=2), torch.randn(2, 2, 50)
    kept = drawn_kept(step_of(50, places), 3)
    given = EXECUTORS[executor](step.biased(bias), kept)
    mask = pair_mask(step, kept).expand(2, 2, -1, -1).repeat_interleave(2, dim=1)
    added = bias.repeat_interleave(2, dim=1)[:, :, None].masked_fill(~mask, -torch.inf)
    key, value = (one.repeat_interleave(2, dim=1) for one in (step.key, step.value))
    weights = (step.query @ key.transpose(-1, -2) * step.scaling + added).softmax(-1)
    assert torch.allclose(given, weights @ value, atol=5e-6)


@pytest.mark.parametrize("seed", range(6))
def test_the_list_of_blocks_of_flex_says_what_is_read(seed: int) -> None:
    step = step_of(500, range(150, 500), batch=2, seed=seed)
    kept = drawn_kept(step, seed, paged=seed % 2 == 1)
    made = block_mask(step, kept)
    mask = pair_mask(step, kept)
    tiles = torch.nn.functional.pad(mask, (0, -500 % 128, 0, -350 % 128))
    tiles = tiles.reshape(*mask.shape[:2], 3, 128, 4, 128)
    listed = [_tiles(made, kind) for kind in ("", "full_")]
    group = 2 if mask.shape[1] > 1 else 1
    some = tiles.any(-1).any(3).repeat_interleave(group, dim=1)
    assert not bool((some & ~(listed[0] | listed[1])).any())
    assert not bool((listed[0] & listed[1]).any())
    rows, slots = torch.arange(384)[:, None], torch.arange(512)
    inside = ((rows < 350) & (slots < 500)).reshape(3, 128, 4, 128)
    all_read = (tiles | ~inside).all(-1).all(3).repeat_interleave(group, dim=1)
    assert not bool((listed[1] & ~all_read).any())


def _tiles(made: Any, kind: str) -> Any:
    counts, indices = getattr(made, f"{kind}kv_num_blocks"), getattr(made, f"{kind}kv_indices")
    out = torch.zeros(indices.shape, dtype=torch.bool)
    valid = torch.arange(indices.shape[-1]) < counts[..., None]
    return out.scatter_(-1, indices.long(), valid)


@pytest.mark.parametrize("causal", [False, True])
def test_both_ways_to_a_log_sum_exp_are_the_same(causal: bool) -> None:
    step = step_of(9)
    key, value = (one.repeat_interleave(2, dim=1) for one in (step.key, step.value))
    fast = attend_partly(step.query, key, value, 0.3, causal=causal)
    plain = attend_partly(step.query.clone().requires_grad_(), key, value, 0.3, causal=causal)
    for ours, theirs in zip(fast, plain, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-5)


def test_units_are_pages_or_spans_and_long_spans_are_split() -> None:
    pages = Units.pages(11, 4)
    assert (pages.starts.tolist(), pages.stops.tolist(), pages.stop) == ([0, 4], [4, 8], 8)
    spans = Units.of_spans([(2, 5), (6, 16)], ids=["x", "y"], priors=[0.5, 0.25])
    assert spans.of_slots(18).tolist() == [2, 2, 0, 0, 0, 2, *[1] * 10, 2, 2]
    parts = spans.split(4, longer_than=6)
    assert list(zip(parts.starts.tolist(), parts.stops.tolist(), strict=True)) == [(2, 5), (6, 10), (10, 14), (14, 16)]
    assert parts.parents.tolist() == [0, 1, 1, 1]
    assert parts.split(2, longer_than=3).parents.tolist() == [0, 1, 1, 1, 1, 1]
    priors = parts.own_priors()
    assert priors is not None
    assert priors.tolist() == [0.5, 0.25, 0.25, 0.25]
    assert len(spans.upto(15)) == 1
    assert Units.of_spans([]).of_slots(3).tolist() == [0, 0, 0]
    for wrong in ([(3, 3)], [(0, 4), (3, 6)], [(-1, 2)]):
        with pytest.raises(EngineError, match="spans ascend"):
            Units.of_spans(wrong)
    with pytest.raises(EngineError, match="2 spans have as many priors"):
        Units.of_spans([(0, 1), (1, 2)], priors=[0.1])


def test_fill_takes_the_best_that_fit_and_more_budget_drops_none() -> None:
    torch.manual_seed(0)
    scores, lengths = torch.randn(3, 20), torch.randint(1, 9, (20,))
    forced = torch.arange(20) == 7
    last = torch.zeros(3, 20, dtype=torch.bool)
    for budget in range(0, 120, 5):
        kept = fill(scores, lengths, budget, forced)
        assert bool(kept[:, 7].all())
        assert int((kept * lengths).sum(-1).max()) <= max(budget, int(lengths[7]))
        assert not bool((last & ~kept).any())
        last = kept
    assert fill(torch.tensor([1.0, 1.0, 1.0]), torch.ones(3), 2).tolist() == [True, True, False]
    assert fill(torch.tensor([1.0, -torch.inf]), torch.ones(2), 9).tolist() == [True, False]


def test_z_scores_of_equals_are_zero() -> None:
    assert standardised(torch.full((4,), 0.3)).tolist() == [0, 0, 0, 0]
    assert torch.allclose(standardised(torch.tensor([1.0, 3.0])), torch.tensor([-1.0, 1.0]))


def test_no_key_beats_the_bound_and_pages_are_computed_once() -> None:
    step = step_of(50)
    memory = Memory()
    bounds = upper_bound(step.grouped.flatten(2, 3), page_extremes(step, memory, 8, 6))
    scores = step.grouped.flatten(2, 3) @ step.key.transpose(-1, -2)
    best = scores[..., :48].reshape(1, 2, -1, 6, 8).amax(-1)
    assert bool((bounds >= best - 1e-5).all())
    same = page_extremes(step_of(50, seed=1), memory, 8, 6).clone()  # other keys, which are not looked at again
    assert torch.equal(same, page_extremes(step, Memory(), 8, 6))
    memory.valid = 50
    memory.begin(20)
    again = page_extremes(step_of(50, seed=1), memory, 8, 6)
    assert torch.equal(again[:, :, :2], same[:, :, :2])
    assert torch.equal(again[:, :, 2:], page_extremes(step_of(50, seed=1), Memory(), 8, 6)[:, :, 2:])
    units = Units.pages(48, 8)
    assert torch.equal(unit_extremes(step.key, units), same)


def test_quest_reads_the_page_with_the_wanted_key() -> None:
    step = step_of(200, [199])
    step.key[:, 0, 37] = 3 * step.query[:, 0, 0]
    step.key[:, 1, 101] = 3 * step.query[:, 2, 0]
    kept = Quest(budget=64, dense_layers=0).select(step, Memory())
    assert kept is not None
    assert kept.index is not None
    assert kept.index.shape == (1, 2, 1, 3)  # and the page of the query
    assert 37 // 16 in kept.index[0, 0, 0].tolist()
    assert 101 // 16 in kept.index[0, 1, 0].tolist()
    assert Quest(budget=64, dense_layers=4).select(step, Memory()) is None
    assert Quest(budget=64, dense_layers=0).select(step_of(200), Memory()) is None


def test_tokenselect_reads_the_wanted_token_and_chooses_again_for_another_query() -> None:
    chooser, memory = TokenSelect(top_k=4, n_init=2, n_local=8, q_block=8), Memory()
    step = step_of(100, [99])
    step.key[:, 1, 50] = 3 * step.query[:, 3, 0]

    def chosen(query: Any) -> list[int]:
        asked = Step(3, query, step.key, step.value, step.places, step.scaling)
        kept = chooser.select(asked, memory)
        assert kept is not None
        assert kept.index is not None
        slots: list[int] = kept.index[0, 0, 0].tolist()
        return slots

    first = chosen(step.query)
    assert {0, 1, 50} <= set(first)
    assert len(first) == 6
    step.key[:, 1, 50] = 0.0
    assert chosen(step.query * 1.01) == first
    memory.valid = 100
    memory.begin(95)  # the last 5 slots are other tokens now, which it did not choose from
    assert chosen(step.query) == first
    memory.begin(60)
    assert 50 not in chosen(step.query)
    step.key[:, 1, 50] = 3 * step.query[:, 3, 0]
    assert 50 not in chosen(step.query)
    other = -step.query
    other[:, 3] = step.query[:, 3]
    assert 50 in chosen(other)


CHUNKS = Units.of_spans(SPANS, priors=[0.1, 0.2, 0.9])


def test_the_last_and_the_first_slots() -> None:
    step = step_of(30, [29])
    kept = SinkRecent(budget=10, sink=3, q_block=1).select(step, Memory())
    assert kept is not None
    assert pair_mask(step, kept)[0, 0, 0].nonzero()[:, 0].tolist() == [0, 1, 2, *range(23, 30)]


BEST: Any = "best"
WRONG: list[Any] = [
    lambda: SinkRecent(budget=4, sink=4), lambda: SinkRecent(budget=100, q_block=256), lambda: Quest(budget=47),
    lambda: Quest(page_size=0), lambda: Quest(prefill=True, budget=256), lambda: TokenSelect(top_k=0),
    lambda: TokenSelect(q_block=513), lambda: ChunkBlock(density=0.0), lambda: ChunkBlock(split=0),
    lambda: ChunkBlock(score=BEST), lambda: Sparse(Dense(), BEST), lambda: Sparse(Dense(), min_length=-1),
    lambda: Units.pages(4, 0),
]  # fmt: skip


@pytest.mark.parametrize("make", WRONG)
def test_wrong_parameters_are_refused_with_the_value(make: Any) -> None:
    with pytest.raises(EngineError, match=r"must|at least one"):
        make()


def test_the_name_is_registered_for_attention_and_for_masks() -> None:
    assert NAME in ALL_ATTENTION_FUNCTIONS.valid_keys()
    assert ALL_MASK_ATTENTION_FUNCTIONS[NAME] is sdpa_mask  # else a padded batch would be read without its mask


def test_under_the_name_alone_a_model_is_dense_and_padding_safe() -> None:
    model = tiny()
    ids, mask = torch.tensor([[0, 0, *some_ids(9)], some_ids(11)]), torch.ones(2, 11, dtype=torch.long)
    mask[0, :2] = 0
    given = {"input_ids": ids, "attention_mask": mask, "position_ids": (mask.cumsum(-1) - 1).clamp(min=0)}
    with torch.no_grad():
        expected = model.model(**given).logits
        model.model.set_attn_implementation(NAME)
        assert torch.allclose(model.model(**given).logits, expected, atol=1e-5)
        sparse = Sparse(SinkRecent(budget=4, sink=1, q_block=1))
        assert not torch.allclose(model.model(**given, sparse=sparse).logits, expected, atol=1e-2)
        assert sparse.stats.density < 1


def test_a_pass_over_some_slots_is_read_sparsely_too() -> None:
    model, ids = shared(), some_ids(60)
    slots = [*range(12, 20), 33, 34, *range(50, 60)]
    results = []
    executors: list[Any] = ["dense_mask", "gather", "auto"]
    for executor in executors:
        sparse = Sparse(ChunkBlock(anchor=8), executor, CHUNKS)
        cache = model.new_cache()
        with read_sparsely(model.model, sparse):
            model.run(ids, cache)
            results.append(model.run([ids[slot] for slot in slots], cache, slots=slots, keep=5))
        assert sparse.stats.unread_masks == 0
    for one in results[1:]:
        assert torch.allclose(one, results[0], atol=1e-4)
    with read_sparsely(model.model, Sparse(Dense())):
        dense = model.run(ids, model.new_cache(), keep=5)
    assert not torch.allclose(results[0], dense, atol=1e-2)


def test_what_cannot_be_sparse_is_dense_or_refused() -> None:
    short = Sparse(SinkRecent(budget=4, sink=1, q_block=1), min_length=30)
    model, ids = shared(), some_ids(29)
    with read_sparsely(model.model, short):
        given = model.run(ids, model.new_cache())
    assert torch.allclose(given, model.run(ids, model.new_cache()), atol=1e-5)
    assert short.stats.density == 1
    sliding = tiny("mistral", sliding_window=8)
    asked = Sparse(SinkRecent(budget=4, sink=1, q_block=1))
    with read_sparsely(sliding.model, asked), torch.no_grad():
        out = sliding.model(torch.tensor([ids])).logits
    with torch.no_grad():
        assert torch.allclose(out, sliding.model(torch.tensor([ids])).logits, atol=1e-5)
    assert asked.stats.unread_masks == 3
    cache = model.new_cache()
    cache.attention = {"own_lengths": True}
    with read_sparsely(model.model, short), pytest.raises(EngineError, match="at the same time"):
        model.run(ids, cache)
    assert model.config._attn_implementation == "sdpa"
    assert torch.isfinite(model.run(ids, model.new_cache())).all()
    batch = Sparse(Dense(), units=[CHUNKS])
    with read_sparsely(model.model, batch), pytest.raises(EngineError, match="1 sequences, not 2"):
        model.model(torch.tensor([ids, ids]))


def test_the_stats_name_the_selection() -> None:
    labels = [Sparse(one).stats.selection for one in (Dense(), Quest(), TokenSelect(), ChunkBlock(density=0.25))]
    assert labels == ["dense", "quest(1024)", "tokenselect(2688)", "chunk-block(0.25)"]
    assert Sparse(Dense()).stats.density == 1


def test_a_sparse_reading_travels_with_a_cache() -> None:
    """As every other attention that a cache asks for: the same logits as by `read_sparsely`, in prefill and decode."""
    model, ids = shared(), some_ids(60)
    told = []
    for own in (True, False):
        cache, sparse = model.new_cache(), Sparse(SinkRecent(budget=16, q_block=8))
        if own:
            cache.attention = {"sparse": sparse}
            told.append(torch.cat([model.run(ids, cache, keep=4), model.run([7], cache)]))
        else:
            with read_sparsely(model.model, sparse):
                told.append(torch.cat([model.run(ids, cache, keep=4), model.run([7], cache)]))
        assert sparse.stats.density < 0.6
    assert torch.allclose(told[0], told[1], atol=1e-5)
    dense = torch.cat([model.run(ids, plain := model.new_cache(), keep=4), model.run([7], plain)])
    assert not torch.allclose(told[0], dense, atol=1e-3)


@pytest.mark.parametrize("seed", range(6))
def test_gather_in_tiles_reads_what_gather_reads(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """In bfloat16 on a CPU; float32 through the same code is exact to rounding."""
    import rag.engine.attention.executors.gather  # noqa: F401

    module = sys.modules["rag.engine.attention.executors.gather"]
    batch = 1 + seed % 2
    step = step_of(150, batch=batch, heads=4, kv_heads=2, seed=seed)
    kept = drawn_kept(step, seed, paged=seed % 3 == 0)
    wanted = EXECUTORS["gather"](step, kept)
    monkeypatch.setattr(module, "in_tiles", lambda step: True)
    assert torch.allclose(EXECUTORS["gather"](step, kept), wanted, atol=1e-5)
    half = [one.bfloat16() for one in (step.query, step.key, step.value)]
    found = EXECUTORS["gather"](Step(3, *half, step.places, step.scaling), kept)
    assert found.dtype == torch.bfloat16
    assert (found.float() - wanted).abs().mean() < 5e-3
