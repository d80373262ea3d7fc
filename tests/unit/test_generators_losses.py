"""Losses in blocks and windows against one plain pass over everything."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from rag.generators._weighing import _CARRY, _room
from rag.generators.local import LocalGenerator

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.models


@pytest.fixture(scope="module")
def model() -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=97, max_position_embeddings=256, **sizes)).eval()


def plain(model: Any, ids: list[int]) -> np.ndarray[Any, Any]:
    """(len(ids) - 1,) the losses of all but the first token, in one pass."""
    with torch.inference_mode():
        scores = torch.log_softmax(model(input_ids=torch.tensor([ids])).logits[0].float(), dim=-1)
    return np.array([-float(scores[at, token]) for at, token in enumerate(ids[1:])])


@pytest.mark.parametrize("given", [1, 7])
@pytest.mark.parametrize("block", [1, 16, 500])
def test_blocks_change_nothing(model: Any, given: int, block: int) -> None:
    from rag.generators._losses import token_losses

    ids = np.random.default_rng(0).integers(0, 97, size=60).tolist()
    found = token_losses(model, ids, given, window=200, carry=50, block=block)
    assert np.allclose(found, plain(model, ids)[given - 1 :], atol=1e-5)


def test_a_full_window_starts_anew_after_its_last_tokens(model: Any) -> None:
    from rag.generators._losses import token_losses

    ids = np.random.default_rng(1).integers(0, 97, size=50).tolist()
    found = token_losses(model, ids, 3, window=20, carry=8)
    assert len(found) == 47
    assert np.allclose(found[:17], plain(model, ids[:20])[2:], atol=1e-5)
    assert np.allclose(found[17:29], plain(model, ids[12:32])[7:], atol=1e-5)
    assert np.allclose(found[-6:], plain(model, ids[36:])[7:], atol=1e-5)
    with pytest.raises(ValueError, match="carry"):
        token_losses(model, ids, 3, window=8, carry=8)


@pytest.mark.parametrize(
    ("most", "before", "room"), [(8192, 0, 2048), (8192, 3000, 3512), (8192, 9000, 8192), (256, 0, 256)]
)
def test_what_stands_before_a_text_is_read_whole_where_the_model_can(most: int, before: int, room: int) -> None:
    model = SimpleNamespace(config=SimpleNamespace(max_position_embeddings=most))
    assert _room(model, before + _CARRY if before else 0) == room


def test_the_bundled_model_finds_what_it_has_read_less_surprising() -> None:
    lm = LocalGenerator().text_model
    text = "The ledger of the harbour lists 4711 barrels."
    alone = lm.losses(text)
    again = lm.losses(text, after=text + "\n")
    assert alone is not None
    assert again is not None
    assert "".join(text[start:end] for start, end, _ in alone) == text
    assert [pair[:2] for pair in alone] == [pair[:2] for pair in again]
    assert sum(loss for *_, loss in again) < 0.3 * sum(loss for *_, loss in alone)
    assert lm.losses("") == []
