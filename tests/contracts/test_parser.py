"""The law of parsers: bytes become a Document with exact spans, or an InputError that names the source."""

from __future__ import annotations

import dataclasses
import json
import zipfile
from collections.abc import Callable, Iterator
from io import BytesIO
from itertools import pairwise
from typing import Any

import pytest

from rag.errors import InputError
from rag.limits import Limits
from rag.parsers._choose import is_isolated, make_parser, parser_for, supported_suffixes
from rag.parsers._sandbox import ParserPool
from rag.protocols import Parser
from rag.registry import catalogue, load
from rag.types import Document

NAMES = list(catalogue("parser"))
OFFICE = ["docx", "pptx", "xlsx"]
PROSE = "Travel above 5,000 EUR needs approval."


def _pdf() -> bytes:
    from reportlab.pdfgen.canvas import Canvas

    out = BytesIO()
    canvas = Canvas(out, invariant=True)
    for page in (1, 2):
        canvas.setFont("Helvetica-Bold", 20)
        canvas.drawString(72, 760, f"Chapter {page}")
        canvas.setFont("Helvetica", 10)
        for line in range(12):
            canvas.drawString(72, 720 - 12 * line - (30 if line >= 6 else 0), f"{PROSE} Line {line} of page {page}.")
        canvas.showPage()
    canvas.save()
    return out.getvalue()


