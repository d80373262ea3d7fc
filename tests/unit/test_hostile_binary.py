"""Office files and PDFs that were made to break their readers."""

from __future__ import annotations

import os
import stat
import struct
import zipfile
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path

import pytest

from rag.errors import InputError
from rag.limits import Limits
from rag.parsers._choose import make_parser
from rag.parsers._sandbox import ParserPool
from tests.contracts.test_parser import check_laws, sample
from tests.hostile import (
    BILLION_LAUGHS,
    EXTERNAL_ENTITY,
    SHOW,
    docx_of,
    overlapping,
    pdf_of,
    pdf_pages,
    stream,
    with_parts,
    xlsx_of,
)

OFFICE = ["docx", "pptx", "xlsx"]
MAIN = {"docx": "word/document.xml", "pptx": "ppt/presentation.xml", "xlsx": "xl/workbook.xml"}


@pytest.fixture(scope="module")
def pool() -> Iterator[ParserPool]:
    with ParserPool(Limits(max_seconds=20, max_address_bytes=500_000_000)) as pool:
        yield pool


def refusal(parser: str, data: bytes) -> str:
    with pytest.raises(InputError, match=r"^a/b: ") as caught:
        make_parser(parser).parse(data, source="a/b")
    return str(caught.value)


# -- XML -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("parser", OFFICE)
@pytest.mark.parametrize("part", ["main", "[Content_Types].xml", "_rels/.rels", "docProps/core.xml", "customXml/x.xml"])
@pytest.mark.parametrize("xml", [BILLION_LAUGHS, EXTERNAL_ENTITY], ids=["laughs", "external"])
def test_entities_are_refused_in_every_part(parser: str, part: str, xml: str) -> None:
    data = with_parts(sample(parser), {MAIN[parser] if part == "main" else part: xml})
    assert "has a DOCTYPE, which may hide entities" in refusal(parser, data)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-8-sig", "latin-1"])
def test_entities_are_found_in_every_encoding(encoding: str) -> None:
    xml = f"<?xml version='1.0' encoding='{encoding.partition('-sig')[0]}'?><!-- {'x' * 70_000} -->{BILLION_LAUGHS}"
    assert "DOCTYPE" in refusal("docx", with_parts(docx_of("a"), {"word/styles.xml": xml.encode(encoding)}))


@pytest.mark.parametrize(
    ("label", "encoding"),
    [("UCS-4", "utf-32-be"), ("UTF-32", "utf-32-le"), ("UTF-32", "utf-32"), ("IBM037", "cp037"), ("EUC-JP", "euc-jp"),
     ("UTF-7", "utf-7"), ("x-unknown", "ascii")],
)  # fmt: skip
def test_xml_in_an_encoding_that_hides_entities_is_refused(label: str, encoding: str) -> None:
    xml = f"<?xml version='1.0' encoding='{label}'?>{BILLION_LAUGHS}"
    assert "encoding that no Office" in refusal(
        "docx", with_parts(docx_of("a"), {"word/document.xml": xml.encode(encoding)})
    )


def test_deep_xml_is_refused(pool: ParserPool) -> None:
    deep = "<w:p>" * 100_000
    body = f'<w:document xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main"><w:body>{deep}'
    with pytest.raises(InputError, match="Excessive depth"):
        pool.parse("docx", with_parts(docx_of("a"), {"word/document.xml": body}), "a")


def test_nothing_is_fetched_from_outside() -> None:
    """Pictures, templates and sub-documents by address: the reader does not even look (see also test_security)."""
    kind = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
    links = "".join(
        f'<Relationship Id="x{n}" Type="{kind}/{name}" Target="{target}" TargetMode="External"/>'
        for n, (name, target) in enumerate(
            [
                ("image", "http://127.0.0.1:9/a.png"),
                ("attachedTemplate", "file:///etc/passwd"),
                ("subDocument", "//h/s"),
            ]
        )
    )
    with zipfile.ZipFile(BytesIO(docx_of("words"))) as archive:
        rels = archive.read("word/_rels/document.xml.rels").decode()
    data = with_parts(
        docx_of("words"), {"word/_rels/document.xml.rels": rels.replace("</Relationships>", f"{links}</Relationships>")}
    )
    assert make_parser("docx").parse(data, source="a").text == "words"


