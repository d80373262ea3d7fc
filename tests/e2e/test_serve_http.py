"""The server over real sockets, in a thread of this process: who gets in, what comes out, what is refused."""

from __future__ import annotations

import base64
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

pytest.importorskip("fastapi", reason="chunkwise[serve] is not installed")
pytest.importorskip("uvicorn", reason="chunkwise[serve] is not installed")

import uvicorn

from rag import Pipeline
from rag.config import PipelineConfig
from rag.server.app import create_app
from rag.server.auth import Tokens
from rag.server.engine import Engine, LeakError
from rag.server.limits import ServerLimits
from rag.server.listen import listening_socket, watched
from rag.server.metrics import Metrics
from tests.e2e.served import CONFIG, WORDS, bearer, canary, chat, make_home, question, wait_ready

LIMITS = ServerLimits(
    threads=2, waiting=2, receive_seconds=1.0, send_seconds=1.0, max_body_bytes=20_000, refresh_seconds=0.05
)


class Running:
    """A server in a thread; `engine` is the one that it serves."""

    def __init__(self, home: Path, limits: ServerLimits = LIMITS, *, tokens: bool = True) -> None:
        self.home = home
        self.engine = Engine(home / "idx", {"default": PipelineConfig.from_dict(CONFIG)}, limits, Metrics())
        known = Tokens.load("token-of-all", home / "tokens.yaml") if tokens else Tokens.load(None)
        self.app = create_app(self.engine, known, version="0")
        self.bound = listening_socket("127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self.bound.getsockname()[1]}"
        config = uvicorn.Config(
            self.app, http=watched(limits), ws="none", loop="asyncio", log_config=None, timeout_graceful_shutdown=5
        )
        self.server = uvicorn.Server(config)
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [self.bound]})

    def __enter__(self) -> Running:
        self.thread.start()
        wait_ready(self.url)
        return self

    def __exit__(self, *_: object) -> None:
        self.server.should_exit = True
        self.thread.join(30)
        self.bound.close()

    def get(self, path: str, who: str = "operator", **more: Any) -> httpx.Response:
        return httpx.get(self.url + path, headers=bearer(who), timeout=30, **more)

    def post(self, path: str, body: Any, who: str = "operator") -> httpx.Response:
        return httpx.post(self.url + path, json=body, headers=bearer(who), timeout=30)

    @property
    def address(self) -> tuple[str, int]:
        host, port = self.bound.getsockname()[:2]
        return str(host), int(port)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_home(tmp_path_factory.mktemp("served"))


@pytest.fixture(scope="module")
def server(home: Path) -> Iterator[Running]:
    with Running(home) as running:
        yield running


