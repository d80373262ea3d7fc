"""The script that trains what chooses in selections: what it records, falling losses, weights that fit."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("safetensors")

from eval._attention_data import Text, recorded, texts_of  # noqa: E402
from eval._attention_training import boundary_auc, kept_of, loss_of, module_of, seen, train_boundary  # noqa: E402
from eval.bench._kv_prompts import Loaded  # noqa: E402
from eval.train_attention import METHODS, Oracle, save, selections_at, train  # noqa: E402
from rag.engine.attention.quest import Quest  # noqa: E402
from tests.unit.test_engine_model import shared, some_ids  # noqa: E402

TOKENS = 256
ROWS = torch.arange(9, TOKENS // 16 + 1) * 16 - 1


def loaded() -> Loaded:
    return Loaded(model=shared(), encode=lambda text: [3 + ord(one) % 90 for one in text], before="", after="")


def texts(count: int) -> list[Text]:
    return [Text(ids=some_ids(TOKENS, seed=seed), ends=[at % 9 == 8 for at in range(TOKENS)]) for seed in range(count)]


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("attention")
    return [recorded(loaded(), text, ROWS, folder) for text in texts(4)]


def test_what_is_recorded_is_the_attention_of_the_model_and_is_made_once(tmp_path: Path) -> None:
    from safetensors import safe_open

    model, text = shared(), texts(1)[0]
    path = recorded(loaded(), text, ROWS, tmp_path)
    cache = model.new_cache()
    with torch.no_grad():
        model.run(text.ids, cache)
    with safe_open(path, framework="pt") as held:
        assert len(held.keys()) == 3 * model.layers
        assert held.get_tensor("2.query").shape == (4, len(ROWS), 16)
        keys: Any = cache.layers[2]
        assert torch.allclose(held.get_tensor("2.key").float(), keys.keys[0], atol=1e-2)
    before = path.stat().st_mtime_ns
    assert recorded(loaded(), text, ROWS, tmp_path) == path
    assert path.stat().st_mtime_ns == before
    assert recorded(loaded(), replace(text, ids=text.ids[1:]), ROWS[:-1], tmp_path) != path


def test_mass_is_that_of_what_may_be_chosen(paths: list[Path]) -> None:
    one = seen(paths[0], 1, ROWS, shared().frequencies)
    for row, place in enumerate(ROWS.tolist()):
        assert float(one.mass[:, row, max(0, place - 63) :].sum()) == 0
        assert bool((one.mass[:, row, : max(0, place - 63)] > 0).all())
        assert one.open[row].nonzero()[:, 0].tolist() == [page for page in (1, 2, 3) if 64 * page + 63 <= place - 64]
    assert torch.allclose(one.paged[:, -1, 1], one.mass[:, -1, 64:128].sum(-1))


@pytest.mark.parametrize("method", METHODS)
def test_training_lowers_the_loss(method: str, paths: list[Path]) -> None:
    rotary = shared().frequencies
    of = [seen(path, 1, ROWS, rotary) for path in paths]
    torch.manual_seed(0)
    module = module_of(method, 4, 2, 16)
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-2)
    losses = []
    for _ in range(30):
        loss = torch.stack([loss_of(method, module, one, rotary) for one in of]).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    least = torch.stack([_entropy(one.mass if method == "dma" else one.paged, method) for one in of]).mean()
    assert losses[-1] < losses[0]
    assert losses[-1] > float(least)  # no loss is below the entropy of what is learnt


def _entropy(mass: Any, method: str) -> Any:
    given = mass.mean(0, keepdim=True) if method == "chunkllm" else mass
    total = given.sum(-1, keepdim=True).clamp(min=1e-12)
    return -(given * (given / total).clamp(min=1e-30).log()).sum(-1).mean()


def test_weights_are_the_same_again_and_fit_the_selections(paths: list[Path], tmp_path: Path) -> None:
    states = train(loaded(), paths, ROWS, 1)
    again = train(loaded(), paths, ROWS, 1)
    for method in METHODS:
        assert all(torch.equal(one, again[method][name]) for name, one in states[method].items())
    files = {method: tmp_path / f"{method}.safetensors" for method in METHODS}
    told = {method: save(file, method, states[method], loaded()) for method, file in files.items()}
    assert {method: one["bytes"] for method, one in told.items()} == {
        method: file.stat().st_size for method, file in files.items()
    }
    selections = selections_at(200, files)
    assert {"dma", "chunkllm", "sparda", "quest", "oracle"} <= set(selections)
    kept = kept_of(paths[0], texts(1)[0], 3, ROWS, selections)
    assert all(0 < mass < 1 for mass, _ in kept.values())
    assert json.dumps(told)


def test_the_oracle_keeps_most_and_all_is_all(paths: list[Path]) -> None:
    selections = {"oracle": Oracle(budget=96), "quest": Quest(budget=96), "all": Oracle(budget=10_000)}
    text = replace(texts(1)[0], evidence=(100, 110))
    kept = kept_of(paths[0], text, 3, ROWS[-2:], selections)
    assert kept["quest"][0] < kept["oracle"][0] < kept["all"][0]
    assert kept["all"] == pytest.approx((1.0, 1.0))
    assert 0 <= kept["quest"][1] <= 1


def test_the_chunk_adapter_learns_what_values_tell(tmp_path: Path) -> None:
    """A sentence ends with one token, and with no other."""
    of = [replace(text, ends=[token % 7 == 3 for token in text.ids]) for text in texts(3)]
    files = [recorded(loaded(), text, ROWS, tmp_path) for text in of]
    torch.manual_seed(0)
    before = boundary_auc(train_boundary(files, of, 1, steps=0), files, of, 1)
    after = boundary_auc(train_boundary(files, of, 1), files, of, 1)
    assert after["auc"] > max(0.6, before["auc"])


def test_texts_are_of_one_part_and_end_where_sentences_do(tmp_path: Path) -> None:
    text = "This is one sentence. " * 40
    for name in ("squad_long", "covidqa"):
        (tmp_path / name).mkdir()
        rows = [{"doc_id": f"{name}-{at}", "title": "", "text": f"{name} {at} {text}"} for at in range(40)]
        (tmp_path / name / "corpus.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    parts = {part: texts_of(loaded(), tmp_path, part, tokens=200, count=100) for part in ("train", "held")}
    assert 0 < len(parts["held"]) < len(parts["train"]) < 80
    train_ids = {tuple(one.ids) for one in parts["train"]}
    assert not train_ids & {tuple(one.ids) for one in parts["held"]}
    for one in parts["train"]:
        assert len(one.ids) == len(one.ends) == 200
        stops = [at for at, token in enumerate(one.ids) if token == 3 + ord(".") % 90]
        assert [at for at, end in enumerate(one.ends) if end] == stops
    assert texts_of(loaded(), tmp_path, "train", tokens=5000, count=3) == []
