"""Every limit: a file just over it is refused with a message that names the limit, one just under it is read."""

from __future__ import annotations

import base64
import dataclasses
import sys
import zipfile
from collections.abc import Callable
from functools import cache
from io import BytesIO

import pytest

from rag.errors import ConfigError, InputError
from rag.limits import Limits
from rag.parsers._choose import make_parser
from rag.parsers._sandbox import ParserPool, parse_isolated
from rag.registry import build, catalogue, check, describe, load
from rag.types import Document
from tests.hostile import SHOW, docx_of, pdf_of, pdf_pages, png_bomb, pptx_of, stream, with_parts, xlsx_of, zeros

Outcome = Document | str


def outcome(parser: str, data: bytes, limits: Limits, *, source: str = "a/b.c") -> Outcome:
    try:
        return make_parser(parser, limits).parse(data, source=source)
    except InputError as error:
        return str(error)


def parts_and_bytes(data: bytes) -> tuple[int, int]:
    with zipfile.ZipFile(BytesIO(data)) as archive:
        return len(archive.infolist()), sum(member.file_size for member in archive.infolist())


@cache
def office() -> dict[str, bytes]:
    return {"docx": docx_of("words"), "pptx": pptx_of(2), "xlsx": xlsx_of([["a", "b"], ["c", None]])}


CASES: dict[str, tuple[str, Callable[[], bytes], str, int]] = {
    "bytes": ("text", lambda: b"words", "max_file_bytes", 5),
    "characters-text": ("text", lambda: "wörds".encode(), "max_characters", 5),
    "characters-html": ("html", lambda: b"<p>words<p>x", "max_characters", 8),
    "characters-pdf": ("pdf", lambda: pdf_pages([SHOW]), "max_characters", 21),
    "characters-docx": ("docx", lambda: office()["docx"], "max_characters", 5),
    "characters-xlsx": ("xlsx", lambda: office()["xlsx"], "max_characters", 14),
    "blocks-text": ("text", lambda: b"a\n\nb\n\nc", "max_blocks", 3),
    "blocks-markdown": ("markdown", lambda: b"# a\n\nb\n\n- c\n", "max_blocks", 3),
    "blocks-csv": ("csv", lambda: b"a,b\nc,d\n", "max_blocks", 3),
    "blocks-json": ("json", lambda: b"[1,2,3]", "max_blocks", 3),
    "blocks-html": ("html", lambda: b"<p>a<p>b<p>c", "max_blocks", 3),
    "pages-pdf": ("pdf", lambda: pdf_pages([SHOW] * 3), "max_pages", 3),
    "pages-pptx": ("pptx", lambda: office()["pptx"], "max_pages", 2),
    "cells-csv": ("csv", lambda: b"a,b\n1,2\n3,4\n", "max_cells", 6),
    "cells-xlsx": ("xlsx", lambda: office()["xlsx"], "max_cells", 3),
    "depth-html": ("html", lambda: b"<div>" * 9 + b"x", "max_html_depth", 9),
}


@pytest.mark.parametrize("case", CASES)
def test_just_over_and_just_under(case: str) -> None:
    parser, make, name, limit = CASES[case]
    data = make()
    read = outcome(parser, data, Limits(**{name: limit}))
    assert isinstance(read, Document), read
    refused = outcome(parser, data, Limits(**{name: limit - 1}))
    assert isinstance(refused, str)
    assert refused.startswith("a/b.c: ")
    assert f"limits.{name} = {limit - 1:,}" in refused
    assert "or raise that limit" in refused


@pytest.mark.parametrize("parser", ["docx", "pptx", "xlsx"])
def test_members_and_bytes_of_an_archive(parser: str) -> None:
    data = office()[parser]
    members, size = parts_and_bytes(data)
    for name, found in {"max_archive_members": members, "max_archive_bytes": size}.items():
        assert isinstance(outcome(parser, data, Limits(**{name: found})), Document)
        refused = outcome(parser, data, Limits(**{name: found - 1}))
        assert f"{found:,}" in str(refused)
        assert f"limits.{name} = {found - 1:,}" in str(refused)


