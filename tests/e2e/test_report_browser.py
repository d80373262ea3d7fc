"""The report in a real browser: nothing in the console, nothing fetched, nothing wider than the window."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("jinja2", reason="the report needs jinja2: pip install 'chunkwise[eval]'")
pytest.importorskip("matplotlib", reason="the report needs matplotlib: pip install 'chunkwise[eval]'")
pytest.importorskip("playwright.sync_api", reason="no playwright: pip install playwright")

from eval.report import write_html
from tests.eval_results import FAILURES, HOSTILE, results

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on the path")
_OVERFLOW = "document.documentElement.scrollWidth - document.documentElement.clientWidth"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    arguments = ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        found = driver.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield found
        found.close()


@pytest.fixture(scope="module", params=["", HOSTILE], ids=["plain", "hostile"])
def report(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("report") / "report.html"
    write_html(results(request.param), path)
    return path


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1200])
def test_it_opens_quietly_and_fits(browser: Any, report: Path, width: int, scheme: str) -> None:
    said, asked = [], []
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("dialog", lambda dialog: said.append(dialog.message))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(report.as_uri())
    assert page.evaluate(_OVERFLOW) == 0
    page.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
    assert page.evaluate(_OVERFLOW) == 0
    assert said == []
    assert asked == [report.as_uri()]
    paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert paper == ("rgb(255, 255, 255)" if scheme == "light" else "rgb(20, 23, 27)")
    page.close()


def test_filters_work_without_script(browser: Any, report: Path) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(report.as_uri())
    shown = page.locator(".q:visible")
    assert shown.count() == 4 * len(FAILURES)
    page.locator("#set-1").check()
    assert shown.count() == 2 * len(FAILURES)
    page.locator("#config-0").check()
    assert shown.count() == len(FAILURES)
    page.locator("#class-failing").check()
    assert shown.count() == sum(kind is not None for kind in FAILURES)
    page.locator("#class-compress").check()
    assert shown.count() == 1
    page.locator("#class-none").check()
    assert shown.count() == sum(kind is None for kind in FAILURES)
    context.close()


def test_a_question_opens_with_the_keyboard(browser: Any, report: Path) -> None:
    page = browser.new_page()
    page.goto(report.as_uri())
    page.locator("#class-all").focus()
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    assert page.evaluate("document.querySelector('.q').open")
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") != "none"
    page.close()


def _contrast(page: Any, selector: str) -> float:
    """WCAG contrast of an element's text against the first background behind it."""
    script = """(selector) => {
      const light = (c) => c.map(v => (v /= 255) <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
        .reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0);
      const parts = (text) => text.match(/[\\d.]+/g).map(Number);
      const one = document.querySelector(selector);
      let behind = one, found = [0, 0, 0, 0];
      while (behind && found[3] === 0) {
        found = parts(getComputedStyle(behind).backgroundColor); if (found.length === 3) found.push(1);
        behind = behind.parentElement;
      }
      const [a, b] = [light(parts(getComputedStyle(one).color).slice(0, 3)), light(found.slice(0, 3))]
        .sort((x, y) => y - x);
      return (a + .05) / (b + .05);
    }"""
    return float(page.evaluate(script, selector))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_contrast(browser: Any, report: Path, scheme: str) -> None:
    page = browser.new_page(color_scheme=scheme)
    page.goto(report.as_uri())
    page.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
    chosen = [
        "p.note", "nav a", ".legend .s0", ".legend .s1", "td small", ".beats", ".proxy", ".chip", ".is-none .chip",
        "mark.gold", "del", ".error", ".ev b", ".where", "dt",
    ]  # fmt: skip
    found = {selector: _contrast(page, selector) for selector in chosen}
    assert not {selector: ratio for selector, ratio in found.items() if ratio < 4.5}
    page.close()
