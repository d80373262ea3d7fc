"""Token ids -> batches without padding, shared by the light runtimes.

A batch is ragged: the tokens of all its texts stand in one matrix (tokens, width), so the linear layers see no
padding and attention needs no mask. Texts are sorted by length, so equal lengths lie together and share one
attention call (a run).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Protocol

from rag.errors import MissingError

if TYPE_CHECKING:
    from rag.protocols import Vectors

__all__ = ["Ids", "Run", "Runtime", "encode_all", "filled", "runs"]

Ids = tuple[int, ...]
Run = tuple[int, int, int]
"""(first token, number of texts, tokens of each)."""


class Runtime(Protocol):
    """Runs an encoder over one batch of token ids, special tokens included."""

    dimension: int
    most_tokens: int
    """Tokens of a batch beyond which this runtime gets slower."""

    def encode(self, batch: Sequence[Ids]) -> Vectors:
        """(len(batch), dimension) float32, not scaled. `batch` is sorted by length."""

    def states(self, batch: Sequence[Ids]) -> Vectors:
        """(tokens of the batch, dimension) float32: the last hidden state of every token, text after text.

        MissingError where the runtime does not give them.
        """
        raise MissingError("embedder minilm: this runtime gives no vectors of single tokens; set runtime: auto")


def encode_all(runtime: Runtime, ids: Sequence[Ids], batch_tokens: int) -> Vectors:
    """(len(ids), dimension) rows of unit length, in the order of `ids`.

    Equal texts are encoded once. Sorting by (length, ids) makes the batches, and so the bytes of every row,
    independent of the order of the input.
    """
    import numpy as np

    from rag.vectors import as_unit

    order = sorted(set(ids), key=lambda one: (len(one), one))
    place = {one: row for row, one in enumerate(order)}
    parts = [runtime.encode(batch) for batch in filled(order, min(batch_tokens, runtime.most_tokens))]
    matrix = np.concatenate(parts) if parts else np.zeros((0, runtime.dimension), dtype=np.float32)
    return as_unit(matrix[[place[one] for one in ids]])


def filled(order: Sequence[Ids], batch_tokens: int) -> list[list[Ids]]:
    """Consecutive texts with at most `batch_tokens` tokens together; a longer text is a batch of its own."""
    batches: list[list[Ids]] = []
    size = batch_tokens + 1
    for one in order:
        if size + len(one) > batch_tokens:
            batches.append([])
            size = 0
        batches[-1].append(one)
        size += len(one)
    return batches


def runs(batch: Sequence[Ids]) -> list[Run]:
    """The stretches of equal length in a sorted batch."""
    found: list[Run] = []
    first = 0
    for length, group in groupby(batch, key=len):
        count = len(list(group))
        found.append((first, count, length))
        first += count * length
    return found
