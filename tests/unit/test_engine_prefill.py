"""Prefill in chunks that can be stopped and gone on with, and greedy decoding."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from rag.engine import EngineError, InterruptedPrefillError  # noqa: E402
from rag.engine.prefill import greedy, prefill  # noqa: E402
from tests.unit.test_engine_model import shared, some_ids  # noqa: E402


@pytest.mark.parametrize("chunk_tokens", [1, 7, 32, 33, 1000])
def test_chunks_change_nothing(chunk_tokens: int) -> None:
    model, ids = shared(), some_ids(33)
    expected = model.model(input_ids=torch.tensor([ids])).logits[0, -1]
    done = prefill(model, ids, chunk_tokens=chunk_tokens)
    assert torch.allclose(done.logits, expected, atol=1e-4)
    assert (done.cache.length, done.computed, done.reused) == (33, 33, 0)


def test_it_stops_between_chunks_and_goes_on() -> None:
    model, ids = shared(), some_ids(40)
    cache, seen = model.new_cache(), []

    def until_twenty(done: int, total: int) -> bool:
        seen.append((done, total))
        return done < 20

    with pytest.raises(InterruptedPrefillError, match="stopped after 24 of 40") as stopped:
        prefill(model, ids, cache, chunk_tokens=8, keep_going=until_twenty)
    assert seen == [(8, 40), (16, 40), (24, 40)]
    assert (stopped.value.done, stopped.value.total, cache.length) == (24, 40, 24)
    done = prefill(model, ids, cache, chunk_tokens=8)
    assert (done.computed, done.reused) == (16, 24)
    assert torch.allclose(done.logits, prefill(model, ids).logits, atol=1e-4)


def test_nothing_to_compute_is_an_error() -> None:
    model, ids = shared(), some_ids(5)
    with pytest.raises(EngineError, match="holds 5 tokens, the prompt has 5"):
        prefill(model, ids, prefill(model, ids).cache)
    with pytest.raises(EngineError, match="the prompt has 0"):
        prefill(model, [])
    with pytest.raises(EngineError, match="chunk_tokens must be >= 1"):
        prefill(model, ids, chunk_tokens=0)


def test_greedy_writes_what_generate_writes() -> None:
    model, ids = shared(), some_ids(12)
    stock = model.model.generate(torch.tensor([ids]), max_new_tokens=20, do_sample=False, eos_token_id=-1)
    done = prefill(model, ids)
    new = list(greedy(model, done.cache, done.logits, max_new_tokens=20))
    assert new == stock[0, 12:].tolist()
    assert done.cache.length == 12 + 19
    again = prefill(model, ids)
    stop = new[6]
    assert list(greedy(model, again.cache, again.logits, max_new_tokens=20, stops={stop})) == new[: new.index(stop)]
