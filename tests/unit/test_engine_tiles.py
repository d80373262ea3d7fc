"""Attention in tiles: what it computes, whatever it ran with, and which models are read by it."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from torch.nn.functional import scaled_dot_product_attention  # noqa: E402

from rag.engine.attention import Sparse, read_sparsely  # noqa: E402
from rag.engine.attention.dense import Dense  # noqa: E402
from rag.engine.chunks import complete  # noqa: E402
from rag.engine.layout import lay_out  # noqa: E402
from rag.engine.model import EngineModel  # noqa: E402
from rag.engine.prefill import prefill  # noqa: E402
from rag.engine.tiles import attend_in_tiles  # noqa: E402
from tests.unit.test_engine_model import some_ids, tiny  # noqa: E402

WIDTH = 16


def halved() -> EngineModel:
    return EngineModel(tiny().model.to(torch.bfloat16))


def drawn(slots: int, queries: int, *, heads: int = 6, kv_heads: int = 2, seed: int = 0, dtype=torch.bfloat16):
    source = torch.Generator().manual_seed(seed)
    shapes = ((heads, queries), (kv_heads, slots), (kv_heads, slots))
    return [torch.randn(1, *shape, WIDTH, generator=source).to(dtype) for shape in shapes]


def exact(query, key, value, places):
    """In float64."""
    seen = (torch.arange(key.shape[2]) <= places[:, None])[None, None]
    wide = (one.double() for one in (query, key, value))
    return scaled_dot_product_attention(*wide, attn_mask=seen, enable_gqa=True).transpose(1, 2)


@pytest.mark.parametrize("heads", [(4, 4), (6, 2), (3, 1)])
@pytest.mark.parametrize("queries", [2, 63, 64, 65, 200])
def test_queries_at_any_slots_read_what_comes_before_them(queries: int, heads: tuple[int, int]) -> None:
    slots = 333
    query, key, value = drawn(slots, queries, heads=heads[0], kv_heads=heads[1], seed=queries)
    places = torch.randperm(slots, generator=torch.Generator().manual_seed(queries))[:queries].sort().values
    found = attend_in_tiles(query, key, value, places, WIDTH**-0.5)
    assert found.shape == (1, queries, heads[0], WIDTH)
    assert found.dtype == torch.bfloat16
    wanted = exact(query, key, value, places)
    kernel = scaled_dot_product_attention(
        query, key, value, attn_mask=(torch.arange(slots) <= places[:, None])[None, None], enable_gqa=True
    ).transpose(1, 2)
    assert (found - wanted).abs().mean() < 4 * (kernel - wanted).abs().mean() + 1e-4


def test_in_float32_it_is_attention_to_rounding() -> None:
    query, key, value = drawn(500, 200, dtype=torch.float32)
    places = torch.arange(300, 500)
    found = attend_in_tiles(query, key, value, places, WIDTH**-0.5)
    assert torch.allclose(found.double(), exact(query, key, value, places), atol=1e-5)


def test_nothing_later_is_read() -> None:
    query, key, value = drawn(400, 100)
    places = torch.arange(0, 400, 4)
    before = attend_in_tiles(query, key, value, places, 0.25)
    key[:, :, 201:], value[:, :, 201:] = 1e4, -1e4
    after = attend_in_tiles(query, key, value, places, 0.25)
    rows = places <= 200
    assert torch.equal(before[:, rows], after[:, rows])
    assert not torch.equal(before[:, ~rows], after[:, ~rows])


def test_a_row_is_the_same_whatever_runs_with_it() -> None:
    query, key, value = drawn(700, 700)
    whole = attend_in_tiles(query, key, value, torch.arange(700), 0.25)
    for start, stop in ((0, 100), (100, 101), (101, 333), (333, 700)):
        some = attend_in_tiles(
            query[:, :, start:stop], key[:, :, :stop], value[:, :, :stop], torch.arange(start, stop), 0.25
        )
        assert torch.equal(some, whole[:, start:stop])


def test_a_bfloat16_model_on_a_cpu_is_read_in_tiles_and_others_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def counted(query, key, value, places, scaling):
        calls.append(len(places))
        return attend_in_tiles(query, key, value, places, scaling)

    monkeypatch.setattr("rag.engine.attend.attend_in_tiles", counted)
    ids = some_ids(90)
    model = halved()
    done = prefill(model, ids, chunk_tokens=64)
    assert calls == [64] * model.layers + [26] * model.layers
    model.run([ids[0]], done.cache)
    assert len(calls) == 2 * model.layers, "one token alone is read by torch's kernel"
    prefill(tiny(), ids)
    assert len(calls) == 2 * model.layers


def test_a_bfloat16_prompt_in_other_chunks_is_the_same_to_the_bit() -> None:
    model, ids = halved(), some_ids(150)
    whole = prefill(model, ids)
    start = prefill(model, ids[:40], chunk_tokens=10)
    rest = complete(model, start.cache, lay_out(ids[:40], [ids[40:]]), chunk_tokens=33)
    assert torch.equal(rest.logits, whole.logits)


def test_what_a_selection_leaves_dense_is_read_in_tiles_too(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def counted(query, key, value, places, scaling):
        calls.append(len(places))
        return attend_in_tiles(query, key, value, places, scaling)

    monkeypatch.setattr("rag.engine.attention.sparse.attend_in_tiles", counted)
    model, ids = halved(), some_ids(80)
    own = prefill(model, ids).logits
    with read_sparsely(model.model, Sparse(Dense())):
        assert torch.equal(prefill(model, ids).logits, own)
    assert calls == [80] * model.layers
