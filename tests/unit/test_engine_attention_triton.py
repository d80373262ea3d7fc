"""The executor `triton` by its interpreter, its refusals, the lists of tiles that it reads, and what is told of it."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import warnings
from dataclasses import replace
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from rag.engine import EngineError  # noqa: E402
from rag.engine.attention import Kept, Memory, Selection, Sparse, Step, Units, read_sparsely  # noqa: E402
from rag.engine.attention.compact import Compact  # noqa: E402
from rag.engine.attention.executors import EXECUTORS, _tiles, executor_for  # noqa: E402
from rag.engine.attention.executors.dense_mask import pair_mask  # noqa: E402
from rag.engine.attention.executors.triton import Launch, _pages, _splits, launch_for  # noqa: E402
from rag.engine.attention.flexprefill import FlexPrefill  # noqa: E402
from rag.engine.attention.mac import Mac  # noqa: E402
from rag.engine.attention.quest import Quest  # noqa: E402
from rag.engine.attention.share import Share  # noqa: E402
from rag.engine.attention.sink_recent import SinkRecent  # noqa: E402
from tests.unit.test_engine_attention import drawn_kept, step_of  # noqa: E402
from tests.unit.test_engine_model import shared, some_ids, tiny  # noqa: E402

TRITON = importlib.util.find_spec("triton") is not None
with_triton = pytest.mark.skipif(not TRITON, reason="the package triton is not installed: its kernels are not tested")
TOLERANCES = {"float32": 1e-5, "bfloat16": 2e-2, "float16": 2e-2}


def interpreted(count: int) -> list[dict[str, Any]]:
    done = subprocess.run(
        [sys.executable, "-m", "tests.unit.triton_cases", str(count)], env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True, text=True, timeout=280,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    found: list[dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
    return found


def right(cases: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [one for one in cases if not one["error"] <= TOLERANCES[one["dtype"]]]


@with_triton
def test_the_kernels_are_the_reference() -> None:
    """Rows alone, a bias, views, pages and spans, every type of numbers, left padding through a model."""
    cases = interpreted(8)
    assert right(cases) == []
    assert {one["dtype"] for one in cases} == set(TOLERANCES)
    assert cases[-1]["ran"] == "triton (interpreted)"
    assert len(cases) == 9 + 8 + 1


@with_triton
@pytest.mark.slow
def test_the_kernels_are_the_reference_on_any_choice() -> None:
    assert right(interpreted(64)) == []


CONSTANTS: dict[str, dict[str, Any]] = {
    "attend_tiles": {"rows": 128, "slots": 64, "exact": "tf32", "wide": False},
    "attend_pages": {"rows": 16, "slots": 64, "exact": "tf32", "wide": False, "counted": False, "size": 16},
    "merge_parts": {"many": 64},
}
FLOATS, NUMBERS = {"parts", "tops", "sums"}, {"places", "segments", "local", "tiles", "whole", "listed", "of_slot"}


@with_triton
@pytest.mark.slow
@pytest.mark.parametrize("name", CONSTANTS)
def test_kernels_compile_for_sm_90_and_fit(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    """As for the shape of an 8B model in bfloat16; no GPU is needed for that."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    compiler, backend = (importlib.import_module(f"triton.{one}.compiler") for one in ("compiler", "backends"))
    if importlib.import_module("triton").knobs.runtime.interpret:
        pytest.skip("under TRITON_INTERPRET nothing is compiled")
    kernel = getattr(importlib.import_module("rag.engine.attention.executors._triton_kernels"), name)
    sides = {"group": 4, "width": 128, "room": 128, "v_width": 128, "v_room": 128}
    constants = {key: one for key, one in (sides | CONSTANTS[name]).items() if key in kernel.arg_names}
    pointers = dict.fromkeys(("q", "k", "v", "made"), "*bf16") | dict.fromkeys(FLOATS, "*fp32")
    pointers |= dict.fromkeys(NUMBERS, "*i32") | {"opened": "*u8", "index": "*i64", "counts": "*i64", "scale": "fp32"}
    signature = {one: "constexpr" if one in constants else pointers.get(one, "i32") for one in kernel.arg_names}
    given = {(kernel.arg_names.index(key),): one for key, one in constants.items()}
    # addresses and the strides of batch, head and slot are multiples of 16, as in every model
    even = [
        at for at, one in enumerate(kernel.arg_names) if signature[one][0] == "*" or (one[1:2] == "_" and len(one) == 3)
    ]
    source = compiler.ASTSource(kernel, signature, given, {(at,): [["tt.divisibility", 16]] for at in even})
    options = {"num_warps": 8 if name == "attend_tiles" else 4, "num_stages": 3}
    made = compiler.compile(source, target=backend.GPUTarget("cuda", 90, 32), options=options)
    assert made.metadata.shared <= 160_000
    assert made.asm["cubin"]
    assert name == "merge_parts" or "mma" in made.asm["ptx"]  # on the tensor cores


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU, which runs it")
def test_without_a_gpu_it_is_refused_with_what_to_use() -> None:
    for places in (None, [49]):
        step = step_of(50, places)
        with pytest.raises(EngineError, match=r"triton.*gather"):
            EXECUTORS["triton"](step, drawn_kept(step, 0))
    model = shared()
    sparse = Sparse(SinkRecent(budget=8, sink=1, q_block=4), "triton")
    with read_sparsely(model.model, sparse), pytest.raises(EngineError, match="use"):
        model.run(some_ids(20), model.new_cache())