def _docx() -> bytes:
    import docx

    document = docx.Document()
    document.add_heading("Travel policy", level=1)
    document.add_paragraph(PROSE)
    document.add_paragraph("Book early", style="List Bullet")
    table = document.add_table(rows=2, cols=2)
    for at, word in enumerate(["City", "Limit", "Oslo", "120"]):
        table.cell(at // 2, at % 2).text = word
    document.add_heading("Refunds", level=2)
    return _saved(document)


def _pptx() -> bytes:
    import pptx

    deck = pptx.Presentation()
    for number in (1, 2):
        slide = deck.slides.add_slide(deck.slide_layouts[1])
        slide.shapes.title.text = f"Slide {number}"
        slide.placeholders[1].text = PROSE
        table = slide.shapes.add_table(2, 2, 0, 0, 1_000_000, 1_000_000).table
        table.cell(0, 0).text, table.cell(1, 1).text = "City", "Oslo"
        slide.notes_slide.notes_text_frame.text = "Speak slowly."
    return _saved(deck)


def _xlsx() -> bytes:
    import openpyxl

    book = openpyxl.Workbook()
    for row in (["City", "Limit"], ["Oslo", 120], [None, None], [PROSE, 1.5]):
        book.active.append(row)
    book.create_sheet("Empty")
    return _saved(book)


def _saved(document: Any) -> bytes:
    out = BytesIO()
    document.save(out)
    return out.getvalue()


SAMPLES: dict[str, Callable[[], bytes]] = {
    "text": lambda: f"{PROSE}\r\n\r\nSecond one,\r\non two lines.\r\n".encode(),
    "markdown": lambda: f"# Policy\n\n{PROSE}\n\n- one\n  - two\n\n|City|Limit|\n|-|-|\n|Oslo|120|\n".encode(),
    "html": lambda: (
        f"<title>Policy</title><h1>Travel</h1><p>{PROSE}<ul><li>one</ul><table><tr><th>City<tr><td>Oslo</table>"
    ).encode(),
    "code": lambda: f'LIMIT = 120\n\n\ndef rule():\n    """{PROSE}"""\n'.encode(),
    "csv": lambda: f'City,Limit\nOslo,120\n"Rome,\nItaly","{PROSE}"\n'.encode(),
    "json": lambda: json.dumps([{"city": "Oslo", "note": PROSE}, {"city": "Rome"}]).encode(),
    "pdf": _pdf,
    "docx": _docx,
    "pptx": _pptx,
    "xlsx": _xlsx,
}


def sample(name: str) -> bytes:
    assert name in SAMPLES, f"give the new parser {name!r} a sample here"
    return SAMPLES[name]()


def source_for(name: str) -> str:
    return f"docs/sample{load('parser', name).suffixes[0]}"


def check_laws(document: Document, *, loose_rows: bool = False) -> None:
    """Everything that holds for each document of every parser."""
    text = document.text
    assert text.strip()
    text.encode("utf-8")  # no lone surrogate
    assert "\0" not in text
    assert [b.span.start for b in document.blocks] == sorted(b.span.start for b in document.blocks)
    assert all(
        block.span.end <= len(text) and text[block.span.start : block.span.end].strip() for block in document.blocks
    )
    tables = [block.span for block in document.blocks if block.kind == "table"]
    for block in document.blocks:
        if block.kind == "row" and not loose_rows:
            assert any(table.contains(block.span) for table in tables)
        assert block.kind != "heading" or 1 <= block.level <= 6
    leaves = [block.span for block in document.blocks if block.kind != "table"]
    assert all(a.end <= b.start for a, b in pairwise(leaves))
    assert [page.number for page in document.pages] == sorted({page.number for page in document.pages})
    assert all(a.span.end <= b.span.start for a, b in pairwise(document.pages))
    assert all(page.span.end <= len(text) for page in document.pages)
    assert all(isinstance(value, str | int | float | bool) for value in document.meta.values())
    json.dumps(dict(document.meta), allow_nan=False)
    assert document.title


@pytest.fixture(scope="module")
def pool() -> Iterator[ParserPool]:
    with ParserPool() as pool:
        yield pool


@pytest.fixture(params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def parser(name: str) -> Parser:
    return make_parser(name)


def test_every_format_is_here() -> None:
    assert set(NAMES) == set(SAMPLES)


def test_declares_itself(name: str) -> None:
    plugin = load("parser", name)
    assert dataclasses.is_dataclass(plugin)
    assert isinstance(plugin.version, int)
    assert isinstance(vars(plugin)["isolate"], bool)
    assert all(suffix.startswith(".") and suffix == suffix.lower() for suffix in plugin.suffixes)
    assert all(parser_for(suffix.upper()) == name for suffix in plugin.suffixes)


def test_sample_obeys_the_laws(name: str, parser: Parser) -> None:
    document = parser.parse(sample(name), source=source_for(name))
    check_laws(document, loose_rows=name == "json")
    assert PROSE in document.text
    assert document.blocks
    assert document.source == source_for(name)
    assert document.meta["parser"] == name


def test_same_bytes_same_document(name: str, parser: Parser) -> None:
    data = sample(name)
    first, second = (parser.parse(data, source=source_for(name)) for _ in range(2))
    assert first == second
    assert first.id == second.id


def test_child_process_gives_the_same_document(name: str, parser: Parser, pool: ParserPool) -> None:
    data = sample(name)
    assert pool.parse_isolated(name, data, source_for(name)) == parser.parse(data, source=source_for(name))


@pytest.mark.parametrize("data", [b"", b" \n\t \n"], ids=["empty", "blank"])
def test_nothing_in_it(parser: Parser, data: bytes) -> None:
    with pytest.raises(InputError, match=r"^a/b\.c: "):
        parser.parse(data, source="a/b.c")


def test_too_large(name: str) -> None:
    data = sample(name)
    with pytest.raises(InputError, match=r"bytes, over limits\.max_file_bytes"):
        make_parser(name, Limits(max_file_bytes=len(data) - 1)).parse(data, source=source_for(name))
    assert make_parser(name, Limits(max_file_bytes=len(data))).parse(data, source=source_for(name)).text


def test_the_room_and_the_registry_agree() -> None:
    assert {name: type(make_parser(name)) for name in NAMES} == {name: load("parser", name) for name in NAMES}


def test_supported_suffixes() -> None:
    assert {".pdf", ".md", ".txt", ".html", ".docx", ".pptx", ".xlsx", ".csv", ".jsonl"} <= set(supported_suffixes())
    assert parser_for(".exe") is None
    assert [name for name in NAMES if is_isolated(name)] == ["docx", "html", "pdf", "pptx", "xlsx"]


# -- Office files are archives ---------------------------------------------------------------------------------------


def _with_part(data: bytes, part: str, content: bytes) -> bytes:
    """The same archive with one part replaced or added."""
    out = BytesIO()
    with zipfile.ZipFile(BytesIO(data)) as old, zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as new:
        for member in old.infolist():
            if member.filename != part:
                new.writestr(member, old.read(member))
        new.writestr(part, content)
    return out.getvalue()


def _error(name: str, data: bytes) -> str:
    with pytest.raises(InputError) as caught:
        make_parser(name).parse(data, source="x")
    return str(caught.value)


BOMB = '<!DOCTYPE a [<!ENTITY b "ha"><!ENTITY c "&b;&b;">]><a>&c;</a>'


@pytest.mark.parametrize("office", OFFICE)
@pytest.mark.parametrize("xml", [BOMB, f"<!-- <a> {' ' * 70_000} -->{BOMB}"], ids=["plain", "behind-a-comment"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_entity_bomb_is_refused(office: str, xml: str, encoding: str) -> None:
    assert "DOCTYPE" in _error(office, _with_part(sample(office), "word/styles.xml", xml.encode(encoding)))


@pytest.mark.parametrize("office", OFFICE)
def test_encrypted_archive_is_refused(office: str) -> None:
    data = bytearray(sample(office))
    at = data.find(b"PK\x01\x02")
    data[at + 8] |= 1  # the flag of the first member in the central directory
    assert "encrypted" in _error(office, bytes(data))
    assert "password" in _error(office, b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(600))
