"""What the engine reads from a model, and which models it refuses. Also the tiny models of the other engine tests."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from rag.engine import EngineError  # noqa: E402
from rag.engine.model import FAMILIES, EngineModel  # noqa: E402

CONFIGS = {"llama": "LlamaConfig", "mistral": "MistralConfig", "qwen2": "Qwen2Config", "qwen3": "Qwen3Config"}
VOCABULARY = 97
SCALINGS: list[dict[str, Any]] = [
    {"rope_type": "default", "rope_theta": 10_000.0},
    {"rope_type": "linear", "rope_theta": 10_000.0, "factor": 4.0},
    {"rope_type": "yarn", "rope_theta": 10_000.0, "factor": 4.0, "original_max_position_embeddings": 512},
    {
        "rope_type": "llama3", "rope_theta": 10_000.0, "factor": 8.0, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": 256,
    },
]  # fmt: skip


def tiny(family: str = "llama", seed: int = 0, **changes: Any) -> EngineModel:
    """A random model with weights so large that every token matters to the ones after it."""
    shape: dict[str, Any] = {
        "vocab_size": VOCABULARY, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "initializer_range": 0.2,
        "max_position_embeddings": 2048, "sliding_window": None, "bos_token_id": 1, "eos_token_id": 2,
    }  # fmt: skip
    if family == "llama":
        del shape["sliding_window"]
    config = getattr(transformers, CONFIGS[family])(**(shape | changes))
    torch.manual_seed(seed)
    return EngineModel(transformers.AutoModelForCausalLM.from_config(config).eval())


@cache
def shared(family: str = "llama") -> EngineModel:
    """One tiny model for many tests, which leave it as it is."""
    return tiny(family)


def some_ids(count: int, seed: int = 0) -> list[int]:
    drawn: list[int] = torch.randint(3, VOCABULARY, (count,), generator=torch.Generator().manual_seed(seed)).tolist()
    return drawn


@pytest.mark.parametrize("family", FAMILIES)
def test_shapes_are_those_of_the_model(family: str) -> None:
    model = shared(family)
    assert (model.layers, model.kv_heads, model.head_dim) == (3, 2, 16)
    assert model.token_bytes == 2 * 3 * 2 * 16 * 4
    expected = 1 / 10_000.0 ** (torch.arange(0, 16, 2) / 16)
    assert torch.allclose(model.frequencies, expected)


def test_rope_scaling_is_read_from_the_model() -> None:
    plain, scaled = tiny(), tiny(rope_parameters=SCALINGS[1])
    assert torch.allclose(scaled.frequencies, plain.frequencies / 4)


def test_frequencies_that_change_with_the_length_are_refused() -> None:
    model = tiny(rope_parameters={"rope_type": "dynamic", "rope_theta": 10_000.0, "factor": 2.0})
    with pytest.raises(EngineError, match=r"change with the length.*Exact prefix reuse works"):
        _ = model.frequencies


@pytest.mark.parametrize("family", ["mistral", "qwen2"])
def test_sliding_windows_are_refused(family: str) -> None:
    changes = {"use_sliding_window": True, "max_window_layers": 1} if family == "qwen2" else {}
    model = tiny(family, sliding_window=8, **changes)
    with pytest.raises(EngineError, match=r"slides over 8 tokens.*Exact prefix reuse works"):
        model.require_chunk_reuse()


def test_another_rotation_is_refused() -> None:
    model = tiny()
    model.model.base_model.rotary_emb.forward = lambda x, position_ids: (
        torch.ones(1, position_ids.shape[1], 16),
        torch.zeros(1, position_ids.shape[1], 16),
    )
    with pytest.raises(EngineError, match="does not turn by its own frequencies"):
        _ = model.frequencies


def test_other_families_keep_prefix_reuse_and_lose_chunk_reuse() -> None:
    config = transformers.GPTNeoXConfig(
        vocab_size=VOCABULARY, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4
    )
    model = EngineModel(transformers.AutoModelForCausalLM.from_config(config).eval())
    with pytest.raises(EngineError, match=r"'gpt_neox', not one of llama.*Exact prefix reuse works"):
        model.require_chunk_reuse()
    assert model.run([5, 6], model.new_cache()).shape == (1, VOCABULARY)


def test_layers_without_keys_are_refused() -> None:
    model = shared().model
    config = type("Config", (), {"model_type": "hybrid", "layer_types": ["full_attention", "linear_attention"]})
    with pytest.raises(EngineError, match=r"linear_attention.*no KV reuse"):
        EngineModel(type("Model", (), {"config": config, "base_model": model})())


def test_the_fingerprint_names_weights_config_and_type(tmp_path: Path) -> None:
    one = tiny().fingerprint
    assert one == tiny().fingerprint
    assert len({one, tiny(seed=1).fingerprint, tiny(rope_parameters=SCALINGS[1]).fingerprint}) == 3
    half = tiny()
    half.model.to(torch.bfloat16)
    assert half.fingerprint != one
    eager = tiny()
    eager.model.set_attn_implementation("eager")
    eager.model.save_pretrained(tmp_path)
    loaded = EngineModel(transformers.AutoModelForCausalLM.from_pretrained(tmp_path))
    assert eager.fingerprint == loaded.fingerprint == one
    changed = tiny()
    with torch.no_grad():
        changed.model.base_model.layers[2].mlp.up_proj.weight.mul_(1.01)
    assert changed.fingerprint != one


def test_cost_adds_up_and_grows_with_the_position() -> None:
    model = shared()
    assert model.cost(0, 30) + model.cost(30, 50) == pytest.approx(model.cost(0, 50))
    assert model.cost(100, 132) > model.cost(0, 32)


def test_registered_attention_functions_get_what_they_are_asked_with() -> None:
    from transformers.integrations.sdpa_attention import sdpa_attention_forward
    from transformers.masking_utils import AttentionMaskInterface, sdpa_mask
    from transformers.modeling_utils import AttentionInterface

    seen: list[Any] = []

    def attend(module: Any, query: Any, key: Any, value: Any, attention_mask: Any, **given: Any) -> Any:
        seen.append((module.layer_idx, given.pop("selection", None)))
        return sdpa_attention_forward(module, query, key, value, attention_mask, **given)

    AttentionInterface.register("engine-test", attend)
    model, ids = tiny(), some_ids(6)
    expected = model.run(ids, model.new_cache())
    model.model.set_attn_implementation("engine-test")
    with pytest.raises(EngineError, match=r"reads the masks of sdpa or eager, not 'engine-test'"):
        model.run(ids, model.new_cache(), slots=range(6))  # without a mask function of its name it would get no mask
    AttentionMaskInterface.register("engine-test", sdpa_mask)
    for slots in (None, range(6)):
        seen.clear()
        got = model.run(ids, model.new_cache(), slots=slots, attention={"selection": "top"})
        assert torch.allclose(got, expected, atol=1e-5)
        assert seen == [(0, "top"), (1, "top"), (2, "top")]


def test_one_token_steps_pack_the_heads_that_share_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """How the installed transformers calls torch: the fast way rests on it."""
    model, ids, shapes = shared(), some_ids(9), []
    cache = model.new_cache()
    model.run(ids[:8], cache)
    stock = torch.nn.functional.scaled_dot_product_attention

    def watched(query: Any, key: Any, *given: Any, **named: Any) -> Any:
        shapes.append((tuple(query.shape), tuple(key.shape)))
        return stock(query, key, *given, **named)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", watched)
    got = model.run(ids[8:], cache)
    assert shapes == [((1, 2, 2, 16), (1, 2, 9, 16))] * 3
    monkeypatch.undo()
    assert torch.allclose(got, model.model(input_ids=torch.tensor([ids])).logits[:, -1], atol=1e-4)


def test_slots_must_ascend_and_match() -> None:
    model = shared()
    cache = model.new_cache()
    for slots in ([0], [1, 0], [1, 1]):
        with pytest.raises(EngineError, match="ascending"):
            model.run([5, 6], cache, slots=slots)
