"""Chonkie's chunkers as chunkers of Chunkwise: exact spans, nothing lost, a hard limit."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from chunkers.chonkie import located
from rag.embedders.hashing import HashingEmbedder
from rag.errors import ConfigError, InputError, MissingError
from rag.interop.chonkie import imported
from rag.registry import build
from rag.tokens import WordCounter
from rag.types import Chunk, Document
from tests.interop_index import REPEATED, pipeline
from tests.texts import MARKDOWN, NASTY, plain

chonkie = pytest.importorskip("chonkie", reason="chunkwise[chonkie] is not installed")

SPLITTERS = ["recursive", "sentence", "semantic"]
TEXTS = {**NASTY, "markdown": MARKDOWN, "repeated": REPEATED, "plain": plain(60)}


def chunks_of(text: str, **fields: Any) -> list[Chunk]:
    spec = {"use": "chonkie", **fields}
    made: list[Chunk] = build(
        "chunker", spec, services={"counter": WordCounter(), "embedder": HashingEmbedder()}
    ).chunk(Document(text=text, source="text.txt"))
    return made


def check(chunks: list[Chunk], text: str, limit: int) -> None:
    assert "".join(chunk.text for chunk in chunks) == (text if text.strip() else "")
    for chunk in chunks:
        assert chunk.text == text[chunk.span.start : chunk.span.end]
        assert chunk.token_count == WordCounter().count(chunk.text)
        assert chunk.token_count <= limit or len(chunk.text) == 1
        assert chunk.chunker == "chonkie"


@pytest.mark.parametrize("splitter", SPLITTERS)
@pytest.mark.parametrize("name", sorted(TEXTS))
def test_every_splitter_tiles_within_the_limit(splitter: str, name: str) -> None:
    check(chunks_of(TEXTS[name], splitter=splitter, max_tokens=40), TEXTS[name], 40)


def test_the_pieces_are_those_of_chonkie() -> None:
    text = plain(40)
    theirs = chonkie.SentenceChunker(WordCounter().count, 40, min_characters_per_sentence=24).chunk(text)
    ours = chunks_of(text, splitter="sentence", max_tokens=40)
    assert [chunk.text for chunk in ours] == [piece.text for piece in theirs]
    assert [chunk.span.start for chunk in ours] == [piece.start_index for piece in theirs]


def test_parameters_reach_chonkie() -> None:
    text = plain(60)
    assert len(chunks_of(text, splitter="semantic", threshold=0.99)) != len(
        chunks_of(text, splitter="semantic", threshold=0.3)
    )
    few, many = (chunks_of(text, splitter="semantic", min_sentences=number) for number in (8, 1))
    assert len(few) < len(many)


@pytest.mark.parametrize("name", ["markdown", "repeated", "plain"])
def test_a_chunker_of_the_caller_is_imported(name: str) -> None:
    text = TEXTS[name]
    words = chonkie.TokenChunker("word", chunk_size=30, chunk_overlap=0)
    chunker = imported(words, embedder=HashingEmbedder(), max_tokens=40)
    chunks = chunker.chunk(Document(text=text, source="text.txt"))
    assert "".join(chunk.text for chunk in chunks) == text
    assert len(chunks) > 1
    assert "TokenChunker" in chunker.shaped_by
    assert " at 0x" not in chunker.shaped_by


def test_an_imported_chunker_ingests(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(REPEATED)
    for documents in (1, 0):  # the second run finds nothing to do
        line = pipeline()
        line.chunker = imported(chonkie.SentenceChunker(WordCounter().count, 30), embedder=line.embedder)
        with line.index(tmp_path / "a.txt", tmp_path / "idx") as index:
            assert index.report is not None
            assert index.report.documents == documents
            chunks = index.store.chunks_of(index.document("a.txt").id)
    assert {chunk.chunker for chunk in chunks} == {"chonkie"}
    assert "".join(chunk.text for chunk in chunks) == REPEATED


def test_what_is_no_chunker_is_named() -> None:
    with pytest.raises(ConfigError, match="expected a chunker of Chonkie"):
        imported("sentence", embedder=HashingEmbedder())


def test_offsets_are_proven_not_believed() -> None:
    document = Document(text="ab cd ab cd", source="a.txt")
    assert located(document, [("ab ", 0), ("cd ", 99), ("ab ", 0), ("cd", 3)]) == [0, 3, 6, 9]
    with pytest.raises(InputError, match=r"a\.txt: cannot prove the offsets"):
        located(document, [("ab", 0), ("CD", 3)])


def test_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "chonkie", None)
    with pytest.raises(MissingError, match=r"pip install 'chunkwise\[chonkie\]'"):
        chunks_of("some text")


@pytest.mark.parametrize(
    "fields",
    [{"splitter": "late"}, {"min_chars": 0}, {"min_sentences": 0}, {"threshold": 1.0}, {"skip_window": -1}],
)
def test_fields_out_of_range(fields: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(fields))):
        chunks_of("some text", **fields)
