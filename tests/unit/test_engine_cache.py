"""The cache against the installed transformers: a model with it does what it does with DynamicCache."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from rag.engine import EngineError  # noqa: E402
from rag.engine.cache import KvCache  # noqa: E402
from rag.engine.model import FAMILIES  # noqa: E402
from tests.unit.test_engine_model import shared, some_ids, tiny  # noqa: E402


def dynamic() -> object:
    return transformers.DynamicCache()


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_those_of_the_dynamic_cache(family: str, attention: str) -> None:
    model = tiny(family).model
    model.set_attn_implementation(attention)
    ids = torch.tensor([some_ids(40)])
    ours, theirs = KvCache(3, capacity=4), dynamic()  # small: it has to grow
    for part in ids.split([17, 1, 1, 20, 1], dim=1):
        with torch.no_grad():
            mine = model(input_ids=part, past_key_values=ours, use_cache=True).logits
            stock = model(input_ids=part, past_key_values=theirs, use_cache=True).logits
        assert torch.allclose(mine, stock, atol=1e-5)
    assert ours.get_seq_length() == ours.length == 40
    with torch.no_grad():
        whole = model(input_ids=ids).logits
    assert torch.allclose(mine[:, -1], whole[:, -1], atol=1e-4)


@pytest.mark.parametrize("family", ["mistral", "qwen2"])
def test_sliding_windows_see_no_more_than_in_the_dynamic_cache(family: str) -> None:
    changes = {"use_sliding_window": True, "max_window_layers": 1} if family == "qwen2" else {}
    model = tiny(family, sliding_window=8, **changes).model
    ids = torch.tensor([some_ids(30)])
    ours, theirs = KvCache(3), transformers.DynamicCache(config=model.config)
    for part in ids.split([19, 1, 9, 1], dim=1):
        with torch.no_grad():
            mine = model(input_ids=part, past_key_values=ours, use_cache=True).logits
            stock = model(input_ids=part, past_key_values=theirs, use_cache=True).logits
        assert torch.allclose(mine, stock, atol=1e-5)


def test_generate_takes_it_and_writes_the_same_tokens_for_a_padded_batch() -> None:
    model = shared().model
    rows = [some_ids(9, seed=1), some_ids(20, seed=2), some_ids(14, seed=3)]
    ids = torch.tensor([[0] * (20 - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (20 - len(row)) + [1] * len(row) for row in rows])
    asked = {"attention_mask": mask, "max_new_tokens": 12, "do_sample": False, "pad_token_id": 0}
    stock = model.generate(ids, **asked)
    cache = KvCache(3, capacity=8)
    assert torch.equal(model.generate(ids, past_key_values=cache, **asked), stock)
    assert cache.length == stock.shape[1] - 1
    alone = [model.generate(torch.tensor([row]), past_key_values=KvCache(3), **asked | {"attention_mask": None})
             for row in rows]  # fmt: skip
    for row, single, batched in zip(rows, alone, stock, strict=True):
        assert single[0, len(row) :].tolist() == batched[20 : 20 + single.shape[1] - len(row)].tolist()


def test_beams_and_repeated_rows_work() -> None:
    model = shared().model
    ids = torch.tensor([some_ids(11)])
    asked = {"num_beams": 3, "max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    assert torch.equal(model.generate(ids, past_key_values=KvCache(3), **asked), model.generate(ids, **asked))
    cache = KvCache(3)
    model(input_ids=ids, past_key_values=cache)
    cache.batch_repeat_interleave(2)
    assert cache.kv_layers[0].buffers()[0].shape[0] == 2
    cache.batch_select_indices(torch.tensor([1]))
    assert torch.equal(cache.read(0, 11)[0][0], cache.kv_layers[0].buffers()[0][0, :, :11])


def test_it_is_written_in_place() -> None:
    model = shared()
    cache = model.new_cache(64)
    model.run(some_ids(10), cache)
    place = cache.kv_layers[0].buffers()[0].data_ptr()
    for token in some_ids(50):
        model.run([token], cache)
    assert cache.kv_layers[0].buffers()[0].data_ptr() == place
    assert cache.length == 60


def test_crop_and_truncate_forget_the_end() -> None:
    model, ids = shared(), some_ids(30)
    cache = model.new_cache()
    expected = model.run(ids, cache)
    cache.crop(-10)
    assert torch.allclose(model.run(ids[20:], cache), expected, atol=1e-5)
    cache.truncate(4)
    assert cache.get_seq_length() == 4
    assert torch.allclose(model.run(ids[4:], cache), expected, atol=1e-5)
    with pytest.raises(ValueError, match="negative"):
        cache.crop(3)
    with pytest.raises(EngineError, match="cannot keep 31"):
        cache.truncate(31)
    cache.reset()
    assert cache.length == 0
    assert torch.allclose(model.run(ids, cache), expected, atol=1e-5)


def test_ranges_move_between_caches() -> None:
    model, ids = shared(), some_ids(30)
    source = model.new_cache()
    expected = model.run(ids, source)
    copy = model.new_cache(3)
    copy.append(*source.read(0, 12))
    copy.append(*source.read(12, 29))
    assert copy.length == 29
    assert torch.allclose(model.run(ids[29:], copy), expected, atol=1e-5)
    copy.write(5, *(torch.zeros_like(part) for part in source.read(5, 9)))
    assert not copy.read(5, 9)[0].any()
    assert torch.equal(copy.read(9, 20)[1], source.read(9, 20)[1])
    assert copy.length == 30


def test_ranges_are_copies() -> None:
    model = shared()
    cache = model.new_cache()
    model.run(some_ids(8), cache)
    keys, _ = cache.read(0, 8)
    kept = keys.clone()
    cache.write(0, torch.zeros_like(keys), torch.zeros_like(keys))
    assert torch.equal(keys, kept)


def test_what_was_made_in_inference_mode_can_be_written_outside() -> None:
    model = shared()
    cache = model.new_cache(4)
    with torch.inference_mode():
        model.run(some_ids(9), cache)
        part = cache.read(0, 3)
    cache.write(3, *part)
    model.run([5], cache)
    assert cache.length == 10


def test_wrong_ranges_say_so() -> None:
    cache = KvCache(3)
    with pytest.raises(EngineError, match=r"cannot read \[0, 1\)"):
        cache.read(0, 1)
    with pytest.raises(EngineError, match="with 3 layers"):
        cache.append(torch.zeros(2, 2, 1, 16), torch.zeros(2, 2, 1, 16))
    with pytest.raises(EngineError, match="at least one layer"):
        KvCache(0)
    model = shared().model
    model(input_ids=torch.tensor([[5, 6], [7, 8]]), past_key_values=cache)
    with pytest.raises(EngineError, match="batch of 2"):
        cache.read(0, 1)
