"""What one input file may cost. Beyond these numbers a file is refused with a reason, never cut silently."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from rag.errors import ConfigError

__all__ = ["Limits"]

_SPLIT, _SLIM = "split the file", "save a copy without what is no text"
_MEANING = {
    "max_file_bytes": ("bytes", _SPLIT),
    "max_characters": ("characters of text", _SPLIT),
    "max_pages": ("pages", _SPLIT),
    "max_blocks": ("paragraphs, rows and headings", _SPLIT),
    "max_cells": ("cells", _SPLIT),
    "max_html_depth": ("elements open at once", "flatten the page"),
    "max_archive_members": ("parts in the archive", _SLIM),
    "max_archive_bytes": ("bytes when unpacked", _SLIM),
    "max_archive_ratio": ("times its packed size", _SLIM),
    "max_seconds": ("seconds of reading", _SPLIT),
    "max_address_bytes": ("bytes of memory", _SPLIT),
}
"""Limit -> (what it counts, what else would help)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Limits per input file; all are positive.

    `max_seconds` and `max_address_bytes` hold in the child process that reads every format whose reader may crash or
    hang, and every large file. There is no limit on image pixels and none on archives inside archives, since nothing
    here ever decodes an image or unpacks an archive that lies in another: they cost their bytes, and no more.
    """

    max_file_bytes: int = 100_000_000
    max_characters: int = 50_000_000
    max_pages: int = 5_000
    max_blocks: int = 1_000_000
    max_cells: int = 1_000_000
    max_html_depth: int = 5_000
    """Open elements. Building the tree takes time quadratic in this: 0.02 s at 5,000, 16 s at twenty times it."""
    max_archive_members: int = 10_000
    max_archive_bytes: int = 1_000_000_000
    max_archive_ratio: int = 100
    ratio_free_bytes: int = 10_000_000
    """Archive members that unpack to no more than this may be packed as tightly as they like."""
    max_seconds: float = 60.0
    max_address_bytes: int = 2_000_000_000

    def __post_init__(self) -> None:
        for field in fields(self):
            value, whole = getattr(self, field.name), field.name != "max_seconds"
            if isinstance(value, bool) or not isinstance(value, int if whole else int | float) or not value > 0:
                kind = "a whole number" if whole else "a number"
                raise ConfigError(f"limits: {field.name} must be {kind} > 0, not {value!r}")
        if self.max_address_bytes < 100_000_000:
            raise ConfigError(f"limits: max_address_bytes must be >= 100,000,000, not {self.max_address_bytes:,}")
        if not self.max_seconds <= 1_000_000:
            raise ConfigError(f"limits: max_seconds must be <= 1,000,000, not {self.max_seconds!r}")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], *, where: str = "limits") -> Limits:
        """The defaults with some values replaced; ConfigError names an unknown limit and the nearest known one."""
        known = [field.name for field in fields(cls)]
        for name in values:
            if name not in known:
                near = difflib.get_close_matches(str(name), known, n=1, cutoff=0.5)
                hint = f" (did you mean {near[0]!r}?)" if near else ""
                raise ConfigError(f"{where}: unknown limit {name!r}{hint}; limits: {', '.join(known)}")
        return cls(**values)

    def to_dict(self) -> dict[str, int | float]:
        """Plain values, in the order above."""
        return asdict(self)

    def over(self, name: str, found: float | None = None) -> str:
        """Why a file is refused: what was found (None: more than allowed, not counted further), the limit, a cure."""
        unit, advice = _MEANING[name]
        limit = f"limits.{name} = {getattr(self, name):,}"
        counted = f"more {unit} than {limit}" if found is None else f"{found:,.0f} {unit}, over {limit}"
        return f"{counted}; {advice}, or raise that limit"
