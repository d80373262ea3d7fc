"""Reports on disk: JSON for programs, Markdown for people, and the tables in it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

__all__ = ["cell", "table", "write_report"]


def table(header: Sequence[str], rows: Iterable[Sequence[Any]], places: int = 2) -> str:
    """Columns flush right but the first; numbers below 10 have `places` decimals, larger ones one."""
    lines = ["| " + " | ".join(header) + " |", "|---" + "|---:" * (len(header) - 1) + "|"]
    return "\n".join([*lines, *("| " + " | ".join(cell(value, places) for value in row) + " |" for row in rows)])


def cell(value: Any, places: int = 2) -> str:
    """One value; a hyphen for None."""
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.{places}f}" if abs(value) < 10 else f"{value:.1f}"
    return str(value).replace("|", "\\|")


def write_report(folder: Path, name: str, report: Mapping[str, Any], text: str) -> None:
    """`name`.json and `name`.md in `folder`, which is made when it is not there."""
    folder.mkdir(parents=True, exist_ok=True)
    data = json.dumps(report, indent=1, ensure_ascii=False) + "\n"
    (folder / f"{name}.json").write_text(data, encoding="utf-8")
    (folder / f"{name}.md").write_text(text, encoding="utf-8")
