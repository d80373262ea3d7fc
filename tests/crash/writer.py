"""The victim of the kill tests: commits entries in a loop and acknowledges each one on standard output.

Run as `python -m tests.crash.writer DIRECTORY FIRST`. Entry n is new for even n; for odd n it replaces the entry
before it, and every seventh commit also removes an older one.
"""

from __future__ import annotations

import sys
from pathlib import Path

from rag.store import Entry, Store
from tests.crash.entries import FINGERPRINT, make_entry


def entry_at(number: int) -> Entry:
    text = f"entry {number} has its own words word{number} and others. " * (5 + number % 11)
    return make_entry(text, f"{number - number % 2}.md", title=f"Entry {number}", meta={"number": number})


def removed_at(number: int) -> list[str]:
    return [f"/docs/{number - 8 - number % 2}.md"] if number % 7 == 0 and number >= 8 else []


def model(acknowledged: int) -> dict[str, str]:
    """Origin -> document id after the commits 0 .. acknowledged - 1."""
    held: dict[str, str] = {}
    for number in range(acknowledged):
        for origin in removed_at(number):
            held.pop(origin, None)
        entry = entry_at(number)
        held[entry.file.origin] = entry.document.id
    return held


def main(directory: Path, first: int) -> None:
    with Store.create_or_open(directory, wait_seconds=30) as store:
        if not store.manifest():
            store.set_manifest({"fingerprint": FINGERPRINT})
        for number in range(first, first + 2000):
            store.commit(entries=[entry_at(number)], removed=removed_at(number))
            if number % 5 == 0:
                with store.corpus() as corpus:
                    corpus.publish("rows", lambda path, corpus=corpus: path.write_bytes(corpus.rows().tobytes()))
            print(number, flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
