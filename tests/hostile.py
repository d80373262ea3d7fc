"""Small files that ask for much: each function makes the bytes of one, from nothing but its arguments."""

from __future__ import annotations

import struct
import zipfile
import zlib
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from io import BytesIO
from typing import Any

__all__ = [
    "BILLION_LAUGHS",
    "EXTERNAL_ENTITY",
    "docx_of",
    "overlapping",
    "pdf_of",
    "pdf_pages",
    "png_bomb",
    "pptx_of",
    "saved",
    "stream",
    "with_parts",
    "xlsx_of",
    "zeros",
]

BILLION_LAUGHS = (
    "<!DOCTYPE a [<!ENTITY a0 'ha'>"
    + "".join(f"<!ENTITY a{n} '{f'&a{n - 1};' * 10}'>" for n in range(1, 10))
    + "]><a>&a9;</a>"
)
EXTERNAL_ENTITY = "<!DOCTYPE a [<!ENTITY e SYSTEM 'file:///etc/passwd'>]><a>&e;</a>"

PNG_SIDE = 10_000


def saved(document: Any) -> bytes:
    """What `document.save` writes."""
    out = BytesIO()
    document.save(out)
    return out.getvalue()


# -- PDF -------------------------------------------------------------------------------------------------------------


def stream(content: bytes, extra: str = "", *, packed: bool = False) -> bytes:
    """The body of a stream object."""
    data = zlib.compress(content, 9) if packed else content
    packing = "/Filter/FlateDecode" if packed else ""
    return f"<<{extra}{packing}/Length {len(data)}>>stream\n".encode() + data + b"\nendstream"


def pdf_of(objects: Mapping[int, str | bytes], trailer: str = "") -> bytes:
    """A PDF of these objects; number 1 is the catalogue."""
    out = bytearray(b"%PDF-1.7\n")
    places: dict[int, int] = {}
    for number, body in objects.items():
        places[number] = len(out)
        out += f"{number} 0 obj\n".encode() + (body.encode() if isinstance(body, str) else body) + b"\nendobj\n"
    start, size = len(out), max(objects) + 1
    out += f"xref\n0 {size}\n".encode()
    for number in range(size):
        out += f"{places.get(number, 0):010} {'00000 n' if number in places else '65535 f'} \n".encode()
    out += f"trailer<</Size {size}/Root 1 0 R{trailer}>>\nstartxref\n{start}\n%%EOF\n".encode()
    return bytes(out)


FONT = "<</Type/Font/Subtype/Type1/BaseFont/Helvetica>>"
SHOW = b"BT /F 12 Tf 72 700 Td (Some words on a page.) Tj ET"


def pdf_pages(
    contents: Sequence[bytes],
    *,
    resources: str = "",
    more: Mapping[int, str | bytes] | None = None,
    packed: bool = False,
) -> bytes:
    """A PDF with a page per content stream. Object 3 is a font, `F`; 4 to 9 are free for `more`."""
    kids = " ".join(f"{10 + 2 * n} 0 R" for n in range(len(contents)))
    objects: dict[int, str | bytes] = {
        1: "<</Type/Catalog/Pages 2 0 R>>",
        2: f"<</Type/Pages/Kids[{kids}]/Count {len(contents)}/MediaBox[0 0 600 800]>>",
        3: FONT,
    }
    for n, content in enumerate(contents):
        page = f"<</Type/Page/Parent 2 0 R/Resources<</Font<</F 3 0 R>>{resources}>>/Contents {11 + 2 * n} 0 R>>"
        objects[10 + 2 * n], objects[11 + 2 * n] = page, stream(content, packed=packed)
    return pdf_of({**objects, **(more or {})})


# -- pictures --------------------------------------------------------------------------------------------------------


def png_bomb(side: int = PNG_SIDE) -> bytes:
    """A PNG of side x side grey pixels, a few hundred kB packed, a byte for each pixel unpacked."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zeros(side * (side + 1))) + chunk(b"IEND", b"")


@cache
def zeros(count: int) -> bytes:
    """That many zero bytes, packed by zlib without ever being whole in memory."""
    packer = zlib.compressobj(9)
    piece = bytes(1_000_000)
    parts = [packer.compress(piece) for _ in range(count // len(piece))]
    return b"".join((*parts, packer.compress(bytes(count % len(piece))), packer.flush()))


# -- Office ----------------------------------------------------------------------------------------------------------


def docx_of(*paragraphs: str, picture: bytes | None = None) -> bytes:
    import docx

    document = docx.Document()
    for paragraph in paragraphs:
        document.add_paragraph(paragraph)
    if picture:
        document.add_picture(BytesIO(picture), width=100_000, height=100_000)
    return saved(document)


def pptx_of(slides: int, *, picture: bytes | None = None) -> bytes:
    import pptx

    deck = pptx.Presentation()
    for number in range(slides):
        slide = deck.slides.add_slide(deck.slide_layouts[1])
        slide.shapes.title.text = f"Slide {number + 1}"
        if picture:
            slide.shapes.add_picture(BytesIO(png_bomb(1)), 0, 0, 100_000, 100_000)
    return with_parts(saved(deck), {"ppt/media/image1.png": picture} if picture else {})


def xlsx_of(rows: Iterable[Sequence[object]]) -> bytes:
    import openpyxl

    book = openpyxl.Workbook()
    for row in rows:
        book.active.append(list(row))
    return saved(book)


def with_parts(data: bytes, parts: Mapping[str, bytes | str]) -> bytes:
    """The same archive with parts replaced or added."""
    out = BytesIO()
    with zipfile.ZipFile(BytesIO(data)) as old, zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as new:
        for member in old.infolist():
            if member.filename not in parts:
                new.writestr(member, old.read(member))
        for name, content in parts.items():
            new.writestr(name, content)
    return out.getvalue()


def overlapping(members: int, size: int) -> bytes:
    """A zip whose directory names one packed member of `size` bytes `members` times."""
    packed = zeros(size)[2:-4]
    crc = zlib.crc32(bytes(size))
    name = b"word/document.xml"
    facts = struct.pack("<HHHIII", 8, 0, 0, crc, len(packed), size)
    local = struct.pack("<IHH", 0x04034B50, 20, 0) + facts + struct.pack("<HH", len(name), 0) + name + packed
    directory = b"".join(
        struct.pack("<IHHH", 0x02014B50, 20, 20, 0)
        + facts
        + struct.pack("<HHHHHII", len(name), 0, 0, 0, 0, 0, 0)
        + name
        for _ in range(members)
    )
    end = struct.pack("<IHHHHIIH", 0x06054B50, 0, 0, members, members, len(directory), len(local), 0)
    return local + directory + end
