"""A third party's plugin, installed for this process and for the processes that it starts."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from rag import registry

__all__ = ["install"]


@contextmanager
def install(folder: Path, monkeypatch: pytest.MonkeyPatch, kind: str, plugin: str, code: str) -> Iterator[None]:
    """A package with one plugin of a `kind` ("chunker"): `plugin` is "name:Class", its module "name_KIND"."""
    name, _, class_name = plugin.partition(":")
    module = f"{name}_{kind}"
    info = folder / f"{name}_{kind}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}-{kind}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[rag.{kind}]\n{name} = {module}:{class_name}\n")
    (folder / f"{module}.py").write_text(code)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setenv("PYTHONPATH", str(folder))
    for cache in (registry._declared, registry.catalogue):
        cache.cache_clear()
    yield
    sys.modules.pop(module, None)
    for cache in (registry._declared, registry.catalogue):
        cache.cache_clear()
