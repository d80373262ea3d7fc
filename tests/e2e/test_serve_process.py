"""`rag serve` as a process: the openai client, many clients at once, SIGTERM, kill -9, and when it does not start."""

from __future__ import annotations

import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

pytest.importorskip("fastapi", reason="chunkwise[serve] is not installed")
pytest.importorskip("uvicorn", reason="chunkwise[serve] is not installed")

from rag import Index
from rag.store.verify import verify
from tests.e2e.conftest import Run
from tests.e2e.served import TENANTS, TOKENS, TOPICS, WORDS, bearer, canary, chat, make_home, question, serving


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_home(tmp_path_factory.mktemp("process"))


def test_the_openai_client_as_it_is_asks_streams_embeds_and_understands_refusals(home: Path) -> None:
    openai = pytest.importorskip("openai", reason="openai is not installed")
    with serving(home) as served:
        client = openai.OpenAI(base_url=f"{served.url}/v1", api_key=TOKENS["acme"], max_retries=0)
        assert [model.id for model in client.models.list()] == ["default"]
        made = client.chat.completions.create(**chat(question("travel"), temperature=0.2, seed=7))
        assert canary("acme", "travel") in made.choices[0].message.content
        assert made.model_extra["rag"]["citations"][0]["source"].endswith("docs/acme/travel.md")
        chunks = list(client.chat.completions.create(**chat(question("travel"), stream=True)))
        assert "".join(one.choices[0].delta.content or "" for one in chunks) == made.choices[0].message.content
        assert chunks[-1].model_extra["rag"]["citations"] == made.model_extra["rag"]["citations"]
        vectors = client.embeddings.create(model="default", input=["travel", "parking"])
        assert [len(row.embedding) for row in vectors.data] == [512, 512]
        with pytest.raises(openai.NotFoundError, match="there is no model"):
            client.chat.completions.create(**{**chat("x"), "model": "other"})
        with pytest.raises(openai.BadRequestError, match="empty"):
            client.chat.completions.create(**chat(" "))
        with pytest.raises(openai.AuthenticationError):
            client.with_options(api_key="wrong").models.list()


class Load:
    """Clients of both tenants that ask and search until told to stop; what is wrong with what they got."""

    def __init__(self, url: str, clients: int) -> None:
        self.url, self.stop = url, threading.Event()
        self.answers, self.busy, self.lost = 0, 0, 0
        self.wrong: list[str] = []
        self._lock = threading.Lock()
        self.threads = [threading.Thread(target=self._client, args=(number,)) for number in range(clients)]

    def start(self) -> None:
        for thread in self.threads:
            thread.start()

    def join(self) -> None:
        self.stop.set()
        for thread in self.threads:
            thread.join(60)

    def _client(self, number: int) -> None:
        tenant, turn = TENANTS[number % 2], number
        with httpx.Client(base_url=self.url, headers=bearer(tenant), timeout=30) as client:
            while not self.stop.is_set():
                turn += 1
                try:
                    self._ask(client, tenant, TOPICS[turn % len(TOPICS)], turn % 3)
                except httpx.TransportError:
                    with self._lock:
                        self.lost += 1
                    self.stop.wait(0.05)

    def _ask(self, client: httpx.Client, tenant: str, topic: str, way: int) -> None:
        if way == 0:
            answer = client.post("/search", json={"question": question(topic), "k": 4})
        else:
            answer = client.post("/v1/chat/completions", json=chat(question(topic), stream=way == 2))
        other = next(name for name in TENANTS if name != tenant)
        with self._lock:
            if answer.status_code == 429:
                self.busy += 1
                return
            self.answers += 1
            if answer.status_code != 200 or canary(tenant, topic) not in answer.text or WORDS[other] in answer.text:
                self.wrong.append(f"{tenant} {topic} {way}: {answer.status_code} {answer.text[:200]}")
            elif way == 2 and not answer.text.endswith("data: [DONE]\n\n"):
                self.wrong.append(f"{tenant} {topic}: the stream has no end")


