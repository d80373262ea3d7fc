"""Gives back the room that deleted rows, other embedders' vectors and superseded files take."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rag.store.database import translated
from rag.store.failpoints import hit
from rag.store.listing import size_bytes
from rag.store.schema import FILE_NAME
from rag.store.swap import connect, need_room, overwrite

if TYPE_CHECKING:
    from rag.store.store import Store

__all__ = ["CompactReport", "compact", "sweep_compact"]


@dataclass(frozen=True, kw_only=True)
class CompactReport:
    """Bytes of the index and its derived files. While readers hold an old state, the file shrinks only after them."""

    bytes_before: int
    bytes_after: int
    vectors_pruned: int

    def to_dict(self) -> dict[str, Any]:
        """The JSON form that `rag compact --json` prints."""
        return asdict(self)


def compact(store: Store, *, on_step: Callable[[str], None] | None = None) -> CompactReport:
    """Prune vectors of other embedders, merge the full-text index, and write the file anew without gaps.

    Rows keep their ids, the generation stays, derived files stay. Every step is a transaction: a death leaves the
    index as it was before that step. RagError, and nothing changed, when the disk has not twice the file's size left.
    """
    directory = store.directory
    before = size_bytes(directory)
    need_room(directory, 2 * (directory / FILE_NAME).stat().st_size, "Compacting the index")
    tell = on_step or (lambda step: None)
    tell("pruning vectors of other embedders")
    pruned = store.prune_vectors()
    hit("compact.pruned")
    tell("merging the full-text index")
    store.optimize_lexical()
    hit("compact.merged")
    tell("writing the file anew")
    fresh = directory / f"compact.{secrets.token_hex(4)}.tmp"
    try:
        _copy_without_gaps(directory / FILE_NAME, fresh)
        hit("compact.copied")
        overwrite(directory / FILE_NAME, fresh)
    finally:
        fresh.unlink(missing_ok=True)
    return CompactReport(bytes_before=before, bytes_after=size_bytes(directory), vectors_pruned=pruned)


def _copy_without_gaps(live: Path, fresh: Path) -> None:
    with translated(live):
        source = connect(live)
        try:
            source.execute("VACUUM INTO ?", (str(fresh),))
        finally:
            source.close()


def sweep_compact(directory: Path) -> None:
    """Delete what a dead `compact` left. Writers only."""
    for path in directory.glob("compact.*.tmp*"):
        path.unlink(missing_ok=True)