def test_an_absent_package_and_odd_sizes_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "triton", None)
    step = step_of(50)
    with pytest.raises(EngineError, match="needs the package triton"):
        EXECUTORS["triton"](step, drawn_kept(step, 0))
    for wrong in ({"rows": 8}, {"slots": 48}):
        with pytest.raises(EngineError, match="power of two"):
            Launch(**wrong)


@with_triton
def test_training_and_doubles_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        sys.modules["rag.engine.attention.executors.triton"], "_interpreted", lambda runtime: True
    )  # as with TRITON_INTERPRET=1
    step = step_of(50)
    with pytest.raises(EngineError, match="no gradients"):
        EXECUTORS["triton"](replace(step, query=step.query.requires_grad_()), drawn_kept(step, 0))
    double = replace(step, query=step.query.detach().double())
    with pytest.raises(EngineError, match=r"not torch\.float64"):
        EXECUTORS["triton"](double, drawn_kept(step, 0))


@pytest.mark.parametrize("seed", range(12))
def test_slots_before_a_mark_are_counted_as_the_mask_has_them(seed: int) -> None:
    step = step_of(90, batch=2, seed=seed)
    kept = drawn_kept(step, seed, paged=seed % 2 == 1)
    torch.manual_seed(seed)
    marks = (torch.rand(len(kept.local), 7) * (kept.edges[:, None] + 1)).long()
    found = kept.reads_before(marks)
    for block in range(len(kept.local)):
        past = torch.nn.functional.pad(kept.past(block).cumsum(-1), (1, 0))
        assert torch.equal(found[:, :, block], past[..., marks[block]].int())


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("size", [16, 32])
def test_the_list_of_tiles_says_what_is_read_before_the_local_slots(seed: int, size: int) -> None:
    step = step_of(150, batch=2, seed=seed)
    kept = drawn_kept(step, seed, paged=seed % 2 == 1)
    far = _tiles.far_tiles(kept, size)
    for block, local in enumerate(kept.local):
        tiles = torch.nn.functional.pad(kept.past(block), (0, -local % size)).unflatten(-1, (-1, size))
        for b, h in ((b, h) for b in range(far.some.shape[0]) for h in range(far.some.shape[1])):
            whole, some = int(far.whole[b, h, block]), int(far.some[b, h, block])
            numbers = far.numbers[b, h, block].tolist()
            full, any_read = (getattr(tiles[b, h], how)(-1).nonzero()[:, 0].tolist() for how in ("all", "any"))
            assert sorted(numbers[:whole]) == full
            assert sorted(numbers[:some]) == any_read


