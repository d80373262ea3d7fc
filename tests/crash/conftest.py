"""Where the crash tests work: in memory where there is such a file system, since they sync thousands of times."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

MEMORY = Path("/dev/shm")  # noqa: S108


@contextmanager
def quick_folder() -> Iterator[Path]:
    """An empty folder. A process that dies leaves the same there as on a disk: that is what these tests kill."""
    home = MEMORY if MEMORY.is_dir() and os.access(MEMORY, os.W_OK) else None
    folder = Path(tempfile.mkdtemp(prefix="chunkwise-crash-", dir=home)).resolve()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def quick() -> Iterator[Path]:
    """`quick_folder` for one test."""
    with quick_folder() as folder:
        yield folder
