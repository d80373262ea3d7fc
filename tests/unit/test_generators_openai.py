"""The generator openai against a real server on the loopback address that streams server-sent events."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from rag.errors import ConfigError, RagError
from rag.generators.openai import OpenaiGenerator
from rag.prompt import NOT_FOUND
from tests.contracts.test_generator import QUESTION, WHOLE, ask, context

pytest.importorskip("openai")

ANSWER = ["The finance ", "director approves it [2].", " It costs 99 EUR [3]."]


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.server.requests.append({"path": self.path, **body})
        if self.server.status != 200:
            self.send_response(self.server.status)
            self.send_header("content-length", "0")
            self.end_headers()
            return
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.end_headers()
        for text in self.server.answer:
            self._event([{"index": 0, "delta": {"content": text}, "finish_reason": None}], None)
        self._event([], {"prompt_tokens": 90, "completion_tokens": 12, "total_tokens": 102} | self.server.details)
        self.wfile.write(b"data: [DONE]\n\n")

    def _event(self, choices: list[Any], usage: dict[str, Any] | None) -> None:
        event = {"id": "1", "object": "chat.completion.chunk", "created": 0, "model": "m", "choices": choices}
        self.wfile.write(f"data: {json.dumps(event | {'usage': usage})}\n\n".encode())
        self.wfile.flush()

    def log_message(self, *args: object) -> None:
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.requests: list[dict[str, Any]] = []
        self.answer, self.status = ANSWER, 200
        self.details: dict[str, Any] = {"prompt_tokens_details": {"cached_tokens": 64}}

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    thread = threading.Thread(target=made.serve_forever, args=(0.01,))
    thread.start()
    yield made
    made.shutdown()
    made.server_close()
    thread.join()


def test_the_stream_is_heard_and_its_marks_are_checked(server: Server) -> None:
    heard: list[str] = []
    made = ask(OpenaiGenerator(base_url=server.url, model="m"), context(QUESTION, *WHOLE), heard.append)
    assert heard == ANSWER
    assert made.text == "The finance director approves it. [2] It costs 99 EUR."
    assert made.supported == (True, False)
    assert [citation.mark for citation in made.citations] == [2]
    assert made.stats.prompt_tokens == 90
    assert made.stats.reused_tokens == 64
    assert made.stats.computed_tokens == 26
    assert made.stats.new_tokens == 12
    assert 0 < made.stats.ttft_seconds <= made.stats.total_seconds


def test_the_request_is_the_prompt(server: Server) -> None:
    made = ask(OpenaiGenerator(base_url=server.url, model="m", max_new_tokens=7), context(QUESTION, *WHOLE))
    [request] = server.requests
    assert request["path"] == "/v1/chat/completions"
    assert [message["role"] for message in request["messages"]] == ["system", "user"]
    assert "".join(message["content"] for message in request["messages"]) == made.prompt.text
    assert request["messages"][1]["content"].rstrip().endswith(QUESTION)
    assert request["max_tokens"] == 7
    assert request["temperature"] == 0


def test_a_refusal_is_not_found(server: Server) -> None:
    server.answer = ["Not found in ", "the documents."]
    made = ask(OpenaiGenerator(base_url=server.url, model="m"), context(QUESTION, *WHOLE))
    assert made.text == NOT_FOUND
    assert made.citations == made.sentences == made.supported == ()


def test_without_context_nothing_is_sent(server: Server) -> None:
    assert ask(OpenaiGenerator(base_url=server.url, model="m"), context()).text == NOT_FOUND
    assert server.requests == []


def test_errors_are_readable(server: Server) -> None:
    server.status = 403
    with pytest.raises(RagError, match=r"generator openai: .*OPENAI_API_KEY"):
        ask(OpenaiGenerator(base_url=server.url, model="m"), context(QUESTION, *WHOLE))


def test_a_plain_prompt_is_sent_alone_and_cut_at_the_stop(server: Server) -> None:
    model = OpenaiGenerator(base_url=server.url, model="m", temperature=0.7).text_model
    assert model.complete("Write it.", max_tokens=9, stop=("approves",)) == "The finance director "
    (request,) = server.requests
    assert request["messages"] == [{"role": "user", "content": "Write it."}]
    assert (request["max_tokens"], request["temperature"]) == (9, 0.0)


# ------------------------------------------------------------------ hand-over to servers that keep prefixes


def sent(server: Server) -> list[bytes]:
    """The text of every request, as the server sees it."""
    return ["".join(one["content"] for one in request["messages"]).encode() for request in server.requests]


def test_questions_over_the_same_pieces_share_every_byte_up_to_the_question(server: Server) -> None:
    stable = OpenaiGenerator(base_url=server.url, model="m", piece_order="stable")
    orders = [WHOLE, WHOLE[::-1], (WHOLE[1], WHOLE[0], WHOLE[2])]
    questions = [QUESTION, "What does soup cost?", "When does it open?"]
    made = [ask(stable, context(text, *pieces)) for text, pieces in zip(questions, orders, strict=True)]
    starts = {text.partition(b"\nQuestion: ")[0] for text in sent(server)}
    assert len(starts) == 1
    assert [text.partition(b"\nQuestion: ")[2].strip().decode() for text in sent(server)] == questions
    assert len({tuple(segment.key for segment in one.prompt.segments[:-1]) for one in made}) == 1
    for _ in range(2):  # nothing in a request is of its time or place
        ask(stable, context(QUESTION, *WHOLE))
    assert server.requests[-1] == server.requests[-2] == server.requests[0]


def test_the_order_of_relevance_is_kept_unless_another_is_asked_for(server: Server) -> None:
    plain = OpenaiGenerator(base_url=server.url, model="m")
    for pieces in (WHOLE, WHOLE[::-1]):
        made = ask(plain, context(QUESTION, *pieces))
        named = [segment.chunk_id for segment in made.prompt.segments if segment.chunk_id]
        assert named == [piece.chunk_id for piece in pieces]
    assert len({text.partition(b"\nQuestion: ")[0] for text in sent(server)}) == 2


@pytest.mark.parametrize("pieces", [WHOLE, WHOLE[::-1]], ids=["as given", "reversed"])
def test_marks_are_those_of_the_prompt_in_every_order(server: Server, pieces: tuple[Any, ...]) -> None:
    stable = OpenaiGenerator(base_url=server.url, model="m", piece_order="stable")
    named = [one.chunk_id for one in sorted(WHOLE, key=lambda one: (one.doc_id, one.span.start))]
    travel = named.index(WHOLE[1].chunk_id) + 1
    server.answer = [f"The finance director approves it [{travel}]."]
    made = ask(stable, context(QUESTION, *pieces))
    assert [segment.chunk_id for segment in made.prompt.segments if segment.chunk_id] == named
    assert [(one.mark, one.chunk_id) for one in made.citations] == [(travel, WHOLE[1].chunk_id)]
    assert made.supported == (True,)


def test_the_salt_is_sent_when_it_is_set(server: Server) -> None:
    ask(OpenaiGenerator(base_url=server.url, model="m"), context(QUESTION, *WHOLE))
    ask(OpenaiGenerator(base_url=server.url, model="m", cache_salt="tenant 7"), context(QUESTION, *WHOLE))
    plain, salted = server.requests
    assert "cache_salt" not in plain
    assert salted == {**plain, "cache_salt": "tenant 7"}


@pytest.mark.parametrize(
    ("details", "policy", "reused"),
    [
        ({}, "none", 0),
        ({"prompt_tokens_details": None}, "none", 0),
        ({"prompt_tokens_details": {}}, "server", 0),
        ({"prompt_tokens_details": {"cached_tokens": None}}, "server", 0),
        ({"prompt_tokens_details": {"cached_tokens": 64}}, "server", 64),
    ],
    ids=str,
)
def test_cached_tokens_are_told_where_the_server_tells_them(
    server: Server, details: dict[str, Any], policy: str, reused: int
) -> None:
    server.details = details
    made = ask(OpenaiGenerator(base_url=server.url, model="m"), context(QUESTION, *WHOLE))
    assert (made.stats.policy, made.stats.reused_tokens, made.stats.computed_tokens) == (policy, reused, 90 - reused)
    assert made.notes.get("reused", 0) == reused
    assert ("reuse" in made.notes) == (policy == "server")


def test_an_unknown_order_is_named() -> None:
    with pytest.raises(ConfigError, match="openai: piece_order"):
        OpenaiGenerator(piece_order="random")  # type: ignore[arg-type]
