"""Sparse attention with keys and values of chunks from a store: what nobody reads is not loaded; and how runs tell."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from rag.cli._timeline import timeline_lines
from tests.unit.test_generators_local_attention import asked, folder, local

__all__ = ["folder"]

PRIOR = {
    "use": "chunk-block", "density": 0.05, "anchor": 0, "floor": 2, "question_dense": False, "context": "own",
    "split": 64, "longer_than": 256,
}  # fmt: skip
"""Reads the chunks 2 and 4 of ALL; the first one is loaded for the repairs."""


def test_what_nobody_reads_is_known_by_the_prior_alone() -> None:
    pytest.importorskip("torch")
    from rag.engine.attention import Units
    from rag.generators._sparse import build_selection
    from rag.generators._sparsely import unread_spans

    units = Units.of_spans([(10, 110), (110, 210), (210, 600), (600, 640)], priors=[0.0, 3.0, 2.0, 1.0])

    def unread(given: Units = units, **more: Any) -> tuple[int, ...]:
        return unread_spans(build_selection({**PRIOR, **more}), given)

    assert unread() == (0, 3)
    assert unread(floor=1) == (0, 2, 3)
    assert unread(anchor=20) == (3,)
    assert unread(anchor=20, floor=0) == (1, 2, 3)
    assert unread(floor=1, anchor=211) == (3,)  # a part of the third is read
    assert unread(question_dense=True) == unread(density=1.0) == unread(floor=4) == ()
    assert unread(density=0.9) == ()  # there is room for what the scores say
    assert unread(density=(490 + 35) / 630) == (0, 3)
    assert unread(density=(490 + 41) / 630) == ()
    bare = Units.of_spans([(10, 110), (110, 210)])
    assert unread(bare, anchor=20) == (1,)
    assert unread_spans(build_selection("quest"), units) == ()


@pytest.mark.slow
def test_what_nobody_reads_is_not_loaded(folder: Path, tmp_path: Path) -> None:
    def made(**more: Any) -> Any:
        given: dict[str, Any] = {**PRIOR, **more}
        return asked(local(folder, given, reuse="chunk", cut_pieces="compute"), directory=tmp_path)

    cold = made()
    assert (cold.notes["blocks_made"], cold.notes["blocks_skipped"]) == (4, 3)  # the start, the first and the read ones
    assert cold.stats.bytes_loaded == 0
    warm = made()
    whole = made(density=1.0)  # makes the others
    loaded = made(density=1.0)
    assert (whole.notes["blocks_made"], loaded.notes["blocks_made"]) == (3, 0)
    assert warm.text == cold.text
    rows, every = warm.notes["segments"], loaded.notes["segments"]
    skipped = [row["part"] for row in rows if row.get("skipped")]
    assert skipped == ["3", "5", "6"]
    assert all(not row["bytes"] and not row["reused"] and not row["read"] for row in rows if row.get("skipped"))
    with_heads = sum(row["reused"] + row["repaired"] for row in every if row["part"] in skipped)
    assert sum(row.get("skipped", 0) for row in rows) == with_heads
    token = local(folder, "dense", reuse="chunk")._decoder.token_bytes
    fewer = loaded.stats.bytes_loaded - warm.stats.bytes_loaded
    assert fewer == with_heads * token + 4 * with_heads  # and the variance of each token
    stats = warm.stats
    assert stats.reused_tokens + stats.computed_tokens == stats.prompt_tokens - with_heads
    assert sum(row["computed"] for row in rows) == stats.computed_tokens


@pytest.mark.slow
@pytest.mark.parametrize("repair", ["naive", "epic", "first-variance", "info-flow"])
def test_the_answer_is_the_one_with_all_blocks_loaded(
    folder: Path, tmp_path: Path, repair: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rag.generators._chunk_kv import ChunkKv

    def made() -> Any:
        given: dict[str, Any] = {"reuse": "chunk", "repair": repair}
        return asked(local(folder, PRIOR, **given), directory=tmp_path)

    few = made()
    assert ("blocks_skipped" in few.notes) == (repair != "info-flow")
    monkeypatch.setattr(ChunkKv, "_skipped", lambda self, parts, sparse: ())
    every = made()
    if repair in ("naive", "epic"):  # which repair a chunk alike whatever stands beside it
        assert few.text == every.text
    assert few.stats.bytes_loaded == 0
    assert every.stats.bytes_loaded > 0


@pytest.mark.slow
def test_a_run_tells_what_was_read(folder: Path, tmp_path: Path) -> None:
    from dataclasses import asdict

    def lines(**given: Any) -> list[str]:
        made = asked(local(folder, PRIOR, **given), directory=tmp_path)
        trace = [{"notes": {}}, {"notes": dict(made.notes)}]
        return [line for line, _ in timeline_lines({"stats": asdict(made.stats), "trace": trace})]

    told = lines(reuse="chunk")
    assert any("read by none and not loaded" in line for line in told)
    at = next(number for number, line in enumerate(told) if line.startswith("attention chunk-block(0.05) by gather: "))
    assert "of the prompt's scores computed, " in told[at]
    read = "start 100 %, [1] not at all, [2] 100 %, [3] not at all, [4] 100 %"
    assert read in told[at + 1]
    assert read in "".join(lines(reuse="none"))
    dense = asked(local(folder, "dense", reuse="none"))
    stored = {"stats": asdict(dense.stats), "trace": [{"notes": dict(dense.notes)}]}
    assert not any("attention" in line for line, _ in timeline_lines(stored))


@pytest.mark.slow
def test_passes_of_several_threads_do_not_disturb_each_other(folder: Path) -> None:
    pytest.importorskip("torch")
    from rag.engine.attend import NAME, read_as_asked

    model = local(folder, "dense")._loaded[0]
    own = model.config._attn_implementation
    inside, leave = threading.Event(), threading.Event()

    def stay() -> None:
        with read_as_asked(model):
            inside.set()
            leave.wait(10)

    other = threading.Thread(target=stay)
    other.start()
    inside.wait(10)
    with read_as_asked(model):
        leave.set()
        other.join()
        assert model.config._attn_implementation == NAME
    assert model.config._attn_implementation == own
