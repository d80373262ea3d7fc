"""Checks an Office file (a zip of XML parts) before a reader opens it: no bombs, no entities, no passwords."""

from __future__ import annotations

import zipfile
import zlib
from io import BytesIO
from itertools import pairwise
from xml.parsers import expat

from rag.errors import InputError
from rag.limits import Limits

__all__ = ["check_office_file"]

_OLE = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"
_PART_BYTES = 1_000_000
_HEADER_BYTES = 30
_UNKNOWN_ENCODING = expat.errors.codes[expat.errors.XML_ERROR_UNKNOWN_ENCODING]
_ODD_STARTS = (b"\0\0\0<", b"<\0\0\0", b"\0\0\xfe\xff", b"\xff\xfe\0\0", b"Lo\xa7\x94")
"""UTF-32 and EBCDIC: expat reads neither, but other readers do, and would find what expat did not see."""


def check_office_file(data: bytes, limits: Limits) -> None:
    """InputError unless the archive is within the limits and its XML declares no document type.

    The sizes are those that the archive declares: zipfile never unpacks more than that.
    """
    if data.startswith(_OLE):
        raise InputError("encrypted with a password, or in the format of Office 97; save a copy without either")
    try:
        with zipfile.ZipFile(BytesIO(data)) as archive:
            members = archive.infolist()
            _check_sizes(members, len(data), limits)
            for member in members:
                _check_xml(archive, member)  # whatever its name: relations may point to any part
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, EOFError) as error:
        raise InputError(f"damaged, or no Office file: {error}") from error


def _check_sizes(members: list[zipfile.ZipInfo], size: int, limits: Limits) -> None:
    if len(members) > limits.max_archive_members:
        raise InputError(limits.over("max_archive_members", len(members)))
    total = sum(member.file_size for member in members)
    if total > limits.max_archive_bytes:
        raise InputError(limits.over("max_archive_bytes", total))
    places = sorted((m.header_offset, m.header_offset + _HEADER_BYTES + m.compress_size) for m in members)
    if any(begin < end for (_, end), (begin, _) in pairwise(places)):
        raise InputError("parts of the archive overlap, which no program saves; save it anew")
    for member in members:
        if member.flag_bits & 1:
            raise InputError(f"part {_named(member)} is encrypted; save a copy without a password")
        ratio = member.file_size / max(1, member.compress_size)
        if member.file_size > limits.ratio_free_bytes and ratio > limits.max_archive_ratio:
            raise InputError(f"part {_named(member)}: {limits.over('max_archive_ratio', ratio)}")
    if total > limits.ratio_free_bytes and total > limits.max_archive_ratio * size:
        raise InputError(limits.over("max_archive_ratio", total / size))


def _named(member: zipfile.ZipInfo) -> str:
    """Its name for a message; a name in an archive may be 65,535 bytes of anything."""
    return repr(member.filename[:80])


class _RootReachedError(Exception):
    """The root element has begun: what follows cannot declare anything."""


def _check_xml(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> None:
    """Read up to the root element with expat, which also knows UTF-16 and comments, unlike a search for bytes."""

    def refuse(*_: object) -> None:
        raise InputError(f"part {_named(member)} has a DOCTYPE, which may hide entities; Office files have none")

    def stop(*_: object) -> None:
        raise _RootReachedError

    parser = expat.ParserCreate()
    parser.StartDoctypeDeclHandler = refuse
    parser.StartElementHandler = stop
    with archive.open(member) as part:
        piece = part.read(_PART_BYTES)
        known = not piece.startswith(_ODD_STARTS)
        try:
            while piece and known:
                parser.Parse(piece, False)
                piece = part.read(_PART_BYTES)
        except _RootReachedError:
            return
        except expat.ExpatError as error:  # a picture, or not well formed, which is the reader's to refuse
            known = error.code != _UNKNOWN_ENCODING
        except (ValueError, LookupError):  # an encoding of several bytes a letter, or of nobody's
            known = False
    if not known:
        raise InputError(f"part {_named(member)} is XML in an encoding that no Office program writes; save it anew")
