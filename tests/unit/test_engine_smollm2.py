"""The engine on SmolLM2: exact where it says exact, and visibly not where it does not."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")

from rag.engine.blocks import KvBlock, make_block  # noqa: E402
from rag.engine.chunks import prefill_chunks  # noqa: E402
from rag.engine.model import EngineModel  # noqa: E402
from rag.engine.prefill import greedy, prefill  # noqa: E402
from rag.engine.prefix import PrefixPool, prefill_with_prefix  # noqa: E402
from rag.engine.repair import RepairPolicy  # noqa: E402
from rag.engine.repair.all import All  # noqa: E402
from rag.engine.repair.naive import Naive  # noqa: E402

CHUNKS = (
    "The lighthouse at Cape Arden was built in 1871 from grey granite. Its lamp turns once a minute.",
    "Marta Velde has kept the light since 1902. Before her, her uncle Jonas kept it for thirty-one years.",
    "Ships coming from the north see the light at nineteen miles. In fog a bell is struck every twenty seconds.",
    "The village below has two hundred people, a school, and a harbour wall that was mended after the storm of 1911.",
)
SYSTEM, QUESTION = "Answer from the documents below.\n", "\nQuestion: Who has kept the light since 1902?\nAnswer:"


@pytest.fixture(scope="module")
def loaded() -> Any:
    from rag.errors import MissingError
    from rag.generators._models import load_model, model_folder

    try:
        model, tokenizer = load_model(model_folder(""), dtype="float32")
    except MissingError as error:
        pytest.skip(str(error))
    return EngineModel(model), lambda text: tokenizer.encode(text, add_special_tokens=False)


@pytest.mark.models
def test_exact_and_approximate_reuse_on_smollm2(loaded: Any) -> None:
    model, encode = loaded
    prefix, chunks, question = encode(SYSTEM), [encode(f"\n{text}\n") for text in CHUNKS], encode(QUESTION)
    prompt = [*prefix, *(token for chunk in chunks for token in chunk), *question]
    full = prefill(model, prompt)
    expected = list(greedy(model, full.cache, full.logits, max_new_tokens=24))

    pool = PrefixPool(max_bytes=64 << 20, block_tokens=16, salt=model.fingerprint.encode())
    for _ in range(2):
        done = prefill_with_prefix(model, prompt, pool)
        assert list(greedy(model, done.cache, done.logits, max_new_tokens=24)) == expected
    assert done.computed <= 16

    parts: list[KvBlock | list[int]] = [*(make_block(model, chunk) for chunk in chunks), question]

    def gap(policy: RepairPolicy, parts: list[KvBlock | list[int]]) -> float:
        """KL of the first token's distribution from that of the full prefill."""
        done = prefill_chunks(model, prefill(model, prefix).cache, prefix, parts, policy)
        log, reference = done.logits.log_softmax(-1), full.logits.log_softmax(-1)
        if isinstance(policy, All):
            assert list(greedy(model, done.cache, done.logits, max_new_tokens=24)) == expected
        return float((reference.exp() * (reference - log)).sum())

    assert gap(All(), parts) < 1e-6
    assert gap(Naive(), parts) > 0.01
    behind_its_prefix: list[KvBlock | list[int]] = [make_block(model, chunks[0], prefix), *chunks[1:], question]
    assert gap(Naive(), behind_its_prefix) < 1e-6
    assert gap(Naive(), [make_block(model, chunks[0]), *chunks[1:], question]) > 1e-4
