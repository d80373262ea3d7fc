"""Real and hostile files: each one ends in a document or in a typed error, and leaves nothing behind."""

from __future__ import annotations

import os
import re
import sys
import time
from collections import Counter
from pathlib import Path
from statistics import median

import pytest

from rag.errors import InputError
from rag.files import find_files, read_file
from rag.limits import Limits
from rag.parsers._choose import parser_for
from rag.parsers._sandbox import ParserPool
from rag.types import Document
from tests.contracts.test_parser import check_laws

pytestmark = pytest.mark.data

Outcome = Document | InputError


@pytest.fixture(scope="module")
def outcomes(data_dir: Path) -> dict[Path, Outcome]:
    root = data_dir / "real_files"
    if not root.is_dir():
        pytest.skip(f"no real files at {root}")
    results: dict[Path, Outcome] = {}
    with ParserPool() as pool:
        for path in sorted(path for path in root.glob("*/**/*") if path.is_file()):
            parser = parser_for(path.suffix)
            if parser is None:
                continue
            try:
                results[path] = pool.parse(parser, path.read_bytes(), path.relative_to(root).as_posix())
            except InputError as error:
                results[path] = error
        print(f"\nworker starts: {pool.starts}, peak of the worker: {pool.peak_bytes / 1e6:.0f} MB")
    return results


def test_every_file_ends_well(outcomes: dict[Path, Outcome]) -> None:
    good: Counter[str] = Counter()
    bad: Counter[str] = Counter()
    for path, outcome in outcomes.items():
        if isinstance(outcome, Document):
            check_laws(outcome, loose_rows=path.suffix in (".json", ".jsonl"))
            good[path.suffix] += 1
        else:
            assert outcome.exit_code == 4
            bad[f"{path.suffix}: {re.sub('[0-9]+', 'N', str(outcome).partition(': ')[2])}"] += 1
    print("\nread:", dict(good), "\nrefused:", *(f"\n  {count:3} {why}" for why, count in bad.most_common()))
    assert not [
        p
        for p, o in outcomes.items()
        if isinstance(o, InputError)
        and "malformed" not in str(p)
        and p.suffix == ".pdf"
        and "no text layer" not in str(o)
    ]
    assert sum(good.values()) >= 370


def test_pdf_words_match_the_reference(outcomes: dict[Path, Outcome]) -> None:
    recalls = []
    for path, outcome in outcomes.items():
        if path.parent.name == "cuad_pdf" and path.suffix == ".pdf":
            assert isinstance(outcome, Document)
            wanted = _words(path.with_suffix(".txt").read_text("utf-8"))
            recalls.append(sum((wanted & _words(outcome.text)).values()) / sum(wanted.values()))
    print(f"\nword recall over {len(recalls)} contracts: median {median(recalls):.4f}, least {min(recalls):.4f}")
    assert median(recalls) >= 0.95


LIMITS = Limits(max_seconds=30, max_address_bytes=1_500_000_000)


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="counts descriptors and children through /proc")
def test_hostile_files_one_by_one(data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every file in a worker of its own, so that its own time and memory are known; nothing is left over."""
    roots = [*sorted((data_dir / "real_files").glob("malformed*")), data_dir / "real_files" / "docling"]
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    listing = find_files(roots, limits=LIMITS)
    assert len(listing.files) > 100
    before, others = _descriptors(), _children()  # another test's server may be a child of this process
    parsed, reasons, seconds, memory = 0, Counter[str](), dict[str, float](), dict[str, int]()
    for found in listing.files:
        started = time.monotonic()
        with ParserPool(LIMITS) as pool:
            try:
                check_laws(pool.parse_isolated(found.parser, read_file(found, LIMITS), found.source), loose_rows=True)
                parsed += 1
            except InputError as error:
                reasons[re.sub("[0-9]+", "N", str(error).removeprefix(f"{found.source}: "))] += 1
            memory[found.source] = pool.peak_bytes
        seconds[found.source] = time.monotonic() - started
    assert parsed + reasons.total() == len(listing.files)
    assert not any("crashed the reader" in reason for reason in reasons)
    assert max(seconds.values()) < LIMITS.max_seconds + 5
    assert max(memory.values()) <= LIMITS.max_address_bytes
    assert _descriptors() == before
    assert _children() <= others
    assert list(tmp_path.iterdir()) == []
    slow, large = max(seconds, key=lambda name: seconds[name]), max(memory, key=lambda name: memory[name])
    print(f"\n{len(listing.files)} files, {parsed} parsed, {reasons.total()} refused:")
    print(*(f"  {count:3} {why}" for why, count in reasons.most_common()), sep="\n")
    print(f"longest {seconds[slow]:.2f} s ({slow}), largest {memory[large] / 1e6:.0f} MB ({large})")


def _descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def _children() -> set[str]:
    return set(Path(f"/proc/self/task/{os.getpid()}/children").read_text().split())


def _words(text: str) -> Counter[str]:
    return Counter(re.findall(r"\w+", text.casefold()))
