"""The wrapped LangChain splitters: exact offsets, hard limit, honest refusal."""

from __future__ import annotations

import itertools
import sys
from typing import Any

import pytest

from chunkers.langchain import locate
from rag.errors import ConfigError, InputError, MissingError
from rag.registry import build
from rag.tokens import WordCounter
from rag.types import Chunk, Document
from tests.texts import MARKDOWN, plain

pytest.importorskip("langchain_text_splitters")

SPLITTERS = ["recursive", "character", "markdown", "html", "latex", "python"]


def chunks_of(text: str, **fields: Any) -> list[Chunk]:
    spec = {"use": "langchain", **fields}
    chunks: list[Chunk] = build("chunker", spec, services={"counter": WordCounter()}).chunk(
        Document(text=text, source="text.txt")
    )
    return chunks


def test_recursive_pieces() -> None:
    text = "One two three. Four five six. Seven eight.\n\nNine ten.\nEleven twelve thirteen fourteen.\n"
    assert [chunk.text for chunk in chunks_of(text, max_tokens=8)] == [
        "One two three. Four five six.",
        " Seven eight.",
        "\n\nNine ten.",
        "\nEleven twelve thirteen fourteen.\n",
    ]


@pytest.mark.parametrize("splitter", SPLITTERS)
def test_every_splitter_tiles_within_the_limit(splitter: str) -> None:
    chunks = chunks_of(MARKDOWN, splitter=splitter, max_tokens=40)
    assert "".join(chunk.text for chunk in chunks) == MARKDOWN
    assert max(chunk.token_count for chunk in chunks) <= 40


def test_overlap() -> None:
    chunks = chunks_of("a b c d e f g h i j", max_tokens=4, overlap_tokens=2)
    assert [chunk.text for chunk in chunks] == ["a b c d", " c d e f", " e f g h", " g h i j"]
    assert [chunk.span.start for chunk in chunks] == [0, 3, 7, 11]


def test_overlap_of_repeated_text_is_located_to_the_very_end() -> None:
    text = plain(6) + "\n\n" + "The same line again. " * 50 + "The end."
    chunks = chunks_of(text, max_tokens=12, overlap_tokens=6)
    assert (chunks[0].span.start, chunks[-1].span.end) == (0, len(text))
    assert all(after.span.start <= before.span.end for before, after in itertools.pairwise(chunks))


@pytest.mark.parametrize(
    ("pieces", "overlap"),
    [([], False), (["ab", "cd"], False), (["ab ", "cd "], False), (["ab", " c", "x"], True), (["b c", "d"], True)],
)
def test_pieces_that_are_not_the_text_are_refused(pieces: list[str], overlap: bool) -> None:
    with pytest.raises(InputError, match="cannot prove the offsets"):
        locate(Document(text="ab cd", source="a.txt"), pieces, overlap=overlap)


def test_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "langchain_text_splitters", None)
    with pytest.raises(MissingError, match=r"pip install 'chunkwise\[langchain\]'"):
        chunks_of("some text")


@pytest.mark.parametrize(
    "fields", [{"splitter": "token"}, {"overlap_tokens": -1}, {"max_tokens": 8, "overlap_tokens": 8}]
)
def test_fields_out_of_range(fields: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"splitter|overlap_tokens"):
        chunks_of("some text", **fields)
