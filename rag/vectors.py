"""Small vector facts on top of NumPy. Vectors are float32, matrices (n, dim), rows of unit length."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["as_unit", "from_blob", "to_blob", "top_rows"]

Vectors = NDArray[np.float32]


def as_unit(matrix: NDArray[np.floating]) -> Vectors:
    """Rows scaled to length 1; a zero row stays zero."""
    dense = np.asarray(matrix, dtype=np.float32)
    norms = np.linalg.norm(dense, axis=-1, keepdims=True)
    unit: Vectors = np.divide(dense, norms, out=np.zeros_like(dense), where=norms > 0)
    return unit


def to_blob(vector: Vectors) -> bytes:
    """Little-endian float32 bytes."""
    return np.ascontiguousarray(vector, dtype="<f4").tobytes()


def from_blob(blob: bytes) -> Vectors:
    """The inverse of `to_blob`."""
    return np.frombuffer(blob, dtype="<f4")


def top_rows(scores: NDArray[np.floating], k: int) -> NDArray[np.int64]:
    """Indices of the k largest scores, best first, ties by index."""
    k = min(k, scores.shape[0])
    if k <= 0:
        return np.empty(0, dtype=np.int64)
    best = np.argpartition(-scores, k - 1)[:k] if k < scores.shape[0] else np.arange(k)
    return best[np.lexsort((best, -scores[best]))].astype(np.int64)
