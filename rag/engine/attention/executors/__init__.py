"""Ways to run what a selection kept, all with the same result: (batch, heads, queries, d) from a step and its Kept."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from torch import Tensor

from rag.engine.attention._base import Kept, Step
from rag.engine.attention.executors.dense_mask import dense_mask
from rag.engine.attention.executors.flex import flex
from rag.engine.attention.executors.gather import gather
from rag.engine.attention.executors.triton import triton
from rag.engine.errors import EngineError

__all__ = ["EXECUTORS", "Execute", "ExecutorName", "executor_for", "ran_as"]

Execute = Callable[[Step, Kept], Tensor]
ExecutorName = Literal["auto", "dense_mask", "gather", "flex", "triton"]
EXECUTORS: dict[str, Execute] = {"dense_mask": dense_mask, "gather": gather, "flex": flex, "triton": triton}


def executor_for(name: str, step: Step) -> str:
    """ "auto": gather, which is right everywhere, but flex for several queries on a GPU."""
    if name == "auto":
        return "flex" if step.device.type == "cuda" and step.queries > 1 and step.contiguous else "gather"
    if name not in EXECUTORS:
        raise EngineError(f"executor must be auto or one of {', '.join(EXECUTORS)}, not {name!r}")
    return name


def ran_as(name: str, step: Step) -> str:
    """What to call it where it is told what ran: flex and triton are not the kernels of a GPU everywhere."""
    if step.device.type == "cuda" or name not in ("flex", "triton"):
        return name
    return "flex (not compiled)" if name == "flex" else "triton (interpreted)"
