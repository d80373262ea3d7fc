"""Regenerates the PDF, DOCX, PPTX and XLSX files of the sample corpus from `rag/sample/content/`.

Run `python -m rag.sample.make_binary [DIRECTORY]`; without a directory the committed files are replaced.
Needs the extras `office` and `dev` (reportlab). With the same library versions the bytes are the same.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from rag.sample._markdown import read_parts
from rag.sample._office import docx_bytes, pptx_bytes, xlsx_bytes
from rag.sample._pdf import pdf_bytes

__all__ = ["BINARY_FILES", "build", "main"]

BINARY_FILES = (
    "board-meeting-2025-09.pptx",
    "korvane-supply-agreement.pdf",
    "price-list-2025.xlsx",
    "quarterly-report-2025-q2.pdf",
    "supplier-audit-korvane-2025.docx",
    "travel-expense-policy.docx",
)
"""The generated documents; each has its content in `content/` under the same stem."""


def build(directory: Path) -> list[Path]:
    """Write every binary document into `directory` and return the paths."""
    directory.mkdir(parents=True, exist_ok=True)
    paths = []
    for name in BINARY_FILES:
        path = directory / name
        path.write_bytes(_render(name))
        paths.append(path)
    return paths


def _render(name: str) -> bytes:
    stem, _, suffix = name.rpartition(".")
    if suffix == "pdf":
        return pdf_bytes(read_parts(_content(f"{stem}.md")))
    if suffix == "docx":
        return docx_bytes(read_parts(_content(f"{stem}.md")))
    data: dict[str, Any] = yaml.safe_load(_content(f"{stem}.yaml"))
    return pptx_bytes(data) if suffix == "pptx" else xlsx_bytes(data)


def _content(name: str) -> str:
    return (Path(__file__).parent / "content" / name).read_text(encoding="utf-8")


def main(arguments: Sequence[str]) -> None:
    """Build into the given directory, or in place."""
    here = Path(__file__).parent / "documents"
    for path in build(Path(arguments[0]) if arguments else here):
        print(f"{path.stat().st_size:>8} {path}", file=sys.stderr)


if __name__ == "__main__":
    main(sys.argv[1:])
