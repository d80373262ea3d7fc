"""Taking documents out of an index by name; their chunks, vectors, keys and values go with them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rag.errors import UsageError, no_index
from rag.index import Index
from rag.store.store import Store

if TYPE_CHECKING:
    from rag.pipeline import Pipeline
    from rag.store.records import FileRecord

__all__ = ["RemovalReport", "remove"]

_PATTERN = frozenset("*?[")


@dataclass(frozen=True, kw_only=True)
class RemovalReport:
    """`sources` are the inputs that were taken out, sorted; `present` those whose file is still there."""

    sources: tuple[str, ...]
    present: tuple[str, ...]
    documents: int
    chunks: int

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def remove(
    directory: str | Path, names: Sequence[str], *, pipeline: Pipeline, wait_seconds: float = 0.0, dry_run: bool = False
) -> RemovalReport:
    """Take every input that a name stands for out of the index, all in one transaction, or none.

    A name is a source, a pattern of sources (`*`, `?`, `[...]`; `*` crosses folders), or a document id or its unique
    beginning. `pipeline` publishes what its retriever derives. A file that still exists comes back with the next
    ingestion of its folder. UsageError without an index and for a name that stands for nothing.
    """
    directory = Path(directory)
    if not Index.exists(directory):
        raise no_index(directory)
    with Store.create_or_open(directory, wait_seconds=wait_seconds) as store:
        files = list(store.files().values())
        chosen = {file.origin: file for name in names for file in _named(store, files, name)}
        before = store.stats()
        if not dry_run:
            store.commit(removed=sorted(chosen))
            pipeline._open_once(store)
        after = store.stats()
    return RemovalReport(
        sources=tuple(sorted(file.source for file in chosen.values())),
        present=tuple(sorted(file.source for file in chosen.values() if Path(file.origin).exists())),
        documents=before["documents"] - after["documents"],
        chunks=before["chunks"] - after["chunks"],
    )


def _named(store: Store, files: Sequence[FileRecord], name: str) -> list[FileRecord]:
    found = [file for file in files if name in (file.source, file.origin)]
    if not found and _PATTERN & set(name):
        found = [file for file in files if fnmatchcase(file.source, name)]
        if not found:
            raise UsageError(
                f"no document has a source like {name!r}. List them with: rag list --index {store.directory}"
            )
    return found or store.files_of(store.find_document(name).id)
