"""`chunk-block`: what a chunk, the question and the answer read."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from rag.engine.attention import Memory  # noqa: E402
from rag.engine.attention.chunk_block import ChunkBlock  # noqa: E402
from rag.engine.attention.executors.dense_mask import pair_mask  # noqa: E402
from rag.engine.errors import EngineError  # noqa: E402
from tests.unit.test_engine_attention import CHUNKS, step_of  # noqa: E402


def test_a_chunk_reads_itself_the_prefix_and_the_anchor() -> None:
    kept = ChunkBlock(anchor=0, context="own").select(step_of(60, units=CHUNKS), Memory())
    assert kept is not None
    mask = pair_mask(step_of(60), kept)[0, 0]
    assert mask[20].nonzero()[:, 0].tolist() == [0, 1, 2, 3, 4, 17, 18, 19, 20]
    assert mask[40].nonzero()[:, 0].tolist() == [0, 1, 2, 3, 4, 30, 31, *range(32, 41)]
    assert mask[31].nonzero()[:, 0].tolist() == [0, 1, 2, 3, 4, 30, 31]
    assert int(mask[59].sum()) == 60
    kept = ChunkBlock(anchor=8, split=4, longer_than=4).select(step_of(60, units=CHUNKS), Memory())
    assert kept is not None
    assert pair_mask(step_of(60), kept)[0, 0, 40].nonzero()[:, 0].tolist() == [*range(9), 30, 31, *range(32, 41)]


def test_a_chunk_reads_the_best_units_before_it_as_far_as_its_budget_goes() -> None:
    step = step_of(60, units=CHUNKS)
    step.key[:, :, 9:13] = 5 * step.query[:, :1, 40:41]  # the second unit of the first chunk is wanted
    step.query[:, :, 32:50] = step.query[:, :1, 40:41]
    kept = ChunkBlock(anchor=0, split=4, density=0.5).select(step, Memory())
    assert kept is not None
    read = pair_mask(step, kept)[0, 0]
    own = [0, 1, 2, 3, 4, 30, 31, *range(32, 41)]
    before = sorted({*read[40].nonzero()[:, 0].tolist()} - {*own})
    assert before == [9, 10, 11, 12]  # 19 slots are the budget, of which its own chunk takes 13
    assert read[20].nonzero()[:, 0].tolist()[:5] == [0, 1, 2, 3, 4]
    whole = ChunkBlock(anchor=0, split=4, density=0.99, dense_layers=4)
    assert whole.select(step, Memory()) is None  # of a layer that is dense


def test_units_that_are_held_from_pass_to_pass_are_those_of_one_pass() -> None:
    step, chooser = step_of(60, units=CHUNKS), ChunkBlock(anchor=0, split=4, density=0.6)
    kept = chooser.select(step, Memory())
    memory = Memory()
    chooser.select(replace(step, query=step.query[:, :, :32], places=step.places[:32]), memory)
    memory.valid = 32
    for first in (32, 32):  # the second time after the cache was cut
        memory.begin(first)
        later = chooser.select(replace(step, query=step.query[:, :, 32:], places=step.places[32:]), memory)
        memory.valid = 60
        assert kept is not None
        assert later is not None
        assert torch.equal(later.keep[:, :, 0], kept.keep[:, :, list(kept.rows).index(32)])


@pytest.mark.parametrize("score", ["mass", "bound", "mean"])
def test_the_answer_reads_the_best_chunks_with_the_priors(score: Any) -> None:
    step = step_of(60, [59], units=CHUNKS)
    step.key[:, :, 20:28] = 4 * step.query[:, :1, :1]  # the second chunk is wanted

    def read(**given: Any) -> list[bool]:
        given = {"prior_share": 0.0, "split": 16, "longer_than": 256, **given}
        kept = ChunkBlock(score=score, anchor=0, **given).select(step, Memory())
        assert kept is not None
        return [bool(one) for one in kept.keep[0, 0, 0]]

    assert read(density=0.4, floor=0, prior_weight=0.0) == [False, True, False]
    assert read(density=0.45, floor=0, prior_weight=100.0) == [False, False, True]
    assert read(density=0.45, floor=1, prior_weight=0.0) == [False, False, True]
    assert read(density=0.45, floor=0, prior_weight=0.0, prior_share=1.0) == [False, False, True]
    assert read(density=0.8, floor=1, prior_weight=0.0) == [False, True, True]


def answers(chooser: ChunkBlock, places: range, memory: Memory) -> list[list[bool]]:
    found = []
    for place in places:
        kept = chooser.select(step_of(place + 1, [place], units=CHUNKS, seed=place), memory)
        assert kept is not None
        found.append(kept.keep.flatten().tolist())
    return found


def test_the_question_is_dense_and_the_answer_keeps_its_choice_for_a_while() -> None:
    given: dict[str, Any] = {"density": 0.4, "anchor": 0, "floor": 0, "split": 2, "longer_than": 2, "prior_weight": 0.0}
    chooser, memory = ChunkBlock(refresh=4, prior_share=0.0, **given), Memory()
    asked = step_of(60, units=CHUNKS)
    kept = chooser.select(asked, memory)
    assert kept is not None
    assert int(pair_mask(asked, kept)[0, 0, 59].sum()) == 60
    told = answers(chooser, range(60, 70), memory)
    assert told[:4] == [told[0]] * 4
    assert told[4:8] == [told[4]] * 4
    assert told[4] != told[0]
    memory.valid = 70
    memory.begin(62)  # the token whose choice it was is gone
    (last,) = answers(chooser, range(62, 63), memory)
    assert last != told[4]


@pytest.mark.parametrize(
    "given", [{"context": "all"}, {"prior_share": 1.1}, {"dense_layers": -1}, {"split": 0}, {"density": 0.0}]
)
def test_what_cannot_be_is_refused(given: dict[str, Any]) -> None:
    with pytest.raises(EngineError, match=r"chunk-block: .* must"):
        ChunkBlock(**given)
