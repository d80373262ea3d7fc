"""The tools of `rag mcp` against hostile arguments, called by the SDK's client in this process."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("mcp.server.mcpserver", reason="chunkwise[mcp] is not installed")

from mcp import Client

from rag.mcp.library import Library
from rag.mcp.schemas import MAX_TEXT_CHARS
from rag.mcp.server import create_server
from tests.interop_index import QUESTION, make_index, pipeline

ANSWERED: list[tuple[str, dict[str, Any]]] = [
    *(
        ("search", {"question": text})
        for text in ("\0", " \u200b", "'; drop table", '"' * 500, "* NOT ( AND", "a" * 8_000)
    ),
    *(("search", {"question": "x", "where": where}) for where in ({}, {"and": []}, {"meta.y": {"ge": 10**30}})),
    ("ask", {"question": "zzz qqq"}),
    ("get_span", {"document": "docs/handbook.md", "end": 1}),
]
REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("search", {"question": "x", "where": {"and": 3}}, "takes a list of filters"),
    ("search", {"question": "x", "where": {"source": "\ud800"}}, "lone surrogate"),
    ("search", {"question": "x", "where": {"source": {"in": list(range(20_000))}}}, "allowed are 10000"),
    ("search", {"question": "x", "where": {"a'b": 1}}, "allowed are source"),
    ("search", {"question": "x", "where": "x"}, "valid dictionary"),
    ("search", {"question": "\ud800"}, "unicode"),
    ("get_span", {"document": "abc:1-" + "9" * 900}, "no document 'abc'"),
    ("get_span", {"document": "\0"}, "no document"),
    ("get_span", {"document": "_" * 1_001}, "at most 1000"),
    ("get_span", {"document": "docs/handbook.md", "start": 10**40}, "use 0 <= start < end"),
    ("get_span", {"document": "docs/handbook.md", "context": 10**6}, "less than or equal to"),
    ("explain", {"run_id": "../../x"}, "no run"),
    ("explain", {"lines": 10**30}, "less than or equal to"),
    ("ask", {"question": " "}, "question is empty"),
]


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Library]:
    made = Library(make_index(tmp_path_factory.mktemp("tools")), pipeline())
    made.open()
    yield made
    made.close()


def called(library: Library, tool: str, arguments: dict[str, Any]) -> Any:
    async def run() -> Any:
        async with Client(create_server(library, version="0", asks=True)) as client:
            return await client.call_tool(tool, arguments)

    return asyncio.run(run())


@pytest.mark.parametrize(("tool", "arguments"), ANSWERED)
def test_odd_arguments_are_answered(library: Library, tool: str, arguments: dict[str, Any]) -> None:
    made = called(library, tool, arguments)
    assert not made.is_error, made.content


@pytest.mark.parametrize(("tool", "arguments", "said"), REFUSED)
def test_refusals_say_what_is_allowed_and_not_where_the_index_lies(
    library: Library, tool: str, arguments: dict[str, Any], said: str
) -> None:
    made = called(library, tool, arguments)
    assert made.is_error
    assert said in made.content[0].text
    assert str(library.directory) not in made.content[0].text


def test_hits_share_the_room_for_text(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    for number in range(40):
        (tmp_path / "docs" / f"{number}.txt").write_text(f"Travel {number} " + f"word{number}" * 300)
    line = pipeline()
    line.config = line.config.merged({"chunker": {"use": "recursive", "max_tokens": 200}}, where="test")
    line.index(tmp_path / "docs", tmp_path / "idx").close()
    library = Library(tmp_path / "idx", line)
    library.open()
    try:
        made = called(library, "search", {"question": QUESTION, "k": 40}).structured_content
    finally:
        library.close()
    texts = [hit["text"] for hit in made["hits"]]
    assert sum(map(len, texts)) <= MAX_TEXT_CHARS
    assert all(hit["truncated"] for hit in made["hits"])
    assert {len(text) for text in texts} == {MAX_TEXT_CHARS // 40}
