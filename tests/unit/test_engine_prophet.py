"""Repair of what the question reads."""

from __future__ import annotations

from dataclasses import replace

import pytest

torch = pytest.importorskip("torch")

from rag.engine import EngineError, InterruptedPrefillError  # noqa: E402
from rag.engine.blocks import KvBlock, cut_block, make_block  # noqa: E402
from rag.engine.chunks import assemble, prefill_chunks  # noqa: E402
from rag.engine.layout import lay_out  # noqa: E402
from rag.engine.prefill import prefill  # noqa: E402
from rag.engine.repair.asked import Asked  # noqa: E402
from rag.engine.repair.info_flow import InfoFlow  # noqa: E402
from rag.engine.repair.naive import Naive  # noqa: E402
from rag.engine.repair.prophet import Prophet  # noqa: E402
from tests.unit.test_engine_model import shared, some_ids, tiny  # noqa: E402

PREFIX, QUESTION = some_ids(11, seed=1), some_ids(7, seed=2)
CHUNKS = [some_ids(length, seed=length) for length in (13, 5, 20)]
IDS = [*PREFIX, *(token for chunk in CHUNKS for token in chunk), *QUESTION]


def parts(before: list[int] | None = None) -> list[KvBlock | list[int]]:
    return [*(make_block(shared(), chunk, before or []) for chunk in CHUNKS), QUESTION]


def run(policy: Prophet | InfoFlow | Asked | Naive, given: list[KvBlock | list[int]], **options: int):  # type: ignore[no-untyped-def]
    model = shared()
    return prefill_chunks(model, prefill(model, PREFIX).cache, PREFIX, given, policy, **options)


@pytest.mark.parametrize("chunk_tokens", [512, 3])
def test_all_repaired_is_full_prefill_and_none_is_naive(chunk_tokens: int) -> None:
    full, naive = prefill(shared(), IDS), run(Naive(), parts())
    assert torch.allclose(run(Prophet(share=1.0), parts(), chunk_tokens=chunk_tokens).logits, full.logits, atol=1e-4)
    none = run(Prophet(share=0.0), parts(), chunk_tokens=chunk_tokens)
    assert torch.allclose(none.logits, naive.logits, atol=1e-4)
    assert (none.repaired, none.computed) == (0, len(QUESTION))


@pytest.mark.parametrize("kind", [Prophet, InfoFlow])
@pytest.mark.parametrize("chunk_tokens", [512, 3])
@pytest.mark.parametrize("window", [0, 2])
def test_the_tokens_that_the_question_takes_most_of_are_repaired(
    window: int, chunk_tokens: int, kind: type[Prophet | InfoFlow]
) -> None:
    """Behind blocks cut from a full prefill the question attends as in a plain pass, which transformers tells."""
    model = tiny()
    exact = prefill(model, IDS).cache
    starts = [len(PREFIX), len(PREFIX) + 13, len(PREFIX) + 18]
    given: list[KvBlock | list[int]] = [
        cut_block(model, exact, start, chunk) for start, chunk in zip(starts, CHUNKS, strict=True)
    ]
    cache = prefill(model, PREFIX).cache
    policy = kind(share=0.25, window=window)
    done = prefill_chunks(model, cache, PREFIX, [*given, QUESTION], policy, chunk_tokens=chunk_tokens)
    model.model.set_attn_implementation("eager")
    with torch.no_grad():
        weights = model.model(torch.tensor([IDS]), output_attentions=True).attentions
    asking = slice(len(IDS) - (window or len(QUESTION)), len(IDS))
    _, values = exact.read(0, len(IDS))
    lengths = values.norm(dim=-1).repeat_interleave(2, dim=1)  # (layers, heads, tokens)
    if kind is Prophet:
        lengths = torch.ones_like(lengths)
    total = sum((of_layer[0, :, asking].sum(1) * own).sum(0) for of_layer, own in zip(weights, lengths, strict=True))
    held = range(len(PREFIX), len(PREFIX) + 38)
    best = sorted(sorted(held, key=lambda at: -float(total[at]))[: round(0.25 * 38)])
    assert list(done.repaired_at) == best
    assert done.computed == 2 * len(QUESTION) + len(best)
    assert cache.attention == {}


