"""What the chunkers share that group embedded sentences: atoms once, then a segmentation of them."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING

from chunkers._base import SizedChunker, tiles_of
from chunkers._headers import Headers
from chunkers._segment import Atoms, checked, joined, reach_back
from rag.protocols import Embedder, service
from rag.types import Chunk, Document

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["EmbeddedChunker"]


@dataclass(frozen=True, kw_only=True)
class EmbeddedChunker(SizedChunker):
    """Base of chunkers that group whole sentences by their vectors; each sentence is embedded once.

    `min_tokens`: a chunk below it joins a neighbour when both fit together. `heading_header`: put the title and the
    heading path above a chunk into `Chunk.header`, at most a quarter of the limit; sentences are embedded without it.
    """

    embedder: Embedder = service()
    min_tokens: int = 16
    heading_header: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_at_least("min_tokens", self.min_tokens, 0)

    def chunk(self, document: Document) -> list[Chunk]:
        return self.group(self.atoms(document)) if document.text.strip() else []

    def atoms(self, document: Document) -> Atoms:
        """The sentences of a document, for `group` of this chunker and of others with the same limits."""
        header = Headers(self, document, path=True, title=True, rows=False).at if self.heading_header else None
        return Atoms.of(document, self.ruler(document, header=header), self.embedder)

    def group(self, atoms: Atoms) -> list[Chunk]:
        """The chunks over atoms that are there already, so that several chunkers share their vectors."""
        low = reach_back(atoms)
        cuts = checked(atoms, joined(atoms, self.segment(atoms, low), low, self.min_tokens))
        ranges = tiles_of(atoms.ends[cut - 1] for cut in cuts)
        return self.cut(atoms.document, ranges, atoms.ruler.tokens, atoms.ruler.header)

    @abstractmethod
    def segment(self, atoms: Atoms, low: NDArray[np.int64]) -> list[int]:
        """Ascending numbers of atoms after which a chunk ends, the last len(atoms).

        `low` is what `reach_back` gives: a group (j, i) keeps the limits when low[i] <= j.
        """
