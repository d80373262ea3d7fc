"""The store against a plain dict: whatever is done to it, and wherever it is killed, it says what the dict says."""

from __future__ import annotations

import copy
import os
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, precondition, rule

from rag.store import Entry, FileRecord, Store, failpoints, verify
from rag.store.compact import compact
from rag.text import lexical_words
from tests.crash.conftest import quick_folder
from tests.crash.entries import FINGERPRINT, failed_record, make_entry, vector

# No part of a word may have the stem of another word: the model does not stem, and a window may cut a word.
WORDS = ("river", "ledger", "北京", "harbour", "copper", "Maß", "orchard", "vessel")
NAMES = ("a.md", "b.md", "c.csv", "sub/d.txt")
ORIGINS = tuple(f"/{root}/{name}" for root in ("docs", "copy") for name in NAMES)

texts = st.lists(st.sampled_from(WORDS), min_size=0, max_size=24).map(" ".join)
puts = st.builds(dict, origin=st.sampled_from(ORIGINS), text=texts, window=st.sampled_from([17, 40]))
origins = st.sampled_from(ORIGINS)
changes = st.fixed_dictionaries(
    {
        "puts": st.lists(puts, max_size=3, unique_by=lambda put: put["origin"]),
        "removed": st.lists(origins, max_size=2, unique=True),
        "failed": st.lists(origins, max_size=1),
    }
)


def source_of(origin: str) -> str:
    return origin.split("/", 2)[2]


def entry_of(put: dict[str, Any]) -> Entry:
    source = source_of(put["origin"])
    meta = {"number": len(source), "kind": source[-2:]}
    return make_entry(put["text"], source, origin=put["origin"], window=put["window"], meta=meta, title=source[:1])


def failure_of(origin: str) -> FileRecord:
    return replace(failed_record(source_of(origin)), origin=origin)


@dataclass
class Model:
    """What the store should hold: the id of each origin's document or None, who failed, and all documents."""

    files: dict[str, str | None] = field(default_factory=dict)
    broken: set[str] = field(default_factory=set)
    documents: dict[str, Entry] = field(default_factory=dict)

    def commit(self, change: dict[str, Any]) -> None:
        for origin in change["removed"]:
            self.files.pop(origin, None)
            self.broken.discard(origin)
        for origin in change["failed"]:
            self.files.setdefault(origin, None)
            self.broken.add(origin)
        for put in change["puts"]:
            entry = entry_of(put)
            self.files[put["origin"]] = entry.document.id
            self.broken.discard(put["origin"])
            self.documents[entry.document.id] = entry
        held = set(self.files.values())
        self.documents = {name: entry for name, entry in self.documents.items() if name in held}

    def chunks(self, keep: Any = lambda entry: True) -> dict[str, Any]:
        """Chunk id -> chunk."""
        return {chunk.id: chunk for entry in self.documents.values() if keep(entry) for chunk in entry.chunks}


