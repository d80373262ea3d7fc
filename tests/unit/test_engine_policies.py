"""The property that defines each policy which does more than name tokens."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from rag.engine import EngineError, InterruptedPrefillError  # noqa: E402
from rag.engine.blocks import AttentionBefore, KvBlock, make_block  # noqa: E402
from rag.engine.chunks import assemble, complete, prefill_chunks  # noqa: E402
from rag.engine.layers import LayerPass  # noqa: E402
from rag.engine.layout import lay_out  # noqa: E402
from rag.engine.measure import divergence, forced_logits, load_cost  # noqa: E402
from rag.engine.model import FAMILIES, EngineModel  # noqa: E402
from rag.engine.observed import chunk_name, make_observed_block  # noqa: E402
from rag.engine.prefill import Prefill, greedy, prefill  # noqa: E402
from rag.engine.prefix import PrefixPool  # noqa: E402
from rag.engine.repair import RepairPolicy  # noqa: E402
from rag.engine.repair.ape import Ape  # noqa: E402
from rag.engine.repair.auto import Auto, Calibrated  # noqa: E402
from rag.engine.repair.blend import Blend  # noqa: E402
from rag.engine.repair.cache_craft import CacheCraft  # noqa: E402
from rag.engine.repair.epic import Epic  # noqa: E402
from rag.engine.repair.kvcomm import Kvcomm  # noqa: E402
from rag.engine.repair.naive import Naive  # noqa: E402
from tests.unit.test_engine_model import shared, some_ids, tiny  # noqa: E402

PREFIX, QUESTION = some_ids(11, seed=1), some_ids(7, seed=2)
CHUNKS = [some_ids(length, seed=length) for length in (13, 5, 20)]
Parts = list[KvBlock | list[int]]


def parts_of(model: EngineModel, before: list[int] | None = None) -> Parts:
    return [*(make_block(model, chunk, before or []) for chunk in CHUNKS), QUESTION]


def run(model: EngineModel, parts: Parts, policy: RepairPolicy, prefix: list[int] = PREFIX) -> Prefill:
    cache = prefill(model, prefix).cache if prefix else model.new_cache()
    return prefill_chunks(model, cache, prefix, parts, policy)


def full(model: EngineModel) -> Prefill:
    return prefill(model, [*PREFIX, *(token for chunk in CHUNKS for token in chunk), *QUESTION])


# layers


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_pass_by_layers_does_what_the_model_does(family: str, attention: str) -> None:
    model = tiny(family)
    model.model.set_attn_implementation(attention)
    layout = lay_out(PREFIX, parts_of(model))
    slots = [*range(13, 17), *range(30, 40), *layout.fresh]
    by_model, by_layer = (prefill(model, PREFIX).cache for _ in range(2))
    assemble(model, by_model, layout)
    assemble(model, by_layer, layout)
    expected = model.run([layout.ids[i] for i in slots], by_model, slots=slots)[-1]
    passing = LayerPass(model, by_layer, [layout.ids[i] for i in slots], slots)
    with pytest.raises(EngineError, match="0 of 3 layers"):
        passing.logits()
    for _ in range(model.layers):
        passing.step()
    assert torch.allclose(passing.logits(), expected, atol=1e-5)
    for ours, theirs in zip(by_layer.read(0, len(layout)), by_model.read(0, len(layout)), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-5)
    with pytest.raises(EngineError, match="the last token stays"):
        passing.keep(torch.tensor([0, 1]))
    assemble(model, by_layer, layout)
    finished = LayerPass(model, by_layer, [layout.ids[i] for i in slots], slots)
    finished.finish()
    assert len(finished.slots) == 16 < len(slots)  # nobody reads what else the last layer would give
    assert torch.allclose(finished.logits(), expected, atol=1e-5)
    for ours, theirs in zip(by_layer.read(0, len(layout)), by_model.read(0, len(layout)), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-5)


# blend


@pytest.mark.parametrize("family", FAMILIES)
def test_blend_of_everything_is_a_full_prefill(family: str) -> None:
    model = shared(family)
    expected, done = full(model), run(model, parts_of(model), Blend(share=1))
    assert torch.allclose(done.logits, expected.logits, atol=1e-4)
    for ours, theirs in zip(done.cache.read(0, 56), expected.cache.read(0, 56), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-4)
    assert (done.computed, done.reused, done.repaired) == (45, 11, 38)


def test_blend_makes_two_layers_exact_and_leaves_most_of_the_rest() -> None:
    model = tiny(num_hidden_layers=6)
    expected, naive = full(model).cache.read(0, 56), run(model, parts_of(model), Naive()).cache.read(0, 56)
    done = run(model, parts_of(model), Blend(share=0.25, shrink=0.5))
    ours = done.cache.read(0, 56)
    changed = [
        sum(not torch.equal(a[:, i], b[:, i]) for i in range(11, 49)) for a, b in zip(ours[1], naive[1], strict=True)
    ]
    assert torch.allclose(ours[1][:2], expected[1][:2], atol=1e-4)
    assert torch.allclose(ours[0][:2], expected[0][:2], atol=1e-4)
    assert changed[1:] == [38, 14, 11, 8, 5]  # of 38 tokens: all, then from .375 to .125 in a line
    assert done.repaired == round((38 + 38 + 14 + 11 + 8 + 5) / 6)
    assert done.computed == done.repaired + 7


def test_blend_repairs_where_the_deviation_is() -> None:
    """The first block stands behind its true prefix: nothing of it deviates, and all that is chosen is elsewhere."""
    model = tiny(num_hidden_layers=4)
    parts: Parts = [make_block(model, CHUNKS[0], PREFIX), make_block(model, CHUNKS[1]), QUESTION]
    naive = run(model, parts, Naive()).cache.read(0, 36)
    blended = run(model, parts, Blend(share=5 / 18, shrink=0)).cache.read(0, 36)
    last = [i for i in range(11, 29) if not torch.equal(naive[1][-1][:, i], blended[1][-1][:, i])]
    assert last == [*range(24, 29)]


def test_blend_can_be_interrupted_and_done_again() -> None:
    model, parts = shared(), parts_of(shared())
    cache = prefill(model, PREFIX).cache
    with pytest.raises(InterruptedPrefillError):
        prefill_chunks(model, cache, PREFIX, parts, Blend(), keep_going=lambda done, total: done < 20)
    again = prefill_chunks(model, cache, PREFIX, parts, Blend())
    assert torch.allclose(again.logits, run(model, parts, Blend()).logits, atol=1e-5)


# ape


def test_ape_with_one_chunk_and_neither_temperature_nor_scale_is_naive() -> None:
    model = shared()
    parts: Parts = [make_block(model, CHUNKS[0], PREFIX), QUESTION]
    ours, naive = run(model, parts, Ape(temperature=1, scale=1)), run(model, parts, Naive())
    assert torch.equal(ours.logits, naive.logits)


def test_ape_knows_no_order_of_chunks() -> None:
    model = shared()
    blocks = [make_block(model, chunk, PREFIX) for chunk in CHUNKS]
    one, two = (run(model, [*order, QUESTION], Ape()) for order in (blocks, blocks[::-1]))
    assert torch.allclose(one.logits, two.logits, atol=1e-4)
    assert list(greedy(model, one.cache, one.logits, max_new_tokens=8)) == list(
        greedy(model, two.cache, two.logits, max_new_tokens=8)
    )
    naive = [run(model, [*order, QUESTION], Naive()).logits for order in (blocks, blocks[::-1])]
    assert not torch.allclose(*naive, atol=1e-2)


def test_ape_stands_as_in_the_paper_prefix_first_and_all_chunks_right_after_it() -> None:
    """Against the published layout: every chunk from the prefix's end on, the question after the longest."""
    model = shared()
    blocks = [make_block(model, chunk, PREFIX) for chunk in CHUNKS]
    ours = run(model, [*blocks, QUESTION], Ape(temperature=1, scale=1))
    cache = prefill(model, PREFIX).cache
    for block in blocks:
        behind = prefill(model, [*PREFIX, *block.ids]).cache.read(len(PREFIX), len(PREFIX) + len(block))
        cache.append(*behind)
    places = torch.arange(31, 31 + len(QUESTION))[None]
    with torch.no_grad():
        out = model.model(input_ids=torch.tensor([QUESTION]), position_ids=places, past_key_values=cache)
    assert torch.allclose(ours.logits, out.logits[0, -1], atol=1e-4)


