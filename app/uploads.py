"""Files that the browser sent, and the worker that ingests them: `rag ingest` in a process of its own.

A script run never ingests: it starts the worker, and later runs look at what it has told so far.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import streamlit as st

from rag.errors import UsageError
from rag.store.store import Store
from rag.text import printable

__all__ = ["Job", "forget", "job_of", "keep", "start", "uploads_dir"]

_WAIT_SECONDS = "5"
_NAME_BYTES = 200


@dataclass
class Job:
    """A running or finished ingestion. `progress` is its last event, `report` what it printed at its end."""

    paths: tuple[str, ...]
    process: subprocess.Popen[str]
    out: IO[str]
    progress: dict[str, Any] = field(default_factory=dict)
    told: list[str] = field(default_factory=list)
    report: dict[str, Any] | None = None
    listening: threading.Thread | None = None

    @property
    def running(self) -> bool:
        return self.listening is not None and self.listening.is_alive()

    def listen(self) -> None:
        """Reads events until the worker ends, then its report."""
        for line in self.process.stderr or ():
            try:
                self.progress = dict(json.loads(line))
            except ValueError:
                self.told.append(line.rstrip())
        self.process.wait()
        self.out.seek(0)
        text = self.out.read().strip()
        self.out.close()
        self.report = json.loads(text) if text else None

    @property
    def failures(self) -> dict[str, str]:
        """Source -> reason of the files that did not go in."""
        return {one["source"]: one["error"] for one in (self.report or {}).get("failed", ())}

    @property
    def error(self) -> str:
        """Why the worker ended without a report; "" when it did not."""
        if self.running or self.report is not None:
            return ""
        return "\n".join(self.told[-5:]) or f"the worker ended with code {self.process.returncode}"


@st.cache_resource(show_spinner=False)
def _jobs() -> dict[str, Job]:
    return {}


def job_of(directory: Path) -> Job | None:
    """The last job of an index, in any browser."""
    return _jobs().get(str(directory.resolve()))


def uploads_dir(directory: Path) -> Path:
    """Where uploaded files of an index are kept: beside it, since an index holds what it made itself only."""
    whole = directory.resolve()
    return whole.parent / f"{whole.name}-files" / "uploads"


def keep(directory: Path, name: str, data: bytes) -> Path:
    """Writes an uploaded file, whole or not at all; a file of the same name is replaced. UsageError for no name."""
    short = printable(name.replace("\\", "/").rpartition("/")[2]).replace("\\", "_").strip().lstrip(".")
    stem, dot, suffix = short.rpartition(".")
    while len(short.encode()) > _NAME_BYTES and stem:
        stem = stem[:-1]
        short = f"{stem}{dot}{suffix}"
    if not short or len(short.encode()) > _NAME_BYTES:
        raise UsageError(f"{printable(name)!r} is no name for a file; rename it and upload it again")
    folder = uploads_dir(directory)
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / f".{short}.part"
    part.write_bytes(data)
    os.replace(part, folder / short)
    return folder / short


def start(directory: Path, paths: Iterable[str | Path]) -> Job:
    """Starts the worker on these files; UsageError while another one of this index runs."""
    running = job_of(directory)
    if running and running.running:
        raise UsageError("files are being ingested already; wait until that is done")
    names = tuple(str(path) for path in paths)
    command = [sys.executable, "-m", "rag", "ingest", "--index", str(directory), "--json", "--events"]
    command += ["--wait", _WAIT_SECONDS, "--", *names]
    out = tempfile.TemporaryFile("w+", encoding="utf-8")  # noqa: SIM115  closed when the job has been read
    process = subprocess.Popen(command, stdout=out, stderr=subprocess.PIPE, text=True, encoding="utf-8")
    job = Job(names, process, out)
    job.listening = threading.Thread(target=job.listen, daemon=True)
    job.listening.start()
    _jobs()[str(directory.resolve())] = job
    return job


def forget(directory: Path, origins: Sequence[str]) -> None:
    """Takes inputs out of the index; of those that were uploaded the files go too, others stay where they are."""
    with Store.create_or_open(directory, wait_seconds=float(_WAIT_SECONDS)) as store:
        store.commit(removed=list(origins))
    folder = uploads_dir(directory)
    for origin in origins:
        if Path(origin).parent == folder:
            Path(origin).unlink(missing_ok=True)
