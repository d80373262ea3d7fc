"""Selections that read weights: that they keep to the laws with them, what the weights decide, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
save_file = pytest.importorskip("safetensors.torch").save_file

from rag.engine.attention import Kept, Memory, Step  # noqa: E402
from rag.engine.attention._adapters import (  # noqa: E402
    ChunkAdapter,
    DynamicMask,
    Forecast,
    QkAdapter,
    flat,
    trained,
    turned,
)
from rag.engine.attention.chunkllm import Chunkllm  # noqa: E402
from rag.engine.attention.dma import Dma  # noqa: E402
from rag.engine.attention.sparda import Sparda  # noqa: E402
from rag.engine.attention.token_skip import TokenSkip  # noqa: E402
from rag.engine.errors import EngineError  # noqa: E402
from rag.engine.rotate import rotate  # noqa: E402
from tests.unit import test_engine_attention_laws as laws  # noqa: E402
from tests.unit.test_engine_attention_selections import asked, best, read, step  # noqa: E402

METHODS = ("dma", "chunkllm", "sparda")
FREQUENCIES = 1 / 10_000.0 ** (torch.arange(0, 16, 2) / 16)


def made(method: str, heads: int, kv_heads: int, width: int) -> Any:
    if method == "dma":
        return DynamicMask(kv_heads, width)
    return Forecast(heads, kv_heads, width) if method == "sparda" else QkAdapter(heads, kv_heads, width, 6)


def weights(
    folder: Path, method: str, *, heads: int = 4, kv_heads: int = 2, width: int = 16, layers: int = 3, boundary: int = 1
) -> str:
    """A file of modules drawn by chance, large enough to decide."""
    torch.manual_seed(4)
    modules = {f"layers.{layer}": made(method, heads, kv_heads, width) for layer in range(layers)}
    if method == "chunkllm":
        modules[f"boundary.{boundary}"] = ChunkAdapter(kv_heads, width)
    tensors = {f"{name}.{key}": 3 * one for name, module in modules.items() for key, one in module.state_dict().items()}
    rotary = 1 / 10_000.0 ** (torch.arange(0, width, 2) / width)
    path = folder / f"{method}-{heads}-{kv_heads}-{width}.safetensors"
    save_file({name: one.contiguous() for name, one in tensors.items()} | {"rotary": rotary}, path, {"method": method})
    return str(path)


@pytest.fixture
def with_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Puts weights into the selections of the laws."""
    found = {}
    for method in METHODS:
        for table in (laws.SELECTIONS, laws.ALL_KEPT):
            given = replace(table[method], weights=weights(tmp_path, method), trained=True)
            if method == "dma":
                given = replace(given, strength=0.0)
            monkeypatch.setitem(table, method, given)
        found[method] = laws.SELECTIONS[method]
    monkeypatch.setitem(laws.NEVER_AGAIN, "chunkllm", {"refresh": 1})
    return found


each = pytest.mark.parametrize("method", METHODS)


@each
def test_the_laws_hold_with_weights(method: str, with_weights: dict[str, Any]) -> None:
    laws.test_all_kept_is_dense(method, "gather", (7, 31, laws.PROMPT))
    laws.test_executors_agree(method, "gather", (4, 2), (7, 31, laws.PROMPT))
    laws.test_a_later_token_changes_no_earlier_row(method, 37)
    laws.test_what_is_read_is_causal_and_holds_the_row_itself(method)
    laws.test_padding_changes_nothing(method, "left", "gather")
    laws.test_padding_changes_nothing(method, "right", "gather")
    laws.test_a_batch_of_one_length_is_each_alone(method)
    laws.test_the_same_prompt_is_read_the_same(method, "gather")
    laws.test_gradients_are_those_of_the_reference(method)
    laws.test_a_truncated_cache_is_read_as_if_it_had_never_been_longer(method)
    laws.test_short_prompts_and_rows_alone_are_finite(method, "gather", 5)
    laws.test_bfloat16_agrees_with_the_reference_up_to_rounding(method)


@each
def test_weights_decide(method: str, with_weights: dict[str, Any]) -> None:
    ours, _ = laws.run(with_weights[method])
    plain, _ = laws.run(replace(with_weights[method], weights="", trained=False))
    assert not torch.allclose(ours, plain, atol=1e-2)


@each
def test_no_row_reads_more_than_the_budget_with_weights(method: str, with_weights: dict[str, Any]) -> None:
    laws.test_no_row_reads_more_than_the_budget_and_the_last_of_a_block_all_of_it(method)