@given(temperature=st.floats(0.2, 1), scale=st.floats(0.2, 1), seed=st.integers(0, 99))
@settings(max_examples=15)
def test_temperature_and_scale_are_those_of_the_paper(temperature: float, scale: float, seed: int) -> None:
    """Two parts, each with its own softmax and log-sum-exp, merged by weights; the context's is scaled."""
    from rag.engine.attend import ScaledContext, _attend

    made = torch.Generator().manual_seed(seed)
    query = torch.randn(1, 4, 3, 8, generator=made)
    key, value = (torch.randn(1, 2, 9, 8, generator=made) for _ in range(2))
    asked = ScaledContext(2, 6, temperature, scale)
    ours, _ = _attend(None, query, key, value, None, scaling=0.3, scaled_context=asked)
    for head in range(4):
        for row in range(3):
            logits = 0.3 * key[0, head // 2, : 7 + row] @ query[0, head, row]
            context, rest = logits[2:6] / temperature, torch.cat((logits[:2], logits[6:]))
            values = value[0, head // 2, : 7 + row]
            parts = [context.softmax(0) @ values[2:6], rest.softmax(0) @ torch.cat((values[:2], values[6:]))]
            weights = torch.stack((scale * context.logsumexp(0), rest.logsumexp(0))).softmax(0)
            assert torch.allclose(ours[0, row, head], weights[0] * parts[0] + weights[1] * parts[1], atol=1e-5)


def test_the_answer_is_read_the_same_way_and_the_model_is_left_as_it_was() -> None:
    model = shared()
    parts = parts_of(model, PREFIX)
    done = run(model, parts, Ape(temperature=0.5, scale=0.7))
    asked = dict(done.cache.attention)
    assert set(asked) == {"scaled_context"}
    step = model.run([5], done.cache)
    assert model.config._attn_implementation == "sdpa"
    layout = lay_out(PREFIX, [*parts[:-1], [*QUESTION, 5]])
    whole = complete(model, done.cache, layout)  # again, with the new token in the same pass
    assert torch.allclose(step[-1], whole.logits, atol=1e-4)
    with pytest.raises(EngineError, match="start again from the prefix"):
        assemble(model, done.cache, layout)
    with pytest.raises(EngineError, match="no other prompt"):
        PrefixPool(max_bytes=1 << 20, block_tokens=4).store(PREFIX, done.cache)
    done.cache.reset()
    assert (done.cache.attention, done.cache.moved) == ({}, False)
    one = run(model, [parts[0], QUESTION], Ape())
    assert one.cache.attention
    assemble(model, one.cache, layout)  # its prefix stood where it always does
    assert one.cache.attention == {}


def test_ape_refuses_new_text_between_chunks() -> None:
    model = shared()
    blocks = [make_block(model, chunk, PREFIX) for chunk in CHUNKS[:2]]
    with pytest.raises(EngineError, match="put text between chunks into them"):
        run(model, [blocks[0], [5, 6], blocks[1], QUESTION], Ape())
    with pytest.raises(EngineError, match="temperature and scale"):
        Ape(temperature=0)


# cache-craft


def test_what_a_block_remembers_is_the_attention_of_the_model() -> None:
    model = tiny()
    before, own = [*PREFIX, *CHUNKS[0], *CHUNKS[1]], CHUNKS[2]
    block = make_observed_block(model, own, PREFIX, CHUNKS[:2])
    plain = make_block(model, own, before)
    assert torch.allclose(block.k, plain.k, atol=1e-4)
    assert torch.allclose(block.v, plain.v, atol=1e-4)
    model.model.set_attn_implementation("eager")
    with torch.no_grad():
        out = model.model(input_ids=torch.tensor([[*before, *own]]), output_attentions=True)
    weights = torch.stack(out.attentions)[:, 0].mean(dim=(0, 1))[len(before) :]
    expected = torch.stack([weights[:, 11:24].sum(1), weights[:, 24:29].sum(1)], dim=1)
    assert block.seen is not None
    assert block.seen.behind == (chunk_name(CHUNKS[0]), chunk_name(CHUNKS[1]))
    assert torch.allclose(block.seen.inter, expected, atol=1e-4)
    assert torch.allclose(block.seen.intra, weights[:, 29:].sum(1), atol=1e-4)


def remembering(ids: list[int], behind: list[list[int]], inter: list[list[float]]) -> KvBlock:
    """Attention to itself 1 a token."""
    seen = AttentionBefore(tuple(map(chunk_name, behind)), torch.tensor(inter), torch.ones(len(ids)))
    return KvBlock(tuple(ids), torch.zeros(3, 2, len(ids), 16), torch.zeros(3, 2, len(ids), 16), "", seen=seen)


def repaired(blocks: list[KvBlock], alpha: float) -> tuple[int, ...]:
    model = shared()
    return CacheCraft(alpha=alpha).tokens_to_repair(lay_out([], [*blocks, QUESTION]), model, model.new_cache())


def test_cache_craft_repairs_as_much_as_a_chunk_leaned_on_what_is_gone() -> None:
    one, two, three = (KvBlock((n, n), torch.zeros(3, 2, 2, 16), torch.zeros(3, 2, 2, 16), "") for n in (10, 20, 30))
    leaning = [[0.1, 0.1], [0.5, 0.1], [0.4, 0.1], [0.1, 0.4]]
    block = remembering([1, 2, 3, 4], [list(one.ids), list(two.ids)], leaning)
    assert repaired([one, two, block], 1) == ()  # as it was made
    assert repaired([one, three, two, block], 1) == ()  # one more between them
    assert len(repaired([three, block], 1)) == 3  # impact 1 / (1 + exp(-.45)) = .61 of 4 tokens
    assert repaired([three, block], 0.5) == (3, 4)  # those that leaned most, in ascending order
    assert repaired([one, block], 0.5) == (3,)  # .61 x (1 - 1.1 / 1.8) x .5 of 4 tokens
    assert len(repaired([two, one, block], 1)) == 3  # all there, but in the other order
    assert len(repaired([block], 10)) == 4
    assert repaired([one, two], 1) == ()  # they remember nothing


def test_a_chunk_in_its_old_place_is_exact_under_cache_craft() -> None:
    model = shared()
    made: list[KvBlock] = []
    for at in range(3):
        made.append(make_observed_block(model, CHUNKS[at], PREFIX, CHUNKS[:at]))
    same = [replace(made[0], seen=None), *made[1:]]
    done = run(model, [*same, QUESTION], CacheCraft(alpha=1))
    assert done.repaired == 0
    assert torch.allclose(done.logits, full(model).logits, atol=1e-4)
    assert run(model, [*same[::-1], QUESTION], CacheCraft(alpha=1)).repaired > 5


# auto


def table() -> tuple[Calibrated, ...]:
    rows = {"naive": ((1000, 0.1, 0.4), (4000, 0.1, 0.04)), "epic": ((1000, 0.3, 0.03), (2000, 0.2, 0.06))}
    return tuple(Calibrated(name, *row) for name, each in rows.items() for row in each)


def test_auto_takes_the_cheapest_that_is_good_enough_at_that_length() -> None:
    auto = Auto(bound=0.05, table=table(), policies={"naive": Naive(), "epic": Epic(k=4)})
    assert auto.choose(1000) == ("epic", 0.03)
    assert auto.choose(500) == ("epic", 0.03)
    assert auto.choose(1500) == ("", 0.0)  # epic's worse neighbour is over the bound
    assert auto.choose(4000) == ("naive", 0.04)
    assert auto.choose(9000) == ("naive", 0.04)
    assert replace(auto, bound=0.06).choose(2000) == ("epic", 0.06)
    assert replace(auto, bound=0.06).choose(2001) == ("", 0.0)  # epic was not measured there, naive strays at 1000
    assert replace(auto, bound=0.5).choose(1500) == ("naive", 0.4)


def test_auto_asks_for_agreement_too() -> None:
    rows = (Calibrated("naive", 1000, 0.1, 0.04, 0.94), Calibrated("epic", 1000, 0.3, 0.03, 0.96))
    auto = Auto(table=rows, policies={"naive": Naive(), "epic": Epic(k=4)})
    assert auto.choose(1000) == ("epic", 0.03)
    assert replace(auto, floor=0.9).choose(1000) == ("naive", 0.04)
    assert replace(auto, floor=0.97).choose(1000) == ("", 0.0)
    with pytest.raises(EngineError, match="floor in"):
        Auto(floor=2)


def test_auto_does_what_its_choice_does() -> None:
    model = shared()
    parts = parts_of(model, PREFIX)
    chosen = Auto(table=(Calibrated("ape", 60, 0.1, 0.01),), policies={"ape": Ape(), "naive": Naive()})
    assert torch.equal(run(model, parts, chosen).logits, run(model, parts, Ape()).logits)
    assert run(model, parts, Auto()).repaired == 38  # nothing is known, so everything
    with pytest.raises(EngineError, match="the table names epic"):
        Auto(table=(Calibrated("epic", 1, 1, 1),))


# measures


def test_forced_tokens_and_their_divergence() -> None:
    model = shared()
    done = full(model)
    answer = list(greedy(model, done.cache, done.logits, max_new_tokens=6))
    again = full(model)
    rows = forced_logits(model, again.cache, again.logits, answer)
    assert rows.argmax(-1).tolist() == answer
    same = divergence(rows, rows)
    assert (same.kl, same.agreement) == (0.0, 1.0)
    naive = run(model, parts_of(model), Naive())
    other = divergence(rows, forced_logits(model, naive.cache, naive.logits, answer))
    assert other.kl > 0.01
    reference = torch.distributions.Categorical(logits=rows[0])
    expected = torch.distributions.kl_divergence(reference, torch.distributions.Categorical(logits=naive.logits))
    assert other.first_kl == pytest.approx(float(expected), rel=1e-3)


def test_load_cost_measures_both_sides(tmp_path: Path) -> None:
    cost = load_cost(shared(), some_ids(64), tmp_path / "kv", dtype="fp32", repeats=2)
    assert cost.tokens == 64
    assert cost.stored_bytes > 64 * shared().token_bytes
    assert min(cost.load, cost.compute, cost.load_wall) >= 0


# kvcomm


def test_kvcomm_computes_what_it_does_not_know_and_then_knows_it() -> None:
    model, policy = shared(), Kvcomm(far=0.1)
    parts = parts_of(model)
    first, expected = run(model, parts, policy), full(model)
    assert first.repaired == 38
    assert torch.allclose(first.logits, expected.logits, atol=1e-4)
    again = run(model, parts, policy)  # the same text before each chunk: its own offset brings it back
    assert again.repaired == 0
    assert torch.allclose(again.logits, expected.logits, atol=1e-3)


def test_kvcomm_is_nearer_than_naive_behind_a_text_like_one_it_has_seen() -> None:
    model, chunk = shared(), CHUNKS[2]
    block = make_block(model, chunk)
    policy = Kvcomm(far=0.5)
    seen, like = some_ids(40, seed=50), [*some_ids(40, seed=50)[:-1], 5]
    run(model, [block, QUESTION], policy, seen)
    done, naive = (run(model, [block, QUESTION], each, like) for each in (policy, Naive()))
    expected = prefill(model, [*like, *chunk, *QUESTION])
    assert done.repaired == 0
    ours, theirs, true = (each.cache.read(40, 60)[1] for each in (done, naive, expected))
    assert (ours - true).norm() < 0.7 * (theirs - true).norm()


def test_kvcomm_keeps_few_anchors_and_uses_those_that_are_not_far() -> None:
    model, policy = shared(), Kvcomm(far=2, per_chunk=2)
    block = make_block(model, CHUNKS[0])
    strict = Kvcomm(far=0, per_chunk=2)
    for seed in range(4):
        run(model, [block, QUESTION], strict, some_ids(40, seed=60 + seed))
    assert strict.size_bytes == 2 * 13 * model.token_bytes
    assert run(model, [block, QUESTION], policy, some_ids(40, seed=60)).repaired == 13
    assert run(model, [block, QUESTION], policy, some_ids(40, seed=61)).repaired == 0  # far counts as near here
    with pytest.raises(EngineError, match="kvcomm"):
        Kvcomm(per_chunk=0)
