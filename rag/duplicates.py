"""Documents that are nearly the same text: MinHash signatures (Broder, "On the resemblance and containment of
documents", 1997) over word 5-shingles, and a compact index that finds look-alikes among many of them.

Deviations: of a document with more than 512 distinct shingles only those whose hash is 0 mod 2^level are signed
(Broder's mod-m sampling), at two neighbouring levels, so that documents of up to twice the size share a level; of each
of the 128 minima one byte is kept (b-bit minwise hashing, Li and Koenig, arXiv 0910.3349). A signature is 137 or 266
bytes, and its cost beyond hashing the words does not grow with the document. Text with hardly any spaces is shingled by
characters.

The minima are those of `datasketch.MinHash` (scheme affine32, seed 1), which a test compares. The package itself is not
imported: it loads scipy, which takes longer than ingesting two hundred documents.
"""

from __future__ import annotations

import hashlib
import math
from array import array
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import TYPE_CHECKING
from zlib import crc32

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Hashes = NDArray[np.uint64]

__all__ = ["SignatureIndex", "minima", "sign", "similarity"]

SHINGLE_WORDS = 5
PERMUTATIONS = 128
SAMPLE = 512
"""Distinct shingles from which on a document is sampled."""
_CHARS_PER_WORD = 20
_DIGEST = 8
_LEVEL = 1 + PERMUTATIONS
_RECENT = 1024
_MOST_PER_KEY = 64
"""Rows of one key that are looked at, the oldest first: a thousand equal files must not cost a million comparisons."""
_MIX = 0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F
"""Odd 64-bit numbers without a pattern (the golden ratio; a prime of xxHash)."""


def sign(text: str) -> bytes:
    """The signature: 8 bytes that name the exact text, then one or two levels of a number and 128 bytes.

    A text of fewer than five words has the first part only: it has no near-duplicates, only equals.
    """
    parts = [hashlib.blake2b(text.encode(), digest_size=_DIGEST).digest()]
    hashes = _shingles(text)
    if len(hashes):
        first = max(0, math.ceil(math.log2(len(hashes) / SAMPLE)))
        levels = (first, first + 1) if len(hashes) > SAMPLE // 2 else (0,)
        sample = hashes[(hashes & ((1 << first) - 1)) == 0]
        coarse = (sample & ((1 << levels[-1]) - 1)) == 0
        ordered = np.concatenate([sample[coarse], sample[~coarse]]) >> np.uint64(32)  # the low bits chose the sample
        least = minima(ordered, int(coarse.sum()))
        for level, row in zip(levels, least[::-1], strict=False):  # the whole sample is the finer level
            parts.append(bytes([level]) + row.astype(np.uint8).tobytes())
    return b"".join(parts)


def similarity(one: bytes, other: bytes) -> float:
    """The estimated Jaccard similarity of two signed texts: 1.0 for equal texts; the standard error is 0.03 at 0.9."""
    if one[:_DIGEST] == other[:_DIGEST]:
        return 1.0
    for level, bytes_one in _levels(one):
        for other_level, bytes_other in _levels(other):
            if level == other_level:
                left, right = np.frombuffer(bytes_one, np.uint8), np.frombuffer(bytes_other, np.uint8)
                return _estimate(int(np.count_nonzero(left == right)))
    return 0.0


def _estimate(matches: int) -> float:
    """Bytes of unequal minima agree once in 256 times."""
    return max(0.0, (matches / PERMUTATIONS - 1 / 256) / (1 - 1 / 256))


def _levels(signature: bytes) -> list[tuple[int, bytes]]:
    starts = range(_DIGEST, len(signature), _LEVEL)
    return [(signature[at], signature[at + 1 : at + _LEVEL]) for at in starts]


def _shingles(text: str) -> Hashes:
    """The distinct 64-bit hashes of the shingles; empty when the text is shorter than one."""
    words = text.encode().lower().split()
    if len(text) > _CHARS_PER_WORD * max(1, len(words)):
        units = np.frombuffer("".join(text.lower().split()).encode("utf-32-le"), dtype="<u4").astype(np.uint64)
    else:
        units = np.fromiter(map(crc32, words), dtype=np.uint64, count=len(words))
    size = len(units) - SHINGLE_WORDS + 1
    if size < 1:
        return np.empty(0, dtype=np.uint64)
    mixed = np.zeros(size, dtype=np.uint64)
    for at in range(SHINGLE_WORDS):
        mixed *= np.uint64(_MIX[0])
        mixed += units[at : at + size]
    for factor in (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53):  # the finish of MurmurHash3
        mixed ^= mixed >> np.uint64(33)
        mixed *= np.uint64(factor)
    mixed ^= mixed >> np.uint64(33)
    mixed.sort()  # faster here than np.unique, which builds a hash table
    distinct: Hashes = mixed[np.concatenate([[True], mixed[1:] != mixed[:-1]])]
    return distinct


def minima(hashes: Hashes, first: int = 0) -> NDArray[np.uint32]:
    """(2, 128): the smallest value of each permutation over the `first` 32-bit hashes, and over all of them."""
    factors, offsets = _permutations()
    mixed = hashes.astype(np.uint32)
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):  # the finish of MurmurHash3, for 32 bits
        mixed ^= mixed >> np.uint32(shift)
        mixed *= np.uint32(factor)
    mixed ^= mixed >> np.uint32(16)
    values = factors[:, None] * mixed
    values += offsets[:, None]
    least = np.full((2, PERMUTATIONS), 0xFFFFFFFF, dtype=np.uint32)
    for row, part in enumerate((values[:, :first], values[:, first:])):
        if part.shape[1]:
            least[row] = part.min(axis=1)
    np.minimum(least[0], least[1], out=least[1])
    return least


