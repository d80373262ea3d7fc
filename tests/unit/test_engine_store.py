"""The store on disk: it does what a dict would, under its cap, and survives what can happen to files."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from rag.engine import EngineError  # noqa: E402
from rag.engine.blobs import block_key, pack, unpack  # noqa: E402
from rag.engine.blocks import AttentionBefore, KvBlock, make_block  # noqa: E402
from rag.engine.store import KvStore  # noqa: E402
from tests.unit.test_engine_model import shared, some_ids  # noqa: E402

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def fake(ids: list[int], dtype: Any = torch.bfloat16) -> KvBlock:
    made = torch.Generator().manual_seed(ids[0])
    k, v = (torch.randn(3, 2, len(ids), 8, generator=made).to(dtype) for _ in range(2))
    return KvBlock(tuple(ids), k, v, "model")


def on_disk(store: KvStore) -> int:
    return sum(file.stat().st_size for file in (store.folder / "blobs").iterdir())


def same(one: KvBlock, two: KvBlock) -> bool:
    return one.ids == two.ids and torch.equal(one.k, two.k) and torch.equal(one.v, two.v)


SIZE = len(pack(fake([1, 2, 3]), "bf16"))
OPERATIONS = st.one_of(
    st.tuples(
        st.just("put"), st.integers(0, 4), st.sampled_from("abc"), st.integers(1, 2), st.sets(st.sampled_from("ab"))
    ),
    st.tuples(st.just("get"), st.integers(0, 4)),
    st.tuples(st.just("drop"), st.sampled_from("abc")),
    st.tuples(st.just("reopen")),
)


@given(operations=st.lists(OPERATIONS, max_size=25), room=st.integers(0, 4))
@settings(max_examples=60, deadline=None)
def test_it_does_what_a_dict_does(operations: list[tuple[Any, ...]], room: int) -> None:
    """`model`: number -> [owners, cost, hits, last use, sources], evicted by cost x (1 + hits), as sizes are equal."""
    model: dict[int, list[Any]] = {}
    clock = 0
    with tempfile.TemporaryDirectory() as folder:
        store = KvStore(Path(folder), max_bytes=room * SIZE)
        for operation in operations:
            clock += 1
            if operation[0] == "put":
                _, number, owner, cost, sources = operation
                key = store.put(fake([number, 1, 2]), "naive", [owner], cost=cost, sources=sources)
                assert (key is None) == (room == 0)
                if number in model:
                    model[number][0].add(owner)
                    model[number][4].update(sources)
                elif room:
                    if len(model) == room:
                        del model[min(model, key=lambda n: (model[n][1] * (1 + model[n][2]), model[n][3]))]
                    model[number] = [{owner}, cost, 0, clock, set(sources)]
            elif operation[0] == "get":
                found = store.get([operation[1], 1, 2], "model", "naive")
                assert (found is not None) == (operation[1] in model)
                if found is not None:
                    assert same(found, fake([operation[1], 1, 2]))
                    model[operation[1]][2:4] = [model[operation[1]][2] + 1, clock]
            elif operation[0] == "drop":
                gone = [
                    number
                    for number, (owners, *_, sources) in model.items()
                    if owners == {operation[1]} or operation[1] in sources
                ]
                assert store.drop(operation[1]) == len(gone)
                for number in gone:
                    del model[number]
                for owners, *_ in model.values():
                    owners.discard(operation[1])
            else:
                store.close()
                store = KvStore(Path(folder), max_bytes=room * SIZE)
                assert store.healed == 0
            assert len(store) == len(model) <= room
            assert on_disk(store) == store.size_bytes <= room * SIZE
        assert sorted((entry.owners, entry.sources) for entry in store.entries()) == sorted(
            (tuple(sorted(owners)), tuple(sorted(sources))) for owners, *_, sources in model.values()
        )
        assert store.verify() == []
        store.close()


@pytest.mark.parametrize("dtype", ["bf16", "fp16", "fp32"])
def test_what_is_stored_in_its_own_type_comes_back_exactly(tmp_path: Path, dtype: Any) -> None:
    made = fake([4, 5, 6], DTYPES[dtype])
    seen = AttentionBefore(("one", "two"), torch.rand(3, 2), torch.rand(3))
    block = KvBlock(made.ids, made.k, made.v, "model", variance=torch.rand(3), seen=seen)
    with KvStore(tmp_path, max_bytes=1 << 20) as store:
        store.put(block, "donor-mean", ["document"], dtype=dtype)
        back = store.get([4, 5, 6], "model", "donor-mean", dtype=dtype)
    assert back is not None
    assert same(back, block)
    assert back.seen is not None
    assert back.variance is not None
    assert torch.equal(back.variance, block.variance)
    assert back.seen.behind == seen.behind
    assert torch.equal(back.seen.inter, seen.inter)
    assert torch.equal(back.seen.intra, seen.intra)


@given(seed=st.integers(0, 10_000), spread=st.floats(1e-6, 1e6))
@settings(max_examples=30)
def test_int8_errs_by_half_a_step_of_each_channel(seed: int, spread: float) -> None:
    made = torch.Generator().manual_seed(seed)
    k, v = (torch.randn(2, 2, 9, 4, generator=made) * spread * 10 ** torch.randn(2, 2, 1, 4, generator=made)
            for _ in range(2))  # fmt: skip
    k[0, 0, :, 0] = 0.0
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "one.safetensors"
        file.write_bytes(pack(KvBlock(tuple(range(9)), k, v, "model"), "int8"))
        back = unpack(file)
    for before, after in ((k, back.k), (v, back.v)):
        step = before.abs().amax(dim=2, keepdim=True) / 127
        assert bool(((after - before).abs() <= 0.5001 * step).all())
        assert after.dtype == torch.float32


def test_int8_takes_about_half_of_bf16() -> None:
    k, v = (torch.randn(3, 2, 256, 16).bfloat16() for _ in range(2))
    block = KvBlock(tuple(range(256)), k, v, "model")
    assert len(pack(block, "int8")) < 0.6 * len(pack(block, "bf16"))


def test_keys_depend_on_all_that_decides_the_content() -> None:
    keys = [
        block_key([1, 2], "model", "naive", "bf16"),
        block_key([1, 3], "model", "naive", "bf16"),
        block_key([1, 2], "other", "naive", "bf16"),
        block_key([1, 2], "model", "donor-mean(4)", "bf16"),
        block_key([1, 2], "model", "naive", "int8"),
        block_key([1, 2], "modelnaive", "", "bf16"),
    ]
    assert len(set(keys)) == len(keys)


def test_a_flipped_byte_is_found_named_and_never_given_out(tmp_path: Path) -> None:
    size = len(pack(fake([0, 1, 2]), "bf16"))
    with KvStore(tmp_path, max_bytes=1 << 20) as store:
        for number in range(3):
            store.put(fake([number, 1, 2]), "naive", ["document"])
        for place in (0, 9, 40, size // 2, size - 1):
            key = store.put(fake([1, 1, 2]), "naive", ["document"])
            file = tmp_path / "blobs" / f"{key}.safetensors"
            content = bytearray(file.read_bytes())
            content[place] ^= 4
            file.write_bytes(content)
            assert store.verify() == [file]
            assert store.get([1, 1, 2], "model", "naive") is None
            assert store.verify() == []
            assert (len(store), file.exists()) == (2, False)


def test_files_and_rows_that_do_not_match_are_dropped_at_open(tmp_path: Path) -> None:
    with KvStore(tmp_path, max_bytes=1 << 20) as store:
        keys = [store.put(fake([number, 1, 2]), "naive", ["document"]) for number in range(4)]
    blobs = tmp_path / "blobs"
    (blobs / f"{keys[0]}.safetensors").unlink()
    (blobs / f"{keys[1]}.safetensors").write_bytes(b"short")
    (blobs / "unknown.safetensors").write_bytes(b"no row")
    (blobs / "half.part").write_bytes(b"half")
    with KvStore(tmp_path, max_bytes=1 << 20) as store:
        assert store.healed == 4
        assert sorted(entry.key for entry in store.entries()) == sorted(str(key) for key in keys[2:])
        assert on_disk(store) == store.size_bytes
        assert store.verify() == []
        assert store.drop("document") == 2
    with KvStore(tmp_path, max_bytes=1 << 20) as store:
        assert store.healed == 0


def test_a_smaller_cap_holds_from_the_opening_on(tmp_path: Path) -> None:
    with KvStore(tmp_path, max_bytes=1 << 20) as store:
        for number in range(4):
            store.put(fake([number, 1, 2]), "naive", ["document"], cost=number)
    with KvStore(tmp_path, max_bytes=2 * SIZE + 1) as store:
        assert [store.get([number, 1, 2], "model", "naive") is not None for number in range(4)] == [0, 0, 1, 1]
        assert on_disk(store) <= 2 * SIZE


def test_a_blob_goes_with_its_last_owner(tmp_path: Path) -> None:
    with KvStore(tmp_path, max_bytes=1 << 20) as store:
        for number, owners in ((1, "a"), (2, "ab"), (3, "bc"), (2, "c")):
            store.put(fake([number, 1, 2]), "naive", owners)
        assert (store.drop("a"), len(store), on_disk(store)) == (1, 2, store.size_bytes)
        assert (store.drop("b"), len(store), on_disk(store)) == (0, 2, store.size_bytes)
        assert store.get([2, 1, 2], "model", "naive") is not None
        assert (store.drop("c"), store.drop("c"), on_disk(store)) == (2, 0, 0)


def test_of_equals_the_one_unused_for_longest_goes_first(tmp_path: Path) -> None:
    with KvStore(tmp_path, max_bytes=3 * SIZE) as store:
        for number in range(5):
            store.put(fake([number, 1, 2]), "naive", ["document"])
        assert [store.get([number, 1, 2], "model", "naive") is not None for number in range(5)] == [0, 0, 1, 1, 1]


def test_cheap_large_unused_blobs_go_first(tmp_path: Path) -> None:
    large = fake(list(range(1, 10)))
    with KvStore(tmp_path, max_bytes=len(pack(large, "bf16")) + 2 * SIZE) as store:
        store.put(large, "naive", ["document"], cost=2.0)
        store.put(fake([10, 1, 2]), "naive", ["document"], cost=1.9)
        store.put(fake([11, 1, 2]), "naive", ["document"], cost=1.0)
        store.put(fake([12, 1, 2]), "naive", ["document"], cost=1.0)  # the large one has the least cost per byte
        assert store.get(large.ids, "model", "naive") is None
        assert len(store) == 3


def test_the_cap_holds_while_a_file_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    with KvStore(tmp_path, max_bytes=2 * SIZE) as store:

        def look(handle: int) -> None:
            seen.append(on_disk(store))

        monkeypatch.setattr(os, "fsync", look)
        for number in range(5):
            store.put(fake([number, 1, 2]), "naive", ["document"])
        assert store.put(fake(list(range(30))), "naive", ["document"]) is None
        assert len(store) == 2  # what never fits evicts nothing
    assert SIZE <= max(seen) <= 2 * SIZE


def test_a_failed_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with KvStore(tmp_path, max_bytes=1 << 20) as store:
        with monkeypatch.context() as patched:
            patched.setattr(os, "fsync", lambda handle: (_ for _ in ()).throw(OSError("full")))
            with pytest.raises(OSError, match="full"):
                store.put(fake([1, 2, 3]), "naive", ["document"])
        assert (len(store), on_disk(store)) == (0, 0)
        assert store.put(fake([1, 2, 3]), "naive", ["document"]) is not None


KILLED = """
import os, sys, torch
from pathlib import Path
from rag.engine.blocks import KvBlock
from rag.engine.store import KvStore
store = KvStore(Path(sys.argv[1]), max_bytes=1 << 20)
def block(n): return KvBlock((n, 1, 2), torch.full((3, 2, 3, 8), float(n)), torch.zeros(3, 2, 3, 8), "model")
store.put(block(1), "naive", ["document"], dtype="fp32")
place, calls = sys.argv[2], [0]
def die(*given):
    os.kill(os.getpid(), 9)
