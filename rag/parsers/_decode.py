"""Bytes -> text, with the encoding on record. Nothing is dropped but the byte order mark."""

from __future__ import annotations

import codecs

from rag.errors import InputError

__all__ = ["decode"]

_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16, whose mark starts the same way
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_WIDE = ("utf_16_le", "utf_16_be", "utf_32_le", "utf_32_be")
_LEGACY = (
    *("cp1252", "cp932", "euc_jp", "gb18030", "big5", "cp949", "cp1251", "koi8_r"),
    *("cp1250", "cp1253", "cp1254", "cp1255", "cp1256", "cp1257", "cp874"),
)
"""What text files are found in. The rare rest (EBCDIC, DOS and Mac pages) only draws wrong guesses on short texts."""

_DECLARABLE = ("cp", "iso8859", "iso2022", "koi8", "mac", "euc", "shift", "gb", "big5", "hz", "johab", "tis", "utf-8")

_SAMPLE_BYTES = 500_000
_GOOD_PER_BAD = 20  # characters beyond ASCII that no other encoding would make valid by chance


def decode(data: bytes, *, declared: str = "") -> tuple[str, str]:
    """(text, encoding) by byte order mark, strict UTF-8, the `declared` encoding, then charset-normalizer.

    InputError for bytes that are no text, or in no known encoding.
    """
    for mark, name in _MARKS:
        if data.startswith(mark):
            return _strict(data, name), name
    if b"\0" not in data:
        named = _text_codec(declared)
        for name in (named, "utf-8") if named.startswith("iso2022") else ("utf-8", named):
            text = _attempt(data, name)
            if text is not None:
                return text, name
        mended = _mended_utf8(data)
        if mended is not None:
            return mended
    name = _guess(data)
    return _strict(data, name), name


def _text_codec(declared: str) -> str:
    """Python's name of a declared encoding, "" for none or for one that no text file should be in."""
    try:
        name = codecs.lookup(declared.strip()).name if declared.strip().isascii() else ""
    except (LookupError, ValueError):
        return ""
    if name in ("iso8859-1", "ascii"):  # as browsers read these two labels
        return "cp1252"
    return name if name.startswith(_DECLARABLE) else ""


def _attempt(data: bytes, name: str) -> str | None:
    try:
        return data.decode(name) if name else None
    except UnicodeDecodeError:
        return None


def _mended_utf8(data: bytes) -> tuple[str, str] | None:
    """UTF-8 with a few bad bytes, as logs and joined files have; None when another encoding is likelier.

    Every bad place becomes U+FFFD and is counted in the name of the encoding.
    """
    text = data.decode("utf-8", "replace")
    marks = text.count("\ufffd")
    bad = marks - data.count("\ufffd".encode())
    good = len(text) - len(text.encode("ascii", "ignore")) - marks
    return (text, f"utf-8, {bad} bad places") if good >= _GOOD_PER_BAD * bad else None


def _strict(data: bytes, name: str) -> str:
    try:
        text = data.decode(name)
    except UnicodeDecodeError as error:
        place = f"byte {error.start:,} of {len(data):,}"
        raise InputError(f"not valid {name} at {place}; save the file as UTF-8") from error
    if "\0" in text:
        raise InputError(f"a NUL character at offset {text.index(chr(0)):,}: binary data, not text")
    return text


def _guess(data: bytes) -> str:
    from charset_normalizer import from_bytes

    wide = b"\0" in data
    sample = data[:_SAMPLE_BYTES] if wide else _telling(data)
    best = from_bytes(sample, cp_isolation=list(_WIDE if wide else _LEGACY)).best()
    if best is None:
        reason = "holds NUL bytes: binary data, not text" if wide else f"{_bad_utf8(data)}, nor in a known encoding"
        raise InputError(f"{reason}; save the file as UTF-8")
    if best.encoding == "cp1250":
        # The library names the first of equals by their names; of these two, cp1252 is by far the more frequent.
        rival = from_bytes(sample, cp_isolation=["cp1252"]).best()
        if rival and rival.chaos <= best.chaos and rival.coherence >= best.coherence:
            return "cp1252"
    return str(best.encoding)


def _bad_utf8(data: bytes) -> str:
    try:
        data.decode()
    except UnicodeDecodeError as error:
        return f"not valid UTF-8 at byte {error.start:,} of {len(data):,}"
    return "not valid UTF-8"


def _telling(data: bytes) -> bytes:
    """The lines with bytes beyond ASCII, whole, up to a sample's size: the others say nothing about an encoding."""
    if len(data) <= _SAMPLE_BYTES:
        return data
    lines: list[bytes] = []
    size = 0
    for line in data.splitlines(keepends=True):
        if not line.isascii():
            lines.append(line)
            size += len(line)
            if size >= _SAMPLE_BYTES:
                break
    return b"".join(lines)
