"""Keys and values of chunks in memory: read from disk once, never for another state of the index, the same answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from rag.answer import Answer  # noqa: E402
from rag.engine.store import KvStore  # noqa: E402
from rag.engine.tiers import KvTiers  # noqa: E402
from rag.generators.local import LocalGenerator  # noqa: E402
from rag.pipeline import Pipeline  # noqa: E402
from rag.store.kv import KV_NAME  # noqa: E402
from tests.unit.test_engine_tiers import block  # noqa: E402
from tests.unit.test_generators_reuse import (  # noqa: E402
    FILES,
    WHEN,
    WHO,
    ask_line,
    doc_ids,
    files,
    folder,
    owners,
    pipeline,
    seen,
    written,
)

__all__ = ["files", "folder", "seen"]


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Bytes of every block that comes from disk."""
    noted: list[int] = []
    get = KvStore.get

    def spy(self: Any, *given: Any, **named: Any) -> Any:
        found = get(self, *given, **named)
        noted.append(found.size_bytes if found is not None else 0)
        return found

    monkeypatch.setattr(KvStore, "get", spy)
    return noted


def held(line: Pipeline) -> KvTiers:
    assert isinstance(line.generator, LocalGenerator)
    memory = line.generator._chunk_kv._memory
    assert memory is not None
    return memory[1]


@pytest.mark.parametrize(
    "given",
    [{}, {"kv_dtype": "int8", "blocks": "solo", "repair": "naive"}, {"repair": "cache-craft"}],
    ids=["donor-mean", "int8", "cache-craft"],
)
def test_what_is_in_memory_is_not_read_and_changes_no_bit(
    folder: Path, files: Path, tmp_path: Path, seen: list[Any], reads: list[int], given: Any
) -> None:
    plain, index = pipeline(folder, **given), tmp_path / "index"
    plain.index(files, index).close()
    for question in (WHO, WHEN, WHO, WHEN):  # everything is made
        ask_line(plain, question, index)
    expected, ours = seen[2:4], pipeline(folder, ram_bytes=1 << 24, **given)
    del reads[:]
    for at, question in enumerate((WHO, WHEN, WHO, WHEN)):
        answer = ask_line(ours, question, index)
        assert torch.equal(seen[-1], expected[at % 2])
        assert answer.stats.bytes_loaded == sum(reads)
        assert (sum(reads) == 0) == (at > 0)  # the second question is over the same chunks
        assert not reads or not at  # the store is not even opened
        assert answer.trace[-1].notes["blocks_made"] == 0
        del reads[:]


def test_what_was_made_is_in_memory_too_also_without_a_place_on_disk(
    folder: Path, files: Path, tmp_path: Path, reads: list[int]
) -> None:
    for number, given in enumerate(({}, {"kv_bytes": 0})):
        line, index = pipeline(folder, ram_bytes=1 << 24, **given), tmp_path / f"index {number}"
        line.index(files, index).close()
        answers = [ask_line(line, WHO, index) for _ in range(2)]
        assert [one.trace[-1].notes["blocks_made"] for one in answers] == [4, 0]
        assert written(answers[0]) == written(answers[1])
        assert answers[1].stats.reused_tokens > 0
        assert answers[1].stats.bytes_loaded == 0


def test_memory_holds_no_more_than_it_may(folder: Path, files: Path, tmp_path: Path, reads: list[int]) -> None:
    index, whole = tmp_path / "index", pipeline(folder, ram_bytes=1 << 24)
    whole.index(files, index).close()
    expected = written(ask_line(whole, WHO, index))
    most = held(whole).size_bytes - 1
    small = pipeline(folder, ram_bytes=most)
    for _ in range(2):
        answer = ask_line(small, WHO, index)
        assert 0 < held(small).size_bytes <= most
        assert held(small).abstract_bytes == 0
        assert answer.stats.bytes_loaded > 0
        assert written(answer) == expected


def test_another_state_of_the_index_starts_with_nothing(folder: Path, files: Path, tmp_path: Path) -> None:
    index, line = tmp_path / "index", pipeline(folder, ram_bytes=1 << 24)
    line.index(files, index).close()
    for question in (WHO, WHEN):
        ask_line(line, question, index)
    before, ids = owners(index), doc_ids(index)
    (files / "keeper.txt").write_text("Olaf Brandt has kept the light since 1955. He has a dog.", encoding="utf-8")
    line.index(files, index).close()
    assert owners(index) == {owner: count for owner, count in before.items() if owner != ids["keeper.txt"]}
    answer = ask_line(line, WHO, index)
    assert answer.stats.bytes_loaded > 0
    assert set(owners(index)) >= set(doc_ids(index).values())
    other = tmp_path / "other"
    line.index(files, other).close()
    assert ask_line(line, WHO, other).trace[-1].notes["blocks_made"] == 4  # the other folder has its own
    assert set(owners(other)) == set(owners(index))


def test_a_second_document_with_the_same_chunk_becomes_an_owner(folder: Path, files: Path, tmp_path: Path) -> None:
    index, line = tmp_path / "index", pipeline(folder, ram_bytes=1 << 24)
    (files / "ships.txt").unlink()
    (files / "a").mkdir()
    (files / "a/keeper.txt").write_text(FILES["keeper.txt"] + "\n", encoding="utf-8")
    line.index(files, index).close()
    for question in (WHO, "lighthouse granite lamp built light"):
        answer: Answer = ask_line(line, question, index)
    assert answer.context.pieces
    with KvStore(index / KV_NAME, max_bytes=1 << 30) as store:
        assert any(len(entry.owners) == 2 for entry in store.entries())


def test_tiers_without_abstracts() -> None:
    tiers = KvTiers(max_bytes=1 << 20, tokens=None)
    made = block(0)
    assert tiers.put(made, "p", ["a"])
    assert tiers.get(made.ids, "model", "p") is made
    assert tiers.abstract(made.ids, "model", "p") is None
    assert tiers.abstract_bytes == 0
