"""How nearly the same two texts are: MinHash signatures (Broder, "On the resemblance and containment of documents",
1997) over word 5-shingles, by datasketch.

A signature is 520 bytes: 8 that name the exact text, and 128 minima. Text with hardly any spaces is shingled by
characters. datasketch loads scipy, which takes longer than ingesting a hundred documents: it is imported when the
first document is signed, and an extra.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any
from zlib import crc32

import numpy as np

from rag.errors import missing_extra
from rag.store.signatures import DIGEST_BYTES

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["shingles", "sign", "similarity"]

SHINGLE_WORDS = 5
PERMUTATIONS = 128
SCHEME = "affine32"
SEED = 1
_CHARS_PER_WORD = 20
_BLOCK = 1024
"""Shingles that are permuted at once: the values stay in the processor's cache, whatever the length of the text."""
_POWERS = np.array([pow(0x9E3779B97F4A7C15, power, 2**64) for power in range(1, SHINGLE_WORDS + 1)], dtype=np.uint64)
"""Of an odd 64-bit number without a pattern (the golden ratio)."""


def sign(text: str) -> bytes:
    """The signature of a text; of one with fewer than five words the first 8 bytes only: it has equals, no
    near-duplicates. MissingError without datasketch."""
    digest = hashlib.blake2b(text.encode(), digest_size=DIGEST_BYTES).digest()
    hashes = shingles(text)
    if not len(hashes):
        return digest
    sketch = _datasketch().MinHash(num_perm=PERMUTATIONS, seed=SEED, scheme=SCHEME, hashfunc=int)
    for at in range(0, len(hashes), _BLOCK):
        sketch.update_batch(hashes[at : at + _BLOCK].tolist())
    return digest + bytes(sketch.hashvalues.astype("<u4").tobytes())


def similarity(one: bytes, other: bytes) -> float:
    """The estimated Jaccard similarity of two signed texts: 1.0 for equal texts; the standard error is 0.03 at 0.9."""
    if one[:DIGEST_BYTES] == other[:DIGEST_BYTES]:
        return 1.0
    if len(one) != len(other) or len(one) == DIGEST_BYTES:
        return 0.0
    return float(_sketch(one).jaccard(_sketch(other)))


def shingles(text: str) -> NDArray[np.uint64]:
    """The 32-bit hashes of the shingles, in reading order; empty when the text is shorter than one."""
    words = text.encode().lower().split()
    if len(text) > _CHARS_PER_WORD * max(1, len(words)):
        units = np.frombuffer("".join(text.lower().split()).encode("utf-32-le"), dtype="<u4").astype(np.uint64)
    else:
        units = np.fromiter(map(crc32, words), dtype=np.uint64, count=len(words))
    if len(units) < SHINGLE_WORDS:
        return np.empty(0, dtype=np.uint64)
    mixed: NDArray[np.uint64] = np.lib.stride_tricks.sliding_window_view(units, SHINGLE_WORDS) @ _POWERS
    return mixed >> np.uint64(32)


def _sketch(signature: bytes) -> Any:
    minima = np.frombuffer(signature, dtype="<u4", offset=DIGEST_BYTES)
    return _datasketch().LeanMinHash(seed=SEED, hashvalues=minima, scheme=SCHEME)


def _datasketch() -> Any:
    try:
        import datasketch
    except ImportError as error:
        raise missing_extra("datasketch", "dedup", "Looking for near-duplicates") from error
    return datasketch
