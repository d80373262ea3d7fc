"""A key that is rotated equals the key computed at its new place."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")

from rag.engine import EngineError  # noqa: E402
from rag.engine.blocks import KvBlock, cut_block, make_block  # noqa: E402
from rag.engine.model import FAMILIES, EngineModel  # noqa: E402
from rag.engine.rotate import rotate, turn, turns  # noqa: E402
from tests.unit.test_engine_model import SCALINGS, shared, some_ids, tiny  # noqa: E402


def at(model: EngineModel, ids: list[int], start: int) -> Any:
    """Keys and values of `ids` that stand at `start` and see nothing before them."""
    cache = model.new_cache()
    mask = torch.ones(len(ids), len(ids), dtype=torch.bool).tril()[None, None]
    places = torch.arange(start, start + len(ids))[None]
    with torch.no_grad():
        model.model(input_ids=torch.tensor([ids]), position_ids=places, attention_mask=mask, past_key_values=cache)
    return cache.read(0, len(ids))


@pytest.mark.parametrize("delta", [1, 37, 1900])
@pytest.mark.parametrize("family", FAMILIES)
def test_rotating_equals_computing_there(family: str, delta: int) -> None:
    model, ids = shared(family), some_ids(20)
    here, there = at(model, ids, 0), at(model, ids, delta)
    rounded = 1e-4 + 1e-6 * delta  # models round position x frequency to float32 themselves
    assert torch.allclose(rotate(here[0], delta, model.frequencies), there[0], atol=rounded)
    assert not torch.allclose(here[0], there[0], atol=1e-2)
    assert torch.allclose(here[1], there[1], atol=rounded)  # values do not move


@pytest.mark.parametrize("scaling", SCALINGS, ids=lambda scaling: str(scaling["rope_type"]))
def test_scaled_rotations_move_too(scaling: dict[str, Any]) -> None:
    model, ids = tiny(rope_parameters=scaling), some_ids(20)
    moved = rotate(at(model, ids, 50)[0], 700, model.frequencies)
    assert torch.allclose(moved, at(model, ids, 750)[0], atol=1e-3)


def test_there_and_back_is_the_same() -> None:
    keys = torch.randn(2, 2, 9, 16)
    frequencies = shared().frequencies
    assert torch.allclose(rotate(rotate(keys, 8000, frequencies), -8000, frequencies), keys, atol=1e-5)
    assert rotate(keys, 0, frequencies) is keys


def test_short_types_are_rotated_in_float32() -> None:
    keys, frequencies = torch.randn(1, 2, 50, 16), shared().frequencies
    moved = rotate(keys.bfloat16(), 1000, frequencies)
    assert moved.dtype == torch.bfloat16
    assert torch.equal(moved, rotate(keys.bfloat16().float(), 1000, frequencies).bfloat16())


def test_a_block_cut_anywhere_is_the_same_block() -> None:
    model, ids = shared(), some_ids(15)
    alone = make_block(model, ids)
    assert alone.ids == tuple(ids)
    assert len(alone) == 15
    assert alone.size_bytes == 15 * model.token_bytes
    cache = model.new_cache()
    keys, values = at(model, ids, 64)
    cache.append(torch.zeros(3, 2, 64, 16), torch.zeros(3, 2, 64, 16))
    cache.append(keys, values)
    cut = cut_block(model, cache, 64, ids)
    assert torch.allclose(cut.k, alone.k, atol=1e-4)
    assert torch.allclose(cut.v, alone.v, atol=1e-4)


def test_a_block_behind_a_text_differs_from_one_alone() -> None:
    model = shared()
    behind = make_block(model, some_ids(15), before=some_ids(20, seed=5))
    assert not torch.allclose(behind.v, make_block(model, some_ids(15)).v, atol=1e-2)


def test_blocks_that_do_not_fit_themselves_are_refused() -> None:
    good = torch.zeros(3, 2, 4, 16)
    for ids, k, v, variance in (
        ((), good[:, :, :0], good[:, :, :0], None),
        ((1, 2), good, good, None),
        ((1, 2, 3, 4), good, good.bfloat16(), None),
        ((1, 2, 3, 4), good, good, torch.zeros(3)),
    ):
        with pytest.raises(EngineError, match=r"block|variance"):
            KvBlock(ids, k, v, "", variance)


def test_many_moves_in_one_call_are_each_of_them_alone() -> None:
    source = torch.Generator().manual_seed(0)
    keys = torch.randn(2, 9, 16, generator=source).bfloat16()
    frequencies = 1 / 10_000.0 ** (torch.arange(0, 16, 2) / 16)
    out = torch.zeros_like(keys)
    turn(keys, *turns([(5, 4), (0, 2), (1900, 3)], frequencies, keys.device), out)
    parts = [rotate(keys[:, :4], 5, frequencies), keys[:, 4:6], rotate(keys[:, 6:], 1900, frequencies)]
    assert torch.equal(out, torch.cat(parts, dim=1))
