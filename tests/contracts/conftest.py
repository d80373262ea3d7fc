"""Servers that the contracts of retrievers share, started when the first test asks for one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.servers import chroma_server, postgres_server


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    with postgres_server() as address:
        yield address


@pytest.fixture(scope="session")
def chroma() -> Iterator[int]:
    with chroma_server() as port:
        yield port