def test_dma_keeps_the_slots_with_the_largest_trained_gate(tmp_path: Path) -> None:
    path = weights(tmp_path, "dma", width=8)
    given = step(1, 60)
    kept = asked(Dma(keep_window_size=16, local=4, q_block=4, weights=path), given)
    module = made("dma", 4, 2, 8)
    held = trained(path, "dma").tensors
    module.load_state_dict({name: held[f"layers.0.{name}"] for name in module.state_dict()})
    gate = module(given.value)[0].detach()
    by_hand = module.A * torch.nn.functional.softplus(flat(given.value) @ module.dt_proj.weight.T + module.dt_proj.bias)
    assert torch.allclose(gate, by_hand[0].T, atol=1e-6)
    for head in range(2):
        expected = best({slot: float(gate[head, slot]) for slot in range(56)}, 12)
        assert set(read(given, kept)[head, 0, :56].nonzero()[:, 0].tolist()) == expected
    assert kept.bias is None


def test_chunkllm_scores_chunks_by_the_adapted_heads_before_their_rotation(tmp_path: Path) -> None:
    path = weights(tmp_path, "chunkllm", width=8)
    given = step(1, 61)
    how = Chunkllm(budget=24, chunk_size=8, sink=0, local=5, refresh=1, q_block=1, weights=path)
    kept = asked(how, given)
    held = trained(path, "chunkllm")
    bare = torch.stack([rotate(given.key[0, :, at], -at, held.rotary) for at in range(56)], dim=1)
    query = flat(rotate(given.query, -60, held.rotary))[0, 0] @ held.tensors["layers.0.q_adapter.weight"].T
    keys = flat(bare[None])[0] @ held.tensors["layers.0.k_adapter.weight"].T
    scores = {chunk: float(query @ keys[8 * chunk : 8 * chunk + 8].mean(0)) for chunk in range(7)}
    order = sorted(scores, key=lambda one: -scores[one])
    expected = {slot for chunk in order[:2] for slot in range(8 * chunk, 8 * chunk + 8)}
    expected |= set(range(8 * order[2], 8 * order[2] + 3))  # the last one in part
    assert set(read(given, kept)[0, 0, :56].nonzero()[:, 0].tolist()) == expected


def test_chunkllm_chooses_anew_behind_the_end_of_a_chunk_and_after_a_while(tmp_path: Path) -> None:
    path = weights(tmp_path, "chunkllm", width=8, layers=2)
    tensors = dict(trained(path, "chunkllm").tensors)
    tensors["boundary.1.linear.weight"] = torch.zeros(1, 16)
    tensors["boundary.1.linear.weight"][0, 0] = 1.0
    tensors["boundary.1.linear.bias"] = torch.zeros(1)
    path = str(tmp_path / "ends.safetensors")
    save_file(tensors, path, {"method": "chunkllm"})
    how = Chunkllm(budget=40, chunk_size=4, sink=0, local=4, refresh=6, q_block=1, weights=path)
    layers, across = (Memory(), Memory()), dict[str, Any]()
    chosen = []
    for place in range(40, 54):
        for layer in range(2):
            drawn = step(1, place + 1, seed=1, layer=layer)
            value = torch.full_like(drawn.value, -1.0)
            value[..., place, :] = 1.0 if place == 43 else -1.0
            layers[layer].across = across
            asked(how, replace(drawn, value=value), layers[layer])
        assert {layers[at].held["choice"].place for at in range(2)} == {layers[0].held["choice"].place}
        chosen.append(layers[0].held["choice"].place)
    assert chosen == [40] * 4 + [44] * 6 + [50] * 4


def test_sparda_chooses_by_the_forecast_of_the_layer_before(tmp_path: Path) -> None:
    path = weights(tmp_path, "sparda", width=8)
    how = Sparda(budget=24, page_size=4, init_blocks=1, local=4, q_block=1, weights=path)
    across: dict[str, Any] = {}
    first, then = step(1, 61, seed=1, layer=0), step(1, 61, seed=2, layer=1)
    assert how.select(first, Memory(across=across)) is None
    kept = asked(how, then, Memory(across=across))
    held = trained(path, "sparda")
    module = made("sparda", 4, 2, 8)
    module.load_state_dict({"forecast.weight": held.tensors["layers.0.forecast.weight"]})
    with torch.no_grad():
        query = rotate(module(rotate(first.query, -60, held.rotary)), 60, held.rotary)[0, :, 0]
    for head in range(2):
        pages = then.key[0, head, :56].reshape(-1, 4, 8).mean(1)
        chosen = best({page: float(query[head] @ pages[page]) for page in range(1, 14)}, 3) | {0}
        expected = {slot for page in chosen for slot in range(4 * page, 4 * page + 4)}
        assert set(read(then, kept)[head, 0, :56].nonzero()[:, 0].tolist()) == expected


def test_sparda_is_dense_without_a_forecast_of_this_pass(tmp_path: Path) -> None:
    how = Sparda(budget=24, page_size=4, local=4, q_block=1, trained=False)
    across: dict[str, Any] = {}
    how.select(step(1, 60, layer=0), Memory(across=across))
    assert how.select(step(1, 61, layer=1), Memory(across=across)) is None
    assert how.select(step(1, 61, layer=3), Memory(across=across)) is None