# -- archives --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["/etc/evil.xml", "../../evil.xml", "C:\\evil.xml", "a\0b.xml", "x" * 60_000, "\u202ex"]
)
def test_names_of_parts_lead_nowhere(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    data = with_parts(docx_of("words"), {name: b"<a/>"})
    assert make_parser("docx").parse(data, source="a").text == "words"
    assert os.listdir(tmp_path) == []
    assert not Path("/etc/evil.xml").exists()


def test_links_and_duplicates_in_an_archive() -> None:
    out = BytesIO(docx_of("words"))
    with zipfile.ZipFile(out, "a") as archive:
        link = zipfile.ZipInfo("word/link.xml")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, "/etc/passwd")
        with pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr("word/document.xml", archive.read("word/document.xml").replace(b"words", b"other"))
    document = make_parser("docx").parse(out.getvalue(), source="a")
    assert document.text in ("words", "other")
    assert document == make_parser("docx").parse(out.getvalue(), source="a")


def test_overlapping_parts_are_refused() -> None:
    """David Fifield's bomb: many entries of the directory for one stretch of packed data."""
    assert "parts of the archive overlap" in refusal("docx", overlapping(50, 1000))
    assert "limits.max_archive_bytes" in refusal("docx", overlapping(2_000, 1_000_000))
    assert "limits.max_archive_members" in refusal("docx", overlapping(10_001, 1))


@pytest.mark.parametrize("field", ["packed", "unpacked", "offset", "checksum"])
@pytest.mark.parametrize("value", [0, 1, 0x7FFFFFFF, 0xFFFFFFFE])
def test_a_directory_that_lies(field: str, value: int, pool: ParserPool) -> None:
    data = bytearray(docx_of("words"))
    with zipfile.ZipFile(BytesIO(bytes(data))) as archive:
        start = archive.start_dir
        at = start
        for member in archive.infolist():
            if member.filename == "word/document.xml":
                break
            at += 46 + len(member.filename) + len(member.extra) + len(member.comment)
    struct.pack_into("<I", data, at + {"checksum": 16, "packed": 20, "unpacked": 24, "offset": 42}[field], value)
    with pytest.raises(InputError):
        pool.parse("docx", bytes(data), "a")


@pytest.mark.parametrize("parser", [*OFFICE, "pdf"])
@pytest.mark.parametrize(
    "data",
    [
        b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(2000),
        b"PK\x03\x04",
        b"PK\x05\x06" + bytes(18),
        b"PK\x05\x06" + b"\xff" * 18,
        b"%PDF-",
        b"%PDF-1.7\n%%EOF",
        b"\x1f\x8b\x08\x00" + bytes(50),
        b"Rar!\x1a\x07\x00" + bytes(50),
        b"{\\rtf1 words}",
    ],
    ids=["ole", "zip-start", "zip-empty", "zip-end", "pdf-start", "pdf-empty", "gzip", "rar", "rtf"],
)
def test_files_that_are_something_else(parser: str, data: bytes) -> None:
    assert refusal(parser, data)


@pytest.mark.parametrize(
    "cell", ['<c r="ZZZZZZ1"><v>1</v></c>', '<c r="A-5"><v>1</v></c>', '<c t="s"><v>99999</v></c>']
)
def test_cells_that_are_nowhere(cell: str, pool: ParserPool) -> None:
    name = "http://schemas.openxmlformats.org/spreadsheetml/2006/main"
    sheet = f'<worksheet xmlns="{name}"><sheetData><row>{cell}</row></sheetData></worksheet>'
    with pytest.raises(InputError, match=r"^a: damaged"):
        pool.parse("xlsx", with_parts(xlsx_of([["a"]]), {"xl/worksheets/sheet1.xml": sheet}), "a")


# -- PDF -------------------------------------------------------------------------------------------------------------

CATALOGUE = "<</Type/Catalog/Pages 2 0 R>>"
_FORM = "/Type/XObject/Subtype/Form/BBox[0 0 9 9]/Resources<</XObject<</X 4 0 R>>>>"

