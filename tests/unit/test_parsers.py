"""What single formats turn into."""

from __future__ import annotations

from io import BytesIO

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rag.errors import InputError
from rag.limits import Limits
from rag.parsers._blocks import TextBuilder, paragraph_spans
from rag.parsers._pdf_layout import join_hyphens
from rag.parsers.csv import CsvParser
from rag.parsers.docx import DocxParser
from rag.parsers.html import HtmlParser
from rag.parsers.json import JsonParser
from rag.parsers.markdown import MarkdownParser
from rag.parsers.pdf import PdfParser
from rag.parsers.text import TextParser
from rag.parsers.xlsx import XlsxParser
from rag.types import Document


def outline(document: Document) -> list[tuple[str, int, str]]:
    return [(b.kind, b.level, document.text[b.span.start : b.span.end]) for b in document.blocks]


# -- text ------------------------------------------------------------------------------------------------------------

JAPANESE = "これは日本語の文章です。文字コードの判定を試験します。"
FRENCH = "Le café est situé près de la rivière. Été à Paris, où l'on dîne."


@pytest.mark.parametrize(
    ("data", "text", "encoding"),
    [
        ("é\r\n".encode(), "é\r\n", "utf-8"),
        ("é".encode("utf-8-sig"), "é", "utf-8-sig"),
        ("é𝄞".encode("utf-16"), "é𝄞", "utf-16"),
        ("é𝄞".encode("utf-32"), "é𝄞", "utf-32"),
        ("Hello world, this is text.".encode("utf-16-le"), "Hello world, this is text.", "utf_16_le"),
        (FRENCH.encode("latin-1"), FRENCH, "cp1252"),
        ("“Quoted” – naïve".encode("cp1252"), "“Quoted” – naïve", "cp1252"),
        (
            "Zażółć gęślą jaźń. Święta są w grudniu.".encode("cp1250"),
            "Zażółć gęślą jaźń. Święta są w grudniu.",
            "cp1250",
        ),
        ((FRENCH * 5).encode() + b"\xff\xfe.", FRENCH * 5 + "\ufffd\ufffd.", "utf-8, 2 bad places"),
        (JAPANESE.encode("shift-jis"), JAPANESE, "cp932"),
        (b"plain\n" * 100_000 + FRENCH.encode("latin-1"), "plain\n" * 100_000 + FRENCH, "cp1252"),
    ],
)
def test_encodings(data: bytes, text: str, encoding: str) -> None:
    document = TextParser().parse(data, source="a.txt")
    assert (document.text, document.meta["encoding"]) == (text, encoding)