def test_token_skip_keeps_what_the_last_queries_attend_to_and_fewer_in_deeper_stages() -> None:
    how = TokenSkip(keep=0.5, start=1, every=2, least=8, probes=3, sink=2, local=4, q_block=8)
    across: dict[str, Any] = {}
    kept: dict[int, Kept] = {}
    given: dict[int, Step] = {}
    assert how.select(step(64, 64, layer=0), Memory(across=across)) is None
    for layer in range(1, 7):
        given[layer] = step(64, 64, seed=layer, layer=layer)
        kept[layer] = asked(how, given[layer], Memory(across=across))
    tokens = {layer: set(one.keep[0, 0, -1].nonzero()[:, 0].tolist()) for layer, one in kept.items()}
    one = given[1]
    scores = (one.query[0, :, -3:] @ one.key[0].repeat_interleave(2, dim=0).transpose(-1, -2)) * one.scaling
    later = torch.arange(64) > torch.arange(61, 64)[:, None]
    mass = scores.masked_fill(later, -torch.inf).softmax(-1).mean((0, 1))
    expected = best({slot: float(mass[slot]) for slot in range(64)}, 32) | {0, 1}
    assert tokens[1] == {slot for slot in expected if slot < kept[1].local[-1]}
    assert tokens[1] == tokens[2]
    assert tokens[3] < tokens[2]
    assert tokens[5] < tokens[4]
    assert tokens[5] == tokens[6]


def test_token_skip_answers_from_what_the_prompt_kept_and_all_behind_it() -> None:
    how = TokenSkip(keep=0.25, start=0, every=1, least=8, probes=3, sink=0, local=4, q_block=8)
    memory = Memory()
    assert how.select(step(1, 40), memory) is None  # of no prompt
    prompt = asked(how, step(60, 60, seed=1), memory)
    answer = step(1, 66, seed=1)
    mask = read(answer, asked(how, answer, memory))[0, 0]
    assert int(mask[:60].sum()) == 15
    assert bool(mask[60:].all())
    local = prompt.local[-1]
    assert torch.equal(mask[:local], prompt.keep[0, 0, -1][:local])
    memory.valid = 66
    memory.begin(50)
    assert how.select(step(1, 51), memory) is None


@each
def test_a_rotation_back_is_that_of_the_house(method: str) -> None:
    given = torch.randn(2, 3, 5, 16)
    places = torch.tensor([0, 7, 100, 4000, 8000])
    turn = turned(given, places, FREQUENCIES)
    for at, place in enumerate(places.tolist()):
        assert torch.allclose(turn[:, :, at], rotate(given[:, :, at], place, FREQUENCIES), atol=1e-6)
    assert torch.allclose(turned(turn, places, FREQUENCIES, back=True), given, atol=1e-5)


def selection(method: str, path: str) -> Any:
    kinds: dict[str, Any] = {"dma": Dma, "chunkllm": Chunkllm, "sparda": Sparda}
    return kinds[method](weights=path)


@each
def test_wrong_weights_are_refused_with_what_to_do(method: str, tmp_path: Path) -> None:
    given = step(1, 200)
    with pytest.raises(EngineError, match=r"no weights at .*train_attention"):
        selection(method, str(tmp_path / "none.safetensors")).select(given, Memory())
    other = tmp_path / "text.safetensors"
    other.write_text("no weights at all")
    with pytest.raises(EngineError, match="not a safetensors file"):
        selection(method, str(other)).select(given, Memory())
    others = weights(tmp_path, "dma" if method != "dma" else "sparda", width=8)
    with pytest.raises(EngineError, match="holds weights of"):
        selection(method, others).select(given, Memory())
    with pytest.raises(EngineError, match="another model"):
        selection(method, weights(tmp_path, method, width=16)).select(given, Memory())
    with pytest.raises(EngineError, match="no weights for layer 5"):
        selection(method, weights(tmp_path, method, width=8)).select(replace(given, layer=5), Memory())


@pytest.mark.parametrize("kind", [Chunkllm, Sparda])
def test_without_weights_it_has_to_be_asked_for(kind: Any) -> None:
    with pytest.raises(EngineError, match="trained=False"):
        kind().select(step(1, 40), Memory())


WRONG: list[tuple[Any, dict[str, Any]]] = [
    (Chunkllm, {"refresh": 0}),
    (Chunkllm, {"budget": 60}),
    (Sparda, {"page_size": 0}),
    (Sparda, {"budget": 100}),
    (Sparda, {"dense_layers": 0}),
    (TokenSkip, {"keep": 0.0}),
    (TokenSkip, {"every": 0}),
    (TokenSkip, {"least": -1}),
]


@pytest.mark.parametrize(("kind", "given"), WRONG)
def test_parameters_out_of_range_are_refused(kind: Any, given: dict[str, Any]) -> None:
    with pytest.raises(EngineError, match=kind.name):
        kind(**given)
