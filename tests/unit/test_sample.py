"""The sample corpus: every file opens, every evidence stands where its question says, binaries can be rebuilt."""

from __future__ import annotations

import csv
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from rag.registry import catalogue, load
from rag.sample import Evidence, Question, documents_dir, questions
from rag.sample.make_binary import BINARY_FILES, build
from rag.types import Document

DOCUMENTS = sorted(path for path in documents_dir().iterdir() if path.is_file())
NAMES = [path.name for path in DOCUMENTS]
QUESTIONS = questions()
PROOFS = [(question, proof) for question in QUESTIONS for proof in question.all_evidence]
PROOF_IDS = [f"{question.query_id}-{proof.source}" for question, proof in PROOFS]


def flat(text: str) -> str:
    """White space and the bars between cells are not compared."""
    return " ".join(text.replace("|", " ").split())


def read_plain(path: Path) -> str:
    data = path.read_bytes()
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return data.decode("latin-1")


def read_html(path: Path) -> str:
    from selectolax.lexbor import LexborHTMLParser

    tree = LexborHTMLParser(path.read_text(encoding="utf-8"))
    return tree.css_first("main").text(separator=" ")


def pdf_pages(path: Path) -> list[str]:
    import pypdfium2

    with pypdfium2.PdfDocument(path) as document:
        return [page.get_textpage().get_text_range() for page in document]


def read_docx(path: Path) -> str:
    import docx
    from docx.table import Table

    lines = []
    for item in docx.Document(str(path)).iter_inner_content():
        if isinstance(item, Table):
            lines.extend(" | ".join(cell.text for cell in row.cells) for row in item.rows)
        else:
            lines.append(item.text)
    return "\n".join(lines)


def read_pptx(path: Path) -> str:
    from pptx import Presentation

    lines = []
    for slide in Presentation(str(path)).slides:
        for shape in slide.shapes:
            if shape.has_text_frame:
                lines.append(shape.text_frame.text)
            if shape.has_table:
                lines.extend(" | ".join(cell.text for cell in row.cells) for row in shape.table.rows)
        lines.append(slide.notes_slide.notes_text_frame.text)
    return "\n".join(lines)


def sheet_rows(path: Path) -> Iterator[tuple[str, tuple[Any, ...]]]:
    from openpyxl import load_workbook

    book = load_workbook(path, read_only=True)
    for sheet in book.worksheets:
        for row in sheet.iter_rows(values_only=True):
            yield sheet.title, row
    book.close()


def read_xlsx(path: Path) -> str:
    return "\n".join(" | ".join(str(cell) for cell in row if cell is not None) for _, row in sheet_rows(path))


READERS: dict[str, Callable[[Path], str]] = {
    ".md": read_plain,
    ".txt": read_plain,
    ".csv": read_plain,
    ".json": read_plain,
    ".jsonl": read_plain,
    ".html": read_html,
    ".pdf": lambda path: "\n".join(pdf_pages(path)),
    ".docx": read_docx,
    ".pptx": read_pptx,
    ".xlsx": read_xlsx,
}


def read(path: Path) -> str:
    return READERS[path.suffix](path)


@cache
def parsed(name: str) -> Document:
    """The document as the project's own parser gives it."""
    path = documents_dir() / name
    for plugin in catalogue("parser"):
        parser = load("parser", plugin)
        if path.suffix in parser.suffixes:
            document = parser().parse(path.read_bytes(), source=name)
            assert isinstance(document, Document)
            return document
    raise AssertionError(f"no parser reads {path.suffix}")


def test_every_format_has_a_document() -> None:
    assert {path.suffix for path in DOCUMENTS} == set(READERS)
    assert 20 <= len(DOCUMENTS) <= 26
    assert set(BINARY_FILES) == {name for name in NAMES if name.endswith((".pdf", ".docx", ".pptx", ".xlsx"))}


def test_sizes() -> None:
    texts = {path.name: len(read(path)) for path in DOCUMENTS}
    assert all(500 <= size <= 25_000 for size in texts.values()), texts
    assert 60_000 <= sum(texts.values()) <= 120_000, sum(texts.values())
    assert sum(path.stat().st_size for path in DOCUMENTS) < 600_000


@pytest.mark.parametrize("name", NAMES)
def test_a_paragraph_stands_once(name: str) -> None:
    """No padding by repetition. Two contracts may share a clause, one document may not."""
    counts = Counter(flat(line) for line in read(documents_dir() / name).splitlines() if len(line) > 60)
    assert [line for line, count in counts.items() if count > 1] == []


def test_the_german_page_is_latin_1() -> None:
    data = (documents_dir() / "betriebsregelung-regensburg.txt").read_bytes()
    with pytest.raises(UnicodeDecodeError):
        data.decode("utf-8")
    assert "Gültig ab 1. April 2025" in parsed("betriebsregelung-regensburg.txt").text


