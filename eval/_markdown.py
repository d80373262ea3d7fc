"""Tables of reports in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

__all__ = ["cell", "table"]


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