@pytest.mark.parametrize("parser", ["docx", "pptx", "xlsx"])
def test_ratio_of_one_part_and_of_all(parser: str) -> None:
    data = with_parts(office()[parser], {"x/one.xml": b" " * 600_000, "x/two.xml": b" " * 600_000})
    assert isinstance(outcome(parser, data, Limits()), Document)  # too little to be a bomb
    assert isinstance(outcome(parser, data, Limits(ratio_free_bytes=600_000, max_archive_ratio=2000)), Document)
    one = outcome(parser, data, Limits(ratio_free_bytes=599_999))
    assert "part 'x/one.xml': " in str(one)
    assert "times its packed size, over limits.max_archive_ratio = 100" in str(one)
    many = outcome(parser, data, Limits(ratio_free_bytes=700_000, max_archive_ratio=2))
    assert "limits.max_archive_ratio = 2" in str(many)
    assert "part" not in str(many).partition(";")[0]


@pytest.mark.slow
def test_an_archive_in_an_archive_stays_packed() -> None:
    """No limit on nesting is needed: the inner bomb (100 MB) costs its own 0.1 MB."""
    inner = BytesIO()
    with zipfile.ZipFile(inner, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("a.zip", zeros(100_000_000))
    data = with_parts(office()["docx"], {"word/embeddings/inner.zip": inner.getvalue()})
    with ParserPool() as pool:
        assert pool.parse("docx", data, "a.docx").text == "words"
        assert pool.peak_bytes < 90_000_000


def test_empty_cells_count_too() -> None:
    rows = "".join(f'<row r="{n}"><c r="XFD{n}"><v>1</v></c></row>' for n in range(1, 11))
    name = "http://schemas.openxmlformats.org/spreadsheetml/2006/main"
    sheet = f'<worksheet xmlns="{name}"><sheetData>{rows}</sheetData></worksheet>'
    data = with_parts(office()["xlsx"], {"xl/worksheets/sheet1.xml": sheet})
    assert "20 empty cells counted as one" in str(outcome("xlsx", data, Limits(max_cells=8000)))
    assert isinstance(outcome("xlsx", data, Limits(max_cells=9000)), Document)


# -- pictures --------------------------------------------------------------------------------------------------------


def _pdf_with_picture(side: int) -> bytes:
    pixels = zeros(side * side)
    head = f"<</Type/XObject/Subtype/Image/Width {side}/Height {side}/ColorSpace/DeviceGray/BitsPerComponent 8"
    picture = f"{head}/Filter/FlateDecode/Length {len(pixels)}>>stream\n".encode() + pixels + b"\nendstream"
    content = SHOW + b" q 600 0 0 800 0 0 cm /I Do Q"
    return pdf_pages([content], resources="/XObject<</I 4 0 R>>", more={4: picture})


PICTURES: dict[str, Callable[[int], bytes]] = {
    "docx": lambda side: with_parts(
        docx_of("words", picture=png_bomb(1)), {"word/media/image1.png": png_bomb(side)} if side > 1 else {}
    ),
    "pptx": lambda side: pptx_of(1, picture=png_bomb(side)),
    "pdf": _pdf_with_picture,
    "html": lambda side: b"<p>words<img src='data:image/png;base64," + base64.b64encode(png_bomb(side)) + b"'>",
}


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux tells the peak of a process")
@pytest.mark.parametrize("parser", PICTURES)
def test_no_picture_is_ever_decoded(parser: str) -> None:
    """The same file with 1 pixel and with 100 million: the second costs less than a tenth of its pixels more."""
    peaks = []
    for side in (1, 10_000):
        data = PICTURES[parser](side)
        with ParserPool() as pool:
            assert pool.parse(parser, data, "a").text.strip()
            peaks.append(pool.peak_bytes)
    assert peaks[1] - peaks[0] < 10_000_000


# -- time and memory: only a child process can be stopped ------------------------------------------------------------

_DOUBLING = [
    stream(
        b"/X Do /X Do",
        f"/Type/XObject/Subtype/Form/BBox[0 0 9 9]/Resources<</XObject<</X {5 + n} 0 R>>>>",
    )
    for n in range(40)
]


def _forms_in_forms() -> bytes:
    """Every form draws the next one twice: 2 ** 40 of them."""
    objects: dict[int, str | bytes] = {
        1: "<</Type/Catalog/Pages 2 0 R>>",
        2: "<</Type/Pages/Kids[3 0 R]/Count 1/MediaBox[0 0 600 800]>>",
        3: "<</Type/Page/Parent 2 0 R/Resources<</XObject<</X 4 0 R>>>>/Contents 50 0 R>>",
        50: stream(b"/X Do"),
    }
    return pdf_of({**objects, **{4 + n: body for n, body in enumerate(_DOUBLING)}})


def _many_attributes(count: int) -> bytes:
    """Looking each attribute up among those before it: quadratic, 60 s at 200,000."""
    return b"<p " + b" ".join(b"a%d=1" % n for n in range(count)) + b">words"


def test_seconds() -> None:
    with pytest.raises(InputError, match=r"^a\.html: more seconds of reading than limits\.max_seconds = 0\.5; split"):
        parse_isolated("html", _many_attributes(150_000), "a.html", Limits(max_seconds=0.5))
    assert parse_isolated("html", _many_attributes(1_000), "a.html", Limits(max_seconds=60)).text == "words"


@pytest.mark.skipif(sys.platform == "win32", reason="no limit on the address space there")
def test_address_space_of_a_native_reader() -> None:
    limits = Limits(max_address_bytes=250_000_000)
    with ParserPool(limits) as pool:
        with pytest.raises(InputError, match=r"limits\.max_address_bytes = 250,000,000"):
            pool.parse("pdf", _forms_in_forms(), "a.pdf")
        assert pool.parse("pdf", pdf_pages([SHOW]), "b.pdf").text == "Some words on a page."


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="no limit on the address space there")
def test_address_space_of_a_python_reader() -> None:
    data = b"a b\n\n" * 900_000
    with pytest.raises(InputError, match=r"limits\.max_address_bytes = 150,000,000"):
        parse_isolated("text", data, "a.txt", Limits(max_address_bytes=150_000_000))


