"""An index of two tenants with a canary in every document, and a `rag serve` process on a free port."""

from __future__ import annotations

import hashlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import yaml

from rag import Pipeline
from rag.config import PipelineConfig

CONFIG: dict[str, Any] = {
    "embedder": "hashing",
    "retriever": {"use": "hybrid", "parts": ["faiss-dense", "bm25"]},
    "generator": {"use": "extractive", "min_support": 0.2},
}
TENANTS = ("acme", "globex")
TOKENS = {"acme": "token-of-acme", "globex": "token-of-globex", "blind": "token-of-nobody", "operator": "token-of-all"}
TOPICS = ("travel", "holidays", "parking", "invoices", "training")
WORDS = {"acme": "ZEBRAACME", "globex": "LIONGLOBEX"}


def question(topic: str) -> str:
    return f"Who approves {topic} requests?"


def canary(tenant: str, topic: str) -> str:
    """In the one sentence of this tenant about this topic, and nowhere else."""
    return f"{WORDS[tenant]}{TOPICS.index(topic)}"


def make_home(folder: Path) -> Path:
    """docs/, rag.yaml, tokens.yaml and idx/ in `folder`; both tenants have documents about the same topics."""
    for tenant in TENANTS:
        for topic in TOPICS:
            path = folder / "docs" / tenant / f"{topic}.md"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(
                f"# About {topic}\n\nAll {topic} requests are approved by the office {canary(tenant, topic)} of "
                f"{tenant}.\n\nOffices are open from nine to five.\n"
            )
    (folder / "rag.yaml").write_text(yaml.safe_dump(CONFIG))
    rows = {
        digest(TOKENS["acme"]): {"tenant": "acme", "where": {"source": {"contains": "docs/acme/"}}},
        digest(TOKENS["globex"]): {
            "tenant": "globex",
            "where": {"source": {"ge": "docs/globex/", "lt": "docs/globex0"}},
        },
        digest(TOKENS["blind"]): {"tenant": "blind"},
    }
    (folder / "tokens.yaml").write_text(yaml.safe_dump(rows))
    Pipeline(PipelineConfig.from_dict(CONFIG)).index(folder / "docs", folder / "idx").close()
    return folder


def digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def bearer(name: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {TOKENS[name]}"}


def chat(text: str, **more: Any) -> dict[str, Any]:
    return {"model": "default", "messages": [{"role": "user", "content": text}], **more}


@dataclass(frozen=True)
class Served:
    """A server process that answers at `url`."""

    url: str
    process: subprocess.Popen[str]

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Send the signal to this process alone, and wait for its exit code."""
        self.process.send_signal(number)
        return self.process.wait(30)


@contextmanager
def serving(home: Path, *options: str, tokens: bool = True, **environment: str) -> Iterator[Served]:
    """`rag serve` on idx/ until the block ends; ready when it begins."""
    command = [sys.executable, "-m", "rag", "serve", "--index", "idx", "--config", "rag.yaml", "--port", "0", *options]
    variables = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    if tokens:
        command += ["--tokens", "tokens.yaml"]
        variables["RAG_TOKEN"] = TOKENS["operator"]
    process = subprocess.Popen(
        command, cwd=home, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, env=variables
    )
    try:
        assert process.stderr is not None
        line = process.stderr.readline()
        found = re.search(r"http://\S+:\d+", line)
        assert found, line + process.stderr.read()
        wait_ready(found[0])
        yield Served(found[0], process)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait(10)
        if process.stderr:
            process.stderr.close()


def wait_ready(url: str, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            if httpx.get(f"{url}/readyz", timeout=5).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.05)
    raise AssertionError(f"{url} is not ready after {seconds} s")
