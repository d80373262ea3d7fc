"""Vectors of sentences are kept beside the index: embedded once, never wrong, never in the way."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from rag import Pipeline, PipelineConfig
from rag.cli.main import app
from rag.embedders.hashing import HashingEmbedder
from rag.errors import ConfigError
from rag.spans.units import units_of
from rag.store import Store, presplit, sentences, verify
from rag.store.failpoints import SENTENCE_POINTS
from rag.store.presplit import keep_sentences
from rag.store.repair import repair
from rag.store.sentences import SENTENCES_NAME, SentenceFile, check_sentences, count_sentences, text_key
from rag.tokens import WordCounter
from rag.types import Chunk, Document, Hit
from tests.corpora import TOPICS, MemoryCorpus

QUESTIONS = ("Which parasite harms the hive in winter?", "Who approves a trip above 5,000 EUR?", "Why add salt late?")
CHUNKERS: list[dict[str, Any]] = [
    {"use": "recursive", "max_tokens": 40},
    {"use": "fixed", "max_tokens": 30, "overlap_tokens": 12},
    {"use": "sentence", "max_tokens": 60},
]


@dataclass(frozen=True, kw_only=True)
class Counting(HashingEmbedder):
    """Keeps what it was asked to embed; dies at the call after `dies_after` texts."""

    texts: list[str] = field(default_factory=list)
    dies_after: int = 10**9

    def embed(self, texts: Sequence[str]) -> Any:
        if len(self.texts) >= self.dies_after:
            raise KeyboardInterrupt
        self.texts.extend(texts)
        return super().embed(texts)


def line(chunker: Any = None, *, dies_after: int = 10**9, **slots: Any) -> tuple[Pipeline, list[str]]:
    values = {"embedder": "hashing", "retriever": "hybrid", "selector": {"use": "bubble", "budget": 60}}
    config = PipelineConfig.from_dict({**values, "chunker": chunker or CHUNKERS[0], "near_duplicates": "off", **slots})
    pipeline, embedder = Pipeline(config), Counting(dies_after=dies_after)
    pipeline.__dict__["embedder"] = embedder
    return pipeline, embedder.texts


@pytest.fixture
def docs(tmp_path: Path) -> Path:
    folder = tmp_path / "docs"
    folder.mkdir()
    for name, text in TOPICS.items():
        (folder / name).write_text(text)
    return folder


def bubble(pipeline: Pipeline, index: Path, question: str) -> Any:
    found = pipeline.ask(question, index).bubble
    return found.spans, found.texts, found.token_count, found.decisions


def texts_of_two_asks(index: Path, question: str, chunker: Any = None) -> list[list[str]]:
    pipeline, texts = line(chunker)
    found = []
    for _ in range(2):
        texts.clear()
        pipeline.ask(question, index)
        found.append([text for text in texts if text != question])
    return found


def test_a_second_question_embeds_no_sentence_again(docs: Path, tmp_path: Path) -> None:
    line()[0].index(docs, tmp_path / "i").close()
    first, second = texts_of_two_asks(tmp_path / "i", QUESTIONS[0])
    assert len(first) == len(set(first)) > 10
    assert second == []


@pytest.mark.parametrize("chunker", CHUNKERS, ids=lambda one: one["use"])
def test_the_same_bubble_cold_warm_made_ahead_and_without_the_file(docs: Path, tmp_path: Path, chunker: Any) -> None:
    pipeline, _ = line(chunker)
    pipeline.index(docs, tmp_path / "i").close()
    path = tmp_path / "i" / SENTENCES_NAME
    expected = []
    for question in QUESTIONS:
        path.unlink(missing_ok=True)
        expected.append(bubble(pipeline, tmp_path / "i", question))  # cold
    path.unlink()
    path.mkdir()  # nothing can be read or kept
    assert [bubble(pipeline, tmp_path / "i", question) for question in QUESTIONS] == expected
    path.rmdir()
    for _ in range(2):  # filled by other questions, then warm
        assert [bubble(pipeline, tmp_path / "i", question) for question in QUESTIONS] == expected
    ahead, _ = line(chunker, sentences=True)
    ahead.index(docs, tmp_path / "ahead").close()
    assert [bubble(ahead, tmp_path / "ahead", question) for question in QUESTIONS] == expected


@pytest.mark.parametrize("chunker", CHUNKERS, ids=lambda one: one["use"])
def test_made_at_ingestion_the_first_question_embeds_itself_only(docs: Path, tmp_path: Path, chunker: Any) -> None:
    pipeline, texts = line(chunker, sentences=True)
    with pipeline.index(docs, tmp_path / "i") as index:
        assert index.report is not None
        assert index.report.sentences == index.store.stats()["sentences"] == len(texts) - index.report.embedded
        assert verify(index.store).checked["sentences"] == index.report.sentences
    for question in QUESTIONS:
        first, _ = texts_of_two_asks(tmp_path / "i", question, chunker)
        assert first == []


def test_ingestion_goes_on_where_it_was_stopped_and_leaves_alone_what_is_done(docs: Path, tmp_path: Path) -> None:
    pipeline, texts = line()
    pipeline.index(docs, tmp_path / "i").close()  # without; then with, on an index whose files have not changed
    chunks = len(texts)
    again, all_texts = line(sentences=True)
    with again.index(docs, tmp_path / "i") as index:
        assert index.report is not None
        assert index.report.documents == 0
        assert index.report.sentences == len(all_texts) == len(set(all_texts)) > 20
    killed, before = line(sentences=True, dies_after=chunks)
    with pytest.raises(KeyboardInterrupt):
        killed.index(docs, tmp_path / "j")
    resumed, after = line(sentences=True)
    resumed.index(docs, tmp_path / "j").close()
    assert sorted(before[chunks:] + after) == sorted(all_texts)
    repeated, nothing = line(sentences=True)
    repeated.index(docs, tmp_path / "j").close()
    assert nothing == []
    (docs / "bees.md").write_text(TOPICS["bees.md"] + " A tenth hive stands empty.")
    repeated.index(docs, tmp_path / "j").close()
    assert "A tenth hive stands empty." in nothing
    assert not set(nothing) & set(TOPICS["bread.md"].split(". "))


def spoil_row(path: Path) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE vectors SET vector = zeroblob(length(vector)) WHERE id % 2")
    connection.close()


def foreign(path: Path) -> None:
    path.unlink()
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE other(x)")
    connection.close()


def torn(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2 + 100])


def flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    for at in range(150, len(content), 997):
        content[at] ^= 0xFF
    path.write_bytes(content)


SPOILS: list[Callable[[Path], Any]] = [
    lambda path: path.write_bytes(b"no database " * 500),
    lambda path: path.write_bytes(b"\0" * 5000),
    lambda path: path.write_bytes(b""),
    spoil_row,
    foreign,
    torn,
    flipped,
]


@pytest.mark.parametrize("spoil", SPOILS)
def test_a_damaged_file_is_ignored_and_made_anew(docs: Path, tmp_path: Path, spoil: Callable[[Path], Any]) -> None:
    pipeline, texts = line(sentences=True)
    pipeline.index(docs, tmp_path / "i").close()
    known = list(dict.fromkeys(text.strip() for text in texts))
    path, plain = tmp_path / "i" / SENTENCES_NAME, HashingEmbedder()
    spoil(path)
    if path.stat().st_size:
        assert not verify(tmp_path / "i").ok
    for _ in range(3):  # what can be read may hide pages that cannot: a run that meets one clears the file
        assert SentenceFile(tmp_path / "i", plain).vectors(known).tobytes() == plain.embed(known).tobytes()
    if not verify(tmp_path / "i").ok:
        assert "sentences" in " ".join(repair(tmp_path / "i").fixed)
    assert verify(tmp_path / "i").ok
    counting = Counting()
    SentenceFile(tmp_path / "i", counting).vectors(known)
    counting.texts.clear()
    SentenceFile(tmp_path / "i", counting).vectors(known)
    assert counting.texts == []


ADDER = """
import sys
from pathlib import Path
from rag.embedders.hashing import HashingEmbedder
from rag.store.sentences import SentenceFile
first = int(sys.argv[2])
for at in range(40):
    texts = [f"sentence number {first + at + n}" for n in range(20)]
    made = SentenceFile(Path(sys.argv[1]), HashingEmbedder()).vectors(texts)
    assert made.tobytes() == HashingEmbedder().embed(texts).tobytes()