@pytest.mark.parametrize("name", ["customer-faq.html", "manual-ab-balances.html"])
def test_html_navigation_is_not_content(name: str) -> None:
    raw = (documents_dir() / name).read_text(encoding="utf-8")
    text = parsed(name).text
    for link in re.findall(r"<nav.*?</nav>", raw, re.DOTALL):
        words = [flat(word) for word in re.findall(r">([^<>]+)<", link) if word.strip()]
        assert words
        assert flat(" ".join(words)) not in flat(text)
    assert "Careers" not in text
    assert "manualVersion" not in text


def test_the_records_are_complete() -> None:
    with (documents_dir() / "inventory.csv").open(encoding="utf-8", newline="") as lines:
        rows = list(csv.DictReader(lines))
    assert len(rows) > 30
    assert all(None not in row and None not in row.values() for row in rows)
    assert len({row["sku"] for row in rows}) == len(rows)
    assert all(int(row["reserved"]) <= int(row["on_hand"]) for row in rows)
    tickets = [json.loads(line) for line in read_plain(documents_dir() / "support-tickets.jsonl").splitlines()]
    assert len({ticket["ticket"] for ticket in tickets}) == len(tickets) > 10
    assert len({tuple(ticket) for ticket in tickets}) == 1


def test_parts_have_one_cost_and_articles_one_price() -> None:
    """The weigh cell costs in the inventory what the amendment says; two lists name the same articles."""
    with (documents_dir() / "inventory.csv").open(encoding="utf-8", newline="") as lines:
        cost = {row["sku"]: float(row["unit_cost_eur"]) for row in csv.DictReader(lines)}
    assert (cost["KV-WC-220"], cost["KV-WC-125"]) == (191.20, 241.60)
    price = {row[0]: row[2] for _, row in sheet_rows(documents_dir() / "price-list-2025.xlsx") if len(row) > 2}
    shared = [sku for sku in cost if isinstance(price.get(sku), int)]
    assert len(shared) > 12
    assert [sku for sku in shared if not cost[sku] < price[sku]] == []


def test_the_tables_of_the_report_add_up() -> None:
    text = flat(read(documents_dir() / "quarterly-report-2025-q2.pdf"))
    table = text[text.index("Segment Q2 2025") : text.index("Balances grew through")]
    rows = [
        (int(now.replace(",", "")), int(then.replace(",", "")))
        for now, then in re.findall(r"([\d,]+) ([\d,]+) \+", table)
    ]
    *segments, total = rows
    assert total == (sum(now for now, _ in segments), sum(then for _, then in segments)) == (12000, 10920)


def test_questions_are_well_formed() -> None:
    assert len({question.query_id for question in QUESTIONS}) == len(QUESTIONS)
    assert len({question.text for question in QUESTIONS}) == len(QUESTIONS)
    kinds = Counter(question.type for question in QUESTIONS)
    assert set(kinds) == {"single", "multi", "table", "superseded", "unanswerable"}
    assert kinds["unanswerable"] >= 6
    assert min(kinds.values()) >= 4
    for question in QUESTIONS:
        answerable = question.type != "unanswerable"
        assert bool(question.answers) == bool(question.evidence) == bool(question.source) == answerable, question
        assert all(len(answer) >= 3 for answer in question.answers), "a shorter one would match a citation mark"
        assert question.type != "multi" or len({proof.source for proof in question.all_evidence}) > 1, question
        assert all(proof.source in NAMES for proof in question.all_evidence), question


def test_most_documents_are_asked_about() -> None:
    used = {proof.source for _, proof in PROOFS}
    assert len(used) >= 15


@pytest.mark.parametrize(("question", "proof"), PROOFS, ids=PROOF_IDS)
def test_evidence_stands_in_its_source(question: Question, proof: Evidence) -> None:
    path = documents_dir() / proof.source
    assert flat(proof.text) in flat(read(path))
    if path.suffix == ".pdf":
        assert proof.page is not None
        assert flat(proof.text) in flat(pdf_pages(path)[proof.page - 1])


@pytest.mark.parametrize(("question", "proof"), PROOFS, ids=PROOF_IDS)
def test_evidence_stands_in_the_parsed_text(question: Question, proof: Evidence) -> None:
    document = parsed(proof.source)
    if Path(proof.source).suffix not in {".pdf", ".docx", ".pptx", ".xlsx"}:
        assert proof.text in document.text
    assert flat(proof.text) in flat(document.text)


def test_binaries_are_rebuilt_with_the_same_text(tmp_path: Path) -> None:
    for path in build(tmp_path / "first"):
        assert flat(read(path)) == flat(read(documents_dir() / path.name)), path.name


def test_two_builds_give_the_same_bytes(tmp_path: Path) -> None:
    for first, second in zip(build(tmp_path / "first"), build(tmp_path / "second"), strict=True):
        assert first.read_bytes() == second.read_bytes(), first.name


def test_the_pdf_has_several_pages_and_the_deck_has_notes() -> None:
    from pptx import Presentation

    assert len(pdf_pages(documents_dir() / "korvane-supply-agreement.pdf")) >= 4
    slides = Presentation(str(documents_dir() / "board-meeting-2025-09.pptx")).slides
    assert len(slides) == 6
    assert all(len(slide.notes_slide.notes_text_frame.text) > 100 for slide in slides)
