"""An index that is open for reading: the store, a snapshot of it, and the searchers built on that snapshot."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from rag.store.schema import FILE_NAME
from rag.store.store import Store

if TYPE_CHECKING:
    from rag.protocols import Retriever, Searcher
    from rag.report import IngestReport
    from rag.store.corpus import StoreCorpus
    from rag.types import Document

__all__ = ["Index"]


class Index:
    """A readable index. `report` tells what the ingestion that opened it did, None when it was only opened.

    The snapshot does not move while the index is open; `refresh()` takes a new one.
    """

    def __init__(self, store: Store, report: IngestReport | None = None) -> None:
        self.store = store
        self.report = report
        self._corpus: StoreCorpus | None = None
        self._searchers: list[tuple[Retriever, Searcher]] = []

    @classmethod
    def open(cls, directory: str | Path) -> Index:
        """Open for reading; UsageError when there is no index."""
        return cls(Store.open(Path(directory)))

    @staticmethod
    def exists(directory: str | Path) -> bool:
        """True when there is an index in `directory`, sound or not."""
        return (Path(directory) / FILE_NAME).exists()

    @property
    def directory(self) -> Path:
        return self.store.directory

    @property
    def corpus(self) -> StoreCorpus:
        """The snapshot that searches read."""
        if self._corpus is None:
            self._corpus = self.store.corpus()
        return self._corpus

    def searcher(self, retriever: Retriever) -> Searcher:
        """The searcher of this retriever on the snapshot, opened once."""
        for held, searcher in self._searchers:
            if held == retriever:  # services too: a generator that writes queries is no part of `repr`
                return searcher
        self._searchers.append((retriever, retriever.open(self.corpus)))
        return self._searchers[-1][1]

    def document(self, name: str) -> Document:
        """By id, unique beginning of an id, or source."""
        return self.store.find_document(name)

    def manifest(self) -> dict[str, Any]:
        """What the index was built with."""
        return self.store.manifest()

    def refresh(self) -> None:
        """Let go of the snapshot and its searchers; the next search sees what is committed by then."""
        for _, searcher in self._searchers:
            searcher.close()
        self._searchers.clear()
        if self._corpus is not None:
            self._corpus.close()
            self._corpus = None

    def close(self) -> None:
        self.refresh()
        self.store.close()

    def __enter__(self) -> Index:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Index({str(self.directory)!r})"