if place == "before the rename": Path.replace = die
else: store._tick = die
store.put(block(2), "naive", ["document"], dtype="fp32")
"""


@pytest.mark.skipif(os.name != "posix", reason="kills with SIGKILL")
@pytest.mark.parametrize("place", ["before the rename", "after it"])
def test_a_process_killed_in_a_write_leaves_a_store_that_heals(tmp_path: Path, place: str) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path), place], check=False, timeout=120)
    assert done.returncode == -signal.SIGKILL
    with KvStore(tmp_path, max_bytes=1 << 20) as store:
        assert store.healed == 1
        assert (len(store), on_disk(store)) == (1, store.size_bytes)
        assert store.get([1, 1, 2], "model", "naive", dtype="fp32") is not None
        assert store.verify() == []


def test_two_open_stores_share_a_folder(tmp_path: Path) -> None:
    with KvStore(tmp_path, max_bytes=2 * SIZE) as one, KvStore(tmp_path, max_bytes=2 * SIZE) as two:
        for number in range(4):
            (one, two)[number % 2].put(fake([number, 1, 2]), "naive", ["document"])
            assert on_disk(one) == one.size_bytes == two.size_bytes <= 2 * SIZE
        held = two.get([3, 1, 2], "model", "naive")
        assert one.drop("document") == 2
        assert two.get([3, 1, 2], "model", "naive") is None
        assert held is not None
        assert same(held, fake([3, 1, 2]))  # mapped memory outlives the file


def test_the_store_keeps_what_a_model_made(tmp_path: Path) -> None:
    model, ids = shared(), some_ids(12)
    block = make_block(model, ids)
    with KvStore(tmp_path, max_bytes=1 << 20) as store:
        store.put(block, "alone", ["document"], dtype="fp32", cost=model.cost(0, 12))
        back = store.get(ids, model.fingerprint, "alone", dtype="fp32")
        assert back is not None
        assert same(back, block)
        assert store.get(ids, "another model", "alone", dtype="fp32") is None
        assert [(entry.hits, entry.owners) for entry in store.entries()] == [(1, ("document",))]


def test_what_cannot_work_says_so(tmp_path: Path) -> None:
    with KvStore(tmp_path / "kv", max_bytes=1 << 20) as store:
        with pytest.raises(EngineError, match="at least one owner"):
            store.put(fake([1, 2, 3]), "naive", [])
        with pytest.raises(EngineError, match="stored type is one of"):
            store.put(fake([1, 2, 3]), "naive", ["document"], dtype="int4")  # type: ignore[arg-type]
    with pytest.raises(EngineError, match="max_bytes"):
        KvStore(tmp_path, max_bytes=-1)
    (tmp_path / "kv" / "ledger.sqlite").write_bytes(b"no database at all, and long enough to be looked at" * 40)
    for rest in ("ledger.sqlite-wal", "ledger.sqlite-shm"):
        (tmp_path / "kv" / rest).unlink(missing_ok=True)
    with pytest.raises(EngineError, match="delete the folder"):
        KvStore(tmp_path / "kv", max_bytes=1)
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"\x10")
    with pytest.raises(EngineError, match="no block of this store"):
        unpack(broken)


@pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX")
def test_the_folder_is_closed_to_others(tmp_path: Path) -> None:
    with KvStore(tmp_path / "kv", max_bytes=1):
        assert (tmp_path / "kv").stat().st_mode & 0o077 == 0


def test_a_blob_goes_with_any_of_its_sources_whoever_owns_it(tmp_path: Path) -> None:
    with KvStore(tmp_path, max_bytes=1 << 20) as store:
        store.put(fake([1, 2]), "near", ["a", "b"], sources=["c", "d"])
        store.put(fake([3, 4]), "near", ["c"], sources=["a"])
        store.put(fake([5, 6]), "near", ["b"])
        assert {(entry.owners, entry.sources) for entry in store.entries()} == {
            (("a", "b"), ("c", "d")), (("c",), ("a",)), (("b",), ()),
        }  # fmt: skip
        assert (store.drop("d"), len(store), on_disk(store)) == (1, 2, store.size_bytes)
        assert (store.drop("d"), store.drop("a"), len(store)) == (0, 1, 1)
        store.put(fake([5, 6]), "near", ["b"], sources=["e"])  # it is there already
        assert (store.drop("e"), len(store), on_disk(store)) == (1, 0, 0)
        assert not store._ledger.execute("SELECT * FROM owners UNION ALL SELECT * FROM sources").fetchall()


def test_a_ledger_from_before_sources_keeps_working(tmp_path: Path) -> None:
    with KvStore(tmp_path, max_bytes=1 << 20) as store:
        store.put(fake([1, 2]), "near", ["a"])
        store._ledger.execute("DROP TABLE sources")
    with KvStore(tmp_path, max_bytes=1 << 20) as store:
        assert [entry.sources for entry in store.entries()] == [()]
        store.put(fake([3, 4]), "near", ["a"], sources=["b"])
        assert (store.drop("b"), store.drop("a"), len(store)) == (1, 1, 0)
