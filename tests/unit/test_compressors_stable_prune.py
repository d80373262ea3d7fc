"""What is left of a chunk is the same whatever is asked and whatever stands beside it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from compressors.stable_prune import StablePruneCompressor
from rag.errors import ConfigError
from rag.spans.protected import survival
from rag.types import Bubble
from tests.corpora import MemoryCorpus
from tests.unit.test_compressors_sentence_prune import BRIDGE, COUNTER, EMBEDDER, OVENS, bubble_of


@pytest.fixture
def both(tmp_path: Path) -> Iterator[tuple[Bubble, MemoryCorpus]]:
    bubble, corpus = bubble_of(tmp_path, [BRIDGE, OVENS], "When did the bridge fall?")
    yield bubble, corpus
    corpus.close()


def pruner(**options: object) -> StablePruneCompressor:
    return StablePruneCompressor(counter=COUNTER, embedder=EMBEDDER, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("rate", [0.3, 0.5, 0.8])
def test_question_and_company_change_nothing(both: tuple[Bubble, MemoryCorpus], rate: float) -> None:
    bubble, corpus = both
    context = pruner(rate=rate).compress(bubble, corpus)
    other = pruner(rate=rate).compress(replace(bubble, question="When are the ovens lit?"), corpus)
    assert other.pieces == context.pieces
    for hit in bubble.hits:
        alone = pruner(rate=rate).compress(replace(bubble, hits=(hit,)), corpus)
        assert alone.pieces == tuple(piece for piece in context.pieces if piece.chunk_id == hit.chunk.id)
    assert 0 < context.token_count <= rate * context.source_token_count + 1
    assert all(found == whole for found, whole, _ in survival(bubble, context, corpus).values())


def test_a_target_drops_whole_chunks_of_the_lowest_rank(both: tuple[Bubble, MemoryCorpus]) -> None:
    bubble, corpus = both
    free = pruner().compress(bubble, corpus)
    bound = pruner(target=free.token_count - 1).compress(bubble, corpus)
    assert bound.pieces == free.pieces[:1]
    dropped = [one for one in bound.decisions if one.chunk_id == bubble.hits[1].chunk.id]
    assert {one.action for one in dropped} == {"drop"}


def test_options_are_checked() -> None:
    with pytest.raises(ConfigError, match="lam"):
        pruner(lam=-1)
    with pytest.raises(ConfigError, match="unit_chars"):
        pruner(unit_chars=1)