class StoreMachine(RuleBasedStateMachine):
    snapshots = Bundle("snapshots")

    def __init__(self) -> None:
        super().__init__()
        self._stack = ExitStack()
        self.directory = self._stack.enter_context(quick_folder()) / "index"
        self.store = Store.create_or_open(self.directory)
        self.store.set_manifest({"fingerprint": FINGERPRINT, "dimension": 4})
        self.model = Model()
        self.kept: dict[str, Model] = {}
        self.names = iter(range(1000))
        self.keys_of_rows: dict[int, str] = {}
        self.rows_of_generations: dict[int, frozenset[tuple[int, str]]] = {}
        self.steps = 0

    def teardown(self) -> None:
        self.store.close()
        self._stack.close()

    def _commit(self, store: Store, change: dict[str, Any]) -> None:
        store.commit(
            entries=[entry_of(put) for put in change["puts"]],
            removed=change["removed"],
            failed=[failure_of(origin) for origin in change["failed"]],
        )

    # -- what may happen -------------------------------------------------------------------------------------

    @rule(change=changes)
    def commit(self, change: dict[str, Any]) -> None:
        self._commit(self.store, change)
        self.model.commit(change)

    @rule(put=puts, name=st.sampled_from(NAMES))
    def share(self, put: dict[str, Any], name: str) -> None:
        """The same document under two origins."""
        both = [{**put, "origin": f"/{root}/{name}"} for root in ("docs", "copy")]
        self.commit({"puts": both, "removed": [], "failed": []})

    @rule(change=changes, point=st.sampled_from(["commit.begin", "commit.written", "commit.done"]))
    def die(self, change: dict[str, Any], point: str) -> None:
        """Another process opens the index, commits, and is killed on the way."""
        self.store.close()
        child = os.fork()
        if child == 0:
            try:
                store = Store.create_or_open(self.directory)
                failpoints.arm(point)
                self._commit(store, change)
            finally:
                os._exit(9)
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == -9
        if point == "commit.done":
            self.model.commit(change)
        self.store = Store.create_or_open(self.directory)

    @rule(change=changes)
    def fail(self, change: dict[str, Any]) -> None:
        """A full disk at the last moment: nothing of the change is there."""
        failpoints.arm("commit.written=ENOSPC")
        try:
            with pytest.raises(Exception, match="No space left"):
                self._commit(self.store, change)
        finally:
            failpoints.arm(None)

    @rule()
    def reopen(self) -> None:
        self.store.close()
        self.store = Store.create_or_open(self.directory)

    @rule(target=snapshots)
    def snapshot(self) -> str:
        name = f"s{next(self.names)}"
        self.store.snapshot_create(name)
        self.kept[name] = copy.deepcopy(self.model)
        return name

    @rule(name=snapshots)
    def restore(self, name: str) -> None:
        self.store.snapshot_restore(name)
        self.model = copy.deepcopy(self.kept[name])

    @rule(name=consumes(snapshots))
    def forget(self, name: str) -> None:
        self.store.snapshot_delete(name)
        del self.kept[name]

    @rule()
    def compact(self) -> None:
        compact(self.store)

    @rule()
    def rebuild_lexical(self) -> None:
        assert self.store.rebuild_lexical() == len(self.model.chunks())

    # -- what must hold --------------------------------------------------------------------------------------

    @invariant()
    def files_and_documents(self) -> None:
        files = self.store.files()
        assert {origin: record.doc_id for origin, record in files.items()} == self.model.files
        assert {origin for origin, record in files.items() if record.error} == self.model.broken
        infos = {info.id: info for info in self.store.documents()}
        assert infos.keys() == self.model.documents.keys()
        for name, entry in self.model.documents.items():
            assert self.store.document(name) == entry.document
            assert self.store.chunks_of(name) == list(entry.chunks)
            assert set(infos[name].origins) == {o for o, held in self.model.files.items() if held == name}
        assert {info.name for info in self.store.snapshots()} == self.kept.keys()

    @invariant()
    def rows_stand_for_one_content_forever(self) -> None:
        """What derived files rely on: a row never changes its content, and a generation never its rows."""
        with self.store.corpus() as corpus:
            rows = corpus.rows().tolist()
            keys = [chunk.key for chunk in corpus.chunks(rows)]
            for row, key in zip(rows, keys, strict=True):
                assert self.keys_of_rows.setdefault(row, key) == key
            pairs = frozenset(zip(rows, keys, strict=True))
            assert self.rows_of_generations.setdefault(corpus.generation, pairs) == pairs
            assert corpus.generation >= max(self.rows_of_generations)

    @invariant()
    def verified(self) -> None:
        self.steps += 1
        if self.steps % 5 == 0:
            assert verify(self.store).problems == []

    @rule(words=st.lists(st.sampled_from(WORDS), min_size=1, max_size=3), k=st.sampled_from([2, 1000]))
    def search_words(self, words: Sequence[str], k: int) -> None:
        wanted = {word for text in words for word in lexical_words(text)}
        expected = {name for name, chunk in self.model.chunks().items() if wanted & set(words_of(self.model, chunk))}
        with self.store.corpus() as corpus:
            hits = corpus.lexical(words, k)
            found = [chunk.id for chunk in corpus.chunks([row for row, _ in hits])]
        assert [score for _, score in hits] == sorted((score for _, score in hits), reverse=True)
        assert set(found) <= expected
        assert len(found) == min(k, len(expected))

    @precondition(lambda self: self.model.chunks())
    @rule(seed=st.integers(0, 1000))
    def search_vectors(self, seed: int) -> None:
        question = vector(f"{seed}")
        expected = {name: float(vector(chunk.key) @ question) for name, chunk in self.model.chunks().items()}
        with self.store.corpus() as corpus:
            rows, matrix = corpus.vectors()
            chunks = corpus.chunks(rows.tolist())
        scores = dict(zip((chunk.id for chunk in chunks), (matrix @ question).tolist(), strict=True))
        assert scores.keys() == expected.keys()
        assert np.allclose([scores[name] for name in expected], list(expected.values()), atol=1e-6)

    @rule(number=st.integers(3, 9), name=st.sampled_from(NAMES))
    def filter(self, number: int, name: str) -> None:
        cases = {
            "source": ({"source": name}, lambda entry: entry.document.source == name),
            "meta": ({"meta.number": {"ge": number}}, lambda entry: entry.document.meta["number"] >= number),
            "not": ({"not": {"source": name}}, lambda entry: entry.document.source != name),
        }
        with self.store.corpus() as corpus:
            for where, keep in cases.values():
                found = {chunk.id for chunk in corpus.chunks(corpus.rows(where).tolist())}
                assert found == self.model.chunks(keep).keys()


def words_of(model: Model, chunk: Any) -> list[str]:
    """The words under which a chunk is found: its own, and those of its document's title."""
    return lexical_words(chunk.text) + lexical_words(model.documents[chunk.doc_id].document.title)


StoreMachine.TestCase.settings = settings(
    max_examples=20,
    stateful_step_count=25,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="forks a process and kills it")
class TestStore(StoreMachine.TestCase):
    """Runs the machine."""