def test_large_files_of_plain_text_are_read_in_the_child_too() -> None:
    line = b"word " * 80_000
    with ParserPool() as pool:
        assert pool.parse("text", line[:1000], "a.txt").text
        assert pool.starts == 0
        assert len(pool.parse("text", line, "a.txt").text) == len(line)
        assert pool.starts == 1


# -- the object ------------------------------------------------------------------------------------------------------


def test_limits_are_a_service_that_parsers_ask_for_by_name() -> None:
    for name in catalogue("parser"):
        assert "limits" not in [parameter.name for parameter in describe("parser", name).parameters]
        check("parser", name)
        assert load("parser", name)().limits == Limits()
        assert build("parser", name, services={"limits": Limits(max_pages=7)}).limits.max_pages == 7
    with pytest.raises(ConfigError, match="no parameter 'limits'"):
        check("parser", {"use": "pdf", "limits": {}})


def test_every_limit_can_be_named_set_and_told() -> None:
    names = [field.name for field in dataclasses.fields(Limits)]
    assert Limits.from_dict(Limits().to_dict()) == Limits()
    for name in names:
        raised = Limits.from_dict({name: getattr(Limits(), name) + 1})
        assert getattr(raised, name) == getattr(Limits(), name) + 1
        if name != "ratio_free_bytes":
            assert f"limits.{name} = " in Limits().over(name)
    told = Limits(max_pages=3).over("max_pages", 1234)
    assert told == "1,234 pages, over limits.max_pages = 3; split the file, or raise that limit"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("max_pages", value) for value in (0, -1, 1.5, True, "5", None)),
        *(("max_seconds", value) for value in ("x", 0, float("nan"), float("inf"))),
        ("max_address_bytes", 1),
    ],
)
def test_a_limit_that_is_none_is_refused(name: str, value: object) -> None:
    with pytest.raises(ConfigError, match=f"limits: {name} must be"):
        Limits.from_dict({name: value})
    with pytest.raises(ConfigError, match="did you mean 'max_pages'"):
        Limits.from_dict({"max_page": 1})
