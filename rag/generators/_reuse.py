"""What `local` says about KV reuse: which parameters go together, which pieces can be reused, the notes of a trace."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from rag.answer import GenerationStats
from rag.engine.errors import EngineError
from rag.errors import ConfigError
from rag.generators._repairs import Repair, checked_repair
from rag.types import Piece

__all__ = ["as_rag_errors", "check_reuse", "is_whole", "told"]

_ALLOWED = {"reuse": ("none", "prefix", "chunk"), "blocks": ("solo", "donor-mean"), "kv_dtype": ("auto", "int8")}


class _Settings(Protocol):
    @property
    def blocks(self) -> str: ...
    @property
    def repair(self) -> Repair: ...
    @property
    def pool_bytes(self) -> int: ...
    @property
    def kv_bytes(self) -> int: ...


def check_reuse(given: _Settings) -> None:
    """ConfigError for values out of range, and for a repair that the blocks say nothing to."""
    for name, values in _ALLOWED.items():
        if getattr(given, name) not in values:
            raise ConfigError(f"local: {name} is one of {', '.join(values)}, not {getattr(given, name)!r}")
    if given.pool_bytes < 0 or given.kv_bytes < 0:
        raise ConfigError(f"local: pool_bytes and kv_bytes must be >= 0, not {given.pool_bytes} and {given.kv_bytes}")
    name, _ = checked_repair(given.repair)
    if given.blocks == "solo" and "variance" in name:
        raise ConfigError(f"local: repair {name} needs blocks: donor-mean, which know how much each token varies")


def is_whole(piece: Piece) -> bool:
    """A whole chunk, as the next question will find it; what was cut to this question is not worth keeping."""
    return piece.verbatim and piece.kept == (piece.span,)


def told(stats: GenerationStats, made: int) -> dict[str, Any]:
    """The notes of the trace; nothing where nothing can be reused."""
    if stats.policy == "none":
        return {}
    notes = {"reuse": stats.policy, "reused": stats.reused_tokens, "computed": stats.computed_tokens}
    if stats.policy != "prefix":
        notes |= {"repaired": stats.repaired_tokens, "blocks_made": made, "bytes_loaded": stats.bytes_loaded}
    return {**notes, "ttft_seconds": round(stats.ttft_seconds, 3)}


@contextmanager
def as_rag_errors() -> Iterator[None]:
    """The engine's errors are about what the config asks of it."""
    try:
        yield
    except EngineError as error:
        raise ConfigError(f"local: reuse chunk: {error}") from error
