"""Pictures of the app for README, and the server and browser that its tests drive.

    python -m app.shots docs/images            # the three that README shows
    python -m app.shots OUT --all              # every view, 1200 and 390 pixels wide, light and dark

Playwright (`pip install playwright`) drives a Chromium that is installed already; nothing is downloaded.
"""

from __future__ import annotations

import argparse
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection, HTTPException
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

__all__ = ["ask", "browser", "go", "missing", "serving", "settled"]

CHROMIUM = os.environ.get("CHROMIUM", "/usr/bin/chromium")
QUESTION = "Who approves travel above 5,000 EUR?"
VIEWS = ("Ask", "Documents", "Chunk lens", "Trace", "Bubble", "Compression", "KV and attention", "Compare", "Reports")
README = ("Ask", "Chunk lens", "Bubble")
_COLOURS = 96
NARROW = 768
_TRIES = 20


def missing() -> str:
    """What a browser test lacks here; "" when nothing."""
    for name in ("streamlit", "playwright"):
        if find_spec(name) is None:
            return f"{name} is not installed (pip install {name})"
    return "" if Path(CHROMIUM).exists() else f"{CHROMIUM} is missing (apt-get install chromium, or set CHROMIUM)"


@contextmanager
def serving(index: Path, cwd: Path | None = None, seconds: float = 60.0) -> Iterator[str]:
    """`rag ui` on a free port of the loopback; the address. It ends with the block."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "rag", "ui", "--index", str(index), "--port", str(port), "--headless"]
    server = subprocess.Popen(command, cwd=cwd, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _wait(f"http://127.0.0.1:{port}/_stcore/health", server, seconds)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        try:
            server.wait(10)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def _wait(address: str, server: subprocess.Popen[bytes], seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end and server.poll() is None:
        try:
            answered = HTTPConnection(urlsplit(address).netloc, timeout=2)
            answered.request("GET", urlsplit(address).path or "/")
            answered.getresponse().close()
            return
        except (HTTPException, OSError):
            time.sleep(0.2)
    raise RuntimeError(f"the app did not start within {seconds:.0f} s (exit code {server.poll()})")


@contextmanager
def browser() -> Iterator[Browser]:
    """The installed Chromium, without a window."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        opened = driver.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-dev-shm-usage", "--force-color-profile=srgb"]
        )
        try:
            yield opened
        finally:
            opened.close()


def settled(page: Page) -> None:
    """Waits until no script run is under way, and none follows at once."""
    quiet = page.locator('[data-testid="stApp"][data-test-script-state="notRunning"]')
    for _ in range(_TRIES):
        quiet.wait_for(timeout=90_000)
        page.wait_for_timeout(400)
        if quiet.count():
            return


def go(page: Page, title: str) -> None:
    """Opens a view by its link, the sidebar too where the page is narrow."""
    from playwright.sync_api import TimeoutError as TooLate

    link = page.get_by_role("link", name=title, exact=True)
    for _ in range(_TRIES):
        box = link.bounding_box() if link.count() else None
        try:
            if box is None or box["x"] < 0:
                page.get_by_test_id("stExpandSidebarButton").click(timeout=10_000)
            link.click(timeout=10_000)
            break
        except TooLate:  # the sidebar slid away, or in, meanwhile
            continue
    put_away = page.get_by_test_id("stSidebarCollapseButton").locator("button")
    if _width(page) < NARROW and put_away.count():  # it lies over the page
        put_away.first.click()
    page.get_by_role("heading", name=title, exact=True, level=1).wait_for(timeout=60_000)
    settled(page)


def _width(page: Page) -> int:
    size = page.viewport_size
    return size["width"] if size else 1200


def ask(page: Page, question: str) -> None:
    """Asks in the view Ask, and waits for the run to be drawn."""
    page.get_by_test_id("stChatInputTextArea").fill(question)
    page.keyboard.press("Enter")
    page.get_by_test_id("question").filter(has_text=question).first.wait_for(timeout=90_000)
    settled(page)


def _shoot(page: Page, out: Path, name: str, *, whole: bool) -> None:
    path = out / f"{name.lower().replace(' ', '-')}.png"
    if whole:
        height = page.evaluate("document.querySelector('[data-testid=stMainBlockContainer]').scrollHeight")
        page.set_viewport_size({"width": _width(page), "height": min(3000, max(700, height + 80))})
        page.wait_for_timeout(500)
    page.screenshot(path=str(path))
    _shrink(path)


def _shrink(path: Path) -> None:
    from PIL import Image

    with Image.open(path) as picture:
        picture.convert("RGB").quantize(_COLOURS).save(path, optimize=True)


def _all(opened: Browser, address: str, out: Path) -> None:
    for mode in ("light", "dark"):
        for width in (1200, 390):
            page: Any = opened.new_page(viewport={"width": width, "height": 900}, color_scheme=mode)
            page.goto(address)
            ask(page, QUESTION)
            for view in VIEWS:
                page.set_viewport_size({"width": width, "height": 900})
                go(page, view)
                _shoot(page, out, f"{view}-{mode}-{width}", whole=True)
            page.close()


def main() -> None:
    """Takes the pictures on an index of the sample documents."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder of the pictures")
    parser.add_argument("--all", action="store_true", help="every view, two widths, light and dark")
    options = parser.parse_args()
    if lacks := missing():
        raise SystemExit(lacks)
    options.out.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory() as folder,
        serving(Path("sample-index"), Path(folder)) as address,
        browser() as opened,
    ):
        if options.all:
            _all(opened, address, options.out)
            return
        page = opened.new_page(viewport={"width": 1200, "height": 760}, color_scheme="light")
        page.goto(address)
        ask(page, QUESTION)
        for view in README:
            go(page, view)
            _shoot(page, options.out, f"app {view}", whole=False)


if __name__ == "__main__":
    main()