PDFS: dict[str, tuple[Callable[[], bytes], str]] = {
    "pages-in-a-circle": (
        lambda: pdf_of({1: CATALOGUE, 2: "<</Type/Pages/Kids[2 0 R 2 0 R]/Count 2>>"}),
        "none of its pages can be read|no text layer",
    ),
    "two-billion-pages": (
        lambda: pdf_of(
            {1: CATALOGUE, 2: "<</Type/Pages/Kids[3 0 R]/Count 2000000000>>", 3: "<</Type/Page/Parent 2 0 R>>"}
        ),
        "no text layer",
    ),
    "a-form-in-itself": (
        lambda: pdf_pages(
            [b"/X Do " + SHOW], resources="/XObject<</X 4 0 R>>", more={4: stream(b"/X Do /X Do", _FORM)}
        ),
        "limits.max_",
    ),
    "empty": (lambda: pdf_of({1: CATALOGUE, 2: "<</Type/Pages/Kids[]/Count 0>>"}), "damaged, or no PDF"),
    "unknown-encryption": (
        lambda: pdf_of(
            {1: CATALOGUE, 2: "<</Type/Pages/Kids[]/Count 0>>", 4: "<</Filter/None/V 9/R 99>>"},
            "/Encrypt 4 0 R/ID[<00><00>]",
        ),
        "encrypted in a way that is not supported",
    ),
    "unpacks-to-gigabytes": (
        lambda: pdf_pages([b"BT /F 12 Tf " + b"(aaaaaaaaaaaaaaaaaaaa) Tj " * 2_000_000 + b"ET"], packed=True),
        "limits.max_address_bytes",
    ),
}
READ: dict[str, Callable[[], bytes]] = {
    "tables-in-a-circle": lambda: pdf_pages([SHOW]).replace(b"/Root 1 0 R", b"/Root 1 0 R/Prev 9"),
    "many-objects": lambda: pdf_pages([SHOW], more=dict.fromkeys(range(100, 50000), "[]")),
    "arrays-in-arrays": lambda: pdf_pages([SHOW], more={4: "[" * 500_000}),
    "states-in-states": lambda: pdf_pages([b"q " * 200_000 + SHOW]),
    "many-filters": lambda: pdf_pages([SHOW]).replace(b"<</Length", b"<</Filter[" + b"/Crypt" * 5000 + b"]/Length", 1),
    "a-font-of-itself": lambda: pdf_pages([SHOW], resources="/Font<</F 4 0 R>>", more={
        4: "<</Type/Font/Subtype/Type0/BaseFont/X/Encoding/Identity-H/DescendantFonts[4 0 R]>>"}),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", PDFS)
def test_pdfs_that_are_refused(name: str, pool: ParserPool) -> None:
    make, why = PDFS[name]
    with pytest.raises(InputError, match=why):
        pool.parse("pdf", make(), "a")


@pytest.mark.parametrize("name", READ)
def test_pdfs_that_are_read_nevertheless(name: str, pool: ParserPool) -> None:
    try:
        document = pool.parse("pdf", READ[name](), "a")
    except InputError as error:
        assert "no text layer" in str(error)  # noqa: PT017
        assert name in ("many-filters", "a-font-of-itself")
        return
    check_laws(document)
    assert "words on a page" in document.text or name == "a-font-of-itself"


def test_a_reason_is_about_the_file_itself_not_about_the_one_before() -> None:
    empty = pdf_of({1: CATALOGUE, 2: "<</Type/Pages/Kids[]/Count 0>>"})
    locked = PDFS["unknown-encryption"][0]()
    reasons = [refusal("pdf", data) for data in (empty, locked, empty, b"%PDF-1.7", empty)]
    assert reasons[0] == reasons[2] == reasons[3] == reasons[4] == "a/b: damaged, or no PDF"
    assert "encrypted" in reasons[1]


@pytest.mark.slow
def test_a_million_objects(pool: ParserPool) -> None:
    data = pdf_pages([SHOW], more=dict.fromkeys(range(100, 1000100), "[]"))
    assert pool.parse("pdf", data, "a").text == "Some words on a page."
