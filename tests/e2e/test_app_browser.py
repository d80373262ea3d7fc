"""The app in a real browser: Playwright drives the installed Chromium; not one request leaves the machine."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from app.shots import ask, browser, go, missing, serving, settled
from rag import Index, Pipeline, PipelineConfig
from tests.e2e.conftest import CONFIG, FILES

lacks = missing()
pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(lacks), reason=lacks or "nothing is missing")]

QUESTION = "Who approves travel above 5,000 EUR?"
CITED = "Travel above 5,000 EUR is approved by the chief financial officer."
HOSTILE = (
    "The xylophone rule says <b>seven</b> <script>document.title='owned'</script> <img src=x onerror=alert(1)> "
    "![x](http://evil.example/x.png) a\u202egnp.exe."
)


@dataclass
class Opened:
    """A page, and what it did that it should not."""

    page: Any
    index: Path
    errors: list[str] = field(default_factory=list)
    hosts: set[str] = field(default_factory=set)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    folder = tmp_path_factory.mktemp("app")
    for name, text in FILES.items():
        path = folder / "docs" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8", newline="")
    (folder / "rag.yaml").write_text(CONFIG)
    Pipeline(PipelineConfig.from_yaml(folder / "rag.yaml")).index(folder / "docs", into=folder / "idx").close()
    with serving(folder / "idx", folder) as address:
        yield address, folder / "idx"


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with browser() as opened:
        yield opened


@pytest.fixture
def opened(served: tuple[str, Path], chromium: Any) -> Iterator[Opened]:
    """A fresh page; at the end there were no errors on the console and no requests to other hosts."""
    address, index = served
    page = chromium.new_page(viewport={"width": 1200, "height": 900})
    page.set_default_timeout(120_000)  # not a test of speed: a busy machine takes its time
    made = Opened(page, index)
    page.on("console", lambda told: made.errors.append(told.text) if told.type == "error" else None)
    page.on("pageerror", lambda error: made.errors.append(str(error)))
    page.on("request", lambda request: made.hosts.add(urlsplit(request.url).netloc))
    page.goto(address)
    page.get_by_test_id("stChatInputTextArea").wait_for(timeout=90_000)
    settled(page)
    yield made
    page.close()
    assert made.errors == []
    assert made.hosts - {""} == {urlsplit(address).netloc}


def test_a_citation_opens_exactly_the_cited_text(opened: Opened) -> None:
    page = opened.page
    ask(page, QUESTION)
    link = page.locator("a.cw-ref").first
    link.focus()  # by the keyboard
    page.keyboard.press("Enter")
    card = page.locator(".cw-card:target")
    card.wait_for()
    assert card.locator("mark").all_inner_texts() == [CITED]
    assert card.locator("mark").first.is_visible()
    with Index.open(opened.index) as index:
        run = index.store.runs(1)[0]
        cited = run["citations"][0]
        assert index.document(cited["doc_id"]).text[cited["start"] : cited["end"]] == CITED


def test_an_uploaded_file_is_found_and_its_markup_is_text(opened: Opened, tmp_path: Path) -> None:
    page = opened.page
    (tmp_path / "rules.txt").write_text(HOSTILE, encoding="utf-8")
    go(page, "Documents")
    page.locator("input[type=file]").set_input_files([str(tmp_path / "rules.txt")])
    page.get_by_role("button", name="Add to the index").click()
    page.get_by_test_id("uploaded").get_by_text("rules.txt").wait_for(timeout=90_000)
    settled(page)
    assert page.get_by_test_id("documents").get_by_text("rules.txt").first.is_visible()
    go(page, "Ask")
    ask(page, "What does the xylophone rule say?")
    shown = page.get_by_test_id("answer").first
    assert "<b>seven</b>" in shown.inner_text()
    assert shown.locator("b, img, script").count() == 0
    assert "owned" not in page.title()


def test_a_large_file_is_refused_before_it_is_read(opened: Opened, tmp_path: Path) -> None:
    page = opened.page
    with (tmp_path / "large.txt").open("wb") as large:
        large.truncate(100 << 20)
    go(page, "Documents")
    page.locator("input[type=file]").set_input_files([str(tmp_path / "large.txt")])
    page.get_by_text("File must be 50").first.wait_for(timeout=60_000)
    assert not list(opened.index.parent.glob("idx-files/uploads/large*"))


def test_the_budget_slider_changes_the_ledger(opened: Opened) -> None:
    page = opened.page
    ask(page, QUESTION)
    go(page, "Bubble")
    page.get_by_test_id("budget-bar").wait_for()
    settled(page)
    before = page.get_by_test_id("budget-bar").inner_text()
    page.get_by_role("slider", name="Token budget").focus()
    page.keyboard.press("Home")
    page.get_by_test_id("ledger-change").wait_for()
    settled(page)
    assert page.get_by_test_id("budget-bar").inner_text() != before


def test_two_pipelines_are_compared(opened: Opened) -> None:
    page = opened.page
    go(page, "Compare")
    page.get_by_label("Question").fill(QUESTION)
    page.keyboard.press("Enter")
    page.get_by_test_id("differences").wait_for(timeout=90_000)
    settled(page)
    assert "chief financial officer" in page.get_by_test_id("answer-A").inner_text()
    assert "chief financial officer" in page.get_by_test_id("answer-B").inner_text()
    assert page.get_by_test_id("differences").locator("tbody tr").count() == 7


def test_every_view_opens_on_a_phone_without_running_over(opened: Opened) -> None:
    page = opened.page
    ask(page, QUESTION)
    page.set_viewport_size({"width": 390, "height": 844})
    from app.shots import VIEWS

    for view in VIEWS:
        go(page, view)
        assert page.get_by_test_id("stException").count() == 0, view
        told = "document.querySelector('[data-testid=stMain]').scrollWidth"
        for _ in range(40):  # what is still being drawn may be wider for a moment
            if page.evaluate(told) <= 391:
                break
            page.wait_for_timeout(500)
        assert page.evaluate(told) <= 391, f"{view} is {page.evaluate(told)} pixels wide"