def test_segments_are_rows_of_one_block() -> None:
    assert _tiles.segments((0, 5, 7, 12), 4) == [(0, 4, 0), (4, 5, 0), (5, 7, 1), (7, 11, 2), (11, 12, 2)]
    assert _tiles.segments((0, 5, 7, 12), 4, aligned=True) == [(0, 4, 0), (4, 5, 0), (5, 7, 1), (7, 8, 2), (8, 12, 2)]


@pytest.mark.parametrize("paged", [False, True])
def test_one_token_reads_its_pages_and_then_the_rest(paged: bool) -> None:
    step = step_of(50, [49], batch=2)
    for seed in range(8):
        kept = drawn_kept(step, seed, paged=paged)
        size, index, counts, rest = _pages(kept)
        mask = pair_mask(step, kept)
        for b, h in ((b, h) for b in range(mask.shape[0]) for h in range(mask.shape[1])):
            pages = index[b, h].tolist() if counts is None else index[b, h, : int(counts[b, h])].tolist()
            slots = [page * size + at for page in pages for at in range(size)] + [*range(rest, 50)]
            assert slots == mask[b, h, 0].nonzero()[:, 0].tolist()


def test_a_token_is_split_over_the_device_but_never_into_nothing() -> None:
    step = step_of(50, [49])
    assert _splits(step, 10_000, Launch(waves=3, slots=64)) == 6  # of 4 processors, 2 kv heads
    assert _splits(step, 100, Launch(waves=3, slots=64)) == 2
    assert _splits(step, 0, Launch()) == 1
    assert launch_for(step).slots < launch_for(replace(step, key=step.key.bfloat16())).slots


class Wide(Selection):
    """Reads so much in one pass that float32 cannot count it."""

    name = "wide"

    def select(self, step: Step, memory: Memory) -> Kept | None:
        return Kept(Units.pages(0, 1), (0, step.queries), (0,), torch.zeros(1, 1, 1, 0, dtype=torch.bool))


def test_pairs_beyond_float32_are_counted_one_by_one() -> None:
    sparse = Sparse(Wide(), "gather")
    step = step_of(3, [2], heads=1, kv_heads=1)
    sparse._count(step, torch.tensor(2**24), 1)
    for _ in range(3):
        sparse._count(step, torch.tensor(1), 1)
    assert sparse.stats.kept_pairs == 2**24 + 3
    assert isinstance(sparse.stats.kept_pairs, int)


def test_the_stats_name_what_ran() -> None:
    model, ids = tiny(), some_ids(30)
    told: dict[str, Any] = {}
    asked: list[Any] = ["auto", "gather", "dense_mask", "flex"]
    for executor in asked:
        sparse = Sparse(SinkRecent(budget=8, sink=1, q_block=4), executor)
        cache = model.new_cache()
        with read_sparsely(model.model, sparse), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # flex says once a process that it is not compiled
            model.run(ids, cache)
            assert sparse.stats.decode_executor == ""
            model.run([7], cache)
        told[executor] = (sparse.stats.executor, sparse.stats.ran)
    assert told == {
        "auto": ("auto", "gather"), "gather": ("gather", "gather"), "dense_mask": ("dense_mask", "dense_mask"),
        "flex": ("flex", "flex (not compiled)"),
    }  # fmt: skip
    quest = Sparse(Quest(budget=12, page_size=4, dense_layers=1))
    cache = model.new_cache()
    with read_sparsely(model.model, quest):
        model.run(ids, cache)
        model.run([7], cache)
    assert (quest.stats.prefill_executor, quest.stats.ran) == (
        "dense",
        "dense in prefill, gather and dense in decoding",
    )
    assert executor_for("auto", step_of(9)) == "gather"


@pytest.mark.parametrize("kind", [Share, Mac, Compact])
def test_what_is_around_another_looks_as_far_ahead(kind: Any) -> None:
    far = FlexPrefill(block_size=4)
    assert far.foresight == "pass"
    assert kind(inner=far).foresight == "pass"
    assert kind(inner=SinkRecent(budget=8, sink=1, q_block=4)).foresight == ("block" if kind is Compact else "none")
    assert kind(inner=Quest()).foresight == "block"
    assert kind().label.startswith(f"{kind.name}(quest(1024)")
    assert Share(inner=Quest(q_block=64)).q_block == 64