def until(holds: Callable[[], bool], what: str, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, f"not so after {seconds} s: {what}"
        time.sleep(0.02)


def test_many_clients_of_two_tenants_get_their_own_answers_and_no_others(home: Path) -> None:
    with serving(home, "--threads", "4", "--waiting", "6") as served:
        load = Load(served.url, 16)
        load.start()
        until(lambda: load.answers >= 200, "200 answers")
        load.join()
        assert load.wrong == []
        assert load.lost == 0
        text = httpx.get(f"{served.url}/metrics", headers=bearer("operator")).text
        assert "rag_requests_inside 0.0" in text
        assert load.busy == sum(
            float(line.split()[-1])
            for line in text.splitlines()
            if line.startswith("rag_requests_total{") and '"429"' in line
        )


def test_kill_9_in_the_middle_loses_nothing_and_the_next_start_is_clean(home: Path) -> None:
    before = facts(home)
    with serving(home) as served:
        load = Load(served.url, 6)
        load.start()
        until(lambda: load.answers >= 30, "30 answers")
        assert served.stop(signal.SIGKILL) == -signal.SIGKILL
        load.join()
        assert load.wrong == []
    with serving(home) as served:
        assert facts(home) == before
        answer = httpx.post(f"{served.url}/v1/chat/completions", json=chat(question("travel")), headers=bearer("acme"))
        assert canary("acme", "travel") in answer.text
        run_id = answer.json()["rag"]["run_id"]
        assert httpx.get(f"{served.url}/explain/{run_id}", headers=bearer("acme")).status_code == 200


def facts(home: Path) -> Any:
    """What the index holds, after it was found sound; its runs are readable too."""
    with Index.open(home / "idx") as index:
        assert verify(index.directory).ok
        with sqlite3.connect(home / "idx" / "runs.sqlite") as runs:
            assert runs.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        return index.store.generation, [(one.id, one.chunks) for one in index.store.documents()]


def test_sigterm_finishes_what_runs_takes_nothing_new_and_ends_with_0(home: Path) -> None:
    with serving(home, "--threads", "2") as served:
        load = Load(served.url, 8)
        load.start()
        until(lambda: load.answers >= 20, "20 answers")
        assert served.stop() == 0
        load.join()
        assert load.wrong == []
        with pytest.raises(httpx.TransportError):
            httpx.get(f"{served.url}/healthz")


def test_several_pipelines_on_one_index_are_models(home: Path) -> None:
    (home / "words.yaml").write_text("embedder: hashing\nretriever: bm25\ngenerator: extractive\n")
    with serving(home, "--pipeline", "words=words.yaml", tokens=False) as served:
        models = httpx.get(f"{served.url}/v1/models").json()["data"]
        assert [one["id"] for one in models] == ["default", "words"]
        hits = httpx.post(f"{served.url}/search", json={"question": "parking", "model": "words"}).json()["hits"]
        assert hits[0]["parts"].keys() == {"bm25"}


@pytest.mark.parametrize(
    ("arguments", "environment", "code", "said"),
    [
        (["--host", "0.0.0.0"], {}, 2, "RAG_TOKEN"),  # noqa: S104
        ([], {"RAG_TOKEN": ""}, 2, "RAG_TOKEN is set and empty"),
        (["--index", "nowhere"], {}, 2, "there is no index"),
        (["--tokens", "rag.yaml"], {}, 3, "SHA-256"),
        (["--pipeline", "short"], {}, 2, "NAME=FILE"),
        (["--host", "no.such.host.invalid"], {"RAG_TOKEN": "x"}, 2, "cannot listen"),
    ],
)
def test_what_cannot_be_served_is_told_and_does_not_start(
    home: Path, rag: Callable[..., Run], monkeypatch: pytest.MonkeyPatch,
    arguments: list[str], environment: dict[str, str], code: int, said: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(home)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    run = rag("serve", "--index", "idx", "--config", "rag.yaml", "--port", "0", *arguments)
    assert run.code == code, run.err
    assert said in run.err


def test_a_port_that_is_taken_is_told(home: Path, rag: Callable[..., Run], monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    monkeypatch.chdir(home)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        run = rag("serve", "--index", "idx", "--config", "rag.yaml", "--port", str(taken.getsockname()[1]))
    assert run.code == 2
    assert "cannot listen" in run.err


def test_a_model_that_is_missing_ends_the_server_with_its_exit_code(home: Path) -> None:
    (home / "absent.yaml").write_text("embedder: {use: minilm, model: /no/such/model}\nretriever: bm25\n")
    command = [sys.executable, "-m", "rag", "serve", "--index", "idx", "--config", "absent.yaml", "--port", "0"]
    done = subprocess.run(command, cwd=home, capture_output=True, text=True, timeout=120)
    assert done.returncode in (3, 6), done.stderr
    assert "error:" in done.stderr
    assert "Traceback" not in done.stderr


def test_importing_the_verb_loads_no_server() -> None:
    code = "import sys, rag.cli.main; assert not {'fastapi', 'uvicorn', 'prometheus_client'} & set(sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