@pytest.fixture
def slow(server: Running, monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Searches wait until the event is set."""
    go, pipeline = threading.Event(), server.engine.pipelines["default"]
    search = pipeline.search
    monkeypatch.setattr(pipeline, "search", lambda *given, **named: (go.wait(20), search(*given, **named))[1])
    yield go
    go.set()
    while server.engine.gate.inside:
        time.sleep(0.01)


# ---------------------------------------------------------------------- what comes out


def test_an_answer_has_its_citations_and_its_run(server: Running) -> None:
    made = server.post("/v1/chat/completions", chat(question("travel")), "acme").json()
    text = made["choices"][0]["message"]["content"]
    assert canary("acme", "travel") in text
    assert made["choices"][0]["finish_reason"] == "stop"
    cited = made["rag"]["citations"][0]
    document = server.get(f"/documents/{cited['doc_id']}", "acme").json()
    assert document["text"][cited["start"] : cited["end"]] == cited["text"]
    assert made["rag"]["supported"] == [True] * len(made["rag"]["sentences"])
    run = server.get(f"/explain/{made['rag']['run_id']}", "acme").json()
    assert run["question"] == question("travel")
    assert run["ledger"]
    assert "config" not in run


def test_a_stream_has_the_text_of_the_whole_answer_and_ends_with_done(server: Running) -> None:
    whole = server.post("/v1/chat/completions", chat(question("travel")), "acme").json()
    asked = chat(question("travel"), stream=True, stream_options={"include_usage": True})
    answer = server.post("/v1/chat/completions", asked, "acme")
    assert answer.headers["content-type"].startswith("text/event-stream")
    lines = [line.removeprefix("data: ") for line in answer.text.split("\n\n") if line]
    assert lines[-1] == "[DONE]"
    chunks = [json.loads(line) for line in lines[:-1]]
    text = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks if chunk["choices"])
    assert text == whole["choices"][0]["message"]["content"]
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks if chunk["choices"]][-1] == "stop"
    assert next(chunk["rag"] for chunk in chunks if "rag" in chunk)["citations"] == whole["rag"]["citations"]
    assert chunks[-1]["usage"] == whole["usage"]
    assert len({chunk["id"] for chunk in chunks}) == 1


def test_search_gives_what_the_engine_gives(server: Running, home: Path) -> None:
    found = server.post("/search", {"question": question("parking"), "k": 3}).json()
    hits = Pipeline(PipelineConfig.from_dict(CONFIG)).search(question("parking"), home / "idx", k=3)
    assert [hit["chunk_id"] for hit in found["hits"]] == [hit.chunk.id for hit in hits]
    assert [hit["score"] for hit in found["hits"]] == [float(hit.score) for hit in hits]


def test_embeddings_are_those_of_the_index_in_both_encodings(server: Running) -> None:
    texts = ["who approves travel", "parking"]
    floats = server.post("/v1/embeddings", {"model": "default", "input": texts}, "blind").json()["data"]
    packed = server.post("/v1/embeddings", {"model": "default", "input": texts, "encoding_format": "base64"}).json()
    wanted = Pipeline(PipelineConfig.from_dict(CONFIG)).embedder.embed(texts)
    for row, one, other in zip(wanted, floats, packed["data"], strict=True):
        assert np.allclose(row, one["embedding"])
        assert np.array_equal(row, np.frombuffer(base64.b64decode(other["embedding"]), "<f4"))
    assert packed["usage"]["total_tokens"] == 4


def test_chunks_name_their_neighbours_and_models_their_names(server: Running) -> None:
    hit = server.post("/search", {"question": "parking"}, "globex").json()["hits"][0]
    chunk = server.get(f"/chunks/{hit['chunk_id']}", "globex").json()
    assert chunk["text"] == hit["text"]
    assert {"before", "after", "section", "token_count"} <= chunk.keys()
    assert [model["id"] for model in server.get("/v1/models").json()["data"]] == ["default"]
    assert server.get("/v1/models/default").json()["object"] == "model"


def test_metrics_count_and_are_the_operators(server: Running) -> None:
    server.post("/v1/chat/completions", chat(question("travel")), "acme")
    text = server.get("/metrics").text
    assert 'rag_requests_total{method="POST",route="/v1/chat/completions",status="200"}' in text
    assert 'rag_stage_seconds_count{stage="generate"}' in text
    assert "rag_index_generation" in text
    assert not any(secret in text for secret in ("acme", "token-of", "travel"))
    assert server.get("/metrics", "acme").status_code == 403


def test_a_new_generation_is_served_without_a_restart(tmp_path: Path) -> None:
    home = make_home(tmp_path)
    with Running(home) as running:
        before = running.post("/search", {"question": "badgers"}).json()["generation"]
        (home / "docs" / "acme" / "new.md").write_text("Badgers are approved by the office BADGER9.\n")
        Pipeline(PipelineConfig.from_dict(CONFIG)).index(home / "docs", home / "idx").close()
        end, found = time.monotonic() + 30, {"generation": before, "hits": []}
        while found["generation"] == before and time.monotonic() < end:
            time.sleep(0.05)
            found = running.post("/search", {"question": "badgers"}, "acme").json()
        assert "BADGER9" in found["hits"][0]["text"]


# ---------------------------------------------------------------------- who gets in


PATHS = [
    ("GET", "/documents"), ("GET", "/documents/x"), ("GET", "/chunks/x:0-1"), ("GET", "/explain/x"),
    ("GET", "/metrics"), ("GET", "/v1/models"), ("POST", "/search"), ("POST", "/v1/chat/completions"),
    ("POST", "/v1/embeddings"), ("GET", "/nowhere"), ("DELETE", "/documents"), ("GET", "/healthz/../documents"),
    ("GET", "/readyz/"), ("GET", "//healthz"),
]  # fmt: skip


@pytest.mark.parametrize(("method", "path"), PATHS)
@pytest.mark.parametrize("header", [None, "Bearer wrong", "Bearer ", "Basic dG9rZW4tb2YtYWxs", "token-of-all"])
def test_nothing_is_told_without_the_right_token(server: Running, method: str, path: str, header: str | None) -> None:
    answer = raw(server, method, path, {"Authorization": header} if header is not None else {}, b"{not json")
    assert answer.startswith(b"HTTP/1.1 401 ")
    error = json.loads(answer.partition(b"\r\n\r\n")[2])["error"]
    assert (error["type"], error["code"]) == ("authentication_error", "invalid_api_key")
    assert b"www-authenticate: Bearer" in answer


def test_up_and_ready_are_told_to_everybody(server: Running) -> None:
    for path in ("/healthz", "/readyz", "/openapi.json"):
        assert httpx.get(server.url + path).status_code == 200


def test_what_is_anothers_is_not_there(server: Running) -> None:
    """An id of another tenant, one that never was, and one that is none have one and the same answer."""
    theirs = server.post("/v1/chat/completions", chat(question("travel")), "globex").json()["rag"]
    hit = server.post("/search", {"question": question("travel")}, "globex").json()["hits"][0]
    real = {"documents": hit["doc_id"], "chunks": hit["chunk_id"], "explain": theirs["run_id"]}
    assert all(server.get(f"/{kind}/{name}", "globex").status_code == 200 for kind, name in real.items())
    assert all(server.get(f"/{kind}/{name}", "operator").status_code == 200 for kind, name in real.items())
    for who in ("acme", "blind"):
        for kind, name in real.items():
            refused = server.get(f"/{kind}/{name}", who)
            absent = server.get(f"/{kind}/{'0' * len(name)}", who)
            assert refused.status_code == absent.status_code == 404, (who, kind)
            assert refused.text.replace(name, "X") == absent.text.replace("0" * len(name), "X")
    assert server.get("/documents", "blind").json()["total"] == 0
    assert server.post("/search", {"question": question("travel")}, "blind").json()["hits"] == []
    assert not server.post("/v1/chat/completions", chat(question("travel")), "blind").json()["rag"]["citations"]


WIDE: list[Any] = [
    {"or": [{}]}, {"or": [{"source": {"contains": "globex"}}, {"source": {"ne": ""}}]}, {"not": {"or": []}},
    {"source": {"contains": "docs/globex/"}}, {"and": []}, {"title": {"exists": True}},
]  # fmt: skip


@pytest.mark.parametrize("where", WIDE)
def test_no_filter_widens_the_scope(server: Running, where: Any) -> None:
    found = server.post("/search", {"question": question("travel"), "k": 200, "where": where}, "acme")
    assert found.status_code == 200
    assert WORDS["globex"] not in found.text
    assert all("docs/acme/" in hit["source"] for hit in found.json()["hits"])


def test_a_plugin_that_ignores_the_filter_gives_nothing_away(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline = server.engine.pipelines["default"]
    search = pipeline.search
    monkeypatch.setattr(pipeline, "search", lambda q, index, k=None, where=None: search(q, index, k=k))
    for path, body in (("/search", {"question": "office"}), ("/v1/chat/completions", chat("Which office approves?"))):
        answer = server.post(path, body, "acme")
        assert answer.status_code == 500
        assert WORDS["globex"] not in answer.text
        assert "scope" not in answer.text
    with server.engine.held.lend() as index, pytest.raises(LeakError):
        server.engine._guard(index, caller_named(server, "acme"), [doc_of(server, "globex")])


def caller_named(server: Running, who: str) -> Any:
    return Tokens.load(None, server.home / "tokens.yaml").caller(bearer(who)["Authorization"])


def doc_of(server: Running, who: str) -> str:
    return str(server.get("/documents", who).json()["documents"][0]["id"])


def test_runs_stay_with_their_tenant_over_a_restart(home: Path) -> None:
    with Running(home) as first:
        run_id = first.post("/v1/chat/completions", chat(question("training")), "acme").json()["rag"]["run_id"]
    with Running(home) as second:
        assert second.get(f"/explain/{run_id}", "acme").status_code == 200
        assert second.get(f"/explain/{run_id}", "globex").status_code == 404


TRICKS = [
    "/documents/..%2f..%2fetc%2fpasswd", "/documents/../tokens.yaml", "/documents/%00", "/chunks/%2e%2e/%2e%2e",
    "/explain/..%2fruns.sqlite", "/explain/last", "/documents/docs%2fglobex%2ftravel.md",
    "/chunks/a:1-99999999999999999999",
    "/documents/%ff%fe", "/chunks/'%20OR%201=1--:0-1", "/documents/*", "/v1/models/..", "/docs", "/redoc", "/static/x",
]  # fmt: skip


@pytest.mark.parametrize("path", TRICKS)
def test_paths_are_names_and_nothing_else(server: Running, path: str) -> None:
    answer = raw(server, "GET", path, bearer("acme"))
    assert answer.startswith(b"HTTP/1.1 404 "), answer
    assert WORDS["globex"].encode() not in answer
    assert str(server.home).encode() not in answer


def test_without_a_token_only_requests_for_this_machine_are_answered(home: Path) -> None:
    with Running(home, tokens=False) as running:
        for host, status in (("localhost", 200), ("127.0.0.1:80", 200), ("[::1]:1", 200), ("evil.example", 403)):
            assert raw(running, "GET", "/documents", {"Host": host}).startswith(f"HTTP/1.1 {status} ".encode()), host


# ---------------------------------------------------------------------- what is refused

WRONG = [
    ("/v1/chat/completions", chat("x", n=2), 400),
    ("/v1/chat/completions", {**chat("x"), "model": "gpt-4"}, 404),
    ("/v1/chat/completions", {"model": "default", "messages": []}, 400),
    ("/v1/chat/completions", {"model": "default", "messages": [{"role": "assistant", "content": "x"}]}, 400),
    ("/v1/chat/completions", chat("   "), 400),
    ("/v1/chat/completions", chat("x" * 9_000), 400),
    ("/v1/chat/completions", chat("\ud800"), 400),
    ("/v1/chat/completions", chat([{"type": "image_url", "image_url": {"url": "http://x"}}]), 400),  # type: ignore[arg-type]
    ("/v1/chat/completions", [], 400),
    ("/v1/embeddings", {"model": "default", "input": []}, 400),
    ("/v1/embeddings", {"model": "default", "input": ["x"] * 300}, 400),
    ("/v1/embeddings", {"model": "default", "input": [1, 2]}, 400),
    ("/v1/embeddings", {"model": "default", "input": "x", "dimensions": 3}, 400),
    ("/v1/embeddings", {"model": "default", "input": "word " * 1000}, 400),
    ("/search", {"question": "x", "k": 0}, 400),
    ("/search", {"question": "x", "k": 10**9}, 400),
    ("/search", {"question": "x", "where": {"owner": "a"}}, 400),
    ("/search", {"question": "x", "where": {"meta.n": 10**400}}, 400),
    ("/search", {"question": "x", "where": {"source": "\ud800"}}, 400),
    ("/search", {"question": "\x00"}, 200),
]


@pytest.mark.parametrize(("path", "body", "status"), WRONG)
def test_wrong_requests_are_told_what_is_wrong(server: Running, path: str, body: Any, status: int) -> None:
    head = {**bearer("acme"), "Content-Type": "application/json"}
    answer = httpx.post(server.url + path, content=json.dumps(body), headers=head, timeout=30)
    assert answer.status_code == status, answer.text
    if status != 200:
        assert answer.json()["error"]["type"] == "invalid_request_error"
        assert len(answer.text) < 1000


def test_what_is_no_json_or_too_deep_is_refused(server: Running) -> None:
    head = {**bearer("acme"), "Content-Type": "application/json"}
    for body in (
        b"{",
        b"\xff\xfe",
        b"[" * 15_000,
        b'{"question": "x", "where": ' + b'{"not":' * 1500 + b"{}" + b"}" * 1501,
    ):
        answer = httpx.post(server.url + "/search", content=body, headers=head, timeout=30)
        assert answer.status_code == 400, body[:20]
    assert httpx.post(server.url + "/search", content=b"question=x", headers=bearer("acme")).status_code == 400


def test_an_oversize_body_is_refused_by_its_header_or_by_its_bytes(server: Running) -> None:
    head = {**bearer("acme"), "Content-Type": "application/json"}
    assert raw(server, "POST", "/search", {**head, "Content-Length": "99999999"}, cut=True).startswith(b"HTTP/1.1 413 ")
    chunked = {**head, "Transfer-Encoding": "chunked"}
    body = b"".join(b"1000\r\n" + b"x" * 4096 + b"\r\n" for _ in range(8))
    assert raw(server, "POST", "/search", chunked, body, cut=True).startswith(b"HTTP/1.1 413 ")


def test_a_client_that_sends_too_slowly_is_refused_or_cut(server: Running) -> None:
    head = {**bearer("acme"), "Content-Type": "application/json", "Content-Length": "50"}
    assert raw(server, "POST", "/search", head, b"{", cut=True).startswith(b"HTTP/1.1 408 ")
    with socket.create_connection(server.address, timeout=20) as one:  # headers that never end
        one.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\nX-Slow: ")
        assert drip(one) == b""
    with socket.create_connection(server.address, timeout=20) as one:  # nothing at all
        assert one.recv(100) == b""


def drip(connection: socket.socket) -> bytes:
    """Send a byte now and then until the other side ends it; what it said."""
    connection.settimeout(0.2)
    for _ in range(100):
        try:
            connection.sendall(b"x")
            return connection.recv(1000)
        except TimeoutError:
            continue
        except OSError:
            return b""
    raise AssertionError("the connection stays open")


def test_a_client_that_does_not_read_is_cut(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(server.engine), "sees", lambda *_: True)
    with server.engine.held.lend() as index:
        corpus = index.corpus
        real = corpus.document(doc_of(server, "acme"))
        huge = type(real)(text="x" * 30_000_000, source="huge.md")
        monkeypatch.setattr(corpus, "document", lambda doc_id: huge)
        with socket.create_connection(server.address, timeout=20) as one:
            token = bearer("acme")["Authorization"]
            one.sendall(f"GET /documents/{huge.id} HTTP/1.1\r\nHost: x\r\nAuthorization: {token}\r\n\r\n".encode())
            until(lambda: bool(open_ports(server)), "the connection is there")
            mine = one.getsockname()[1]
            until(lambda: mine not in open_ports(server), "the connection is cut")


def open_ports(server: Running) -> set[int]:
    """Ports of the clients that the server has connections with."""
    return {one.client[1] for one in list(server.server.server_state.connections) if getattr(one, "client", None)}


def until(holds: Callable[[], bool], what: str, seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, f"not so after {seconds} s: {what}"
        time.sleep(0.02)


def test_beyond_its_limit_the_server_says_when_to_come_again(server: Running, slow: threading.Event) -> None:
    """Two run, two wait, the fifth is refused at once; health stays good; all four get their answers."""
    got: list[httpx.Response] = []
    threads = [
        threading.Thread(target=lambda who=who: got.append(server.post("/search", {"question": "travel"}, who)))
        for who in ("acme", "globex", "acme", "operator")
    ]
    for thread in threads:
        thread.start()
    until(lambda: server.engine.gate.inside == 4, "four are inside")
    for body in (chat("x"), chat("x", stream=True)):
        refused = server.post("/v1/chat/completions", body, "globex")
        assert refused.status_code == 429
        assert int(refused.headers["retry-after"]) >= 1
        assert refused.json()["error"]["type"] == "rate_limit_error"
    assert httpx.get(server.url + "/healthz").status_code == 200
    assert "rag_requests_inside 4.0" in server.get("/metrics").text
    slow.set()
    for thread in threads:
        thread.join(30)
    assert [answer.status_code for answer in got] == [200] * 4
    until(lambda: server.engine.gate.inside == 0, "nobody is inside")


def test_a_tenant_that_floods_is_refused_and_the_others_are_not(server: Running, slow: threading.Event) -> None:
    """Of four places a tenant has two: 18 of its 20 requests get 429, both of the other tenant are answered."""
    got: list[tuple[str, httpx.Response]] = []

    def ask(who: str) -> None:
        got.append((who, server.post("/search", {"question": question("travel")}, who)))

    def counts() -> dict[str, list[int]]:
        return {who: sorted(one.status_code for name, one in got if name == who) for who in ("acme", "globex")}

    threads = [threading.Thread(target=ask, args=("acme",)) for _ in range(20)]
    for thread in threads:
        thread.start()
    until(lambda: len(got) == 18, "18 are refused")
    calm = [threading.Thread(target=ask, args=("globex",)) for _ in range(2)]
    for thread in calm:
        thread.start()
    until(lambda: server.engine.gate.inside == 4, "two of each are inside")
    assert counts() == {"acme": [429] * 18, "globex": []}
    for _, refused in got:
        assert int(refused.headers["retry-after"]) >= 1
        assert "your share" in refused.json()["error"]["message"]
    slow.set()
    for thread in (*threads, *calm):
        thread.join(30)
    assert counts() == {"acme": [200] * 2 + [429] * 18, "globex": [200, 200]}


def test_an_answer_that_takes_too_long_is_given_up_and_its_place_is_kept_until_it_ends(home: Path) -> None:
    go = threading.Event()
    with Running(home, ServerLimits(threads=1, waiting=1, request_seconds=0.3)) as running:
        pipeline = running.engine.pipelines["default"]
        generate = type(pipeline.generator).generate

        def late(generator: Any, context: Any, corpus: Any, on_text: Any = None) -> Any:
            go.wait(20)
            return generate(generator, context, corpus, on_text)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(type(pipeline.generator), "generate", late)
            for body in (chat(question("travel")), chat(question("travel"), stream=True)):
                answer = running.post("/v1/chat/completions", body)
                assert answer.status_code == 504
                assert answer.json()["error"]["code"] == "timeout"
            assert running.engine.gate.inside == 2
            assert running.post("/search", {"question": "x"}).status_code == 429
            go.set()
            until(lambda: running.engine.gate.inside == 0, "both have ended")
        assert running.post("/search", {"question": "x"}).status_code == 200


def raw(
    server: Running, method: str, path: str, headers: dict[str, str], body: bytes = b"", *, cut: bool = False
) -> bytes:
    """One request as it is written here, past every client's own rules; with `cut` its body stays unfinished."""
    head = {"Host": "localhost", **headers}
    if not cut:
        head |= {"Connection": "close", **({"Content-Length": str(len(body))} if body else {})}
    lines = "".join(f"{name}: {value}\r\n" for name, value in head.items())
    with socket.create_connection(server.address, timeout=20) as one:
        one.sendall(f"{method} {path} HTTP/1.1\r\n{lines}\r\n".encode() + body)
        answer = b""
        while part := one.recv(65_536):
            answer += part
            if cut and b"\r\n\r\n" in answer and answer.endswith(b"}"):
                break
        return answer


# ---------------------------------------------------------------------- the OpenAPI document


def test_no_request_that_the_openapi_document_allows_or_forbids_is_a_server_error(server: Running) -> None:
    schemathesis = pytest.importorskip("schemathesis", reason="schemathesis is not installed")
    from hypothesis import HealthCheck, Phase, given, settings

    schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    seen: dict[str, int] = {}
    for found in schema.get_all_operations():
        operation = found.ok()
        for mode in schemathesis.GenerationMode:

            @given(case=operation.as_strategy(generation_mode=mode))
            @settings(
                max_examples=8, deadline=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck),
                derandomize=True, database=None,
            )  # fmt: skip
            def sent(case: Any) -> None:
                answer = case.call(headers=bearer("acme"), timeout=30)
                seen[case.operation.label] = seen.get(case.operation.label, 0) + 1
                assert answer.status_code < 500, (case.as_curl_command(), answer.text)

            try:
                sent()
            except schemathesis.errors.InvalidSchema:  # an operation that cannot be called wrongly
                continue
    assert len(seen) >= 10, seen


def test_the_openapi_document_says_what_is_so(server: Running) -> None:
    document = httpx.get(f"{server.url}/openapi.json").json()
    assert document["security"] == [{"bearer": []}]
    chat_responses = document["paths"]["/v1/chat/completions"]["post"]["responses"]
    assert {"200", "400", "401", "413", "429"} <= chat_responses.keys()
    assert "422" not in chat_responses
    assert "rag" in document["components"]["schemas"]["ChatCompletion"]["properties"]
