"""rag migrate --to: the store of another retriever is filled from the stored vectors, read back, and named."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rag.config import PipelineConfig
from rag.embedders.hashing import HashingEmbedder
from rag.errors import ConfigError, RagError
from rag.index import Index
from rag.pipeline import Pipeline
from rag.store.store import Store
from rag.transfer import transfer
from retrievers._pg_mirror import Mirror
from tests.corpora import topic_documents
from tests.e2e.conftest import Run
from tests.servers import chroma_server, sql

pytestmark = pytest.mark.usefixtures("address")

Rag = Callable[..., Run]
SLOTS = {"embedder": "hashing", "chunker": {"use": "fixed", "max_tokens": 24}, "generator": "extractive"}
QUESTION = "How long may a hotel night be refunded?"
KILLED = """
import os, signal, sys
from retrievers import _pg_mirror
_pg_mirror._BATCH = 4
real, done = _pg_mirror.Mirror._write, []
def dies(self, connection, records):
    if len(done) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    real(self, connection, records)
    done.append(1)
_pg_mirror.Mirror._write = dies
from rag.cli.main import main
sys.argv = ["rag", "migrate", sys.argv[1], "--to", "pgvector"]
main()
"""


def pipeline(retriever: Any) -> Pipeline:
    return Pipeline(PipelineConfig.from_dict({**SLOTS, "retriever": retriever}))


@pytest.fixture
def index(tmp_path: Path) -> Path:
    folder = tmp_path / "papers"
    folder.mkdir()
    for document in topic_documents():
        (folder / document.source).write_text(document.text)
    pipeline("faiss-dense").index(folder, into=tmp_path / "idx").close()
    return tmp_path / "idx"


def content(index: Path) -> tuple[str, int]:
    """Of all chunks and vectors, and the generation."""
    digest = hashlib.blake2b()
    with Store.open(index) as store, store.corpus() as corpus:
        for row, chunk in zip(corpus.rows(), corpus.chunks(corpus.rows().tolist()), strict=True):
            digest.update(f"{row} {chunk.id} {chunk.key}".encode())
        digest.update(corpus.vectors()[1].tobytes())
        return digest.hexdigest(), store.generation


def hits(index: Path) -> list[tuple[str, float]]:
    """By the retriever that the index names."""
    with Store.open(index) as store:
        config = store.manifest()["config"]
    line = Pipeline(PipelineConfig.from_dict(config))
    with Index.open(index) as opened:
        return [(hit.chunk.id, hit.score) for hit in line.search(QUESTION, opened)]


def named(index: Path) -> Any:
    with Store.open(index) as store:
        return store.manifest()["config"]["retriever"]


def test_there_and_back_without_embedding(rag: Rag, index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, found = content(index), hits(index)

    def embed(self: HashingEmbedder, texts: Any) -> Any:
        raise AssertionError("nothing may be embedded")

    for target in ("pgvector", "chroma-dense", "faiss-dense"):
        with monkeypatch.context() as patch:
            patch.setattr(HashingEmbedder, "embed", embed)
            done = transfer(index, pipeline(target))
        assert (done.after, done.chunks, done.verified) == (target, chunks_of(index), done.chunks)
        assert done.config == "changed"
        assert done.present + done.written == done.chunks
        assert content(index) == before
        assert named(index) == target
        assert hits(index) == found
    again = transfer(index, pipeline("pgvector"))
    assert (again.present, again.written) == (again.chunks, 0)


def chunks_of(index: Path) -> int:
    with Store.open(index) as store, store.corpus() as corpus:
        return len(corpus)


def test_killed_and_run_again(index: Path, address: str, rag: Rag) -> None:
    before = content(index)
    killed = subprocess.run([sys.executable, "-c", KILLED, str(index)], env=dict(os.environ), capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert named(index) == "faiss-dense"
    assert content(index) == before
    done = rag("migrate", str(index), "--to", "pgvector", "--json")
    assert done.code == 0, done.err
    told = done.json
    assert (told["present"], told["written"], told["verified"]) == (8, told["chunks"] - 8, told["chunks"])
    with Store.open(index) as store, store.corpus() as corpus:
        table = pipeline("pgvector").retriever._mirror(corpus).table  # type: ignore[attr-defined]
        expected = [(row, chunk.id) for row, chunk in enumerate(corpus.chunks(corpus.rows().tolist()), start=1)]
    assert [
        (at, name) for at, (name,) in enumerate(sql(address, f"SELECT chunk_id FROM {table} ORDER BY row"), 1)
    ] == expected
    assert content(index) == before
    assert named(index) == "pgvector"


@pytest.mark.slow
def test_to_a_chroma_server(index: Path) -> None:
    found = hits(index)
    with chroma_server() as port:
        done = transfer(index, pipeline({"use": "chroma-dense", "host": "127.0.0.1", "port": port}))
        assert (done.present, done.verified) == (0, done.chunks)
        assert hits(index) == found


def test_a_part_of_a_composite(index: Path) -> None:
    done = transfer(index, pipeline({"use": "hybrid", "parts": ["pgvector", "bm25"]}))
    assert (done.after, done.present, done.written) == ("hybrid", 0, done.chunks)
    assert named(index) == {"use": "hybrid", "parts": ["pgvector", "bm25"]}


def test_what_differs_is_told_and_changes_nothing(index: Path, address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Mirror.held

    def moved(self: Mirror, connection: Any, *, vectors: bool) -> Any:
        for rows, keys, matrix in real(self, connection, vectors=vectors):
            yield [*rows[1:], 10**6], ["other", *keys[1:]], None if matrix is None else matrix + 1e-7

    monkeypatch.setattr(Mirror, "held", moved)
    with pytest.raises(RagError, match="lacks 1 chunks") as caught:
        transfer(index, pipeline("pgvector"))
    for word in ("1 records that are not in the index", "other ids", "other vectors"):
        assert word in str(caught.value)
    assert named(index) == "faiss-dense"


def test_on_the_command_line(rag: Rag, index: Path, tmp_path: Path) -> None:
    where = ("--index", str(index))
    kept = rag("migrate", *where, "--to", "pgvector", "--keep-config")
    assert (kept.code, named(index)) == (0, "faiss-dense")
    assert "still names faiss-dense" in kept.err
    spec = tmp_path / "to.yaml"
    spec.write_text("retriever: {use: pgvector, k: 9}\n")
    moved = rag("migrate", str(index), "--to", str(spec), "--set", "mode=hybrid")
    assert moved.code == 0, moved.err
    assert "0 written" in moved.err
    assert named(index) == {"use": "pgvector", "k": 9, "mode": "hybrid"}
    assert "goes before the index's" in moved.err, "the folder's rag.yaml names hybrid"
    assert hits(index)[0][1] == pytest.approx(2 / 61)
    assert rag("verify", *where).code == 0
    assert rag("migrate", str(index), "--json").json["snapshot"] is None


@pytest.mark.parametrize(
    ("given", "code", "told"),
    [
        (("--to", "bm25"), 2, "keeps no store"),
        (("--to", "pgvektor"), 3, "pgvector"),
        (("--to", "absent.yaml"), 2, "cannot be read"),
        (("--to", "pgvector", "--set", "mode=all"), 3, "mode"),
        (("--set", "mode=text"), 2, "--to"),
        (("--keep-config",), 2, "--to"),
    ],
    ids=repr,
)
def test_what_cannot_be(rag: Rag, index: Path, given: tuple[str, ...], code: int, told: str) -> None:
    done = rag("migrate", str(index), *given)
    assert done.code == code
    assert told in done.err
    assert named(index) == "faiss-dense"


def test_an_index_that_is_not_there_or_has_no_vectors(rag: Rag, tmp_path: Path) -> None:
    assert rag("migrate", "absent", "--to", "pgvector").code == 2
    (tmp_path / "papers").mkdir()
    (tmp_path / "papers" / "a.txt").write_text("A sentence.")
    pipeline("bm25").index(tmp_path / "papers", into=tmp_path / "words").close()
    with pytest.raises(ConfigError, match="without vectors"):
        transfer(tmp_path / "words", pipeline("pgvector"))


def test_an_empty_index(tmp_path: Path) -> None:
    (tmp_path / "papers").mkdir()
    pipeline("faiss-dense").index(tmp_path / "papers", into=tmp_path / "idx").close()
    assert transfer(tmp_path / "idx", pipeline("pgvector")).chunks == 0
    assert named(tmp_path / "idx") == "pgvector"
