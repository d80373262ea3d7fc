"""`rag mcp` as a process, called by the SDK's own client over stdio and over HTTP."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

pytest.importorskip("mcp.server.mcpserver", reason="chunkwise[mcp] is not installed")
pytest.importorskip("uvicorn", reason="chunkwise[mcp] is not installed")

from mcp import Client, StdioServerParameters

from rag import Index
from rag.mcp.schemas import MAX_K, MAX_TEXT_CHARS
from tests.interop_index import CONFIG, FILES, HANDBOOK, QUESTION, chunk_ids, expected, make_index, pipeline

TOOLS = ["explain", "get_span", "search", "stats"]
Work = Callable[[Client], Awaitable[Any]]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mcp")
    make_index(folder)
    (folder / "long.txt").write_text("A sentence about nothing. " * 2_000)
    pipeline().index([folder / "docs", folder / "long.txt"], folder / "idx").close()
    return folder


def command(*arguments: str) -> list[str]:
    return ["-m", "rag", "mcp", "--index", "idx", *arguments]


def over_stdio(home: Path, work: Work, *arguments: str) -> Any:
    """What `work` gives with a client whose server is a process of its own."""

    async def run() -> Any:
        process = StdioServerParameters(
            command=sys.executable, args=command(*arguments), cwd=home, env=dict(os.environ)
        )
        async with Client(process, read_timeout_seconds=60) as client:
            return await work(client)

    return asyncio.run(run())


@contextmanager
def over_http(home: Path, **environment: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """The address of a server on a free port, and its process."""
    process = subprocess.Popen(
        [sys.executable, *command("--transport", "http", "--port", "0")], cwd=home, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ, **environment},
    )  # fmt: skip
    try:
        assert process.stderr is not None
        line = process.stderr.readline()
        found = re.search(r"http://\S+/mcp", line)
        assert found, line + process.stderr.read()
        yield found[0], process
    finally:
        process.kill()
        process.communicate()


async def call(client: Client, tool: str, **arguments: Any) -> dict[str, Any]:
    """The structured result, which the text result says too."""
    made = await client.call_tool(tool, arguments)
    assert not made.is_error, made.content
    assert json.loads(made.content[0].text) == made.structured_content  # type: ignore[union-attr]
    return dict(made.structured_content or {})


async def refusal(client: Client, tool: str, **arguments: Any) -> str:
    """The message of a call that ends in a tool error; the connection goes on."""
    made = await client.call_tool(tool, arguments)
    assert made.is_error
    return str(made.content[0].text)  # type: ignore[union-attr]


def test_tools_are_typed_and_said_to_read_only(home: Path) -> None:
    async def work(client: Client) -> Any:
        return (await client.list_tools()).tools

    tools = over_stdio(home, work)
    assert sorted(tool.name for tool in tools) == TOOLS
    for tool in tools:
        assert tool.annotations.read_only_hint
        assert tool.description
        assert tool.output_schema["properties"]
    schema = next(tool.input_schema for tool in tools if tool.name == "search")
    assert schema["required"] == ["question"]
    assert (schema["properties"]["k"]["minimum"], schema["properties"]["k"]["maximum"]) == (1, MAX_K)


async def everything(client: Client) -> dict[str, Any]:
    where = {"source": "docs/handbook.md"}
    found = await call(client, "search", question=QUESTION, k=2, where=where)
    hit = found["hits"][0]
    return {
        "searched": found,
        "chunk": await call(client, "get_span", document=hit["chunk_id"]),
        "around": await call(client, "get_span", document=hit["chunk_id"], context=5),
        "range": await call(client, "get_span", document="docs/handbook.md", start=2, end=10),
        "stats": await call(client, "stats"),
    }


def check_everything(made: dict[str, Any], home: Path) -> None:
    hits = expected(home / "idx", 2, {"source": "docs/handbook.md"})
    assert [hit["chunk_id"] for hit in made["searched"]["hits"]] == [hit.chunk.id for hit in hits]
    assert [hit["score"] for hit in made["searched"]["hits"]] == [hit.score for hit in hits]
    first = made["searched"]["hits"][0]
    assert HANDBOOK[first["start"] : first["end"]] == first["text"] == made["chunk"]["text"]
    assert first["parts"] == dict(hits[0].parts)
    around = made["around"]
    assert around["text"] == HANDBOOK[max(0, first["start"] - 5) : first["end"] + 5]
    assert (made["range"]["text"], made["range"]["document_chars"]) == ("Handbook", len(HANDBOOK))
    assert made["stats"]["documents"] == 3
    assert made["stats"]["config"]["chunker"] == CONFIG["chunker"]


def test_search_get_span_and_stats_over_stdio(home: Path) -> None:
    check_everything(over_stdio(home, everything), home)


def test_search_get_span_and_stats_over_http(home: Path) -> None:
    async def run(url: str) -> Any:
        async with Client(url) as client, Client(url, mode="legacy") as other:
            assert (await call(other, "stats"))["documents"] == 3
            return await everything(client)

    with over_http(home) as (url, process):
        check_everything(asyncio.run(run(url)), home)
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=30)
        assert (process.returncode, out) == (0, ""), err


def test_explain_tells_of_stored_answers_and_names_the_fix_without_any(tmp_path: Path) -> None:
    make_index(tmp_path)

    async def none(client: Client) -> str:
        return await refusal(client, "explain")

    assert "holds no runs yet; ask something first" in over_stdio(tmp_path, none)
    answer = pipeline().ask(QUESTION, tmp_path / "idx")

    async def work(client: Client) -> Any:
        return await call(client, "explain", lines=3), await call(client, "explain", run_id=answer.run_id, lines=0)

    last, same = over_stdio(tmp_path, work)
    assert (last["run_id"], last["answer"]) == (answer.run_id, answer.text)
    assert [one["text"] for one in last["citations"]] == [one.text for one in answer.citations]
    assert [one["stage"] for one in last["stages"]] == ["retrieve", "select", "compress", "generate"]
    assert len(last["ledger"]) == 3 < last["ledger_lines"]
    assert {**last, "ledger": []} == same


def test_ask_is_there_when_it_is_wanted_and_its_run_can_be_explained(home: Path) -> None:
    async def work(client: Client) -> Any:
        tools = {tool.name: tool for tool in (await client.list_tools()).tools}
        answer = await call(client, "ask", question=QUESTION, where={"source": "docs/handbook.md"})
        return tools, answer, await call(client, "explain", run_id=answer["run_id"])

    tools, answer, why = over_stdio(home, work, "--ask")
    assert sorted(tools) == sorted([*TOOLS, "ask"])
    assert not tools["ask"].annotations.read_only_hint
    assert why["answer"] == answer["answer"]
    for one in answer["citations"]:
        assert FILES[one["source"]][one["start"] : one["end"]] == one["text"]


def test_texts_are_bounded_and_say_where_to_go_on(home: Path) -> None:
    async def work(client: Client) -> Any:
        first = await call(client, "get_span", document="long.txt")
        return first, await call(client, "get_span", document="long.txt", start=first["end"])

    first, rest = over_stdio(home, work)
    assert (first["start"], first["end"], first["truncated"]) == (0, MAX_TEXT_CHARS, True)
    text = (home / "long.txt").read_text()
    assert first["text"] + rest["text"] == text[: rest["end"]]


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("search", {"question": " "}, "question is empty"),
    ("search", {"question": "a" * 8_001}, "at most 8000 characters"),
    ("search", {"question": "x", "k": 0}, "greater than or equal to 1"),
    ("search", {"question": "x", "k": MAX_K + 1}, f"less than or equal to {MAX_K}"),
    ("search", {"question": "x", "where": {"colour": "red"}}, "colour"),
    ("search", {}, "Field required"),
    ("get_span", {"document": "nothing.md"}, "no document 'nothing.md'"),
    ("get_span", {"document": "../../etc/passwd"}, "no document"),
    ("get_span", {"document": "docs/handbook.md", "start": 5, "end": 5}, "use 0 <= start < end <="),
    ("get_span", {"document": "docs/handbook.md", "end": 10**9}, "use 0 <= start < end <="),
    ("explain", {"run_id": "nothing"}, "nothing"),
]


def test_errors_are_tool_errors_that_name_the_fix_and_the_connection_goes_on(home: Path) -> None:
    async def work(client: Client) -> Any:
        said = [await refusal(client, tool, **arguments) for tool, arguments, _ in REFUSED]
        return said, await call(client, "stats")

    said, _ = over_stdio(home, work)
    for text, (tool, arguments, wanted) in zip(said, REFUSED, strict=True):
        assert wanted in text, (tool, arguments)
        assert "Traceback" not in text


def test_calls_at_once_and_an_index_that_grows_meanwhile(tmp_path: Path) -> None:
    make_index(tmp_path)

    async def work(client: Client) -> Any:
        many = await asyncio.gather(*(call(client, "search", question=QUESTION, k=3) for _ in range(12)))
        (tmp_path / "docs" / "news.txt").write_text("Zanzibar approves travel.\n")
        pipeline().index(tmp_path / "docs", tmp_path / "idx").close()
        end = time.monotonic() + 60
        while time.monotonic() < end:
            found = await call(client, "search", question="Zanzibar", k=1)
            if "Zanzibar" in found["hits"][0]["text"]:
                return many
            await asyncio.sleep(0.2)
        raise AssertionError("the new document is not found")

    many = over_stdio(tmp_path, work)
    assert all(found == many[0] for found in many)


def test_nothing_but_the_protocol_is_on_stdout(home: Path) -> None:
    opening = {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "test", "version": "1"}}
    searching = {"name": "search", "arguments": {"question": QUESTION}}
    sent = [
        {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": opening},
        {"jsonrpc": "2.0", "method": "notifications/initialized"},
        {"jsonrpc": "2.0", "id": 2, "method": "tools/call", "params": searching},
    ]
    process = subprocess.Popen(
        [sys.executable, *command("-vv")], cwd=home, text=True, encoding="utf-8",
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write("".join(json.dumps(one) + "\n" for one in sent))
        process.stdin.flush()
        lines = [process.stdout.readline() for _ in range(2)]
        rest, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert [json.loads(line)["id"] for line in lines] == [1, 2]
    assert (rest, process.returncode) == ("", 0), err


def test_http_wants_the_token_the_right_host_and_a_body_of_bounded_size(home: Path) -> None:
    asked = {"jsonrpc": "2.0", "id": 1, "method": "tools/list"}
    accepts = {"Accept": "application/json, text/event-stream"}
    with over_http(home, RAG_TOKEN="secret-word") as (url, _):  # noqa: S106
        token = {**accepts, "Authorization": "Bearer secret-word"}
        assert httpx.post(url, json=asked, headers=accepts).status_code == 401
        assert httpx.post(url, json=asked, headers={**token, "Authorization": "Bearer wrong"}).status_code == 401
        assert httpx.post(url, json=asked, headers={**token, "Host": "evil.example"}).status_code in (403, 421)
        assert httpx.post(url, json=asked, headers={**token, "Origin": "http://evil.example"}).status_code == 403
        assert httpx.post(url, content=b"x" * 300_000, headers=token).status_code == 413
        assert httpx.post(url, json=asked, headers=token).status_code not in (401, 403, 421)


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--index", "nowhere"], 2, "there is no index"),
        (["--transport", "http", "--host", "0.0.0.0"], 2, "can be reached from other machines"),  # noqa: S104
        (["--transport", "http", "--host", "192.0.2.1"], 2, "can be reached from other machines"),
        (["--transport", "smoke"], 2, "smoke"),
    ],
)
def test_what_cannot_be_served_is_told(home: Path, arguments: list[str], code: int, said: str) -> None:
    done = subprocess.run(
        [sys.executable, *command(*arguments)], cwd=home, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == code, done.stderr
    assert said in done.stderr
    assert done.stdout == ""


def test_an_absent_sdk_is_named(home: Path) -> None:
    code = "import sys; sys.modules['mcp'] = None; sys.argv[0] = 'rag'; from rag.cli.main import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, *command()[2:]], cwd=home, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 6, done.stderr
    assert "pip install 'chunkwise[mcp]'" in done.stderr


def test_importing_the_verb_loads_neither_the_sdk_nor_a_framework() -> None:
    names = {"mcp", "mcp_types", "uvicorn", "llama_index", "haystack", "langchain_core", "chonkie"}
    code = f"import sys, rag.cli.mcp, rag.cli.main; found = {names!r} & set(sys.modules); assert not found, found"
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 0


def test_the_tools_change_nothing(home: Path) -> None:
    def state() -> Any:
        with Index.open(home / "idx") as index:
            return index.store.generation, len(index.store.runs(100)), chunk_ids(home / "idx", "docs/minutes.txt")

    before = state()
    over_stdio(home, everything)
    assert state() == before