def test_binary_data_is_no_text() -> None:
    with pytest.raises(InputError, match="byte 0 of 5"):
        TextParser().parse(b"\x81\xff\x80\xa0\xfd", source="a.txt")
    with pytest.raises(InputError, match="NUL"):
        TextParser().parse(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", source="a.txt")


@given(st.text(st.sampled_from("ab \t\r\n\u2028é")))
def test_paragraphs_hold_everything_but_blanks(text: str) -> None:
    spans = list(paragraph_spans(text))
    assert "".join("".join(text[s.start : s.end].split()) for s in spans) == "".join(text.split())
    for span in spans:
        piece = text[span.start : span.end]
        assert piece == piece.strip()
        assert all(line.strip() for line in piece.replace("\r\n", "\n").replace("\r", "\n").split("\n"))


def test_paragraphs_of_one_long_line() -> None:
    assert len(list(paragraph_spans(" " * 500_000 + "x" + " " * 500_000))) == 1  # linear, or this takes hours


# -- markdown --------------------------------------------------------------------------------------------------------


def test_markdown_blocks() -> None:
    text = (
        "Policy\r\n======\r\n\r\nSome *words*\r\non two lines.\r\n\r\n## Refunds ##\r\n\r\n1. one\r\n   - two\r\n\r\n"
        "| a | b |\r\n|---|---|\r\n| 1 | 2 |\r\n\r\n```py\r\n# no heading\r\n```\r\n"
        "\r\n    indented\r\n\r\n> # Quoted\r\n"
    )
    document = MarkdownParser().parse(text.encode(), source="a.md")
    assert document.text == text
    assert outline(document) == [
        ("heading", 1, "Policy"),
        ("paragraph", 0, "Some *words*\r\non two lines."),
        ("heading", 2, "## Refunds ##"),
        ("list", 1, "1. one"),
        ("list", 2, "- two"),
        ("table", 0, "| a | b |\r\n|---|---|\r\n| 1 | 2 |"),
        ("row", 0, "| a | b |"),
        ("row", 0, "| 1 | 2 |"),
        ("code", 0, "```py\r\n# no heading\r\n```"),
        ("code", 0, "    indented"),
        ("heading", 1, "Quoted"),
    ]
    assert document.section_at(text.index("two lines")) == ("Policy",)
    assert document.section_at(text.index("- two")) == ("Policy", "Refunds")


def test_front_matter_is_metadata() -> None:
    text = "---\ntitle: The *policy*\nyear: 2020\ndate: 2020-05-01\ntags: [a, b]\nparser: evil\n---\n# Head\n\nBody\n"
    document = MarkdownParser().parse(text.encode(), source="a.md")
    assert document.title == "The *policy*"
    assert document.meta["year"] == 2020
    assert document.meta["date"] == "2020-05-01"
    assert document.meta["parser"] == "markdown"
    assert "tags" not in document.meta
    assert [kind for kind, *_ in outline(document)] == ["heading", "paragraph"]


@pytest.mark.parametrize("front", ["a: [", "date: 2020-99-99", "- list", "x: .nan", "{" * 5000, "n: " + "9" * 5000])
def test_odd_front_matter_does_no_harm(front: str) -> None:
    document = MarkdownParser().parse(f"---\n{front}\n---\nBody\n".encode(), source="notes/a.md")
    assert document.title == "a"
    assert set(document.meta) == {"parser", "encoding"}


# -- html ------------------------------------------------------------------------------------------------------------


def html(page: str) -> Document:
    return HtmlParser().parse(page.encode(), source="a.html")


def test_html_drops_what_nobody_reads() -> None:
    page = (
        "<html lang=en><head><title> The\n title </title><style>p{}</style></head><body><nav><a>Home</a></nav>"
        "<script>evil()</script><p>Shown<span style='display: none'>hidden</span><b hidden>too</b>"
        "<i aria-hidden=true>three</i> &amp; kept</p><aside>ad</aside><template><p>t</p></template>"
        "<article><p>Story</p><footer>By Ann</footer></article><footer>Imprint</footer>"
    )
    document = html(page)
    assert document.text == "Shown & kept\n\nStory\n\nBy Ann"
    assert document.title == "The title"
    assert document.meta["language"] == "en"


def test_html_blocks() -> None:
    page = (
        "<h2>A <em>b</em></h2>loose<div>one<br>two</div><ul><li>x<ol><li>y</ol></ul><pre>\n  code\n    more\n</pre>"
        "<table><caption>Cap</caption><tr><th>City<th>Limit<tr><td>Oslo<br>N<td>1</table>"
        "<table><tr><td><table><tr><td>inner</table></table>"
    )
    assert outline(html(page)) == [
        ("heading", 2, "A b"),
        ("paragraph", 0, "loose"),
        ("paragraph", 0, "one\ntwo"),
        ("list", 1, "x"),
        ("list", 2, "y"),
        ("code", 0, "  code\n    more"),
        ("paragraph", 0, "Cap"),
        ("table", 0, "City | Limit\nOslo N | 1"),
        ("row", 0, "City | Limit"),
        ("row", 0, "Oslo N | 1"),
        ("table", 0, "inner"),
        ("row", 0, "inner"),
    ]


def test_html_page_of_navigation_only_keeps_it() -> None:
    assert html("<nav><ul><li>Home<li>About</ul></nav>").text == "Home\nAbout"


def test_html_encoding_is_declared() -> None:
    page = "<meta charset='windows-1251'><p>Привет</p>".encode("cp1251")
    document = HtmlParser().parse(page, source="a.html")
    assert (document.text, document.meta["encoding"]) == ("Привет", "cp1251")


def test_html_nested_too_deeply() -> None:
    with pytest.raises(InputError, match="open at once"):
        html("<div>" * 100_000 + "x")
    assert html("<div>" * 4000 + "x").text == "x"
    assert html("<p>x<li>y" * 6000).text.startswith("x\n\ny")  # these close by themselves


# -- csv, json -------------------------------------------------------------------------------------------------------


def test_csv_records_are_exact_slices() -> None:
    text = 'City;Note\r\nOslo;"two\r\nlines; one ""cell"""\r\n\r\nRome;x'
    document = CsvParser().parse(text.encode(), source="a.csv")
    assert document.text == text
    assert [piece for kind, _, piece in outline(document) if kind == "row"] == [
        "City;Note",
        'Oslo;"two\r\nlines; one ""cell"""',
        "Rome;x",
    ]
    assert document.meta["delimiter"] == ";"


def test_csv_with_an_unclosed_quote_falls_back_to_lines() -> None:
    text = 'a,b\n1,"2\n' + "3,4\n" * 50_000
    rows = [b for b in CsvParser().parse(text.encode(), source="a.csv").blocks if b.kind == "row"]
    assert len(rows) == 50_002


def test_json_lines() -> None:
    text = '{"a": 1}\r\n\r\n{"b": "x\\n"}'
    document = JsonParser().parse(text.encode(), source="a.jsonl")
    assert outline(document) == [("row", 0, '{"a": 1}'), ("row", 0, '{"b": "x\\n"}')]
    with pytest.raises(InputError, match=r"a\.jsonl: line 2 "):
        JsonParser().parse(b'{"a": 1}\n{"a": \n', source="a.jsonl")


def test_json_parts() -> None:
    text = ' {"a" : [1, {"b": 2}],\n "c": ' + "9" * 6000 + "}\n"
    assert outline(JsonParser().parse(text.encode(), source="a.json")) == [
        ("paragraph", 0, '"a" : [1, {"b": 2}]'),
        ("paragraph", 0, '"c": ' + "9" * 6000),
    ]
    rows = outline(JsonParser().parse(b'[1 , [2], {"x": "]"}]', source="a.json"))
    assert [piece for *_, piece in rows] == ["1", "[2]", '{"x": "]"}']
    assert outline(JsonParser().parse(b"[]", source="a.json")) == []


@pytest.mark.parametrize(
    ("data", "why"), [(b'{"a":\n}', "line 2 column 1"), (b"[" * 200_000, "nested too deeply|line 1")]
)
def test_json_must_be_valid(data: bytes, why: str) -> None:
    with pytest.raises(InputError, match=why):
        JsonParser().parse(data, source="a.json")


# -- office ----------------------------------------------------------------------------------------------------------


def test_docx_reads_what_python_docx_skips() -> None:
    import docx
    from docx.oxml import parse_xml
    from docx.oxml.ns import nsdecls

    document = docx.Document()
    document.add_heading("Head", level=2)
    body = document.element.body
    for xml in (
        "<w:p {ns}><w:ins><w:r><w:t>new</w:t></w:r></w:ins><w:del><w:r><w:delText>old</w:delText></w:r></w:del></w:p>",
        "<w:sdt {ns}><w:sdtContent><w:p><w:r><w:t>controlled</w:t></w:r></w:p></w:sdtContent></w:sdt>",
    ):
        body.insert(len(body) - 1, parse_xml(xml.format(ns=nsdecls("w"))))
    out = BytesIO()
    document.save(out)
    parsed = DocxParser().parse(out.getvalue(), source="a.docx")
    assert outline(parsed) == [("heading", 2, "Head"), ("paragraph", 0, "new"), ("paragraph", 0, "controlled")]
    assert parsed.title == "Head"


def test_xlsx_table() -> None:
    import datetime

    import openpyxl

    book = openpyxl.Workbook()
    book.active.title = "Limits"
    for row in (["City", "Since"], ["Oslo\nNorway", datetime.datetime(2020, 5, 1)], [], [None, True, 2.5]):
        book.active.append(row)
    out = BytesIO()
    book.save(out)
    assert outline(XlsxParser().parse(out.getvalue(), source="a.xlsx")) == [
        ("heading", 1, "Limits"),
        ("table", 0, "City | Since\nOslo Norway | 2020-05-01\n | True | 2.5"),
        ("row", 0, "City | Since"),
        ("row", 0, "Oslo Norway | 2020-05-01"),
        ("row", 0, " | True | 2.5"),
    ]


# -- pdf -------------------------------------------------------------------------------------------------------------


def pdf(draw: list[list[tuple[float, float, str]]], **options: object) -> bytes:
    """Pages of (size, y, text)."""
    from reportlab.pdfgen.canvas import Canvas

    out = BytesIO()
    canvas = Canvas(out, **options)
    for page in draw:
        for size, y, text in page:
            canvas.setFont("Helvetica", size)
            canvas.drawString(72, y, text)
        canvas.showPage()
    canvas.save()
    return out.getvalue()


def test_pdf_structure_and_pages() -> None:
    body = [(10.0, 700.0 - 12 * n, f"Line number {n} of the body.") for n in range(4)]
    later = [(10.0, 630.0, "A second paragraph."), (10.0, 618.0, "It ends here.")]
    data = pdf([[(20.0, 740.0, "The title"), *body, *later], [], [(10.0, 700.0, "Third page.")]])
    document = PdfParser().parse(data, source="a.pdf")
    kinds = [(kind, level, piece.split("\n")[0]) for kind, level, piece in outline(document)]
    assert kinds == [
        ("heading", 1, "The title"),
        ("paragraph", 0, "Line number 0 of the body."),
        ("paragraph", 0, "A second paragraph."),
        ("paragraph", 0, "Third page."),
    ]
    assert [page.number for page in document.pages] == [1, 3]
    assert document.page_at(document.text.index("It ends")) == 1
    assert document.page_at(document.text.index("Third")) == 3
    assert document.meta["pages"] == 3
    assert document.title == "The title"  # reportlab's own "untitled" is no title


def test_pdf_without_text_encrypted_or_broken() -> None:
    from reportlab.lib.pdfencrypt import StandardEncryption

    page = [(10.0, 700.0, "Secret")]
    with pytest.raises(InputError, match="no text layer"):
        PdfParser().parse(pdf([[]]), source="a.pdf")
    with pytest.raises(InputError, match="encrypted with a password"):
        PdfParser().parse(pdf([page], encrypt=StandardEncryption("user", "owner")), source="a.pdf")
    with pytest.raises(InputError, match=r"^a\.pdf: damaged, or no PDF"):
        PdfParser().parse(b"%PDF-1.7 nonsense", source="a.pdf")


def test_broken_words_are_mended() -> None:
    words = frozenset(("transaction",))
    assert join_hyphens("a Transac\ufffetion, non\ufffeexclusive \ufffe", words) == "a Transaction, non-exclusive -"


# -- the builder -----------------------------------------------------------------------------------------------------


def test_builder_spans_are_exact_and_safe() -> None:
    builder = TextBuilder(Limits())
    builder.add("Head", "heading", level=1)
    builder.add(" \n", "paragraph")
    builder.add("a\0b\ud800", "paragraph")
    builder.add_table([["x", "", " "], ["", ""], ["1\n2", "y"]])
    document = builder.document("d/e.x", meta={})
    assert outline(document)[1:] == [
        ("paragraph", 0, "a\ufffdb\ufffd"),
        ("table", 0, "x\n1 2 | y"),
        ("row", 0, "x"),
        ("row", 0, "1 2 | y"),
    ]
    assert document.title == "Head"
