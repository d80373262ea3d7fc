"""The learned boundary model: from two neighbouring sentences to the log-odds that a paragraph ends between them.

An MLP with one hidden layer over the vectors of both sentences and over how alike the text on both sides is.
`boundary.md` is its card, `eval.train_boundary` trains it. Inference is NumPy only.
"""

from __future__ import annotations

import hashlib
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING

from rag.errors import MissingError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]

__all__ = ["SHA256", "BoundaryWeights", "bits", "pair_features", "read_weights", "weights"]

SHA256 = "76c32a35ee3d29e82f4c184926f835df939670759037e7f638679952526defdb"
"""Of boundary.npz. Weights that were trained anew need it anew; the training script prints it."""

_OPENERS = """
he she it they we this that these those such his her its their both however therefore moreover furthermore also then
thus hence but and or so nor yet instead otherwise likewise similarly meanwhile later
"""
OPENERS = frozenset(_OPENERS.split())
"""Words that point back when a sentence opens with them."""

BITS = 8
_WINDOWS = (1, 2, 3, 5)
_BLOCK = 2048  # pairs at a time, so that the features of a long document need not exist at once


@dataclass(frozen=True)
class BoundaryWeights:
    """`logits = relu(features @ w1 + b1) @ w2 + b2`, the features centred and scaled first.

    Shapes: mean, scale (f,), w1 (f, h), b1, w2 (h,), b2 (). `model` is the fingerprint of the encoder of the vectors,
    `base` the log-odds of a paragraph end among all places of the training text.
    """

    model: str
    mean: Floats
    scale: Floats
    w1: Floats
    b1: Floats
    w2: Floats
    b2: Floats
    base: Floats

    def logits(self, vectors: Floats, texts: Sequence[str]) -> NDArray[np.float64]:
        """(n - 1,) natural log-odds of a boundary before sentences 1 .. n-1."""
        import numpy as np

        found = np.zeros(max(0, len(texts) - 1))
        sides = side_features(vectors)
        for start in range(0, len(found), _BLOCK):
            stop = min(start + _BLOCK, len(found)) + 1
            features = _features(vectors[start:stop], texts[start:stop], sides[start : stop - 1])
            hidden = np.maximum((features - self.mean) * self.scale @ self.w1 + self.b1, 0.0)
            found[start : stop - 1] = hidden @ self.w2 + self.b2
        return found


@cache
def weights() -> BoundaryWeights:
    """The weights beside this file, read once per process."""
    return read_weights(resources.files("chunkers").joinpath("boundary.npz").read_bytes(), SHA256)


def read_weights(data: bytes, sha256: str) -> BoundaryWeights:
    """The weights in the bytes of an .npz; MissingError when their hash is not `sha256`."""
    import numpy as np

    found = hashlib.sha256(data).hexdigest()
    if found != sha256:
        raise MissingError(
            f"chunkers/boundary.npz has the SHA-256 {found}, not {sha256}: it is damaged or was replaced; install "
            f"chunkwise again, or put the hash of your own weights into chunkers/_boundary.py"
        )
    with np.load(io.BytesIO(data), allow_pickle=False) as held:
        floats = {name: held[name].astype(np.float32) for name in ("mean", "scale", "w1", "b1", "w2", "b2", "base")}
        return BoundaryWeights(model=str(held["model"]), **floats)


def pair_features(vectors: Floats, texts: Sequence[str]) -> Floats:
    """(n - 1, 4 d + 7 + 8) features of neighbours: both vectors, |difference|, product, `side_features`, `bits`.

    White space around the texts is left out, so line ends are not seen.
    """
    return _features(vectors, texts, side_features(vectors))


def _features(vectors: Floats, texts: Sequence[str], sides: Floats) -> Floats:
    import numpy as np

    first, second = vectors[:-1].astype(np.float32), vectors[1:].astype(np.float32)
    bare = [text.strip() for text in texts]
    rows = [bits(bare[at], bare[at + 1]) for at in range(len(bare) - 1)]
    flags = np.array(rows, dtype=np.float32).reshape(-1, BITS)
    return np.concatenate([first, second, np.abs(first - second), first * second, sides, flags], axis=1)


def side_features(vectors: Floats) -> Floats:
    """(n - 1, 7) per place: cosine of the mean of 1, 2, 3 and 5 sentences before and after it, then three depths.

    A depth is how much lower the cosine lies than around it, as in TextTiling (Hearst, 1997): the adjacent cosine below
    the mean of those one and two places away, and that of 3 sentences below the lower of the peaks within three places.
    """
    import numpy as np

    count = len(vectors)
    if count < 2:
        return np.zeros((0, len(_WINDOWS) + 3), dtype=np.float32)
    sums = np.zeros((count + 1, vectors.shape[1]))
    np.cumsum(vectors, axis=0, dtype=np.float64, out=sums[1:])
    places = np.arange(1, count)
    columns = []
    for window in _WINDOWS:
        left = sums[places] - sums[np.maximum(places - window, 0)]
        right = sums[np.minimum(places + window, count)] - sums[places]
        norms = np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)
        columns.append(np.einsum("ij,ij->i", left, right) / (norms + 1e-9))
    padded = np.pad(columns[0], 2, mode="edge")
    columns.append((padded[1:-3] + padded[3:-1]) / 2 - columns[0])
    columns.append((padded[:-4] + padded[4:]) / 2 - columns[0])
    around = np.lib.stride_tricks.sliding_window_view(np.pad(columns[2], 3, mode="edge"), 7)
    columns.append(np.minimum(around[:, :3].max(axis=1), around[:, 4:].max(axis=1)) - columns[2])
    return np.stack(columns, axis=1).astype(np.float32)


def bits(before: str, after: str) -> tuple[float, ...]:
    """What the words say beside their meaning; nothing in it depends on line ends."""
    opening = after[:40].split()
    word = opening[0] if opening else ""
    return (
        math.log1p(len(before)) / 6.0,
        math.log1p(len(after)) / 6.0,
        float(before.endswith(":")),
        float(before.endswith(("?", "!"))),
        float(word.strip("“”\"'‘’,;:").casefold() in OPENERS),
        float(after[:2].strip("(").lstrip()[:1].isdigit()),
        float(after.startswith(("“", '"', "‘", "'"))),
        float(len(word) > 1 and word.isupper()),
    )
