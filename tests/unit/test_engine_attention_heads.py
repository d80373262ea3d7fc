"""Retrieval heads: what the question looks at in them chooses for the answer."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from rag.engine.attention import Memory, Step  # noqa: E402
from rag.engine.attention._heads import head_scores, vote, voted  # noqa: E402
from rag.engine.attention.chunk_block import ChunkBlock  # noqa: E402
from rag.engine.errors import EngineError  # noqa: E402
from tests.unit.test_engine_attention import CHUNKS, step_of  # noqa: E402

LAYOUT = ChunkBlock(anchor=0, split=4).layout(CHUNKS)
HEADS = ((3, 1), (5, 0))


def part(step: Step, start: int, stop: int) -> Step:
    return replace(step, query=step.query[:, :, start:stop], places=step.places[start:stop])


def by_hand(step: Step, head: int, start: int, stop: int) -> Any:
    """(batch, chunks): the softmax of each row over all slots up to its own, summed by chunk."""
    rows = [
        (step.grouped[:, head, :, at] @ step.key[:, head, : at + 1].transpose(-1, -2) * step.scaling).softmax(-1).sum(1)
        for at in range(start, stop)
    ]
    return torch.stack([sum(row[:, a:b].sum(1) for row in rows) for a, b in zip(*edges(), strict=True)], dim=1)


def edges() -> tuple[list[int], list[int]]:
    return CHUNKS.starts.tolist(), CHUNKS.stops.tolist()


def test_votes_are_the_attention_of_the_question_to_a_slot_of_each_chunk() -> None:
    third, fifth, memory = step_of(60, batch=2), replace(step_of(60, batch=2, seed=1), layer=5), Memory()
    for step in (third, fifth, replace(fifth, layer=6)):  # a layer without heads does not vote
        vote(step, memory, LAYOUT, 45, HEADS, 100)
    mass = torch.stack([by_hand(third, 1, 45, 60), by_hand(fifth, 0, 45, 60)], dim=1)
    found = voted(memory, LAYOUT, HEADS)
    assert found is not None
    torch.testing.assert_close(found, head_scores(mass, CHUNKS.lengths), rtol=1e-4, atol=1e-4)
    assert voted(memory, ChunkBlock(anchor=0).layout(CHUNKS), HEADS) is None  # of another prompt


def test_passes_of_one_question_vote_as_one_and_a_new_question_anew() -> None:
    step, heads = step_of(60), ((3, 1),)
    whole, parts = Memory(), Memory()
    vote(part(step, 45, 60), whole, LAYOUT, 0, heads, 12)
    for start, stop in ((40, 45), (45, 50), (50, 60)):
        vote(part(step, start, stop), parts, LAYOUT, max(0, 45 - start), heads, 12)
    expected = voted(whole, LAYOUT, heads)
    assert expected is not None
    torch.testing.assert_close(voted(parts, LAYOUT, heads), expected)
    torch.testing.assert_close(expected, head_scores(by_hand(step, 1, 45, 57)[:, None], CHUNKS.lengths))
    other = step_of(60, seed=2)
    vote(part(other, 45, 60), parts, LAYOUT, 0, heads, 12)
    alone = head_scores(by_hand(other, 1, 45, 57)[:, None], CHUNKS.lengths)
    torch.testing.assert_close(voted(parts, LAYOUT, heads), alone)


def test_nothing_is_told_before_the_question_has_passed_all_heads() -> None:
    step, memory = step_of(60), Memory()
    assert voted(memory, LAYOUT, ()) is None
    vote(step, memory, LAYOUT, 45, HEADS, 32)
    assert voted(memory, LAYOUT, HEADS) is None
    vote(part(replace(step, layer=5), 45, 50), memory, LAYOUT, 0, HEADS, 32)
    assert voted(memory, LAYOUT, HEADS) is None  # of other rows


@pytest.mark.parametrize(("weight", "read"), [(0.0, 2), (100.0, 1)])
def test_the_answer_reads_what_the_heads_found_in_every_layer(weight: float, read: int) -> None:
    """Which is the second chunk; by its prior the last is the best."""
    step, across = step_of(60, units=CHUNKS), Memory().across
    step.key[:, :, 17:30] = 4 * step.query[:, :1, 50:51]
    step.query[:, :, 45:] = step.query[:, :1, 50:51]
    given: dict[str, Any] = {"density": 0.4, "anchor": 0, "floor": 0, "split": 16, "prior_share": 1.0}
    chooser = ChunkBlock(heads=((3, 1),), head_weight=weight, **given)
    chooser.select(step, Memory(across=across))
    for layer in (0, 3, 7):
        alone = replace(step_of(61, [60], units=CHUNKS, seed=layer), layer=layer)
        kept = chooser.select(alone, Memory(across=across))
        assert kept is not None
        assert kept.keep[0, 0, 0].nonzero()[:, 0].tolist() == [read]


def test_what_is_no_head_is_refused() -> None:
    for bad in ((3,), (-1, 0), ("a", "b")):
        with pytest.raises(EngineError, match="a head is a layer and a kv head"):
            ChunkBlock(heads=(bad,))  # type: ignore[arg-type]
    with pytest.raises(EngineError, match="layer 3 has 2 kv heads, numbered from 0 on: no head 2"):
        vote(step_of(60), Memory(), LAYOUT, 45, ((3, 2),), 32)
    assert ChunkBlock(heads=[[3, 1]]).heads == ((3, 1),)  # type: ignore[arg-type, list-item]  # as a config has it