@cache
def _permutations() -> tuple[NDArray[np.uint32], NDArray[np.uint32]]:
    """h -> factor * h + offset mod 2^32 is a permutation for an odd factor. The legacy generator is frozen by NumPy."""
    drawn = np.random.RandomState(1)
    factors = drawn.randint(0, 1 << 31, PERMUTATIONS, dtype=np.uint32) * np.uint32(2) + np.uint32(1)
    return factors, drawn.randint(0, 1 << 32, PERMUTATIONS, dtype=np.uint32)


@lru_cache(maxsize=2)
def _keys(signature: bytes, width: int) -> Hashes:
    """Whoever shares a key may be alike: one for the exact text, one for each band of `width` bytes of each level."""
    parts = [np.frombuffer(signature[:_DIGEST], "<u8")]
    for level, row in _levels(signature):
        bands = np.frombuffer(row, f"<u{width}").astype(np.uint64)
        parts.append((bands + _places(level, width)) * np.uint64(_MIX[1]))
    return np.concatenate(parts)


@cache
def _places(level: int, width: int) -> Hashes:
    """Keeps equal bytes in different bands and levels apart."""
    count = PERMUTATIONS // width
    return np.arange(level * count + 1, (level + 1) * count + 1, dtype=np.uint64) * np.uint64(_MIX[0])


@dataclass(slots=True)
class _Segment:
    """Rows of the index with their sorted keys."""

    keys: Hashes
    rows: NDArray[np.uint32]


class SignatureIndex:
    """Finds signatures that are at least `threshold` alike; about 350 bytes a document.

    Locality-sensitive hashing: a signature is cut into bands of 8 bytes (4 under a threshold of 0.8), and whoever
    shares a band is compared in full. At the threshold 0.9 a look-alike of just 0.9 is missed once in 10,000 times.
    """

    def __init__(self, threshold: float = 0.9) -> None:
        self.threshold = threshold
        self._width = 8 if threshold >= 0.8 else 4
        self._names = array("Q")
        self._ends = array("Q", [0])
        self._signatures = bytearray()
        self._segments: list[_Segment] = []
        self._recent: dict[int, list[int]] = {}
        self._recent_from = 0

    def add(self, name: str, signature: bytes) -> None:
        """`name` is a document id: hexadecimal."""
        row = self._put(name, signature)
        for key in _keys(signature, self._width).tolist():
            self._recent.setdefault(key, []).append(row)
        if row + 1 - self._recent_from >= _RECENT:
            pairs = [(key, row) for key, rows in self._recent.items() for row in rows]
            self._settle(np.array([key for key, _ in pairs], np.uint64), np.array([row for _, row in pairs], np.uint32))

    def load(self, signatures: Mapping[str, bytes]) -> None:
        """Add many to an empty index, in the order given."""
        for name, signature in signatures.items():
            self._put(name, signature)
        keys = [_keys(signature, self._width) for signature in signatures.values()]
        if keys:
            rows = np.repeat(np.arange(len(keys), dtype=np.uint32), [len(one) for one in keys])
            self._settle(np.concatenate(keys), rows)

    def find(self, signature: bytes) -> list[tuple[str, float]]:
        """(name, similarity) of what is alike enough, best first, ties in the order of adding."""
        wanted = _keys(signature, self._width)
        rows = {row for key in wanted.tolist() for row in self._recent.get(key, ())[:_MOST_PER_KEY]}
        for segment in self._segments:
            starts = np.searchsorted(segment.keys, wanted, "left")
            stops = np.searchsorted(segment.keys, wanted, "right")
            for start, stop in zip(starts.tolist(), stops.tolist(), strict=True):
                rows.update(segment.rows[start : min(stop, start + _MOST_PER_KEY)].tolist())
        alike = [(row, similarity(signature, self._signature(row))) for row in sorted(rows)]
        best = sorted((item for item in alike if item[1] >= self.threshold), key=lambda item: (-item[1], item[0]))
        return [(f"{self._names[row]:016x}", value) for row, value in best]

    def _put(self, name: str, signature: bytes) -> int:
        self._names.append(int(name, 16))
        self._signatures += signature
        self._ends.append(len(self._signatures))
        return len(self._names) - 1

    def _signature(self, row: int) -> bytes:
        return bytes(self._signatures[self._ends[row] : self._ends[row + 1]])

    def _settle(self, keys: Hashes, rows: NDArray[np.uint32]) -> None:
        """Make a segment of the recent rows; segments double in size, so each row is sorted a few times only."""
        while self._segments and len(self._segments[-1].keys) <= 2 * len(keys):
            last = self._segments.pop()
            keys, rows = np.concatenate([last.keys, keys]), np.concatenate([last.rows, rows])
        order = np.argsort(keys, kind="stable").astype(np.uint32)
        self._segments.append(_Segment(keys[order], rows[order]))
        self._recent.clear()
        self._recent_from = len(self._names)
