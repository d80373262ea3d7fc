"""MLAG and LRP of ATLAS against plain sums over the attention of one whole pass."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from rag.errors import ConfigError
from rag.generators._attention import Attention, leaned_on, needs, relevance, whole_word, words_of
from rag.generators.local import LocalGenerator

Values = np.ndarray[Any, Any]


def causal(seed: int, layers: int, heads: int, given: int, size: int) -> tuple[Attention, Values]:
    """Made-up attention, and all of it: (layers, heads, n, n)."""
    n = given + size
    random = np.random.default_rng(seed)
    raw = np.where(np.tri(n, dtype=bool), random.random((layers, heads, n, n)) ** 4, 0.0)
    full = raw / raw.sum(axis=-1, keepdims=True)
    rows = full[:, :, given:].astype(np.float32)
    states = random.normal(size=(n, 5)).astype(np.float32)
    read = Attention(given=given, nats=random.random(size) * 3, mean=rows.mean(axis=1), last=rows[-1], states=states)
    return read, full


@pytest.mark.parametrize("seed", range(3))
def test_the_printed_formula_is_zero_for_every_token(seed: int) -> None:
    """No token of a causal model attends to a later one, so nothing that is received from earlier ones is left."""
    read, full = causal(seed, 4, 3, 6, 9)
    assert needs(read, "printed").tolist() == [0.0] * 9
    received = [full[:, :, :at, at].sum() for at in range(15)]
    assert received == [0.0] * 15


@pytest.mark.parametrize("layers", [1, 2, 5])
def test_from_is_the_change_of_attention_to_earlier_tokens(layers: int) -> None:
    read, full = causal(1, layers, 3, 4, 6)
    phi = heads_by_entropy(full[-1, :, 4:])
    eta = [j / (layers - 1) for j in range(1, layers)]
    for at, found in enumerate(needs(read, "from")):
        row = 4 + at
        steps = [
            np.abs(full[j + 1, :, row, :row].mean(axis=0) - full[j, :, row, :row].mean(axis=0)).sum()
            for j in range(layers - 1)
        ]
        gradient = sum(e * step / 2 for e, step in zip(eta, steps, strict=True)) / (sum(eta) or 1.0)
        held = sum(phi[h] * full[-1, h, row, :row].sum() for h in range(3))
        assert found == pytest.approx(gradient * (1 - np.exp(-read.nats[at])) * held, abs=1e-5)


def test_received_is_the_change_of_attention_from_later_tokens() -> None:
    read, full = causal(2, 4, 2, 3, 7)
    phi = heads_by_entropy(full[-1, :, 3:])
    found = needs(read, "received")
    got = np.array(
        [[max(full[j, :, k, 3 + at].mean() for k in range(4 + at, 10)) if at < 6 else 0.0 for at in range(7)]
         for j in range(4)]
    )  # fmt: skip
    got /= got.max(axis=1, keepdims=True)
    for at in range(7):
        gradient = sum(j / 3 * abs(got[j, at] - got[j - 1, at]) for j in (1, 2, 3)) / (1 / 3 + 2 / 3 + 1)
        held = sum(phi[h] * max((full[-1, h, k, 3 + at] for k in range(4 + at, 10)), default=0.0) for h in range(2))
        assert found[at] == pytest.approx(gradient * (1 - np.exp(-read.nats[at])) * held, abs=1e-5)
    assert found[-1] == 0.0
    assert max(found) > 0


def heads_by_entropy(rows: Values) -> Values:
    entropy = np.array([np.mean([-(r[r > 0] * np.log(r[r > 0])).sum() for r in head]) for head in rows])
    shares: Values = entropy / entropy.sum()
    return shares


def test_what_the_model_is_sure_of_needs_nothing_and_scores_lie_between_0_and_1() -> None:
    for seed in range(5):
        read, _ = causal(seed, 6, 2, 5, 8)
        sure = Attention(given=5, nats=np.zeros(8), mean=read.mean, last=read.last, states=read.states)
        for reading in ("from", "received"):
            values = needs(read, reading)
            assert 0 <= values.min() <= values.max() <= 1
            assert not needs(sure, reading).any()


def test_relevance_weighs_attention_over_likeness() -> None:
    read, _ = causal(3, 6, 2, 5, 4)
    mean = np.zeros_like(read.mean)
    mean[:, 2, 1] = 1.0  # all that draft token 2 looks at
    states = np.eye(9, 5, dtype=np.float32)
    states[4] = states[7] = 1.0  # the one that is like it
    found = relevance(Attention(given=5, nats=read.nats, mean=mean, last=read.last, states=states), 2)
    assert len(found) == 7
    assert np.argsort(-found)[:2].tolist() == [1, 4]
    assert found[1] == pytest.approx(0.7 + 0.3 * (1 / np.sqrt(5)), abs=1e-6)
    assert found[4] == pytest.approx(0.3, abs=1e-6)


def test_words_are_whole_carry_meaning_and_keep_their_order() -> None:
    text = "The lighthouse of Bergen, 1901."
    places = [(0, 3), (3, 9), (9, 14), (14, 17), (17, 24), (24, 25), None]
    words = words_of(text, places)
    assert words == ["", "lighthouse", "lighthouse", "", "Bergen", "", ""]
    assert leaned_on(words, np.array([9, 0.1, 0.9, 5, 0.2, 7, 7])) == ("lighthouse", "Bergen")
    assert leaned_on([f"w{at}" for at in range(9)], np.arange(9.0)) == tuple(f"w{at}" for at in range(3, 9))
    assert whole_word("a b", 1, 2) == ""


@pytest.mark.models
@pytest.mark.parametrize(("given", "size"), [(1, 1), (5, 40), (300, 33)])
def test_blocks_read_what_one_pass_reads_and_the_model_stays_as_it_was(given: int, size: int) -> None:
    torch = pytest.importorskip("torch")
    from transformers import LlamaConfig, LlamaForCausalLM

    from rag.generators._attention import read_attention

    torch.manual_seed(0)
    sizes: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3}
    sizes |= {"num_attention_heads": 4, "max_position_embeddings": 512}
    model: Any = LlamaForCausalLM(LlamaConfig(vocab_size=97, **sizes))
    model.eval()
    usual = model.config._attn_implementation
    ids = np.random.default_rng(0).integers(0, 97, size=given + size).tolist()
    read = read_attention(model, ids, given)
    assert model.config._attn_implementation == usual != "eager"
    model.set_attn_implementation("eager")
    with torch.inference_mode():
        out = model(input_ids=torch.tensor([ids]), output_attentions=True)
    full = torch.stack([one[0] for one in out.attentions]).numpy()
    losses = torch.nn.functional.cross_entropy(out.logits[0, :-1], torch.tensor(ids[1:]), reduction="none").numpy()
    assert np.allclose(read.mean, full[:, :, given:].mean(axis=1), atol=1e-5)
    assert np.allclose(read.last, full[-1, :, given:], atol=1e-5)
    assert np.allclose(read.nats, losses[given - 1 :], atol=1e-4)
    assert read.states.shape == (given + size, 32)


@pytest.mark.models
def test_the_bundled_model_wants_to_look_up_a_name_that_it_did_not_read() -> None:
    generator = LocalGenerator()
    model = generator.text_model
    start, end = generator._template
    fact = "The Eiffel tower was built by Gustave Eiffel in Paris."
    prompt = f"{start}\n<document>\n[1] {fact}\n</document>\n\nQuestion: Who built it?\n{end}{generator.lead}"
    draft = " The Eiffel tower was built by Gustave Zorbax in Paris."
    for reading in ("from", "received", "printed"):
        told = model.needs(draft, after=prompt, reading=reading)
        assert told is not None
        assert "".join(draft[low:high] for low, high, *_ in told) == draft
        need = {draft[low:high]: value for low, high, _, value, _ in told}
        if reading == "printed":
            assert set(need.values()) == {0.0}
        else:
            assert need[" Z"] > 3 * need["ave"]
    told, losses = model.needs(draft, after=prompt), model.losses(draft, after=prompt)
    assert told is not None
    assert losses is not None
    assert [one[:2] for one in losses] == [one[:2] for one in told]
    assert np.allclose([one[2] for one in losses], [one[2] for one in told], atol=0.5)  # bfloat16
    words = told[-1][4]
    assert 0 < len(words) <= 6
    assert all(word in prompt + draft for word in words)
    assert model.needs("", after=prompt) == []
    with pytest.raises(ConfigError, match="reading"):
        model.needs(draft, reading="upwards")
