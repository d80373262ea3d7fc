"""A small folder of real files and a pipeline without models."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from rag.cli.main import main
from tests.servers import postgres_server

ROOT = Path(__file__).resolve().parent.parent.parent

FILES = {
    "handbook.md": (
        "# Handbook\n\n## Travel\n\nTravel above 5,000 EUR is approved by the chief financial officer.\n\n"
        "## Holidays\n\nEverybody has thirty days of holiday a year. Unused days expire in March.\n"
    ),
    "notes/minutes.txt": (
        "Minutes of 3 May.\r\nThe Leipzig office closes in June. \U0001f9d1\u200d\U0001f52c Dr. Okafor moves.\r\n"
    ),
    "prices.csv": "article,price\nAlpha balance,1200 EUR\nBeta sensor,340 EUR\n",
    "tickets.jsonl": (
        '{"id": 1, "text": "The display stays dark after start."}\n{"id": 2, "text": "Wrong invoice address."}\n'
    ),
}
CONFIG = """
embedder: hashing
retriever: {use: hybrid, parts: [faiss-dense, bm25]}
generator: {use: extractive, min_support: 0.3}
"""


@dataclass(frozen=True)
class Run:
    """One finished `rag` process."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A working folder with docs/ and a model-free rag.yaml."""
    for name, text in FILES.items():
        path = tmp_path / "docs" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8", newline="")
    (tmp_path / "rag.yaml").write_text(CONFIG)
    return tmp_path


@pytest.fixture
def rag(home: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Run]:
    """Runs the command in that folder, through its real entry point, without the price of a new process."""
    monkeypatch.chdir(home)

    def run(*arguments: str) -> Run:
        out, err, code = io.StringIO(), io.StringIO(), 0
        monkeypatch.setattr(sys, "argv", ["rag", *arguments])
        with redirect_stdout(out), redirect_stderr(err):
            try:
                main()
            except SystemExit as end:
                code = end.code if isinstance(end.code, int) else 0
        return Run(code, out.getvalue(), err.getvalue())

    return run


@pytest.fixture
def rag_process(home: Path) -> Callable[..., Run]:
    """Runs the command in a process of its own."""

    def run(*arguments: str) -> Run:
        command = [sys.executable, "-m", "rag", *arguments]
        done = subprocess.run(command, cwd=home, capture_output=True, text=True, encoding="utf-8", timeout=120)
        return Run(done.returncode, done.stdout, done.stderr)

    return run


@pytest.fixture(scope="module")
def postgres() -> Iterator[str]:
    """The address of a PostgreSQL that lives as long as the module's tests."""
    with postgres_server() as found:
        yield found


@pytest.fixture
def address(postgres: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The same, as the one that the retriever pgvector finds."""
    monkeypatch.setenv("CHUNKWISE_PG_DSN", postgres)
    return postgres


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[int | None]:
    """How many rows PostgreSQL gave for each query; None where the table had moved on."""
    from retrievers._pg_search import PgSearcher

    log: list[int | None] = []
    real = PgSearcher._query

    def spy(self: PgSearcher, *given: Any) -> list[Any] | None:
        found = real(self, *given)
        log.append(None if found is None else len(found))
        return found

    monkeypatch.setattr(PgSearcher, "_query", spy)
    return log
