"""`rag ingest` may die at any moment: nothing acknowledged is lost, and the resumed index is the uninterrupted one.

The long version: python -m tests.crash.supervisor --kills 500 --seed 1
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.crash.supervisor import supervise

KILLS = 30


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL and fork")
def test_thirty_kills_and_no_difference(quick: Path) -> None:
    summary = supervise(KILLS, seed=11, folder=quick, real_share=0.4, configs=("faiss", "chroma"))
    assert summary.problems == []
    assert summary.kills >= KILLS
    assert summary.real >= 5, "the real command, not only its fork"
    assert len(summary.by_failpoint) >= 5
    assert summary.comparisons > summary.kills / 2
