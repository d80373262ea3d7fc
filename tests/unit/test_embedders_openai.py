"""The embedder openai against a real HTTP server on the loopback address."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import pytest

from rag.embedders.openai import OpenaiEmbedder
from rag.errors import ConfigError, InputError, RagError
from rag.vectors import as_unit

pytest.importorskip("openai")


class Server(ThreadingHTTPServer):
    """Answers /v1/embeddings with letter counts; `failures` is how many requests it refuses first, with `status`."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.requests: list[dict[str, Any]] = []
        self.keys: list[str] = []
        self.failures, self.status = 0, 503

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.server.requests.append({"path": self.path, **body})
        self.server.keys.append(self.headers["authorization"])
        if self.server.failures:
            self.server.failures -= 1
            self._send(self.server.status, {"error": {"message": "not now"}})
            return
        rows = [{"object": "embedding", "index": i, "embedding": letters(t)} for i, t in enumerate(body["input"])]
        self._send(200, {"object": "list", "data": rows[::-1], "model": body["model"], "usage": {}})

    def _send(self, status: int, reply: dict[str, Any]) -> None:
        data = json.dumps(reply).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.send_header("retry-after-ms", "1")
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args: object) -> None:
        pass


def letters(text: str) -> list[float]:
    return [1.0 + text.count(letter) for letter in "abcdefgh"]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    made = Server()
    thread = threading.Thread(target=made.serve_forever, args=(0.01,))
    thread.start()
    yield made
    made.shutdown()
    made.server_close()
    thread.join()


def test_vectors_come_back_in_order_and_unit_length(server: Server) -> None:
    texts = ["", *(f"{'abcdefgh'[n % 8] * n} bead" for n in range(9))]
    matrix = OpenaiEmbedder(model="m", base_url=server.url, batch=4).embed(texts)
    assert matrix.dtype == np.float32
    wanted = as_unit(np.array([letters(text) for text in texts]))
    np.testing.assert_allclose(matrix, wanted, atol=1e-6)
    assert [len(request["input"]) for request in server.requests] == [4, 4, 2]
    assert all("" not in request["input"] for request in server.requests)
    assert server.requests[0]["path"] == "/v1/embeddings"
    assert "dimensions" not in server.requests[0]


def test_dimension_is_asked_once(server: Server) -> None:
    embedder = OpenaiEmbedder(model="m", base_url=server.url)
    assert embedder.dimension == embedder.dimension == 8
    assert embedder.embed([]).shape == (0, 8)
    assert len(server.requests) == 1
    assert OpenaiEmbedder(model="m", base_url="http://127.0.0.1:1", dimensions=64).dimension == 64


def test_the_key_comes_from_the_environment_only(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", server.url)
    OpenaiEmbedder(model="m").embed(["a"])
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    embedder = OpenaiEmbedder(model="m", dimensions=8)
    embedder.embed(["a"])
    assert server.keys == ["Bearer none", "Bearer sk-secret"]
    assert server.requests[1]["dimensions"] == 8
    assert "sk-secret" not in repr(embedder) + embedder.fingerprint


def test_failures_that_pass_are_tried_again(server: Server) -> None:
    server.failures = 2
    assert OpenaiEmbedder(model="m", base_url=server.url).embed(["a"]).shape == (1, 8)
    assert len(server.requests) == 3


def test_errors_name_the_address_and_the_way_out(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    server.failures, server.status = 99, 401
    with pytest.raises(RagError, match=r"127\.0\.0\.1.*OPENAI_API_KEY") as refused:
        OpenaiEmbedder(model="m", base_url=server.url).embed(["a"])
    assert "sk-secret" not in str(refused.value)
    server.status = 400
    with pytest.raises(RagError, match="not now"):
        OpenaiEmbedder(model="m", base_url=server.url).embed(["a"])


def test_texts_over_the_limit_are_refused_and_questions_windowed(server: Server) -> None:
    embedder = OpenaiEmbedder(model="m", base_url=server.url, max_tokens=8)
    assert embedder.counter.limit == 4
    assert embedder.counter.name == "words"
    with pytest.raises(InputError, match="5 words is over the limit of 4"):
        embedder.embed(["a b c d", "a b c d e"])
    assert server.requests == []
    question = embedder.embed_question("aa b c d  eee f g h a")
    assert server.requests[0]["input"] == ["aa b c d  ", "eee f g h ", "a"]
    assert abs(float(np.linalg.norm(question)) - 1) < 1e-6
    np.testing.assert_allclose(embedder.embed_question("bad"), embedder.embed(["bad"])[0], atol=1e-6)
    assert embedder.embed_question("").shape == (8,)


@pytest.mark.parametrize("wrong", [{"model": ""}, {"batch": 0}, {"max_tokens": 1}, {"dimensions": -1}])
def test_wrong_parameters_are_named(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="openai: "):
        OpenaiEmbedder(**wrong)
