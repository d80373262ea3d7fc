# ruff: noqa: S608 (only constants and question marks are put into SQL; values travel as parameters)
"""Signatures of documents (rag.duplicates), and the bands in which look-alikes are found without reading all of them.

Locality-sensitive hashing: a signature is cut into bands of four minima, and two texts of Jaccard similarity s share a
band with probability s^4. The bands are written with the signature, so that a lookup reads a few rows of an index.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator

from rag.store.database import Database

__all__ = ["DIGEST_BYTES", "band_problems", "bands", "find_alike", "is_sound", "read_signature", "write_signature"]

DIGEST_BYTES = 8
"""A signature begins with so many bytes that name the exact text; its minima, of 4 bytes each, follow."""
_BAND_BYTES = 16
_MOST_PER_BAND = 64
"""Documents of one band that are looked at, the oldest first: a thousand equal files must not cost a million rows."""


def bands(signature: bytes) -> list[int]:
    """What look-alikes share: 32-bit numbers, one for the exact text and one for each band."""
    starts = range(DIGEST_BYTES, len(signature), _BAND_BYTES)
    parts = [signature[:DIGEST_BYTES], *(signature[at : at + _BAND_BYTES] for at in starts)]
    return sorted({zlib.crc32(part, number) for number, part in enumerate(parts)})


def find_alike(db: Database, signature: bytes, threshold: float) -> list[tuple[str, bytes]]:
    """(document id, signature) of the documents that may be `threshold` alike, in reading order.

    Candidates share a quarter of the bands that are to be expected at the threshold, one at least. At 0.7 and above a
    look-alike is missed less than once in a thousand times, at 0.6 once in 80, at 0.5 once in 8.
    """
    wanted = bands(signature)
    least = max(1, int(len(wanted) * threshold**4 / 4))
    one = "SELECT * FROM (SELECT document FROM signature_bands WHERE band = ? ORDER BY document LIMIT ?)"
    shared = " UNION ALL ".join([one] * len(wanted))
    sql = (
        f"SELECT d.doc_id, s.signature FROM (SELECT document FROM ({shared}) GROUP BY document HAVING count(*) >= ?) c "
        "JOIN signatures s ON s.document = c.document JOIN documents d ON d.id = c.document ORDER BY d.id"
    )
    return db.rows(sql, [value for band in wanted for value in (band, _MOST_PER_BAND)] + [least])


def read_signature(db: Database, doc_id: str) -> bytes | None:
    """The signature of a document; None when it has none."""
    sql = "SELECT s.signature FROM signatures s JOIN documents d ON d.id = s.document WHERE d.doc_id = ?"
    found: bytes | None = db.value(sql, (doc_id,))
    return found


def write_signature(db: Database, document: int, signature: bytes) -> None:
    """Store the signature of the document in a row, and its bands."""
    db.run("INSERT OR REPLACE INTO signatures VALUES (?, ?, ?)", (document, signature, zlib.crc32(signature)))
    db.run("DELETE FROM signature_bands WHERE document = ?", (document,))
    db.many("INSERT INTO signature_bands VALUES (?, ?)", ((document, band) for band in bands(signature)))


def is_sound(signature: object, crc: object) -> bool:
    """True for a signature that is what was committed."""
    return isinstance(signature, bytes) and zlib.crc32(signature) == crc


def band_problems(db: Database) -> Iterator[int]:
    """The rows of the documents whose bands are not those of their signature."""
    for (row,) in db.rows("SELECT document FROM signature_bands EXCEPT SELECT document FROM signatures"):
        yield row
    for row, signature, crc in db.stream("SELECT document, signature, crc FROM signatures"):
        held = db.rows("SELECT band FROM signature_bands WHERE document = ? ORDER BY band", (row,))
        if is_sound(signature, crc) and [band for (band,) in held] != bands(signature):
            yield row
