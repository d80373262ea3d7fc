"""Our pipeline for `rag bench query`: the whole `Pipeline.ask`, with clocks around its four stages.

Nothing is loaded before the first question, as in a process that a user starts.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from eval.bench._ours import ingest

__all__ = ["MODULES", "PACKAGES", "SETTINGS", "asker", "ingest", "load"]

PACKAGES = ("chunkwise", "torch", "tokenizers", "numpy", "faiss-cpu")
MODULES = ("rag.index", "rag.pipeline")
SETTINGS = "Pipeline.ask"

Spent = dict[str, tuple[float, float]]


def load(model: str, options: dict[str, Any]) -> Any:
    """`model` is not used: the pipeline finds the same weights. `options` holds the pipeline config."""
    from rag.config import PipelineConfig
    from rag.pipeline import Pipeline

    return Pipeline(PipelineConfig.from_dict(options["config"]))


def asker(encoder: Any, store: Path) -> Callable[[str, int], Spent]:
    """Stages, `other` (what `ask` does beside them: above all it keeps the run), and `ask`, the whole."""
    from rag.index import Index

    index, spent = Index.open(store), Spent()
    vars(encoder)["search"] = _clocked(encoder.search, "retrieve", spent)
    for slot, verb in (("selector", "select"), ("compressor", "compress"), ("generator", "generate")):
        vars(encoder)[slot] = _Clocked(getattr(encoder, slot), verb, spent)
    whole = _clocked(encoder.ask, "ask", spent)

    def ask(question: str, k: int) -> Spent:
        spent.clear()
        whole(question, index)
        parts = [value for stage, value in spent.items() if stage != "ask"]
        wall, cpu = (spent["ask"][at] - sum(part[at] for part in parts) for at in (0, 1))
        return {**spent, "other": (wall, cpu)}

    return ask


class _Clocked:
    """A plugin one of whose calls is timed."""

    def __init__(self, inner: Any, verb: str, spent: Spent) -> None:
        self._inner = inner
        vars(self)[verb] = _clocked(getattr(inner, verb), verb, spent)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


def _clocked(call: Callable[..., Any], stage: str, spent: Spent) -> Callable[..., Any]:
    def timed(*given: Any, **named: Any) -> Any:
        wall, cpu = time.perf_counter(), time.process_time()
        made = call(*given, **named)
        spent[stage] = (time.perf_counter() - wall, time.process_time() - cpu)
        return made

    return timed
