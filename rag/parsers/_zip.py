"""Checks an Office file (a zip of XML parts) before a reader opens it: no bombs, no entities, no passwords."""

from __future__ import annotations

import zipfile
import zlib
from io import BytesIO
from xml.parsers import expat

from rag.errors import InputError
from rag.parsers._limits import MAX_ARCHIVE_BYTES, MAX_ARCHIVE_MEMBERS, MAX_ARCHIVE_RATIO, RATIO_FREE_BYTES

__all__ = ["check_office_file"]

_OLE = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"
_PART_BYTES = 65_536


def check_office_file(data: bytes) -> None:
    """InputError unless the archive is within the limits and its XML declares no document type.

    The sizes are those that the archive declares: zipfile never unpacks more than that.
    """
    if data.startswith(_OLE):
        raise InputError("encrypted with a password, or in the format of Office 97; save a copy without either")
    try:
        with zipfile.ZipFile(BytesIO(data)) as archive:
            members = archive.infolist()
            _check_sizes(members)
            for member in members:
                _check_xml(archive, member)  # whatever its name: relations may point to any part
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, EOFError) as error:
        raise InputError(f"damaged, or no Office file: {error}") from error


def _check_sizes(members: list[zipfile.ZipInfo]) -> None:
    if len(members) > MAX_ARCHIVE_MEMBERS:
        raise InputError(f"{len(members):,} parts in the archive; at most {MAX_ARCHIVE_MEMBERS:,} are read")
    total = sum(member.file_size for member in members)
    if total > MAX_ARCHIVE_BYTES:
        raise InputError(f"unpacks to {total:,} bytes; at most {MAX_ARCHIVE_BYTES:,} are read")
    for member in members:
        if member.flag_bits & 1:
            raise InputError(f"part {member.filename!r} is encrypted; save a copy without a password")
        ratio = member.file_size / max(1, member.compress_size)
        if member.file_size > RATIO_FREE_BYTES and ratio > MAX_ARCHIVE_RATIO:
            raise InputError(
                f"part {member.filename!r} unpacks to {ratio:,.0f} times its size; at most {MAX_ARCHIVE_RATIO} is read"
            )


class _RootReachedError(Exception):
    """The root element has begun: what follows cannot declare anything."""


def _check_xml(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> None:
    """Read up to the root element with expat, which also knows UTF-16 and comments, unlike a search for bytes."""

    def refuse(*_: object) -> None:
        raise InputError(f"part {member.filename!r} has a DOCTYPE, which may hide entities; Office files have none")

    def stop(*_: object) -> None:
        raise _RootReachedError

    parser = expat.ParserCreate()
    parser.StartDoctypeDeclHandler = refuse
    parser.StartElementHandler = stop
    try:
        with archive.open(member) as part:
            while piece := part.read(_PART_BYTES):
                parser.Parse(piece, False)
    except (_RootReachedError, expat.ExpatError):
        return  # a picture, or a part that is not well formed, which is the reader's to refuse
