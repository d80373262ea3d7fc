"""Each selection's own rule, on tensors made by hand; what all selections keep to is in the laws."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest

torch = pytest.importorskip("torch")

from rag.engine.attention import Kept, Memory, Selection, Step, Units  # noqa: E402
from rag.engine.attention.compact import Compact  # noqa: E402
from rag.engine.attention.dhsa import Dhsa  # noqa: E402
from rag.engine.attention.dma import Dma  # noqa: E402
from rag.engine.attention.executors.dense_mask import pair_mask  # noqa: E402
from rag.engine.attention.flexprefill import FlexPrefill  # noqa: E402
from rag.engine.attention.hip import Hip  # noqa: E402
from rag.engine.attention.hisa import Hisa  # noqa: E402
from rag.engine.attention.longheads import LongHeads  # noqa: E402
from rag.engine.attention.mac import Mac  # noqa: E402
from rag.engine.attention.quest import Quest  # noqa: E402
from rag.engine.attention.share import Share  # noqa: E402
from rag.engine.attention.sink_recent import SinkRecent  # noqa: E402
from rag.engine.errors import EngineError  # noqa: E402

SEEDS = [0, 1, 2]
D = 8
SMALL = Quest(budget=16, page_size=4, dense_layers=0, prefill=True, q_block=4)


def step(
    queries: int, slots: int, *, heads: tuple[int, int] = (4, 2), seed: int = 0, key: Any = None, **more: Any
) -> Step:
    """The last `queries` of `slots`, random; the same keys for the same seed, however many queries."""
    draw = torch.Generator().manual_seed(seed)
    drawn = [torch.randn(1, count, slots, D, generator=draw) for count in (heads[1], heads[1], heads[0])]
    given = {"layer": 0, "query": drawn[2][:, :, slots - queries :], "value": drawn[1], "scaling": D**-0.5} | more
    return Step(key=drawn[0] if key is None else key, places=torch.arange(slots - queries, slots), **given)


def asked(selection: Selection, given: Step, memory: Memory | None = None) -> Kept:
    kept = selection.select(given, memory or Memory())
    assert kept is not None
    return kept


def read(given: Step, kept: Kept) -> Any:
    """(kv heads, queries, slots)"""
    return pair_mask(given, kept).expand(1, given.kv_heads, -1, -1)[0]


def best(scores: dict[int, float], count: int) -> set[int]:
    """The keys with the highest scores, of equals the first."""
    return set(sorted(sorted(scores), key=lambda one: -scores[one])[:count])


@dataclass(frozen=True, kw_only=True)
class Counted(Selection):
    """In which layers another selection was asked."""

    name: ClassVar[str] = "counted"
    inner: Selection
    layers: list[int] = field(default_factory=list)

    def select(self, step: Step, memory: Memory) -> Kept | None:
        self.layers.append(step.layer)
        return self.inner.select(step, memory)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("pooling", ["sqrt", "mean"])
def test_dhsa_gives_every_token_the_score_of_its_chunk(seed: int, pooling: Any) -> None:
    spans = [(5, 17), (17, 30), (32, 45)]
    how = Dhsa(budget_prefill=30, block_size=4, local_tokens=6, sink=3, q_block=8, pooling=pooling)
    given = step(20, 60, seed=seed, units=Units.of_spans(spans))
    kept = asked(how, given)
    masks = read(given, kept)
    edges = [0, 3, 5, 17, 30, 32, 45, 49, 53, 57]
    for (start, stop), local in zip(pairwise(kept.rows), kept.local, strict=True):
        query = given.query[0, :, start:stop].mean((0, 1))
        scores: dict[int, float] = {}
        for a, b in pairwise([*(one for one in edges if one < local), local]):
            keys = given.key[0, :, a:b].mean(0)
            pooled = keys.sum(0) / (len(keys) ** 0.5 if pooling == "sqrt" else len(keys))
            scores |= {slot: float(query @ pooled) if a else 1e9 for slot in range(a, b)}
        left = how.budget_prefill - (int(given.places[stop - 1]) + 1 - local)
        assert set(masks[0, start, :local].nonzero()[:, 0].tolist()) == best(scores, left)


def test_dhsa_of_two_chunks_alike_takes_the_longer_by_the_root_and_the_first_by_the_mean() -> None:
    key = torch.zeros(1, 1, 40, D)
    key[..., 4:16, 0] = 1
    given = step(1, 40, heads=(1, 1), key=key, query=torch.ones(1, 1, 1, D), units=Units.of_spans([(4, 7), (8, 16)]))
    for pooling, expected in (("sqrt", range(8, 13)), ("mean", range(4, 9))):
        how = Dhsa(budget_decode=6, local_tokens=1, sink=0, q_block=1, block_size=4, pooling=pooling)  # type: ignore[arg-type]
        assert read(given, asked(how, given))[0, 0].nonzero()[:, 0].tolist() == [*expected, 39]


@pytest.mark.parametrize("seed", SEEDS)
def test_flexprefill_by_pooled_keys_is_the_fewest_blocks_that_hold_gamma(seed: int) -> None:
    gamma, size = 0.6, 4
    given = step(40, 40, heads=(1, 1), seed=seed)
    kept = asked(FlexPrefill(gamma=gamma, tau=10.0, min_budget=size, block_size=size), given)
    queries, keys = (one[0, 0].reshape(-1, size, D).mean(1) for one in (given.query, given.key))
    scores = (queries @ keys.T * given.scaling).masked_fill(torch.ones(10, 10).triu(1) > 0, -torch.inf).softmax(-1)
    order = scores.flatten().sort(descending=True)
    count = int((order.values.cumsum(0) < gamma * 10).sum()) + 1
    expected = torch.zeros(100, dtype=torch.bool)
    expected[order.indices[:count]] = True
    # and the first and the best column, the main and the best diagonal, as the last four queries see them
    places, slots = torch.arange(36, 40)[:, None], torch.arange(40)
    seen = given.query[0, 0, 36:] @ given.key[0, 0].T * given.scaling
    last = seen.masked_fill(slots > places, -torch.inf).softmax(-1)
    column = last.sum(0).reshape(-1, size).sum(1).argmax()
    diagonals = [float(last[(places - slots) // size == back].sum()) for back in range(10)]
    pages = torch.arange(10)
    expected = expected.reshape(10, 10) | (pages == 0) | (pages == column)
    expected |= pages[:, None] - pages == max(range(10), key=diagonals.__getitem__)
    assert torch.equal(kept.keep[0, 0], expected.tril(-1)[:, :9])


def test_flexprefill_reads_the_columns_and_diagonals_of_the_last_block() -> None:
    size, slots = 4, 48
    query, key = torch.zeros(1, 2, slots, 64), torch.zeros(1, 2, slots, 64)
    query[..., 0], key[:, 0, 14, 0] = 1, 30  # of the first head, one column
    places = torch.arange(slots)
    key[0, 1, places, 1 + places] = 30  # of the other, what stands 20 before
    query[0, 1, 20:, :] = torch.eye(64)[1 + places[:-20]]
    given = step(slots, slots, heads=(2, 2), key=key, query=query, scaling=1.0)
    keep = asked(FlexPrefill(gamma=0.9, tau=0.0, min_budget=size, block_size=size), given).keep[0]
    rows, pages = torch.arange(12)[:, None], torch.arange(11)
    back = rows - pages
    column = (pages == 14 // size) | (pages == 0) | (back == 30 // size) | (back == 33 // size)  # seen from 44 to 47
    assert torch.equal(keep[0], column & (back > 0))
    assert bool(keep[1][back == 20 // size].all())
    assert int(keep[1][11].sum()) <= 3


def test_flexprefill_trusts_pooled_keys_where_blocks_are_alike_and_not_where_means_hide_a_key() -> None:
    size, slots = 8, 64
    even = torch.randn(1, 1, slots // size, 1, D).expand(-1, -1, -1, size, -1).reshape(1, 1, slots, D)
    hidden = torch.zeros(1, 1, slots, D)
    hidden[0, 0, 24, 0], hidden[0, 0, 25, 0] = 40, -40
    query = torch.zeros(1, 2, slots, D)
    query[..., 0] = 1
    given = step(slots, slots, heads=(2, 2), key=torch.cat((even, hidden), dim=1), query=query)
    how = FlexPrefill(block_size=size, min_budget=size)
    keys = how._pooled(given.key.transpose(-1, -2)) / size
    assert how._judged(given, keys)[1].flatten().tolist() == [True, False]


@pytest.mark.parametrize("seed", SEEDS)
def test_hip_finds_the_best_chunks_where_the_keys_of_a_chunk_are_alike(seed: int) -> None:
    """And by a number of keys that grows with the logarithm of a chunk."""
    one = torch.randn(1, 2, 16, 1, D, generator=torch.Generator().manual_seed(seed))
    key = one.expand(-1, -1, -1, 8, -1).reshape(1, 2, 128, D)
    given = step(1, 128, key=key, seed=seed)
    kept = asked(Hip(sink=8, window=8, chunk_sizes=(8, 2), keeps=(24, 12), q_block=1), given)
    scores = (given.grouped[0, :, :, 0] @ one[0, :, :, 0].transpose(-1, -2)).amax(1)
    mask = read(given, kept)[:, 0]
    for head in range(2):
        first = best({at: float(scores[head, at]) for at in range(1, kept.local[0] // 8)}, 3)
        found = {int(slot) // 8 + 1 for slot in mask[head, 8 : kept.local[0]].nonzero()[:, 0]}
        assert found <= first
        assert max(first, key=lambda at: float(scores[head, at])) in found
        assert int(mask[head, 8 : kept.local[0]].sum()) == 12


def test_hip_descends_into_the_half_whose_first_key_scores_higher() -> None:
    key = torch.zeros(1, 1, 40, D)
    key[0, 0, :, 0] = torch.tensor([0, 0, 0, 0, 2, 0, 5, 0, 3, 9, 0, 0, 1, 7, 7, 7, *[0] * 24])
    query = torch.zeros(1, 1, 1, D)
    query[..., 0] = 1
    given = step(1, 40, heads=(1, 1), key=key, query=query)
    kept = asked(Hip(sink=0, window=8, chunk_sizes=(8, 2), keeps=(8, 2), q_block=1), given)
    # chunk 0 ends at slot 6 with 5, chunk 1 at slot 9 with 9: its first pair wins
    assert read(given, kept)[0, 0, :32].nonzero()[:, 0].tolist() == [8, 9]


def test_hip_chooses_anew_every_few_tokens() -> None:
    how = Hip(sink=4, window=8, chunk_sizes=(4, 2), keeps=(16, 8), q_block=8, refresh=3)
    memory, choices = Memory(), []
    for slots in range(50, 59):
        memory.begin(slots - 1)
        choices.append(asked(how, step(1, slots, seed=slots), memory))
    assert [a is b for a, b in pairwise(choices)] == [True, True, False, True, True, False, True, True]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("top_m", [5, 50])
def test_hisa_reads_the_best_tokens_of_the_best_blocks(seed: int, top_m: int) -> None:
    given = step(1, 90, seed=seed)
    how = Hisa(top_k=16, top_m=top_m, block_size=4, q_block=1)
    kept = asked(how, given)
    local = kept.local[0]
    means = given.key[0, :, :local].reshape(2, -1, 4, D).mean(2)
    votes = (given.grouped[0, :, :, 0] @ means.transpose(-1, -2) * given.scaling).softmax(-1).sum((0, 1))
    last = local // 4 - 1
    blocks = {0, last} | best({at: float(votes[at]) for at in range(1, last)}, top_m - 2)
    slots = [slot for slot in range(local) if slot // 4 in blocks]
    fine = (given.grouped[0, :, :, 0] @ given.key[0, :, slots].transpose(-1, -2) * given.scaling).softmax(-1)
    scores = dict(zip(slots, fine.sum((0, 1)).tolist(), strict=True))
    expected = best(scores, 16 - (90 - local))
    assert set(read(given, kept)[0, 0, :local].nonzero()[:, 0].tolist()) == expected


def test_longheads_chooses_chunks_for_each_kv_head() -> None:
    size, slots = 4, 48
    key = torch.randn(1, 2, slots, D, generator=torch.Generator().manual_seed(3)) * 0.1
    key[0, 0, 12:16, 0] = key[0, 1, 24:28, 0] = 6
    query = torch.zeros(1, 4, 1, D)
    query[..., 0] = 1
    given = step(1, slots, key=key, query=query)
    kept = asked(LongHeads(attention_length=4 * size, chunk_size=size, q_block=size), given)
    assert kept.local == (40,)
    assert [row.nonzero()[:, 0].tolist() for row in kept.keep[0, :, 0]] == [[0, 3], [0, 6]]


def test_longheads_pools_a_chunk_into_the_keys_that_the_others_attend_to() -> None:
    from rag.engine.attention.longheads import _pooled

    keys = torch.randn(1, 1, 2, 6, D, generator=torch.Generator().manual_seed(3))
    keys[0, 0, 1] = keys[0, 0, 1, :1]
    pooled = _pooled(keys, D**-0.5)
    assert torch.allclose(pooled[0, 0, 1], keys[0, 0, 1, 0], atol=1e-5)  # of one key many times: the key
    assert bool((pooled <= keys.amax(3) + 1e-5).all())
    assert bool((pooled >= keys.amin(3) - 1e-5).all())
    assert not torch.allclose(pooled[0, 0, 0], keys[0, 0, 0].mean(0), atol=1e-3)


def test_share_asks_in_every_second_layer_of_every_pass() -> None:
    inner = Counted(inner=SMALL)
    how, across = Share(inner=inner, layers=2, start=1), {}  # type: ignore[var-annotated]
    memories = [Memory(across=across) for _ in range(6)]
    for first, queries in ((0, 40), (40, 1), (41, 1), (30, 12)):
        answers = []
        for layer, memory in enumerate(memories):
            memory.begin(first)
            given = step(queries, first + queries, layer=layer, seed=layer)
            answers.append(asked(how, given, memory))
            memory.valid = first + queries
        assert answers[2] is answers[1]
        assert answers[4] is answers[3]
        assert len({id(one) for one in answers}) == 4
        assert inner.layers == [0, 1, 3, 5]
        inner.layers.clear()


def test_share_does_not_hand_on_the_bias_of_one_layers_keys() -> None:
    how, memory = Share(inner=Dma(keep_window_size=16, local=4, q_block=4, strength=1.0), start=0), Memory()
    first, second = (asked(how, step(1, 30, layer=layer), memory) for layer in (0, 1))
    assert first.bias is not None
    assert second.bias is None
    assert torch.equal(first.keep, second.keep)


@pytest.mark.parametrize("inner", [SMALL, SinkRecent(budget=14, sink=3, q_block=4)], ids=["quest", "sink-recent"])
def test_compact_reads_before_each_chunk_what_any_of_its_rows_read(inner: Selection) -> None:
    given = step(41, 61)
    alone, united = asked(inner, given), asked(Compact(inner=inner, q_block=12), given)
    before, after = read(given, alone), read(given, united)
    assert united.rows == (0, 4, 16, 28, 40, 41)  # a chunk begins at every 12th slot
    for start, stop in pairwise(united.rows):
        place = int(given.places[start])
        expected = before[:, start:stop, :place].any(1, keepdim=True)
        assert torch.equal(after[:, start:stop, :place], expected.expand(-1, stop - start, -1))
        assert bool((after[:, start:stop, place:] == given_causal(given)[start:stop, place:]).all())


def given_causal(given: Step) -> Any:
    return torch.arange(given.slots) <= given.places[:, None]


def test_compact_refuses_chunks_that_cut_blocks() -> None:
    with pytest.raises(EngineError, match="multiple"):
        Compact(inner=SMALL, q_block=10)


def test_mac_reads_what_a_like_query_chose_and_all_since() -> None:
    inner = Counted(inner=SMALL)
    how, memory = Mac(inner=inner, amend=6, threshold=0.45), Memory()
    first = step(1, 60)
    found = read(first, asked(how, first, memory))[:, 0]
    for slots, apart, again in ((70, 0.4, True), (70, 0.5, False), (80, 0.0, True)):
        away = torch.randn(first.query.shape, generator=torch.Generator().manual_seed(slots))
        away = away / away.norm(dim=-1, keepdim=True) * first.query.norm(dim=-1, keepdim=True)
        later = step(1, slots, query=(first.query + apart * away))
        near = (later.query - first.query).norm(dim=-1) / later.query.norm(dim=-1)
        assert (float(near.max()) < 0.45) == again
        inner.layers.clear()
        mask = read(later, asked(how, later, memory))[:, 0]
        assert bool(inner.layers) != again
        if again:
            expected = torch.ones(2, slots, dtype=torch.bool)
            expected[:, :54] = found[:, :54]  # 60 - 6: behind that all is read
            assert torch.equal(mask, expected)


def test_mac_forgets_the_oldest_and_what_was_cut_off() -> None:
    inner = Counted(inner=SMALL)
    how, memory = Mac(inner=inner, capacity=2, threshold=0.1), Memory()

    def again(slots: int, seed: int) -> bool:
        inner.layers.clear()
        memory.begin(slots - 1)
        asked(how, step(1, slots, query=step(1, 10, seed=seed).query), memory)
        memory.valid = slots
        return not inner.layers

    assert not any(again(slots, seed) for slots, seed in ((60, 1), (61, 2), (62, 3)))
    assert again(63, 3)
    assert again(64, 2)
    assert not again(65, 1)  # two were chosen since
    assert not again(61, 3)  # cut to 60 slots: what was chosen behind that is gone


@pytest.mark.parametrize("seed", SEEDS)
def test_dma_keeps_the_slots_with_the_longest_values_in_each_kv_head(seed: int) -> None:
    given = step(20, 60, seed=seed)
    kept = asked(Dma(keep_window_size=16, local=4, q_block=4, strength=0.5), given)
    lengths, masks = given.value[0].norm(dim=-1), read(given, kept)
    for (_, stop), local in zip(pairwise(kept.rows), kept.local, strict=True):
        left = 16 - (int(given.places[stop - 1]) + 1 - local)
        for head in range(2):
            expected = best({slot: float(lengths[head, slot]) for slot in range(local)}, left)
            assert set(masks[head, stop - 1, :local].nonzero()[:, 0].tolist()) == expected
    assert kept.bias is not None
    assert torch.allclose(kept.bias[0], 0.5 * lengths.log(), atol=1e-6)


def test_dma_reads_with_the_gate_that_doge_was_trained_with() -> None:
    doge = pytest.importorskip("transformers.models.doge.modeling_doge")
    config = doge.DogeConfig(hidden_size=4 * D, num_attention_heads=4, num_key_value_heads=2, intermediate_size=8)
    torch.manual_seed(0)
    module = doge.DogeAttention(config, layer_idx=0)
    module.A.data.normal_()
    given = step(1, 40, module=module)
    kept = asked(Dma(keep_window_size=16, local=1, q_block=1, trained=True), given)
    gate = torch.exp(module.A * torch.nn.functional.softplus(module.dt_proj(given.value.transpose(1, 2).flatten(2))))
    theirs = module.prepare_dynamic_mask(torch.zeros(1, 1, 4 * D), gate.transpose(1, 2)[..., :39], 15)
    assert torch.equal(read(given, kept)[:, 0, :39], theirs[0, :, 0] > torch.finfo(torch.float32).min)
    assert kept.bias is not None
    assert torch.allclose(kept.bias, gate.transpose(1, 2))


def test_dma_refuses_a_model_without_a_gate_where_one_is_asked_for() -> None:
    with pytest.raises(EngineError, match="dt_proj"):
        Dma(trained=True).select(step(1, 40, module=SimpleNamespace()), Memory())


WRONG: list[tuple[Any, dict[str, Any]]] = [
    (Dhsa, {"budget_prefill": 10}),
    (Dhsa, {"budget_decode": 0}),
    (Dhsa, {"pooling": "max"}),
    (Dhsa, {"block_size": 0}),
    (Dma, {"strength": -1.0}),
    (Dma, {"keep_window_size": 8}),
    (FlexPrefill, {"gamma": 0.0}),
    (FlexPrefill, {"min_budget": 1}),
    (Hip, {"chunk_sizes": (64, 24, 4)}),
    (Hip, {"keeps": (64, 8, 2)}),
    (Hip, {"sink": 10}),
    (Hip, {"refresh": 0}),
    (Hisa, {"top_m": 1}),
    (Hisa, {"top_k": 100}),
    (LongHeads, {"q_block": 300}),
    (LongHeads, {"attention_length": 512}),
    (Mac, {"threshold": -1.0}),
    (Mac, {"capacity": 0}),
    (Share, {"layers": 0}),
]


@pytest.mark.parametrize(("kind", "given"), WRONG)
def test_parameters_out_of_range_are_refused(kind: Any, given: dict[str, Any]) -> None:
    with pytest.raises(EngineError, match=kind.name):
        kind(**given)