"""


def test_processes_that_add_at_once(tmp_path: Path) -> None:
    command = [sys.executable, "-c", ADDER, str(tmp_path)]
    running = [subprocess.Popen([*command, str(first)]) for first in (0, 10, 30)]
    assert [process.wait() for process in running] == [0, 0, 0]
    assert check_sentences(tmp_path) == []
    assert 59 <= count_sentences(tmp_path) <= 89


@pytest.mark.parametrize("point", SENTENCE_POINTS)
def test_a_death_while_vectors_are_kept_harms_nothing(
    tmp_path: Path, point: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CHUNKWISE_FAILPOINT", f"{point}:3")
    assert subprocess.run([sys.executable, "-c", ADDER, str(tmp_path), "0"]).returncode == -9
    monkeypatch.delenv("CHUNKWISE_FAILPOINT")
    assert count_sentences(tmp_path) == (22 if point == "sentences.done" else 21)
    assert check_sentences(tmp_path) == []
    subprocess.run([sys.executable, "-c", ADDER, str(tmp_path), "0"], check=True)
    assert count_sentences(tmp_path) == 59


def test_a_busy_file_costs_no_answer(tmp_path: Path) -> None:
    plain, counting = HashingEmbedder(), Counting()
    SentenceFile(tmp_path, plain).vectors(["a b"])
    with sqlite3.connect(tmp_path / SENTENCES_NAME, isolation_level=None) as other:
        other.execute("BEGIN EXCLUSIVE")
        assert SentenceFile(tmp_path, counting).vectors(["a b", "c d"]).shape == (2, plain.dimension)
        other.execute("ROLLBACK")
    other.close()
    assert counting.texts == ["a b", "c d"]
    assert count_sentences(tmp_path) == 1, "nobody clears a file that is only busy"


def test_each_model_has_its_own_and_the_oldest_go_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small, large = HashingEmbedder(buckets=64), HashingEmbedder(buckets=4096)
    for embedder in (small, large):
        assert SentenceFile(tmp_path, embedder).vectors(["a b"]).tobytes() == embedder.embed(["a b"]).tobytes()
    assert SentenceFile(tmp_path, small).vectors([]).shape == (0, 64)
    monkeypatch.setattr(sentences, "MOST_BYTES", 1 << 20)
    kept = SentenceFile(tmp_path, large)
    for at in range(0, 100, 10):
        assert kept.add({text_key(str(n)): np.ones(4096, dtype=np.float32) for n in range(at, at + 10)}, [b"document"])
    assert kept.read([text_key("a b"), text_key("0")]) == {}
    assert len(kept.read([text_key(str(n)) for n in range(90, 100)])) == 10
    assert kept.is_full
    assert kept.done([b"document"]) == set()
    assert (tmp_path / SENTENCES_NAME).stat().st_size < 2 << 20


def test_a_full_file_ends_what_is_made_ahead(docs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline, _ = line()
    pipeline.index(docs, tmp_path / "i").close()
    with Store.open(tmp_path / "i") as store:
        SentenceFile(store.directory, Counting()).vectors(["one"])
        monkeypatch.setattr(sentences, "MOST_BYTES", 1)
        counting = Counting()
        assert keep_sentences(store, counting) == 0
        assert counting.texts == []


@settings(max_examples=60, deadline=None)
@given(data=st.data(), size=st.integers(5, 300))
def test_units_of_any_hits_are_among_those_made_ahead(
    data: st.DataObject, size: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    text = "\n\n".join(data.draw(st.permutations(list(TOPICS.values()))))
    document, counter = Document(text=text, source="a.md"), WordCounter()
    chunks = [
        Chunk.cut(document, at, min(at + size, len(text)), counter=counter, chunker="test")
        for at in range(0, len(text), size)
    ]
    corpus = MemoryCorpus(tmp_path_factory.getbasetemp(), [document], chunks)
    ahead = set(presplit._sentences(chunks, corpus, HashingEmbedder()))
    chosen = data.draw(st.lists(st.sampled_from(chunks), unique_by=lambda one: one.span.start, min_size=1))
    hits = [Hit(chunk=one, score=1.0 / rank, rank=rank, retriever="test") for rank, one in enumerate(chosen, start=1)]
    assert {unit.text.strip() for unit in units_of(hits, corpus, 600).units} - {""} <= ahead


def test_the_command_line_makes_counts_and_clears_them(docs: Path, tmp_path: Path) -> None:
    index, run = str(tmp_path / "i"), CliRunner()
    config = tmp_path / "rag.yaml"
    config.write_text("{embedder: hashing, retriever: bm25, chunker: sentence}")
    done = run.invoke(app, ["ingest", str(docs), "--index", index, "--config", str(config), "--sentences"])
    assert done.exit_code == 0, done.output
    assert "25 sentences embedded" in done.output
    assert run.invoke(app, ["cache", "clear", "--kind", "sentences", "--index", index]).exit_code == 0
    assert count_sentences(tmp_path / "i") == 0
    assert not (tmp_path / "i" / SENTENCES_NAME).exists()
    again = run.invoke(app, ["ingest", str(docs), "--index", index])
    assert "25 sentences embedded" in again.output, "the index remembers that it was asked for"
    with pytest.raises(ConfigError, match="sentences must be true"):
        PipelineConfig.from_dict({"sentences": "yes"})


def test_long_documents_are_kept_in_parts(docs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    line()[0].index(docs, tmp_path / "i").close()
    monkeypatch.setattr(presplit, "_TEXTS", 3)
    with Store.open(tmp_path / "i") as store:
        with pytest.raises(KeyboardInterrupt):
            keep_sentences(store, Counting(dies_after=7))
        assert count_sentences(store.directory) == 8
        assert keep_sentences(store, Counting()) == 17
        assert keep_sentences(store, Counting()) == 0
