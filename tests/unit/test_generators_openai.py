"""The generator openai against a real server on the loopback address that streams server-sent events."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from rag.errors import RagError
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
        usage = {"prompt_tokens": 90, "completion_tokens": 12, "total_tokens": 102}
        self._event([], usage | {"prompt_tokens_details": {"cached_tokens": 64}})
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
