"""The executor ray in whole ingestions: the bytes of the serial run, whatever dies."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from rag import Pipeline, PipelineConfig
from rag.errors import MissingError, RagError
from rag.executors._work import FileWork
from rag.executors.ray import RayExecutor
from rag.jobs import Job
from rag.limits import Limits
from tests.e2e.test_cli import dump

SLOTS = {"chunker": {"use": "fixed", "max_tokens": 24}, "embedder": "hashing", "generator": "extractive"}
needs_ray = pytest.mark.skipif(find_spec("ray") is None, reason="not installed: ray (pip install 'chunkwise[ray]')")


def write_documents(folder: Path, count: int) -> Path:
    folder.mkdir()
    for number in range(count):
        lines = [f"Report {number} names item {number * line} of part {line}." for line in range(1 + number % 9)]
        (folder / f"{number:04}.md").write_text(f"# Report {number}\n\n" + "\n\n".join(lines) + "\n")
    (folder / "empty.txt").write_text("")
    for path in folder.iterdir():
        os.utime(path, (1_600_000_000, 1_600_000_000))  # the time of a file that is just written is not trusted
    return folder


def ingest(folder: Path, into: Path, executor: Any, **more: Any) -> list[str]:
    """All rows of the index that this makes."""
    config = PipelineConfig.from_dict({**SLOTS, "retriever": "faiss-dense", "executor": executor})
    Pipeline(config).index(folder, into=into, **more).close()
    return dump(into)


def ray_workers() -> set[int]:
    """Actors of this user that are at work now."""
    found = set()
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if entry.read_bytes().startswith(b"ray::Worker"):
                found.add(int(entry.parent.name))
        except OSError:
            continue
    return found


@pytest.fixture(scope="module")
def started() -> Iterator[Any]:
    """A Ray that the caller has started, as a program with more to do on it would."""
    os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", ".")  # read at the import; else a worker's death is on stdout
    ray = pytest.importorskip("ray")
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, address="local", object_store_memory=256_000_000)
    yield ray
    ray.shutdown()


@needs_ray
@pytest.mark.slow
class TestWhole:
    def test_the_bytes_of_the_serial_run(self, tmp_path: Path, started: Any) -> None:
        folder = write_documents(tmp_path / "docs", 200)
        assert ingest(folder, tmp_path / "ray", {"use": "ray", "workers": 2}) == ingest(
            folder, tmp_path / "serial", "serial"
        )
        assert started.is_initialized(), "who started it ends it"

    def test_a_worker_killed_in_the_middle_changes_nothing(self, tmp_path: Path, started: Any) -> None:
        folder = write_documents(tmp_path / "docs", 200)
        before, killed = ray_workers(), []

        def kill(progress: Any) -> None:
            if len(killed) < 2 and (others := ray_workers() - before - set(killed)):
                os.kill(next(iter(others)), signal.SIGKILL)
                killed.append(next(iter(others)))

        made = ingest(folder, tmp_path / "ray", {"use": "ray", "workers": 2}, on_progress=kill)
        assert killed, "nobody was killed, so nothing was tested"
        assert made == ingest(folder, tmp_path / "serial", "serial")

    def test_a_thousand_documents(self, tmp_path: Path, started: Any) -> None:
        folder = write_documents(tmp_path / "docs", 1000)
        made = ingest(folder, tmp_path / "ray", {"use": "ray", "workers": 2})
        assert sum(line.startswith("documents ") for line in made) == 1000
        assert made == ingest(folder, tmp_path / "serial", "serial")

    def test_a_cluster_is_joined_by_its_address(self, tmp_path: Path, started: Any) -> None:
        """From another process, which must not end it."""
        folder = write_documents(tmp_path / "docs", 5)
        address = started.get_runtime_context().gcs_address
        config = {**SLOTS, "retriever": "faiss-dense", "executor": {"use": "ray", "workers": 1, "address": address}}
        code = f"""
from rag import Pipeline, PipelineConfig
Pipeline(PipelineConfig.from_dict({config!r})).index({str(folder)!r}, into={str(tmp_path / "ray")!r}).close()
"""
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr
        assert dump(tmp_path / "ray") == ingest(folder, tmp_path / "serial", "serial")
        assert started.get(started.put(1)) == 1


LOCAL = """
import os, sys
from pathlib import Path
from rag.executors.ray import RayExecutor
from rag.executors._work import FileWork
from rag.jobs import Job
from rag.limits import Limits
import signal
path = Path(sys.argv[1])
mine = lambda *_: None
signal.signal(signal.SIGTERM, mine)
runner = RayExecutor(workers=1).open(FileWork({slots!r}, limits=Limits()))
jobs = [Job(path=str(path), source=path.name, parser="text", size_bytes=5)] * 3
outcomes = runner.run(jobs)
assert next(outcomes).document.text == path.read_text()
import ray
print(ray.get_runtime_context().gcs_address, flush=True)
assert "RAY_USAGE_STATS_ENABLED" not in os.environ
assert signal.getsignal(signal.SIGTERM) is mine
sys.stdin.read()
assert len(list(outcomes)) == 2
runner.close()
assert not ray.is_initialized()
"""


@needs_ray
@pytest.mark.slow
def test_a_local_ray_keeps_strangers_out_and_ends_with_the_run(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("Words.")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    command = [sys.executable, "-c", LOCAL.replace("{slots!r}", repr(SLOTS)), str(path)]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, text=True, env=environment, **pipes) as run:
        assert run.stdout
        address = run.stdout.readline().strip()
        stranger = "import sys, ray; ray.init(address=sys.argv[1], log_to_driver=False)"
        joined = subprocess.run(
            [sys.executable, "-c", stranger, address], capture_output=True, env=environment, timeout=120, check=False
        )
        _, errors = run.communicate("", timeout=120)
    assert run.returncode == 0, errors
    assert address
    assert joined.returncode != 0
    assert b"uthenticat" in joined.stderr


def test_an_absent_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    runner = RayExecutor(workers=1).open(FileWork(SLOTS, limits=Limits()))
    with pytest.raises(MissingError, match=r"chunkwise\[ray\]"):
        list(runner.run([Job(path="a", source="a", parser="text", size_bytes=1)]))
    runner.close()


def test_a_closed_runner_says_so() -> None:
    runner = RayExecutor(workers=1).open(FileWork(SLOTS, limits=Limits()))
    runner.close()
    with pytest.raises(RagError, match="closed"):
        list(runner.run([Job(path="a", source="a", parser="text", size_bytes=1)]))
    assert list(runner.run([])) == []