def test_a_first_block_from_its_true_prefix_is_left_alone() -> None:
    first, *others = parts(PREFIX)[:-1]
    given = [first, *(replace(one, variance=torch.ones(len(one))) for one in others if isinstance(one, KvBlock))]
    done = run(Prophet(share=0.5), [*given, QUESTION])
    assert len(done.repaired_at) == round(0.5 * 25)
    assert min(done.repaired_at) >= len(PREFIX) + 13


def test_new_tokens_between_blocks_are_read_but_do_not_vote() -> None:
    model = shared()
    given = [make_block(model, CHUNKS[0]), [5, 6], make_block(model, CHUNKS[2]), QUESTION]
    ids = [*PREFIX, *CHUNKS[0], 5, 6, *CHUNKS[2], *QUESTION]
    assert torch.allclose(run(Prophet(share=1.0), given).logits, prefill(model, ids).logits, atol=1e-4)
    assert run(Prophet(share=0.2), given).computed == 2 * 9 + round(0.2 * 33)


def test_it_can_be_stopped_between_its_passes_and_started_again() -> None:
    model = shared()
    layout = lay_out(PREFIX, parts())
    cache = prefill(model, PREFIX).cache
    policy = Prophet(share=0.3)
    assemble(model, cache, layout)
    with pytest.raises(InterruptedPrefillError):
        policy.finish(model, cache, layout, keep_going=lambda *_: False)
    assert cache.attention == {}
    again = prefill_chunks(model, cache, PREFIX, parts(), policy)
    assert torch.allclose(again.logits, run(policy, parts()).logits, atol=1e-4)


@pytest.mark.parametrize("head", [0, 3])
def test_the_first_tokens_are_repaired_beside_those_that_the_question_takes_most_of(head: int) -> None:
    done, only = run(Asked(k=2, share=0.25, head=head), parts()), run(Asked(k=2, share=0.0), parts())
    first = {24, 25, 29, 30}  # of the second and the third block
    assert set(only.repaired_at) == first < set(done.repaired_at)
    assert len(done.repaired_at) == 4 + round(0.25 * 38)
    assert done.computed == (head or len(QUESTION)) + len(QUESTION) + len(done.repaired_at)
    assert torch.allclose(run(Asked(share=1.0), parts()).logits, prefill(shared(), IDS).logits, atol=1e-4)
    plain = run(Asked(k=0, share=0.25, head=0), parts())
    assert plain.repaired_at == run(InfoFlow(share=0.25), parts()).repaired_at
    shallow = run(Asked(k=0, share=0.25, head=0, depth=0.3), parts())  # one layer of three
    assert len(shallow.repaired_at) == len(plain.repaired_at)
    assert shallow.repaired_at != plain.repaired_at


def test_what_goes_late_stays_as_the_blocks_had_it_in_the_layers_that_are_not_asked() -> None:
    """Three layers, of which two are asked: the third keeps the block's own keys where a token has left."""
    policy, given = Asked(k=0, share=0.25, head=0, depth=0.67), parts()
    whole, half, none = (run(replace(policy, late=late), given) for late in (1.0, 0.5, 0.0))
    assert whole.repaired_at == half.repaired_at == none.repaired_at
    plain = run(Naive(), given)
    read = {done: done.cache.read(0, len(IDS))[1] for done in (whole, half, none, plain)}
    repaired = list(whole.repaired_at)
    for done in (half, none):
        assert torch.equal(read[done][:2], read[whole][:2])
    left = [at for at in repaired if torch.equal(read[half][2, :, at], read[plain][2, :, at])]
    assert len(left) == len(repaired) - round(len(repaired) / 2)
    assert torch.equal(read[none][2][:, repaired], read[plain][2][:, repaired])
    assert not torch.equal(half.logits, whole.logits)
    again = run(replace(policy, late=0.5), given, chunk_tokens=64)
    assert torch.equal(again.logits, half.logits)


def test_settings_out_of_range_say_so() -> None:
    for wrong in ({"share": 1.5}, {"window": -1}):
        with pytest.raises(EngineError, match="prophet: share must lie in"):
            Prophet(**wrong)  # type: ignore[arg-type]
        with pytest.raises(EngineError, match="info-flow: share must lie in"):
            InfoFlow(**wrong)  # type: ignore[arg-type]
    for wrong in ({"share": 1.5}, {"head": -1}, {"k": -1}, {"depth": 0}, {"late": 2}):
        with pytest.raises(EngineError, match="asked: "):
            Asked(**wrong)  # type: ignore[arg-type]
